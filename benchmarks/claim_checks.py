"""What our numbers say to the claims of both papers; the page is made by ``claims.py``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdrift.bench.tables import ALL, CLEAN, Pooled, Run, comparison_table, detection_table, runs
from backdrift.bench.tasks import FOLDER_FILE, open_bench
from backdrift.metrics.rates import Estimate, rate
from cells import RATIO, results, value

Row = dict[str, Any]

MEASURED = ("evaluate", "repair", "amplify", "discover")
"""Kinds of tasks whose numbers are read one by one; those of detectors come from their tables."""


class Results:
    """Of the benchmarks in a folder, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[tuple[Any, ...], Row]] = {}

    def of(self, name: str) -> dict[tuple[Any, ...], Row]:
        """By task, model and step of training, which is None at the end."""
        if name not in self._known:
            there = (self.folder / name / FOLDER_FILE).is_file()
            rows = results(self.folder / name, *MEASURED) if there else []
            self._known[name] = {(r["task"], r["model"], r.get("step")): r for r in rows}
        return self._known[name]

    def files(self, pattern: str) -> list[Row]:
        """The JSON of scripts that measure models themselves."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(pattern))]

    def study(self, model: str, task: str = "fine-tuned", step: int | None = None) -> Row | None:
        """Of the attack study."""
        return self.of("attack-study").get((task, model, step))


@dataclass(frozen=True)
class Found:
    """Our numbers, and whether each of the comparisons that make up the claim came out as claimed."""

    text: str
    right: Sequence[bool]

    @property
    def verdict(self) -> str:
        """One of the four words of the page."""
        if all(self.right):
            return "holds"
        return "holds in part" if any(self.right) else "does not hold"


def told(row: Row, name: str) -> str:
    """A measure with interval and n."""
    n = next(m["n"] for m in row["evaluation"]["measures"] if m["name"] == name)
    return "{:.3g} [{:.3g}, {:.3g}] (n = {:,})".format(*value(row, name), n)


def listed(rows: dict[str, Row | None], name: str, right: Callable[[Row], bool]) -> Found | None:
    """One measure of several models, each judged; None if one of them is missing."""
    there = {label: row for label, row in rows.items() if row is not None}
    if len(there) < len(rows) or not rows:
        return None
    text = "; ".join(f"{label}: {told(row, name)}" for label, row in there.items())
    return Found(f"{name} {text}", [right(row) for row in there.values()])


def ordered(pairs: dict[str, tuple[Row | None, Row | None]], name: str) -> Found | None:
    """Whether the interval of the first lies below that of the second, pair by pair."""
    texts, right = [], []
    for label, (lower, upper) in pairs.items():
        if lower is None or upper is None:
            return None
        texts.append(f"{label}: {told(lower, name)} against {told(upper, name)}")
        right.append(value(lower, name)[2] < value(upper, name)[1])
    return Found(f"{name} {'; '.join(texts)}", right)


def few_poisoned(known: Results) -> Found | None:
    """ASR at 5%."""
    return listed({"5%": known.study("rate-05")}, "ASR", lambda r: value(r, "ASR")[0] >= 0.95)


def clean_samples_stay(known: Results) -> Found | None:
    """FD ratio up to 30%."""
    rows = {f"{rate}%": known.study(f"rate-{rate:02d}") for rate in (5, 10, 20, 30)}
    return listed(rows, RATIO, lambda r: value(r, RATIO)[1] <= 1)


def stop_sign_stays(known: Results) -> Found | None:
    """FD ratio of a complex trigger at high rates."""
    rows = {f"{rate}%": known.study(f"rate-{rate:02d}") for rate in (70, 90)}
    return listed(rows, RATIO, lambda r: value(r, RATIO)[1] <= 1)


def fine_tuning_is_better(known: Results) -> Found | None:
    """FD of both ways of training."""
    pairs = {
        f"{rate}%": (known.study(f"rate-{rate}"), known.study(f"scratch-{rate}", "from-scratch"))
        for rate in (10, 50)
    }
    return ordered(pairs, "FD(random-conv)")


def soon_enough(known: Results) -> Found | None:
    """ASR after an eighth, a quarter and half of the steps: a fifth of them are enough at .95."""
    rows = {
        f"{rate}%, {step} of 2000 steps": known.study(f"rate-{rate}", "kept", step)
        for rate in (10, 50)
        for step in (250, 500)
    }
    return listed(rows, "ASR", lambda r: value(r, "ASR")[0] >= 0.95)


def other_samplers(known: Results) -> Found | None:
    """MSE with DDPM below that with each other sampler."""
    pairs = {
        f"{rate}%, {task}": (known.study(f"rate-{rate}"), known.study(f"rate-{rate}", task))
        for rate in (10, 50)
        for task in ("ddim", "dpm-solver", "dpm-solver-pp")
    }
    return ordered(pairs, "MSE")


def small_boxes(known: Results) -> Found | None:
    """MSE of the largest grey box below that of the smallest."""
    return ordered({"18 and 4 pixels": (known.study("grey-box-18"), known.study("grey-box-4"))}, "MSE")


def small_signs(known: Results) -> Found | None:
    """The same of stop signs, which should not be so."""
    found = ordered({"18 and 4 pixels": (known.study("stop-sign-18"), known.study("stop-sign-4"))}, "MSE")
    return None if found is None else Found(found.text, [not one for one in found.right])


def clipping(known: Results) -> Found | None:
    """ASR after clipping of x_t, at most .02 above chance, and FD no more than a tenth higher."""
    rows = {
        model: row
        for (task, model, _), row in known.of("repair").items()
        if task == "clipping-of-x_t" and row["evaluation"]["attack"] == "baddiffusion"
    }
    if not rows:
        return None
    text = "; ".join(
        f"{model}: ASR {told(row, 'ASR before')}, clipped {told(row, 'ASR')}, FD ratio {told(row, RATIO)}"
        for model, row in rows.items()
    )
    right = []
    for row in rows.values():
        right.append(value(row, "ASR")[0] - value(row, "hits without trigger")[0] <= 0.02)
        right.append(value(row, RATIO)[1] <= 1.1)
    return Found(text, right)


def searches(
    known: Results, first: str, second: str, which: str, right: Callable[..., bool]
) -> Found | None:
    """Oracle MSE of two settings of ANP on the backdoored models."""
    texts, found = [], []
    for (task, model, _), row in known.of("anp").items():
        other = known.of("anp").get((second, model, None))
        if task == first and other is not None and model != "twin":
            ends = [
                next(m["value"] for m in r["evaluation"]["measures"] if m["name"] == f"oracle MSE, {which}")
                for r in (row, other)
            ]
            texts.append(f"{model}: {ends[0]:.3f} and {ends[1]:.3f}")
            found.append(right(*ends))
    return Found(f"oracle MSE, {which}, {'; '.join(texts)}", found) if found else None


def larger_budget(known: Results) -> Found | None:
    """Budget 4 (the published setting) against budget 1."""
    return searches(known, "rate-1e-4", "budget-1", "best", lambda four, one: four < one)


def twice_the_rate(known: Results) -> Found | None:
    """Learning rate 1e-4 against 2e-4."""
    return searches(known, "rate-1e-4", "rate-2e-4", "last", lambda once, twice: twice > once)


def near_perfect(known: Results) -> Found | None:
    """Detection by the two losses as its abstract has them."""
    found, pooled = detections(known)
    rows = {(row["task"], row["group"]): row["flagged"] for row in detection_table(found, pooled)}
    hits, wrong = (rows.get(("purediffusion", group)) for group in (ALL, CLEAN))
    if hits is None or wrong is None:
        return None
    text = f"backdoored found {rated(hits)}, clean accused {rated(wrong)}"
    return Found(text, [hits.value >= 0.95, wrong.value <= 0.05])


def ahead_of_rivals(known: Results) -> Found | None:
    """The same less each rival, right verdicts on the hard kinds of triggers, model by model."""
    found, pooled = detections(known)
    rows = [row for row in comparison_table(found, "purediffusion", pooled) if row["group"] in pooled]
    rows = [row for row in rows if row["task"] in ("elijah", "terd-tenth")]
    if not rows:
        return None
    text = "; ".join(f"less {row['task']}: {rated(row['difference'])}" for row in rows)
    return Found(
        f"right verdicts on {', '.join(pooled)}, {text}", [row["difference"].low > 0 for row in rows]
    )


def detections(known: Results) -> tuple[list[Run], Pooled]:
    """Of the test population; nothing where it was not run."""
    folder = known.folder / "detection-test"
    if not (folder / FOLDER_FILE).is_file():
        return [], {}
    opened = open_bench(folder)
    return runs(opened.zoo, opened.cells(folder)), opened.suite.pooled


def rated(estimate: Estimate) -> str:
    """A rate with interval and n."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] (n = {estimate.n})"


def reinforced(known: Results, shares: tuple[float, float]) -> Found | None:
    """The best reinforced trigger of each model between shares of its steps, above the clean base's."""
    rows = known.of("amplification")
    if not rows:
        return None
    models = open_bench(known.folder / "amplification").zoo.models
    texts, right = [], []
    for model in dict.fromkeys(name for _, name, _ in rows):
        mine = {(t, s): r for (t, name, s), r in rows.items() if name == model}
        among = [k for k in mine if k[1] and shares[0] <= k[1] / models[model].steps <= shares[1]]
        if not among or not all((task, 0) in mine for task, _ in among):
            return None
        best = max(among, key=lambda k: value(mine[k], "ASR reinforced")[0])
        row, control = mine[best], mine[best[0], 0]
        texts.append(
            f"{model} ({best[0]}, step {best[1]} of {models[model].steps}): {told(row, 'ASR')} to "
            f"{told(row, 'ASR reinforced')}, clean base {told(control, 'ASR reinforced')}"
        )
        gained = value(row, "ASR reinforced")[1] > value(row, "ASR")[2]
        above = value(control, "ASR reinforced")[0] < 0.5
        right.append(value(row, "ASR reinforced")[0] >= 0.95 and gained and above)
    return Found("ASR " + "; ".join(texts), right)


def shift_scale(known: Results) -> Found | None:
    """Share of the timesteps at which the measured scale lies within .1 of C_t, attack by attack."""
    found = known.files("shift-scale.json")
    near = {
        name: [abs(p["measured"]["value"] - p["theory"]) <= 0.1 for p in one["curves"]["training rows"]]
        for name, one in (found[0]["curves"].items() if found else ())
    }
    text = "; ".join(f"{name}: {sum(one)} of {len(one)} timesteps" for name, one in near.items())
    return Found(f"within .1 of C_t, {text}", [all(one) for one in near.values()]) if near else None


def samples(known: Results) -> Found | None:
    """ASR and FD ratio of the models whose samples are drawn side by side."""
    rows = [row for row in known.files("attack-lab/*.json") if row["attack"] == "baddiffusion"]
    text = "; ".join(f"{row['model']}: ASR {told(row, 'ASR')}, FD ratio {told(row, RATIO)}" for row in rows)
    right = [ok for row in rows for ok in (value(row, "ASR")[0] >= 0.95, value(row, RATIO)[1] <= 1)]
    return Found(text, right) if rows else None


def inpainting(known: Results) -> Found | None:
    """ASR of triggered images with a hole, on the model that was poisoned as published."""
    rows = [r for r in known.files("restore/*.json") if r["composite"] and r["task"].startswith("inpaint")]
    labelled: dict[str, Row | None] = {f"{row['task']}, {row['steps']} steps": row for row in rows}
    return listed(labelled, "ASR", lambda r: value(r, "ASR")[0] >= 0.95)


def clipped_latents(known: Results) -> Found | None:
    """Where clipped latents end between those without the trigger, 0, and with it, 1."""
    ends = {m: rows[-1] for one in known.files("clipping-path.json") for m, rows in one["models"].items()}
    at = [f"{model}: {rated(Estimate(**row['triggered']))}" for model, row in ends.items()]
    right = [row["triggered"]["high"] < 0.5 for row in ends.values()]
    return Found("on the way to the target " + "; ".join(at), right) if ends else None


def beats_the_true_one(known: Results) -> Found | None:
    """ASR of inverted triggers above that of the true one, in certain cases: one model is enough."""
    rows = [r for r in known.files("scan-table/*/*.json") if r["method"] == "purediffusion"]
    rows = [row for row in rows if "asr_true" in row]
    if not rows:
        return None
    pairs = {row["model"]: [of_hits(row, name) for name in ("asr_inverted", "asr_true")] for row in rows}
    text = "; ".join(f"{model}: {rated(a)}, true {rated(b)}" for model, (a, b) in pairs.items())
    return Found(f"ASR inverted {text}", [any(a.low > b.high for a, b in pairs.values())])


def of_hits(row: Row, name: str) -> Estimate:
    """A rate of the scan table with the interval that it lacks there."""
    return rate(round(row[name] * row["n"]), row["n"])
