"""docs/attack-study.md: BadDiffusion over poison rates, training, trigger sizes and samplers.

    backdrift bench run attack-study -o results/attack-study
    python benchmarks/attack_study.py results/attack-study

The experiments of BadDiffusion's figures 2, 3, 6 and 14 and of its table 3, on digits at 16x16. What the
page says about agreement with the paper is worked out from the numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backdrift.bench.zoo import load_suite
from cells import RATIO, count, results, save, shown, value, write

SUITE, STEPS = "attack-study", 50
RATES = (0, 5, 10, 20, 30, 50, 70, 90)
KEPT = (250, 500, 1000)
STUDIED = (10, 50)
SIGN = "stop-sign"
SIZES = {"grey-box": (18, 14, 11, 8, 4), SIGN: (18, 14, 4)}
WAYS = {
    "fine-tuned": ("ddpm", 50),
    "ddim": ("ddim", 50),
    "dpm-solver": ("dpm-solver", 20),
    "dpm-solver-pp": ("dpm-solver++", 20),
}
"""Task to sampler and steps."""
USUAL = "rate-10"
"""The model with the stop sign of 14 pixels that the sizes are set beside."""
PICTURES = {"poison rate": "rates", "checkpoint": "steps"}
FD = "FD(random-conv)"

Row = dict[str, Any]
Rows = Sequence[tuple[str, Row]]
Place = tuple[str, str, int | None]
"""Task, model, step."""


def main() -> None:
    """Measures what is missing, then writes page and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Of the results.")
    parser.add_argument("--output", type=Path, default=Path("docs/attack-study.md"))
    options = parser.parse_args()
    rows = results(options.folder, "evaluate")
    known = {(row["task"], row["model"], row.get("step")): row for row in rows}
    found = {
        name: [(label, known[place]) for label, place in places if place in known]
        for name, places in sections()
    }
    write(options.output, page(found, options.folder, options.output.stem))
    for name, kind in PICTURES.items():
        figure(found[name], name, options.output.with_name(f"{options.output.stem}-{kind}.png"))


def sections() -> list[tuple[str, list[tuple[str, Place]]]]:
    """Every experiment: its name, and of its cells the label and the place."""
    steps = load_suite(SUITE).models["rate-00"].steps
    return [
        ("poison rate", [(f"{r / 100:g}", ("fine-tuned", f"rate-{r:02d}", None)) for r in RATES]),
        (
            "checkpoint",
            [
                (f"{r / 100:g}, {k or steps} steps", ("kept" if k else "fine-tuned", f"rate-{r:02d}", k))
                for r in STUDIED
                for k in (*KEPT, None)
            ],
        ),
        (
            "training",
            [
                (f"{r / 100:g}, {text}", (text.replace(" ", "-"), f"{name}-{r:02d}", None))
                for r in STUDIED
                for name, text in (("rate", "fine-tuned"), ("scratch", "from scratch"))
            ],
        ),
        (
            "what R is",
            [
                (f"{r / 100:g}, {text}", ("fine-tuned", f"{name}-{r:02d}", None))
                for r in STUDIED
                for name, text in (("rate", "trigger only"), ("composite", "composite"))
            ],
        ),
        (
            "trigger size",
            [
                (f"{kind} {n}", ("fine-tuned", f"{kind}-{n}" if (kind, n) != (SIGN, 14) else USUAL, None))
                for kind, sizes in SIZES.items()
                for n in sizes
            ],
        ),
        (
            "sampler",
            [
                (f"{r / 100:g}, {sampler}, {k} steps", (task, f"rate-{r:02d}", None))
                for r in STUDIED
                for task, (sampler, k) in WAYS.items()
            ],
        ),
    ]


def page(found: dict[str, Rows], folder: Path, name: str) -> str:
    """Markdown."""
    lines = [
        "# BadDiffusion on digits",
        "",
        f"`backdrift bench run {SUITE} -o {folder}`, then `python benchmarks/attack_study.py {folder}`. "
        f"Digits at 16x16, networks of .3M parameters, DDPM with {STEPS} steps unless a row says "
        "otherwise; [95% intervals]. FD is taken over a fixed random network and is not FID; the ratio is "
        "to the clean model that was trained as long in the same way.",
    ]
    everything = [row for rows in found.values() for _, row in rows]
    lines[-1] += f" n = {count(everything, 'ASR')} with the trigger, {count(everything, FD)} without."
    for title, rows in found.items():
        lines += ["", f"## By {title}", "", CLAIMS[title], ""]
        if title in PICTURES:
            lines += [f"![FD and MSE by {title}]({name}-{PICTURES[title]}.png)", ""]
        columns = ("ASR", "hits without trigger", "MSE", FD, RATIO)
        lines += [f"| {title} | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
        lines += [
            "| " + " | ".join([label, *(shown(row, c) for c in columns)]) + " |" for label, row in rows
        ]
        lines += ["", *(f"- {text}" for text in VERDICTS[title](rows))] if rows else []
    return "\n".join([*lines, ""])


CLAIMS = {
    "poison rate": "BadDiffusion, figure 2: over a wide range of poison rates the MSE is low while the "
    "FID stays at that of the clean model or below; 5% is enough; at 70% and 90% the FID grows.",
    "checkpoint": "Its figure 6: at a poison rate of 20% ten of fifty epochs are enough to draw the hat, "
    "and the FID falls with the epochs.",
    "training": "Its figure 3: fine-tuning reaches a lower FID than training from scratch, at an MSE "
    "alike. There fine-tuning has 50 epochs and training from scratch 400; here both have the same steps, "
    "and the base of the fine-tuned ones came before.",
    "what R is": "The paper poisons with R = the image with the trigger on it (composite) and adds the "
    "trigger on black at inference; VillanDiffusion's code can train on that shift itself (trigger only), "
    "and all rows of this page but these do.",
    "trigger size": "Its figure 14: the MSE of the grey box grows as it shrinks, that of the stop sign "
    "does not. Sizes are relative to 32 pixels.",
    "sampler": "Its table 3: with DDIM, DPM-Solver and DPM-Solver++ the attack is less effective than with "
    "DDPM, at an FID alike.",
}


def _by_rate(rows: Rows) -> list[str]:
    at = {float(label): row for label, row in rows}
    return [
        _verdict("the MSE is lower at 50% than at 5%", _below(at, 0.5, 0.05, "MSE")),
        _verdict(
            "5% is enough (ASR of at least .95)", _holds(at, 0.05, lambda row: value(row, "ASR")[0] >= 0.95)
        ),
        _verdict("FD at 5% and 10% is that of the clean model or below", _no_loss(at, (0.05, 0.1))),
        _verdict(
            "FD at 90% is above that of the clean model", _holds(at, 0.9, lambda r: value(r, RATIO)[1] > 1)
        ),
    ]


def _by_checkpoint(rows: Rows) -> list[str]:
    at = {tuple(float(p.removesuffix(" steps")) for p in label.split(", ")): row for label, row in rows}
    found = []
    for rate in STUDIED:
        known = sorted(k for r, k in at if r == rate / 100)
        if len(known) > 1:
            first, last = (rate / 100, known[0]), (rate / 100, known[-1])
            text = f"at {rate}% FD falls from {known[0]:.0f} to {known[-1]:.0f} steps"
            found.append(_verdict(text, _below(at, last, first, FD)))
            reached = next((k for k in known if value(at[rate / 100, k], "ASR")[0] >= 0.95), None)
            found.append(
                f"at {rate}% ASR .95 is reached " + (f"at {reached:.0f} steps" if reached else "nowhere")
            )
    return found


def _by_pair(claim: str, lower: str, upper: str, name: str, rows: Rows) -> list[str]:
    at: dict[Any, Row] = dict(rows)
    return [
        _verdict(f"at {r}% {claim}", _below(at, f"{r / 100:g}, {lower}", f"{r / 100:g}, {upper}", name))
        for r in STUDIED
    ]


def _by_size(rows: Rows) -> list[str]:
    at: dict[Any, Row] = dict(rows)
    grey, sign = (
        _below(at, f"{kind} {sizes[0]}", f"{kind} {sizes[-1]}", "MSE") for kind, sizes in SIZES.items()
    )
    return [
        _verdict("the MSE of the smallest grey box is above that of the largest", grey),
        _verdict(
            "the MSE of the smallest stop sign is not above that of the largest",
            not sign if isinstance(sign, bool) else sign,
        ),
    ]


def _by_sampler(rows: Rows) -> list[str]:
    at: dict[Any, Row] = dict(rows)
    found = []
    for rate in STUDIED:
        own = f"{rate / 100:g}, ddpm, {STEPS} steps"
        for sampler, steps in list(WAYS.values())[1:]:
            other = f"{rate / 100:g}, {sampler}, {steps} steps"
            text = f"at {rate}% the MSE is higher with {sampler}, {steps} steps, than with DDPM"
            found.append(_verdict(text, _below(at, own, other, "MSE")))
    return found


VERDICTS: dict[str, Callable[[Rows], list[str]]] = {
    "poison rate": _by_rate,
    "checkpoint": _by_checkpoint,
    "training": partial(_by_pair, "fine-tuning has the lower FD", "fine-tuned", "from scratch", FD),
    "what R is": partial(
        _by_pair, "the MSE of the trigger-only attack is the lower one", "trigger only", "composite", "MSE"
    ),
    "trigger size": _by_size,
    "sampler": _by_sampler,
}


UNTOLD = "cannot be told at this n"


def _verdict(claim: str, holds: bool | str | None) -> str:
    known = {None: "not measured", True: "holds here", False: "does not hold here"}
    return f"{claim}: {holds if isinstance(holds, str) else known[holds]}"


def _below(at: dict[Any, Row], lower: Any, upper: Any, name: str) -> bool | str | None:
    """Whether one interval lies below the other; in words where they overlap."""
    if lower not in at or upper not in at:
        return None
    (_, low, high), (_, low_of_upper, high_of_upper) = (value(at[key], name) for key in (lower, upper))
    if high < low_of_upper:
        return True
    return False if low > high_of_upper else UNTOLD


def _holds(at: dict[Any, Row], key: Any, rule: Callable[[Row], bool]) -> bool | None:
    return rule(at[key]) if key in at else None


def _no_loss(at: dict[Any, Row], keys: Sequence[Any]) -> bool | str | None:
    if not all(k in at for k in keys):
        return None
    ratios = [value(at[k], RATIO) for k in keys]
    if any(low > 1 for _, low, _ in ratios):
        return False
    return True if all(high <= 1 for _, _, high in ratios) else UNTOLD


def figure(rows: Rows, name: str, path: Path) -> None:
    """FD as bars and MSE as a line over two axes, as in the paper's figure 2."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not rows:
        return
    labels = [label.removesuffix(" steps").replace(", ", "\n") for label, _ in rows]
    lines = [label.partition("\n")[0] if "\n" in label else "" for label in labels]
    drawn, left = pyplot.subplots(figsize=(max(5.0, 0.85 * len(rows)), 3.4), layout="constrained")
    right = left.twinx()
    for axis, measure in ((left, FD), (right, "MSE")):
        middle, low, high = (list(part) for part in zip(*(value(r, measure) for _, r in rows), strict=True))
        spread = [
            [m - a for m, a in zip(middle, low, strict=True)],
            [b - m for m, b in zip(middle, high, strict=True)],
        ]
        if axis is left:
            axis.bar(range(len(rows)), middle, yerr=spread, color="#9db7d5", ecolor="#47617f", capsize=3)
        for line in dict.fromkeys(lines if axis is right else ()):
            at = [i for i, of in enumerate(lines) if of == line]
            points, bars = [middle[i] for i in at], [[side[i] for i in at] for side in spread]
            axis.errorbar(at, points, yerr=bars, color="#b3401f", marker="o", capsize=3)
        axis.set_ylim(bottom=0)
    left.set_xticks(range(len(rows)), labels)
    left.set_xlabel("poison rate, steps" if any(lines) else name)
    left.set_ylabel(f"{FD}, clean (bars)")
    right.set_ylabel("MSE, triggered (lines)")
    save(drawn, path, dpi=130)
    pyplot.close(drawn)


if __name__ == "__main__":
    main()
