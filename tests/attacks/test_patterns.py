"""Named triggers and targets: where they lie, what they cover, what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from backdrift.attacks._drawings import PICTURES
from backdrift.attacks.patterns import (
    GREY,
    TARGETS,
    TRIGGERS,
    make_target,
    make_trigger,
    target_from_png,
    trigger_from_png,
)

Shape = tuple[int, int, int]

COLOUR, GRAY = (3, 32, 32), (1, 32, 32)
SHAPES: list[Shape] = [(1, 8, 8), (3, 16, 16), COLOUR, (3, 24, 40), (1, 256, 256)]
ZERO_BACKGROUND = {"white-patch", "cross", "speckle", "stripes", "dense-sign", "low-frequency"}
SEEDED = {"speckle", "dense-sign", "low-frequency"}


def extent(mask: Tensor) -> tuple[int, int, int, int]:
    """First and last row, first and last column, of a mask (C, H, W)."""
    _, rows, columns = mask.nonzero(as_tuple=True)
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def luminance(rgb: Tensor) -> Tensor:
    """ITU-R 601 of an image in [-1, 1], (3, H, W) to (1, H, W)."""
    return (torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1) * rgb).sum(0, keepdim=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TRIGGERS)
def test_every_trigger_at_every_size(name: str, shape: Shape) -> None:
    trigger = make_trigger(name, shape)
    assert tuple(trigger.pattern.shape) == tuple(trigger.mask.shape) == shape
    assert trigger.pattern.dtype == torch.float32
    assert float(trigger.shift.abs().max()) <= 1
    assert bool(trigger.mask.any())
    assert bool((trigger.mask == trigger.mask[:1]).all()), "a hole in one channel"
    assert trigger.composite == (name not in ZERO_BACKGROUND)
    assert trigger.background == (0.0 if name in ZERO_BACKGROUND else -1.0)
    assert bool((trigger.shift[~trigger.mask] == trigger.background).all())
    assert not torch.equal(trigger.shift, torch.full(shape, trigger.background))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_every_target_at_every_size(name: str, shape: Shape) -> None:
    image = make_target(name, shape, trigger=make_trigger("grey-box-14", shape))
    assert tuple(image.shape) == shape
    assert image.dtype == torch.float32
    assert float(image.min()) == np.float32(GREY)
    assert GREY < float(image.max()) <= 1
    assert bool((image == np.float32(GREY)).any()), "no background left"


PUBLISHED = [(18, 12), (14, 16), (11, 19), (8, 22), (4, 26)]


@pytest.mark.parametrize(("size", "first"), PUBLISHED)
@pytest.mark.parametrize(("kind", "value"), [("grey-box", 0.0), ("white-box", 1.0)])
def test_boxes_lie_where_baddiffusion_puts_them(kind: str, value: float, size: int, first: int) -> None:
    wanted = torch.full(COLOUR, -1.0)
    wanted[:, first:30, first:30] = value
    trigger = make_trigger(f"{kind}-{size}", COLOUR)
    assert torch.equal(trigger.shift, wanted)
    assert torch.equal(trigger.mask, wanted > -1)


def test_the_published_norm() -> None:
    """||r||^2 of BOX_14 at 32x32x3, almost all from the background."""
    assert float(make_trigger("grey-box-14", COLOUR).shift.square().sum()) == 2484


@pytest.mark.parametrize(("size", "first"), PUBLISHED)
def test_the_stop_sign_is_an_octagon_in_the_same_place(size: int, first: int) -> None:
    trigger = make_trigger(f"stop-sign-{size}", COLOUR)
    mask = trigger.mask[0]
    assert extent(trigger.mask) == (first, 29, first, 29)
    assert not bool(mask[first, first])
    assert torch.equal(mask, mask.flip(0).roll(first - 2, 0))
    assert torch.equal(mask, mask.T)
    octagon = 8 * (2**0.5 - 1) / 4  # of the square around it
    assert float(mask.sum()) / size**2 == pytest.approx(octagon, abs=0.08)


def test_the_stop_sign_is_red_with_white_on_it() -> None:
    trigger = make_trigger("stop-sign", COLOUR)
    assert torch.equal(trigger.shift, make_trigger("stop-sign-14", COLOUR).shift)
    red, green, blue = trigger.pattern[:, trigger.mask[0]]
    white = torch.minimum(torch.minimum(red, green), blue) > 0.9
    is_red = (red > 0.4) & (green < -0.5) & (blue < -0.5)
    assert float(white.float().mean()) > 0.1
    assert float(is_red.float().mean()) > 0.3


def test_glasses_are_centred() -> None:
    mask = make_trigger("glasses", COLOUR).mask
    top, bottom, left, right = extent(mask)
    assert (left, right) == (6, 25)
    assert right - left + 1 == 0.625 * 32
    assert torch.equal(mask, mask.flip(2))
    assert 12 <= top < bottom <= 20


@pytest.mark.parametrize(
    ("shape", "rows"), [((1, 8, 8), (5, 6)), ((3, 16, 16), (11, 14)), (COLOUR, (22, 29))], ids=str
)
def test_white_patch_is_a_quarter_of_the_side(shape: Shape, rows: tuple[int, int]) -> None:
    trigger = make_trigger("white-patch", shape)
    assert extent(trigger.mask) == (*rows, *rows)
    assert bool((trigger.shift[trigger.mask] == 1).all())
    assert float(trigger.shift.sum()) == shape[0] * (shape[1] // 4) ** 2


def test_dense_sign_is_random_everywhere() -> None:
    trigger = make_trigger("dense-sign", COLOUR)
    assert bool(trigger.mask.all())
    torch.testing.assert_close(trigger.shift.abs(), torch.full(COLOUR, 0.3))
    assert abs(float(trigger.shift.mean())) < 0.3 * 4 / 3072**0.5
    assert float((trigger.shift[0] * trigger.shift[1]).mean()) == pytest.approx(0, abs=0.09 * 4 / 32)


@pytest.mark.parametrize("shape", [(3, 16, 16), COLOUR, (1, 64, 64)], ids=str)
def test_low_frequency_is_smooth_and_small(shape: Shape) -> None:
    field = make_trigger("low-frequency", shape).shift
    assert float(field.square().mean().sqrt()) == pytest.approx(0.25, rel=1e-3)
    power = torch.fft.fft2(torch.cat([field, field.flip(1)], 1)).abs().square()
    rows = torch.fft.fftfreq(2 * shape[1], 1 / 2 / shape[1]).abs()
    assert float(power[:, rows > 3.5].sum() / power.sum()) < 1e-6, "more than 1.5 periods"


@pytest.mark.parametrize("name", TRIGGERS)
def test_only_the_seeded_depend_on_the_seed(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, other = make_trigger(name, COLOUR), make_trigger(name, COLOUR, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.shift, make_trigger(name, COLOUR).shift)
    assert torch.equal(first.shift, other.shift) == (name not in SEEDED)


@pytest.mark.parametrize("name", ["stop-sign", "glasses", "hat", "shoe", "cat"])
def test_one_channel_is_the_luminance_of_three(name: str) -> None:
    if name in TARGETS:
        rgb, gray = make_target(name, COLOUR), make_target(name, GRAY)
        covered = (rgb > GREY).all(0, keepdim=True)  # where the background was not cut in
        torch.testing.assert_close(gray[covered], luminance(rgb)[covered], atol=1e-5, rtol=0)
        return
    rgb_trigger, gray_trigger = make_trigger(name, COLOUR), make_trigger(name, GRAY)
    assert torch.equal(gray_trigger.mask[0], rgb_trigger.mask[0])
    torch.testing.assert_close(gray_trigger.shift, luminance(rgb_trigger.shift), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "box"), [(8, 3), (16, 5), (32, 10), (256, 80)])
def test_corner(side: int, box: int) -> None:
    wanted = torch.full((3, side, side), GREY)
    wanted[:, :box, :box] = 0
    assert torch.equal(make_target("corner", (3, side, side)), wanted)


def test_noshift_and_shift_of_the_published_box() -> None:
    trigger = make_trigger("grey-box-14", COLOUR)
    still = make_target("noshift", COLOUR, trigger=trigger)
    moved = make_target("shift", COLOUR, trigger=trigger)
    assert torch.equal(still, trigger.shift.clamp(min=GREY))
    assert extent(moved == 0) == (13, 26, 11, 24)
    assert torch.equal(moved, still.roll((-3, -5), (1, 2)))


def test_shift_of_a_trigger_on_zero_keeps_its_background() -> None:
    image = make_target("noshift", COLOUR, trigger=make_trigger("white-patch", COLOUR))
    assert sorted(set(image.flatten().tolist())) == [0.0, 1.0]


@pytest.mark.parametrize("side", [16, 32])
def test_pictures_differ_and_have_inner_structure(side: int) -> None:
    images = {name: make_target(name, (1, side, side)) for name in PICTURES}
    for name, image in images.items():
        inside = image[image > 0]
        assert 0.15 < float((image > GREY + 0.01).float().mean()) < 0.75
        assert float(inside.std()) > 0.1
        for other in images:
            distance = float(((image - images[other]) / 2).square().mean())
            assert (distance > 0.02) == (other != name)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(TRIGGERS),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 70),
    width=st.integers(8, 70),
)
def test_no_size_is_special(name: str, channels: int, height: int, width: int) -> None:
    trigger = make_trigger(name, (channels, height, width))
    assert bool(trigger.mask.any())
    if name.startswith(("grey-box", "white-", "stop-sign")):
        _, bottom, _, right = extent(trigger.mask)
        gap = height - 1 - bottom
        assert gap == width - 1 - right
        assert gap == int(min(height, width) / 16 + 0.5)


def picture(path: Path, mode: str) -> Path:
    """8x8: left half yellow, opaque; right half blue, transparent where the mode can say so."""
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:, :4] = (255, 255, 0, 255)
    rgba[:, 4:] = (0, 0, 255, 0)
    Image.fromarray(rgba).convert(mode).save(path)
    return path


def test_alpha_is_the_mask(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", "RGBA")
    trigger = make_trigger(f"png:{path}", (3, 16, 16))
    assert extent(trigger.mask) == (0, 15, 0, 7)
    assert trigger.composite
    assert trigger.shift[:, 0, 0].tolist() == [1, 1, -1]
    assert trigger.shift[:, 0, 15].tolist() == [-1, -1, -1]
    image = make_target(f"png:{path}", (3, 16, 16))
    assert image[:, 0, 0].tolist() == pytest.approx([1, 1, GREY])
    assert image[:, 0, 15].tolist() == pytest.approx([GREY] * 3)


def test_without_alpha_black_is_outside(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[2:4, 2:4] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for shape in (COLOUR, GRAY):
        trigger = trigger_from_png(tmp_path / "a.png", shape)
        assert extent(trigger.mask) == (8, 15, 8, 15)
        assert bool((trigger.mask == trigger.mask[:1]).all()), "green and blue are black, yet inside"


def test_transparent_colours_do_not_bleed_in(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", "RGBA")
    Image.open(path).resize((9, 9), Image.Resampling.NEAREST).save(path)
    trigger = trigger_from_png(path, (3, 8, 8))
    assert bool((trigger.pattern[2] < -0.95).all()), "blue from under alpha 0"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA"])
def test_pictures_of_every_mode(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / "a.png", mode)
    for shape in (COLOUR, GRAY):
        assert bool(trigger_from_png(path, shape).mask.any())
        assert float(target_from_png(path, shape).max()) > GREY


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="nothing visible at 32x32"):
        trigger_from_png(tmp_path / "black.png", COLOUR)
    with pytest.raises(FileNotFoundError):
        make_trigger(f"png:{tmp_path / 'missing.png'}", COLOUR)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match="cannot identify"):
        make_target(f"png:{tmp_path / 'text.png'}", COLOUR)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown trigger 'box'; known: .*dense-sign"):
        make_trigger("box", COLOUR)
    with pytest.raises(ValueError, match=r"unknown target 'dog'; known: hat, shoe, cat"):
        make_target("dog", COLOUR)


@pytest.mark.parametrize("shape", [(2, 32, 32), (3, 7, 32), (3, 32, 0)])
def test_shapes_that_cannot_be_drawn_on(shape: Shape) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        make_trigger("stop-sign", shape)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        make_target("hat", shape)


def test_shift_targets_need_a_trigger_of_the_same_shape() -> None:
    with pytest.raises(ValueError, match="made of the trigger"):
        make_target("shift", COLOUR)
    with pytest.raises(ValueError, match="made of the trigger"):
        make_target("noshift", COLOUR, trigger=make_trigger("stop-sign", GRAY))
