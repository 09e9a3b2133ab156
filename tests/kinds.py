"""A population of two models and a task of every kind, as small as they get."""

from __future__ import annotations

from typing import Any

from backdrift.bench.tasks import BenchSuite
from backdrift.bench.zoo import Suite, parse_suite

PLANTED = {"attack": "baddiffusion", "base": "clean", "trigger": "white-patch", "target": "hat"}
SMALL = {"steps": 4, "batch_size": 4}
ZOO = {
    "description": "two models",
    "models": {
        "clean": {"shape": [1, 8, 8], "width": 8, **SMALL},
        "bad": {**PLANTED, **SMALL, "keep": [2]},
    },
}
FEW = {"samples": 24, "triggered": 20, "steps": 2}
SEARCH = {"steps": 3, "looks": 3, "samples": 4, "pruning_steps": 0, "batch_size": 4}
UNLEARN = {"steps": 1, "rounds": 1, "batch_size": 4, "images": 8, "judged": 2, "inversion_steps": 1}
REPAIR: dict[str, Any] = {"kind": "repair", "scan": "scan", "trigger_of": "bad", "plan": FEW}
TASKS: dict[str, dict[str, Any]] = {
    "scan": {"kind": "detect", "method": "purediffusion", "options": {"budget": "quick"}},
    "clip": {**REPAIR, "method": "clipping", "options": {"at": "x_t"}},
    "unlearn": {**REPAIR, "method": "unlearn", "options": UNLEARN, "models": ["bad"]},
    "attack": {
        "kind": "amplify",
        "options": {"steps": 2, "batch": 4},
        "plan": FEW,
        "at": [0, 2, 4],
        "radius": 0.1,
    },
    "kept": {"kind": "evaluate", "options": FEW, "twin": "clean", "at": [0, 2, 4]},
    "both": {"kind": "evaluate", "options": FEW, "twin": "clean", "trigger_of": "bad"},
    "anp": {"kind": "discover", "method": "anp", "options": SEARCH, "images": 6, "trigger_of": "bad"},
}


def suite(**tasks: dict[str, Any]) -> BenchSuite:
    return BenchSuite.model_validate({"description": "all kinds", "zoo": "x", "tasks": tasks or TASKS})


def population(**changes: Any) -> Suite:
    models = {name: {**recipe, **changes.get(name, {})} for name, recipe in ZOO["models"].items()}
    return parse_suite({**ZOO, "models": models}, "x")
