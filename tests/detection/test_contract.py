"""What every detector promises. A new file in the folder is a new row."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from backdrift.core import registry
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Evidence, Finding
from backdrift.detection._base import BUDGETS, Detection, array_hash
from tiny import SHAPE, tiny_model

NAMES = list(registry.available("detection"))
each = pytest.mark.parametrize("name", NAMES)


@dataclasses.dataclass
class Ran:
    detection: Detection
    model: DiffusionModel
    calls: list[tuple[int, int, str]]
    kept: list[tuple[str, Detection]]


def examine(name: str, seed: int = 0, told: bool = True) -> Ran:
    model, calls = tiny_model(blocks=1), list[tuple[int, int, str]]()
    kept: list[tuple[str, Detection]] = []
    model.network.train()
    detector = registry.build("detection", name, {"budget": "quick"})
    keep = (lambda *call: kept.append(call)) if told else None
    found = detector(model, seed=seed, progress=lambda *call: calls.append(call), keep=keep)
    return Ran(found, model, calls, kept)


@pytest.fixture(scope="module")
def ran() -> Callable[[str], Ran]:
    kept: dict[str, Ran] = {}

    def once(name: str) -> Ran:
        if name not in kept:
            kept[name] = examine(name)
        return kept[name]

    return once


def test_there_are_detectors() -> None:
    assert {"backdrift", "purediffusion", "terd"} <= set(NAMES)


@each
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_most_it_can_cost_fits_the_budget(name: str, budget: str) -> None:
    detector = registry.build("detection", name, {"budget": budget})
    assert 0 < detector.most_evaluations() <= BUDGETS[budget]


@each
def test_it_is_a_frozen_dataclass_with_defaults_that_json_can_hold(name: str) -> None:
    detector = registry.build("detection", name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        detector.budget = "deep"
    options = json.loads(json.dumps(dataclasses.asdict(detector)))
    assert registry.build("detection", name, options) == detector
    assert detector.budget == "standard"


@each
def test_it_says_where_it_comes_from(name: str) -> None:
    text = registry.plugin("detection", name).__doc__ or ""
    assert re.search(r"arXiv \d{4}\.\d{5}", text) or re.search(r"\bOurs\b", text)


@each
def test_the_finding_is_whole(name: str, ran: Callable[[str], Ran]) -> None:
    finding = ran(name).detection.finding
    assert finding.detector == name
    assert finding.score is not None
    assert -1 <= finding.score <= 1
    assert finding.threshold is not None
    assert 0 < finding.threshold <= 1
    assert finding.reason
    assert "\n" not in finding.reason
    assert finding.scores
    assert all(score.meaning for score in finding.scores)
    assert finding.nulls
    assert all(0 <= null.score <= 1 for null in finding.nulls)
    assert [r.kept for r in finding.restarts].count(True) == 1
    assert len(finding.agreement) == len(finding.restarts)
    agreement = np.array(finding.agreement)
    assert np.allclose(agreement, agreement.T, atol=1e-5)
    assert np.allclose(agreement.diagonal(), 1, atol=1e-5)
    for curve in finding.curves:
        assert len(curve.x) == len(curve.y) > 0
    if finding.calibration is not None:
        assert not finding.calibration.in_range  # of no 1x8x8 model
        assert finding.calibration.out_of_range
    assert finding.config["budget"] == "quick"
    assert finding.seconds > 0


@each
def test_the_evidence_is_what_the_finding_names(name: str, ran: Callable[[str], Ran]) -> None:
    found = ran(name).detection
    evidence = found.evidence
    assert isinstance(evidence, Evidence)
    assert evidence.trigger.shape == SHAPE
    assert evidence.target is not None
    assert evidence.target.shape == SHAPE
    assert np.abs(evidence.target).max() <= 1
    assert evidence.clean_samples.shape == evidence.triggered_samples.shape
    assert evidence.clean_samples.shape[1:] == SHAPE
    assert evidence.sampler
    arrays = (evidence.trigger, evidence.target, evidence.clean_samples, evidence.triggered_samples)
    assert all(array.dtype == np.float32 for array in arrays)
    assert array_hash(evidence.trigger) == found.finding.trigger_sha256
    assert array_hash(evidence.target) == found.finding.target_sha256
    assert np.linalg.norm(evidence.trigger) == pytest.approx(
        next(s.value for s in found.finding.scores if s.name == "trigger norm"), rel=1e-4
    )


@each
def test_what_it_spent_fits_the_budget(name: str, ran: Callable[[str], Ran]) -> None:
    done = ran(name)
    limit = registry.build("detection", name, {"budget": "quick"}).most_evaluations()
    assert 0 < done.detection.finding.evaluations <= limit
    assert done.detection.finding.evaluations <= done.model.evaluations <= BUDGETS["quick"]


@each
def test_the_model_comes_back_as_it_was(name: str, ran: Callable[[str], Ran]) -> None:
    model = ran(name).model
    fresh = tiny_model(blocks=1).network.state_dict()
    assert model.network.training
    assert all(p.requires_grad and p.grad is None for p in model.network.parameters())
    assert all(torch.equal(value, fresh[key]) for key, value in model.network.state_dict().items())


@each
def test_progress_counts_up_to_its_total(name: str, ran: Callable[[str], Ran]) -> None:
    calls = ran(name).calls
    assert calls
    assert all(0 <= done <= total and text for done, total, text in calls)
    assert calls[-1][0] == calls[-1][1]


@each
def test_it_tells_what_it_has_on_the_way(name: str, ran: Callable[[str], Ran]) -> None:
    kept = ran(name).kept
    assert len({stage for stage, _ in kept}) >= 3
    spent = [so_far.finding.evaluations for _, so_far in kept]
    assert spent == sorted(spent)
    for stage, so_far in kept:
        finding, evidence = so_far.finding, so_far.evidence
        assert stage
        assert (finding.verdict, finding.score) == ("INCONCLUSIVE", None)
        assert finding.reason.startswith("unfinished")
        assert evidence is not None
        assert array_hash(evidence.trigger) == finding.trigger_sha256
        assert evidence.clean_samples.shape[1:] == evidence.triggered_samples.shape[1:] == SHAPE
    _, last = kept[-1]
    assert [null.name for null in last.finding.nulls]
    judged = {score.name: score.value for score in last.finding.scores}
    assert judged["hit rate"] is not None


@each
def test_one_seed_gives_one_finding(name: str, ran: Callable[[str], Ran]) -> None:
    """Whether anybody is told on the way or not."""
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = examine(name, told=False)
    assert torch.equal(state, torch.get_rng_state())
    first = ran(name).detection
    for found in (first, again.detection):
        assert found.finding.seed == 0
    left, right = (d.finding.model_dump_json(exclude={"seconds"}) for d in (first, again.detection))
    assert left == right
    assert first.evidence is not None
    assert again.detection.evidence is not None
    assert np.array_equal(first.evidence.triggered_samples, again.detection.evidence.triggered_samples)


@each
def test_another_seed_searches_elsewhere(name: str, ran: Callable[[str], Ran]) -> None:
    other = examine(name, seed=1).detection.finding
    assert other.seed == 1
    assert other.trigger_sha256 != ran(name).detection.finding.trigger_sha256


@each
def test_the_finding_survives_json(name: str, ran: Callable[[str], Ran]) -> None:
    finding = ran(name).detection.finding
    text = finding.model_dump_json()
    assert Finding.model_validate_json(text).model_dump_json() == text
    json.loads(text, parse_constant=pytest.fail)
