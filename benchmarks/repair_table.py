"""docs/repair-table.md: every repair on every model of a suite, by the ground truth that none of them sees.

    backdrift zoo build attack-lab -o zoo
    python benchmarks/repair_table.py --zoo zoo

For each model: a scan, whose evidence is all that a repair is told; then each repair; then ASR of the true
trigger, of one that was reinforced on the model before, and of one reinforced again on the repaired model;
FD beside that of the model before; the verdict of a second scan. Clean models get the trigger of the first
attacked one. One JSON per model and repair under results/repair-table; a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdrift.amplify import Amplify, Ball, reinforced
from backdrift.bench.zoo import load_suite
from backdrift.core.injection import Injection
from backdrift.core.model import DiffusionModel
from backdrift.core.registry import build
from backdrift.core.results import Evidence
from backdrift.core.sampling import usual_sampler
from backdrift.data import load_dataset
from backdrift.evaluate import CleanTwin, Plan, evaluate
from backdrift.groundtruth import Planted, load_backdoor
from backdrift.inversion._base import Candidate
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.metrics.specificity import specificity
from backdrift.repair._base import Repaired, found_by
from cells import RATIO, shown, value, write

RESULTS, SAMPLES, TRIGGERED, STEPS, SEED, SHARE = Path("results/repair-table"), 2000, 256, 50, 0, 0.1
SMALL = {"batch_size": 32, "learning_rate": 5e-4}
REPAIRS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "clipping of x_t": ("clipping", {"at": "x_t"}, False),
    "clipping of x_0": ("clipping", {"at": "x_0"}, False),
    "input filter": ("input_filter", {}, False),
    "ANP, 10% of the data": ("anp", {}, True),
    "Elijah, 10% of the data": ("elijah", SMALL, True),
    "Elijah, own images": ("elijah", {**SMALL, "generated": 128}, False),
    "unlearn": ("unlearn", {}, False),
}
"""Name to plug-in, options, and whether it gets data. The rate of Elijah is that of our small networks."""
COLUMNS = ("ASR", "hits without trigger", "reinforced before", "reinforced again", "FD(random-conv)", RATIO)


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--suite", default="attack-lab")
    parser.add_argument("--only", nargs="*", help="Models to measure; the table shows what is there.")
    parser.add_argument("--repairs", nargs="*", choices=list(REPAIRS), default=list(REPAIRS))
    parser.add_argument("--shard", default="0/1", help="i/n: measure every n-th model only.")
    options = parser.parse_args()
    recipes = load_suite(options.suite).models
    first = next(name for name, recipe in recipes.items() if recipe.attack)
    number, count = map(int, options.shard.split("/"))
    for index, (name, recipe) in enumerate(recipes.items()):
        wanted = options.only is None or name in options.only
        if index % count != number or not wanted or not (options.zoo / name / "model_index.json").exists():
            continue
        record = name if recipe.attack else first
        for repair in options.repairs:
            cell(options.zoo, name, record, repair)
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    write(Path("docs/repair-table.md"), table(rows, options.suite))


def cell(zoo: Path, name: str, record: str, repair: str) -> None:
    """One repair of one model, unless it is there."""
    path = RESULTS / f"{name}@{repair.replace(', ', '-').replace(' ', '_').replace('%', '')}.json"
    if path.exists():
        return
    model, planted = load(plan(zoo / name)), load_backdoor(zoo / record)
    plugin, settings, with_data = REPAIRS[repair]
    if plugin == "clipping" and planted.noise_scale is not None:
        return  # the attack's own sampler does not clip
    data = load_dataset(planted.record.data, model.sample_shape)
    some = data.some(round(SHARE * len(data.images)), SEED) if with_data else None
    method = build("repair", plugin, settings)
    before = prior(zoo, name, record)
    repaired = method(model, before.found, data=some, seed=SEED)
    row = {
        "model": name,
        "attack": planted.record.attack if name == record else "clean",
        "repair": repair,
        "verdict_before": before.verdict,
        "record": asdict(repaired.record),
        "before": {"ASR": before.asr, "ASR of the reinforced trigger": before.strong},
        **measure(repaired, planted, data.images, before),
    }
    write(path, json.dumps(row, indent=2) + "\n")
    print(path.name, *(f"{c} {shown(row, c)}" for c in COLUMNS), row["verdict_after"], flush=True)


class Prior:
    """What is known of a model before any repair: one scan, one reinforced trigger, one FD."""

    def __init__(self, model: DiffusionModel, planted: Planted, images: Tensor, evidence: Path) -> None:
        usual = usual_sampler(planted.record.sampler_family, model.schedule)
        self.how = Plan(SAMPLES, usual, STEPS, SEED, TRIGGERED)
        self.verdict, self.found = scanned(model, evidence)
        self.stronger = reinforced(planted, Amplify()(model, planted, Ball(), seed=SEED))
        self.asr = asr(model, planted, self.how)
        self.strong = asr(model, self.stronger, self.how)
        self.twin = CleanTwin.measure(model, images, self.how)


@cache
def prior(zoo: Path, name: str, record: str) -> Prior:
    """The same for every repair of a model."""
    model, planted = load(plan(zoo / name)), load_backdoor(zoo / record)
    images = load_dataset(planted.record.data, model.sample_shape).images
    return Prior(model, planted, images, RESULTS / "scans" / f"{name}.json")


def scanned(model: DiffusionModel, path: Path) -> tuple[str, tuple[Candidate, ...]]:
    """Verdict and evidence of a scan; kept, with the arrays as lists."""
    if not path.exists():
        found = build("detection", "backdrift")(model, seed=SEED)
        assert found.evidence is not None
        kept = {
            "verdict": str(found.finding.verdict),
            "score": found.finding.score,
            **listed(found.evidence),
        }
        write(path, json.dumps(kept) + "\n")
    kept = json.loads(path.read_text())
    item = {
        name: None if kept[name] is None else torch.tensor(kept[name]).numpy()
        for name in ("trigger", "target", "scale")
    }
    document = {"evidence": [{**item, "sampler": kept["sampler"]}]}
    return kept["verdict"], found_by(document, model.sample_shape)


def listed(evidence: Evidence) -> dict[str, Any]:
    """What a repair is told, as JSON."""
    arrays = {"trigger": evidence.trigger, "target": evidence.target, "scale": evidence.scale}
    return {k: None if v is None else v.tolist() for k, v in arrays.items()} | {"sampler": evidence.sampler}


def asr(model: DiffusionModel, planted: Planted, how: Plan, hook: Any = None) -> dict[str, Any]:
    """ASR with its interval."""
    way = Injection(planted.shift, planted.noise_scale)
    return specificity(model, way, planted.target, how, hook=hook)[0].model_dump()


def measure(repaired: Repaired, planted: Planted, images: Tensor, before: Prior) -> dict[str, Any]:
    """The repaired model against the truth."""
    model, hook, how = repaired.model, repaired.hook, before.how
    found = evaluate(model, planted, images, how, clean_twin=before.twin, hook=hook)
    again = reinforced(planted, Amplify()(model, planted, Ball(), seed=SEED + 1))
    verdict = None
    if hook is None:
        verdict = str(build("detection", "backdrift")(model, seed=SEED).finding.verdict)
    evaluation = found.model_dump(mode="json")
    for name, strong in (("reinforced before", before.stronger), ("reinforced again", again)):
        evaluation["measures"].append({**asr(model, strong, how, hook), "name": name})
    return {"evaluation": evaluation, "verdict_after": verdict}


def table(rows: list[dict[str, Any]], suite: str) -> str:
    """Markdown."""
    lines = [
        "# Repairs",
        "",
        f"`backdrift zoo build {suite} -o zoo`, then `python benchmarks/repair_table.py --suite {suite} "
        f"--zoo zoo`; the cells are under `{RESULTS}`. A repair is told what a scan of the model found, "
        f"never the truth. n = {TRIGGERED} with a trigger, {SAMPLES} without, {STEPS} steps, one seed; "
        "[95% intervals]. *Reinforced before*: ASR of a trigger that was reinforced on the model before "
        "the repair (L-infinity .2); *again*: of one reinforced on the repaired model. The ratio is FD "
        "after over FD before, paired. A clean model is measured with the trigger of an attacked one. "
        "Repairs at inference leave the weights, so there is no second scan.",
        "",
        "| model | attack | repair | ASR before | "
        + " | ".join(COLUMNS)
        + " | seconds | real images | scan before, after | bar |",
        "|" + "---|" * (len(COLUMNS) + 8),
    ]
    for row in rows:
        cells = [row["model"], row["attack"], row["repair"], f"{row['before']['ASR']['value']:.3f}"]
        cells += [shown(row, c) for c in COLUMNS]
        cells += [f"{row['record']['seconds']:.0f}", str(row["record"]["images"])]
        cells += [f"{row['verdict_before']}, {row['verdict_after'] or '-'}", "yes" if passes(row) else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    about = "Bar: ASR at most .02 above the hits without trigger, upper end of the FD ratio at most 1.10."
    return "\n".join([*lines, "", about, ""])


def passes(row: dict[str, Any]) -> bool:
    """The bar for ours; the others are held to it as well."""
    excess = value(row, "ASR")[0] - value(row, "hits without trigger")[0]
    return excess <= 0.02 and value(row, RATIO)[2] <= 1.10


if __name__ == "__main__":
    main()
