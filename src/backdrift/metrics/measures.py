"""Numbers for tables and JSON: every one with its interval and how it was made."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from backdrift.core.results import Measured
from backdrift.metrics.rates import Estimate


class Measure(BaseModel):
    """One number.

    Args:
        low: 95% interval from ``low`` to ``high``, made as ``interval`` says.
        meaning: what it is, with its range or unit.
        n: samples behind it, drawn from ``seed`` by ``sampler`` in ``steps`` steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: Measured
    low: Measured
    high: Measured
    interval: str
    meaning: str
    n: int
    sampler: str
    steps: int
    seed: int

    @classmethod
    def of(
        cls, name: str, estimate: Estimate, meaning: str, *, sampler: str, steps: int, seed: int
    ) -> Measure:
        """An estimate with its name and origin."""
        return cls(
            name=name,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            interval=estimate.interval,
            meaning=meaning,
            n=estimate.n,
            sampler=sampler,
            steps=steps,
            seed=seed,
        )


def table(measures: Sequence[Measure]) -> str:
    """A text table, one line a number."""
    width = max((len(m.name) for m in measures), default=0)
    lines = [f"{'':{width}s}  {'value':>9s}  {'95% interval':>21s}  {'n':>7s}  how"]
    for m in measures:
        interval = f"[{m.low:9.4f}, {m.high:9.4f}]"
        how = f"{m.interval}; {m.sampler}, {m.steps} steps, seed {m.seed}"
        lines.append(f"{m.name:{width}s}  {m.value:9.4f}  {interval}  {m.n:7d}  {how}")
    return "\n".join(lines)
