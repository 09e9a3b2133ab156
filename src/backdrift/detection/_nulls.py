"""Shifts of the starting noise that no attacker chose, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from backdrift.core.randomness import generator

AIMED = ("own image", "another own image")
NULLS = ("opposite", "phase-randomised", "constant", "low-frequency", *AIMED)


def null_shift(name: str, shift: Tensor, seed: int, own: Tensor) -> Tensor:
    """A shift (C, H, W) of the norm of ``shift`` that no attacker chose; one of ``NULLS``.

    The first four are what any shift of that size does. All of them but ``opposite`` are made
    orthogonal to ``shift``: a constant, say, would otherwise set off the backdoor that it should be
    compared with, as triggers on a black background are nearly constant. One that is parallel to
    ``shift`` changes its sign half way down instead.

    The two of ``AIMED`` are what a shift of that size can do to this model when it is aimed: from the
    mean of the model's own samples towards one of them. An ODE sampler keeps a shift of its start on
    the way, so a model that knows few images by heart is steered to any one of them like that, clean
    or not; a search by gradient finds the same, and must not be credited for it.

    Args:
        own: plain samples of the model, (N, C, H, W), within its range.

    Raises:
        ValueError: unknown name.
    """
    if name in AIMED:
        aimed = own[AIMED.index(name) % len(own)] - own.mean(0)
        return _of_norm(aimed, shift)
    stream = generator(seed, "null", name)
    if name == "opposite":
        return -shift
    if name == "phase-randomised":
        angle = torch.fft.rfft2(torch.randn(shift.shape[1:], generator=stream)).angle()
        spectrum = torch.fft.rfft2(shift.cpu()) * torch.exp(1j * angle)
        null = torch.fft.irfft2(spectrum, s=list(shift.shape[1:]))
    elif name == "constant":
        sign = torch.randint(2, (shift.shape[0], 1, 1), generator=stream) * 2.0 - 1
        null = sign.expand_as(shift)
    elif name == "low-frequency":
        coarse = torch.randn((1, shift.shape[0], 4, 4), generator=stream)
        null = functional.interpolate(coarse, size=shift.shape[1:], mode="bicubic")[0]
    else:
        raise ValueError(f"unknown null {name!r}; known: {', '.join(NULLS)}")
    null = null.to(shift)
    rest = null - (null * shift).sum() / (shift * shift).sum().clamp_min(1e-12) * shift
    if rest.norm() < 1e-3 * null.norm():
        rest = null * torch.ones_like(null).cumsum(1).sub(null.shape[1] / 2 + 0.5).sign()
    null = rest
    return _of_norm(null, shift)


def _of_norm(null: Tensor, shift: Tensor) -> Tensor:
    scaled: Tensor = null * (shift.norm() / null.norm().clamp_min(1e-12))
    return scaled
