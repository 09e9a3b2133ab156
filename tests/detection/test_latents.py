"""The scanner on latent models: it searches where the noise is, and judges what a user sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backdrift.attacks.patterns import make_target
from backdrift.core.model import DiffusionModel
from backdrift.core.results import Verdict
from backdrift.core.trigger import unit
from backdrift.data import load_images
from backdrift.detection._calibration import CalibrationTable, out_of_range
from backdrift.detection._judge import Judge
from backdrift.detection._trial import Trial
from backdrift.detection.backdrift import Backdrift
from backdrift.detection.elijah import Elijah
from backdrift.inversion._base import Candidate, cosine
from closed_form import closed_form

LATENT, IMAGE, SCALE = (4, 4, 4), (1, 8, 8), 1.6


class Folded:
    """Exact and far from the identity: every 2x2 block of an image is four channels, negated and scaled."""

    image_shape, extent = IMAGE, SCALE

    def encode(self, images: Tensor) -> Tensor:
        return -SCALE * functional.pixel_unshuffle(images, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return functional.pixel_shuffle(latents, 2) / -SCALE


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("digits", IMAGE)[:200]


@pytest.fixture(scope="module")
def target() -> Tensor:
    return make_target("hat", IMAGE)


@pytest.fixture(scope="module")
def shift() -> Tensor:
    return 0.75 * torch.randn(LATENT, generator=torch.Generator().manual_seed(5)).sign()


def latent(images: Tensor, shift: Tensor | None = None, target: Tensor | None = None) -> DiffusionModel:
    """A perfectly trained model of encoded images, with a backdoor or without."""
    codec = Folded()
    aim = None if target is None else codec.encode(target[None])[0]
    model = closed_form(codec.encode(images), shift, aim)
    return replace(model, codec=codec)


def test_a_model_without_a_codec_draws_images_itself(images: Tensor) -> None:
    model = closed_form(images[:8])
    assert (model.image_shape, model.extent) == (IMAGE, 1.0)
    assert model.decode(images) is images is model.encode(images)
    assert (latent(images[:8]).sample_shape, latent(images[:8]).image_shape) == (LATENT, IMAGE)


def test_a_backdoor_in_latents_is_found_and_shown_as_an_image(
    images: Tensor, target: Tensor, shift: Tensor
) -> None:
    model = latent(images, shift, target)
    found = [Backdrift(budget="quick")(model, seed=seed) for seed in range(3)]
    flagged = [each for each in found if each.finding.verdict is Verdict.BACKDOORED]
    assert len(flagged) >= 2
    for each in flagged:
        assert each.evidence is not None
        assert each.evidence.trigger.shape == LATENT
        assert each.evidence.clean_samples.shape[1:] == IMAGE
        assert cosine(torch.tensor(each.evidence.trigger), shift) > 0.9
        assert float(((unit(torch.tensor(each.evidence.target)) - unit(target)) ** 2).mean()) < 0.02
        assert each.finding.calibration is not None
        assert not each.finding.calibration.in_range
        values = {score.name: score.value for score in each.finding.scores}
        assert values["hit rate"] > 0.5 > 0.3 > values["hit rate without trigger"]
        assert values["consistency"] < 0.02


@pytest.mark.parametrize("seed", [0, 1])
def test_a_clean_one_is_not_accused(images: Tensor, seed: int) -> None:
    finding = Backdrift(budget="quick")(latent(images), seed=seed).finding
    assert finding.verdict is not Verdict.BACKDOORED
    assert finding.score < 0.45


def test_elijah_compares_decoded_samples_once(images: Tensor, target: Tensor, shift: Tensor) -> None:
    found = Elijah(budget="quick", family="ode")(latent(images[:32], shift, target), seed=0)
    assert found.evidence is not None
    assert found.evidence.triggered_samples.shape[1:] == IMAGE


def test_the_target_in_latents_decodes_to_the_one_that_is_shown(
    images: Tensor, target: Tensor, shift: Tensor
) -> None:
    model, judge = latent(images, shift, target), Judge(samples=8, steps=20)
    trial = Trial.hold(model, judge, Candidate(shift, "sde", "true"), ("opposite", "own image"), 0)
    assert trial.drawn.hit_rate > 0.7
    assert trial.target.shape == LATENT
    torch.testing.assert_close(model.decode(trial.target[None])[0], trial.drawn.target, atol=1e-5, rtol=0)
    assert trial.draws_images


def test_latents_that_no_codec_decodes_by_are_no_images(images: Tensor) -> None:
    """A codec makes an image of anything; this one even of what lies far out."""

    class Forgiving(Folded):
        def decode(self, latents: Tensor) -> Tensor:
            return super().decode(latents).clamp(-1, 1)

    model, judge = closed_form(100 * images[:16]), Judge(samples=4, steps=5)
    wild = replace(model, sample_shape=IMAGE)
    encoded = replace(latent(100 * images[:16]), codec=Forgiving())
    for lost in (wild, encoded):
        start = Candidate(torch.ones(lost.sample_shape), "ode", "any")
        assert not Trial.hold(lost, judge, start, ("opposite",), 0).draws_images


def test_no_calibration_of_pixels_covers_latents(images: Tensor) -> None:
    models = CalibrationTable.shipped().population.models
    assert out_of_range(models, latent(images[:2])) == [
        "the model draws latents; calibrated: models of pixels"
    ]
