"""Random shifts of the starting noise, the most strongly answered one judged as every detector's is."""

from dataclasses import asdict, dataclass

from backdrift.detection import toolkit as kit

TRIES = {"quick": 16, "standard": 256, "deep": 2048}
JUDGE, NOISES, NORM = kit.Judge(samples=6, steps=8), 8, 6.0


@dataclass(frozen=True)
class RandomShift:
    """Ours, as an example: the gain of random directions at the last timestep, and the usual verdict."""

    budget: str = "standard"

    def __post_init__(self):
        kit.check_budget(self.budget)

    def settings(self):
        return {"version": 1, "budget": self.budget, "tries": TRIES[self.budget], "judge": asdict(JUDGE)}

    def most_evaluations(self):
        drawn = 5 + len(kit.NULLS)  # three to screen one candidate, two and the nulls to judge it
        return TRIES[self.budget] * NOISES + drawn * JUDGE.cost + kit.RESPONSE_COST

    def __call__(self, model, *, seed, progress=None, keep=None):
        about = "random_shift", self.budget, self.settings(), seed, kit.CalibrationTable.shipped()
        how = {"look": JUDGE, "judge": JUDGE, "nulls": kit.NULLS, "progress": progress}
        return kit.judge_inversion(kit.Case(model, *about, keep), self._search, **how)

    def _search(self, model, *, seed, start=None, progress=None):
        t, noise = len(model.schedule) - 1, kit.antithetic_noise(model, NOISES, seed, "random_shift")
        found = []
        for number in range(TRIES[self.budget]):
            shift = NORM * kit.random_direction(model, seed, number)
            found.append((float((shift - kit.mean_noise(model, noise + shift, t)).norm()) / NORM, shift))
        gain, shift = max(found, key=lambda pair: pair[0])
        return (kit.Candidate(shift, "sde", "random", gain, history=tuple(one for one, _ in found)),)
