"""The table of docs/scan-table.md: every inversion on the models of the suite scan-test.

    backdrift zoo build scan-test -o zoo
    python benchmarks/scan_table.py --zoo zoo

Every (model, method) is one JSON under results/scan-table, written by rename; a run that was killed
goes on, and --shard 0/2 and 1/2 share the work. What an older version of a detector gave is measured
again where the model is there, and named on the page where it is not. Ground truth is read here and by
no detector.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdrift.bench.truth import distances
from backdrift.bench.zoo import load_suite
from backdrift.core.environment import environment
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build
from backdrift.core.sampling import usual_sampler
from backdrift.detection._base import Detection
from backdrift.detection._calibration import CalibrationTable
from backdrift.detection._case import Case
from backdrift.detection._judge import Judge
from backdrift.detection._nulls import NULLS
from backdrift.detection._verdict import UNCALIBRATED_THRESHOLD, judge_inversion
from backdrift.groundtruth import Planted, load_backdoor
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.draws import draw
from cells import write

DETECTORS = {
    "backdrift, standard": ("backdrift", {"budget": "standard"}),
    "backdrift, quick": ("backdrift", {"budget": "quick"}),
    "purediffusion": ("purediffusion", {"budget": "standard"}),
}
INVERSIONS = {
    "fixed point": ("fixed_point", {}),
    "fixed point, regression": ("fixed_point", {"regression": True, "noises": 32}),
    "boundary": ("boundary", {}),
    "joint": ("joint", {}),
    "elijah": ("elijah", {}),
}
SEED = 0
TRUTH: dict[str, dict[str, float]] = {}
SAMPLES, STEPS = 64, 100
COLUMNS = (
    "model | method | verdict | score | L2 to r | cos r | L2 to E[R] | cos E[R] | "
    "ASR inverted | ASR true | no trigger | evaluations | seconds"
)


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="scan-test")
    parser.add_argument("--results", type=Path, default=Path("results/scan-table"))
    parser.add_argument("--output", type=Path, default=Path("docs/scan-table.md"))
    parser.add_argument("--shard", default="0/1")
    options = parser.parse_args()
    part, parts = map(int, options.shard.split("/"))
    models = list(load_suite(options.suite).models)
    ready = [m for m in models if (options.zoo / m).is_dir()]
    mine = [model for number, model in enumerate(ready) if number % parts == part]
    for method in (*DETECTORS, *INVERSIONS):
        for model in mine:
            run(options.zoo / model, method, options.results)
    write(options.output, table(options.results, models))


def run(folder: Path, method: str, results: Path) -> None:
    """One method on one model, unless its result is there."""
    path = results / folder.name / f"{method.replace(', ', '-').replace(' ', '_')}.json"
    if path.exists() and not older(json.loads(path.read_text())):
        return
    row = cell(folder, method)
    write(path, json.dumps(row, indent=2) + "\n")
    print(folder.name, method, row["score"], f"{row['seconds']:.0f} s", flush=True)


def cell(folder: Path, method: str) -> dict[str, Any]:
    """One method on one model, scored against the ground truth when there is one."""
    model = load(plan(folder))
    detection = detect(model, method)
    finding = detection.finding
    row: dict[str, Any] = {
        "model": folder.name,
        "method": method,
        "seed": SEED,
        "verdict": str(finding.verdict),
        "score": finding.score,
        "threshold": finding.threshold,
        "reason": finding.reason,
        "evaluations": finding.evaluations,
        "seconds": finding.seconds,
        "weights_sha256": model.origin.sha256,
        "config": json.loads(finding.model_dump_json())["config"],
        "scores": {s.name: s.value for s in finding.scores},
        "nulls": {n.name: n.score for n in finding.nulls},
        "environment": environment("cpu").model_dump(),
    }
    if (folder / "backdoor.json").exists():
        planted = load_backdoor(folder)
        assert detection.evidence is not None
        row |= distances(detection.evidence, planted) | success(model, detection, planted)
    return row


def detect(model: DiffusionModel, method: str) -> Detection:
    """Runs a detector, or an inversion judged the way the default detector judges."""
    if method in DETECTORS:
        name, settings = DETECTORS[method]
        found: Detection = build("detection", name, settings)(model, seed=SEED)
        return found
    name, settings = INVERSIONS[method]
    inversion = build("inversion", name, settings)
    case = Case(model, name, "standard", {"inversion": vars(inversion)}, SEED, CalibrationTable.shipped())
    return judge_inversion(case, inversion, look=Judge(6, 20), judge=Judge(20, 25), nulls=NULLS)


def success(model: DiffusionModel, detection: Detection, planted: Planted) -> dict[str, Any]:
    """Hit rates of the inverted trigger, the true one and none, on the same fresh seeds."""
    assert detection.evidence is not None
    sampler = usual_sampler(planted.record.sampler_family, model.schedule)

    def rate(shift: Tensor | None) -> float:
        way = None if shift is None else Injection(shift)
        drawn = draw(model, way, sampler=sampler, steps=STEPS, n=SAMPLES, seed=12345)
        return float(planted.target.hits(model.decode(drawn)).float().mean())

    if model.origin.sha256 not in TRUTH:
        TRUTH[model.origin.sha256] = {
            "asr_true": rate(planted.shift),
            "rate_without_trigger": rate(None),
        }
    inverted = rate(torch.from_numpy(detection.evidence.trigger))
    facts: dict[str, Any] = {"n": SAMPLES, "sampler": f"{sampler}, {STEPS} steps"}
    return {"asr_inverted": inverted, **TRUTH[model.origin.sha256], **facts}


def older(row: dict[str, Any]) -> bool:
    """Whether a cell is of a detector's version before today's."""
    name, settings = DETECTORS.get(row["method"], (None, {}))
    now = {} if name is None else build("detection", name, settings).settings()
    return bool(now.get("version") != row["config"].get("version"))


def aged(rows: list[dict[str, Any]]) -> str:
    """A sentence on rows of older versions, with a space before it; nothing where there are none."""
    versions = {(r["method"], r["config"]["version"]) for r in rows if older(r)}
    told = ", ".join(f"{method} (version {version})" for method, version in sorted(versions))
    return f" Measured with a detector before today's: {told}." if told else ""


def table(results: Path, models: list[str]) -> str:
    """Markdown of every cell that is there."""
    rows = [json.loads(p.read_text()) for m in models for p in sorted((results / m).glob("*.json"))]
    lines = [
        "# Every inversion on ten models",
        "",
        "`python benchmarks/scan_table.py --zoo DIR` on the suite `scan-test` "
        "(`backdrift zoo build scan-test -o DIR`), seed 0, one thread; the cells are under "
        "`results/scan-table`. All methods are judged alike: score = hits on the recovered target on "
        "fresh seeds less what plain noise and shifts of equal norm do. No threshold saw these models: "
        f"methods without a calibration of their own are flagged from {UNCALIBRATED_THRESHOLD} on. "
        f"ASR: {SAMPLES} fresh seeds, {STEPS} steps of the family's sampler, hit threshold of the planted "
        f"record.{aged(rows)}",
        "",
        f"| {COLUMNS} |",
        "|" + "---|" * (COLUMNS.count("|") + 1),
    ]
    lines += [f"| {line(row)} |" for row in rows]
    return "\n".join([*lines, "", *summary(rows), ""])


def line(row: dict[str, Any]) -> str:
    """One row of the table."""

    def number(key: str, digits: int = 2) -> str:
        return f"{row[key]:.{digits}f}" if key in row else ""

    distances = [f"{number('l2_r', 1)} ({number('norm_r', 1)})", number("cos_r")]
    distances += [f"{number('l2_mean', 1)} ({number('norm_mean', 1)})", number("cos_mean")]
    truth = [number("asr_inverted"), number("asr_true"), number("rate_without_trigger")]
    measured = [*distances, *truth] if "l2_r" in row else [""] * 7
    head = [row["model"], row["method"], row["verdict"], number("score")]
    return " | ".join([*head, *measured, f"{row['evaluations']:,}", number("seconds", 0)])


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Found and flagged, by method."""
    lines = ["| method | backdoored found | clean flagged | inconclusive |", "|---|---|---|---|"]
    for method in (*DETECTORS, *INVERSIONS):
        mine = [r for r in rows if r["method"] == method]
        planted = [r for r in mine if "asr_true" in r]
        clean = [r for r in mine if "asr_true" not in r]
        found = sum(r["verdict"] == "BACKDOORED" for r in planted)
        flagged = sum(r["verdict"] == "BACKDOORED" for r in clean)
        unsure = sum(r["verdict"] == "INCONCLUSIVE" for r in mine)
        lines.append(f"| {method} | {found} of {len(planted)} | {flagged} of {len(clean)} | {unsure} |")
    return lines


if __name__ == "__main__":
    main()
