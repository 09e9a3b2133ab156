"""Triggers and targets by hand-worked examples."""

from __future__ import annotations

import pytest
import torch

from backdrift.core.trigger import Target, TargetSet, Trigger, unit

PATTERN = torch.tensor([[[0.5, 0.0], [0.0, 1.0]]])
MASK = torch.tensor([[[True, False], [False, True]]])
IMAGES = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]], [[[-0.1, -0.6], [0.9, 0.0]]]])


@pytest.mark.parametrize("background", [-1.0, 0.0])
def test_shift_has_the_background_outside_the_mask(background: float) -> None:
    shift = Trigger(PATTERN, MASK, background).shift
    assert shift.tolist() == [[[0.5, background], [background, 1.0]]]


def test_a_composite_trigger_trains_on_the_image_around_it() -> None:
    rows = Trigger(PATTERN, MASK).training_shift(IMAGES)
    expected = torch.tensor([[[[0.5, 0.2], [0.3, 1.0]]], [[[0.5, -0.6], [0.9, 1.0]]]])
    assert torch.equal(rows, expected)


def test_a_bare_trigger_trains_on_the_background() -> None:
    trigger = Trigger(PATTERN, MASK, composite=False)
    assert torch.equal(trigger.training_shift(IMAGES), trigger.shift.expand(2, 1, 2, 2))


@pytest.mark.parametrize("composite", [True, False])
def test_mean_training_shift_is_the_mean_of_the_rows(composite: bool) -> None:
    trigger = Trigger(PATTERN, MASK, composite=composite)
    torch.testing.assert_close(trigger.mean_training_shift(IMAGES), trigger.training_shift(IMAGES).mean(0))


def test_pattern_outside_the_mask_is_ignored() -> None:
    noisy = torch.where(MASK, PATTERN, torch.full_like(PATTERN, 9.0))
    assert torch.equal(Trigger(noisy, MASK).shift, Trigger(PATTERN, MASK).shift)
    assert torch.equal(
        Trigger(noisy, MASK).training_shift(IMAGES), Trigger(PATTERN, MASK).training_shift(IMAGES)
    )


def test_black_inside_the_mask_belongs_to_the_trigger() -> None:
    """The published mask, "every element above -1", would lose it."""
    trigger = Trigger(torch.full((1, 2, 2), -1.0), MASK, background=0.0)
    assert trigger.shift.tolist() == [[[-1.0, 0.0], [0.0, -1.0]]]
    assert trigger.training_shift(IMAGES)[0].tolist() == [
        [[-1.0, pytest.approx(0.2)], [pytest.approx(0.3), -1.0]]
    ]


@pytest.mark.parametrize(
    ("pattern", "mask", "message"),
    [
        (torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), "shape"),
        (torch.zeros(1, 2, 2), torch.ones(1, 2, 3, dtype=torch.bool), "shape"),
        (torch.zeros(1, 2, 2), torch.ones(1, 2, 2), "boolean"),
    ],
)
def test_bad_triggers(pattern: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trigger(pattern, mask)


def test_unit_maps_and_clamps() -> None:
    assert unit(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_distance_is_the_mse_of_unit_images() -> None:
    target = Target(torch.zeros(1, 2, 2), threshold=0.05)
    samples = torch.stack([torch.full((1, 2, 2), v) for v in (0.0, 0.4, 0.5, 5.0)])
    assert target.distance(samples).tolist() == pytest.approx([0.0, 0.04, 0.0625, 0.25])
    assert target.hits(samples).tolist() == [True, True, False, False]


def test_threshold_at_chance_level() -> None:
    """100 images at distances .001, .002, ...: the 1% quantile lies between the first two."""
    steps = 2 * torch.sqrt(torch.arange(1, 101) / 1000)
    clean = steps.view(-1, 1, 1, 1).expand(100, 1, 2, 2) - 1
    target = Target.with_chance_level(torch.full((1, 2, 2), -1.0), clean)
    assert target.threshold == pytest.approx(0.00199, rel=1e-4)
    assert int(target.hits(clean).sum()) == 1


def test_threshold_never_exceeds_five_percent() -> None:
    far = Target.with_chance_level(torch.full((1, 2, 2), -1.0), torch.ones(20, 1, 2, 2))
    assert far.threshold == 0.05


def test_a_sample_hits_a_set_when_its_nearest_image_is_of_the_set() -> None:
    levels = torch.tensor([-0.8, -0.4, 0.4, 0.8])
    images = levels[:, None, None, None].expand(4, 1, 2, 2)
    targets = TargetSet(images[2:], images)  # the clean set may hold the targets
    samples = torch.tensor([0.38, 0.01, -0.01, -3.0, 3.0])[:, None, None, None].expand(5, 1, 2, 2)
    assert targets.hits(samples).tolist() == [True, True, False, False, True]
    assert TargetSet(images[2:]).beside(images[:2]).hits(samples).tolist() == targets.hits(samples).tolist()
    assert targets.hits(images).tolist() == [False, False, True, True]


def test_a_set_without_what_it_stands_beside_has_no_hits() -> None:
    with pytest.raises(ValueError, match="give the data"):
        TargetSet(IMAGES).hits(IMAGES)
    with pytest.raises(ValueError, match=r"shape \(M, C, H, W\)"):
        TargetSet(IMAGES[0])
