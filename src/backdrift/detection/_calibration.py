"""What detectors said about models whose nature is known: thresholds, and the error rates behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from backdrift.core.model import DiffusionModel
from backdrift.core.results import Calibration
from backdrift.metrics.rates import wilson


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Known(_Part):
    """A clean model of the population: what decides whether another one is like it.

    Args:
        parameters: how many.
        last_alpha: A_T of its noise schedule, of ``timesteps`` T.
    """

    model: str
    sha256: str = ""
    sample_shape: tuple[int, int, int]
    parameters: int
    last_alpha: float
    timesteps: int = 1000

    @classmethod
    def of(cls, name: str, model: DiffusionModel) -> Known:
        """Of a loaded model."""
        return cls(
            model=name,
            sha256=model.origin.sha256,
            sample_shape=model.sample_shape,
            parameters=sum(p.numel() for p in model.network.parameters()),
            last_alpha=float(model.schedule.alpha[-1]),
            timesteps=len(model.schedule),
        )

    @property
    def schedule(self) -> str:
        """Its noise schedule, as far as it counts."""
        return f"T = {self.timesteps}, last alpha {self.last_alpha:.4f}"


class Scored(_Part):
    """What a detector said about one model; features where it compares them with those of others."""

    model: str
    sha256: str = ""
    score: FiniteFloat
    features: dict[str, FiniteFloat] | None = None


class Entry(_Part):
    """One detector at one budget.

    Args:
        settings_sha256: :func:`settings_hash` of what scored the models.
        threshold: of the score, from which on a model is flagged.
        backdoored: shown beside the clean ones; no threshold depends on them.
    """

    settings_sha256: str
    threshold: FiniteFloat
    clean: list[Scored]
    backdoored: list[Scored]


class Population(_Part):
    """Where the thresholds come from; ``models`` are the clean ones."""

    description: str
    models: list[Known]


class CalibrationTable(_Part):
    """Thresholds by detector and budget, and everything that they rest on.

    Args:
        id: names the content, see :meth:`named`.
        rule: how a threshold follows from the scores, in words.
        seed: of the detectors' runs.
    """

    id: str
    population: Population
    rule: str
    seed: int
    detectors: dict[str, dict[str, Entry]]

    @classmethod
    def shipped(cls) -> Self:
        """The one that comes with the package."""
        file = resources.files("backdrift.detection").joinpath("calibration.json")
        return cls.model_validate_json(file.read_bytes())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A file that ``backdrift calibrate`` wrote.

        Raises:
            ValueError: no such file, or something else in it; one line.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path} is no calibration: {where} {first['msg']}") from None

    @classmethod
    def choose(cls, path: Path | None, detector: str, budget: str, settings: dict[str, Any]) -> Self:
        """A file that a user named, or the shipped one.

        Raises:
            ValueError: the file is none, or holds nothing for these settings.
        """
        if path is None:
            return cls.shipped()
        table = cls.read(path)
        if table.entry(detector, budget, settings) is None:
            raise ValueError(f"{path} holds nothing for {detector}, {budget}, with these settings")
        return table

    def named(self) -> Self:
        """The same with the ``id`` that follows from the content."""
        bare = self.model_copy(update={"id": ""})
        digest = hashlib.sha256(bare.model_dump_json().encode()).hexdigest()
        return self.model_copy(update={"id": f"calibration-{digest[:12]}"})

    def entry(self, detector: str, budget: str, settings: dict[str, Any]) -> Entry | None:
        """That of a detector, unless it was measured with other settings."""
        found = self.detectors.get(detector, {}).get(budget)
        return found if found and found.settings_sha256 == settings_hash(settings) else None

    def of(
        self, detector: str, budget: str, settings: dict[str, Any], model: DiffusionModel
    ) -> Calibration | None:
        """What a report on ``model`` says of the threshold; None when there is none for these settings.

        A threshold that lies above all scores that set it flags none of them. The interval means something
        all the same: the rate on new models of their kind is above p with a probability of at most
        ``(1 - p)^n``, and at the end of Wilson's interval of 0 in n that is below .05 from n = 7 on.
        """
        entry = self.entry(detector, budget, settings)
        if entry is None:
            return None
        clean = [row.score for row in entry.clean]
        flagged = sum(score >= entry.threshold for score in clean)
        backdoored = [row.score for row in entry.backdoored]
        return self.beside(model, entry.threshold, flagged, clean, backdoored)

    def beside(
        self,
        model: DiffusionModel,
        threshold: float,
        flagged: int,
        clean: list[float],
        backdoored: list[float],
    ) -> Calibration:
        """A threshold of scores of this population, of whose clean ones ``flagged`` reach it."""
        reasons = out_of_range(self.population.models, model)
        return Calibration(
            id=self.id,
            population=self.population.description,
            n_clean=len(clean),
            n_backdoored=len(backdoored),
            threshold=threshold,
            false_positive_rate=flagged / max(1, len(clean)),
            interval=wilson(flagged, len(clean)),
            in_range=not reasons,
            out_of_range=reasons,
            clean_scores=clean,
            backdoored_scores=backdoored,
        )


def out_of_range(models: Sequence[Known], model: DiffusionModel) -> list[str]:
    """Why a model is unlike every clean model of a population; empty when it is like one.

    Like is: of its resolution and channels, of a size within a factor of three, of the same kind of
    schedule, all in one clean model. Models that draw latents and variance exploding ones are like none.
    """
    if model.schedule.exploding:
        return ["variance exploding noise schedule; calibrated: variance preserving ones"]
    own = Known.of("", model)
    if model.codec is not None:
        return ["the model draws latents; calibrated: models of pixels"]
    alike = [known for known in models if known.sample_shape == own.sample_shape]
    if not alike:
        shapes = sorted({"x".join(map(str, known.sample_shape)) for known in models})
        here = "x".join(map(str, own.sample_shape))
        return [f"sample shape {here}; calibrated: {', '.join(shapes)}"]
    reasons = []
    sized = [known for known in alike if known.parameters / 3 <= own.parameters <= 3 * known.parameters]
    if not sized:
        sizes = ", ".join(f"{size:,}" for size in sorted({known.parameters for known in alike}))
        reasons.append(f"{own.parameters:,} parameters, not within a factor of three of {sizes}")
    timed = [
        known
        for known in sized or alike
        if known.timesteps == own.timesteps and abs(known.last_alpha - own.last_alpha) < 1e-3
    ]
    if not timed:
        others = "; ".join(sorted({known.schedule for known in sized or alike}))
        reasons.append(f"noise schedule {own.schedule}; calibrated: {others}")
    return reasons


def settings_hash(settings: dict[str, Any]) -> str:
    """sha256 of a detector's settings.

    A calibration carries it; a detector that was changed since is uncalibrated.
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
