"""Image data sets, one file each: tensors (N, C, H, W) in [-1, 1]."""

from __future__ import annotations

import importlib
import logging
import re
from importlib import resources
from typing import get_args

from torch import Tensor

from backdrift.data._imageset import ImageSet, OnBad, Shape

__all__ = ["DATASETS", "ImageSet", "OnBad", "Shape", "load_dataset", "load_images"]


def _usages() -> dict[str, str]:
    """How each data set is named, by the name of its file; imports none of them."""
    found = {}
    for entry in resources.files("backdrift.data").iterdir():
        if entry.name.endswith(".py") and not entry.name.startswith("_"):
            usage = re.search(r'^USAGE = "(.+)"$', entry.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert usage, f"{entry.name} has no USAGE"
            found[entry.name.removesuffix(".py")] = usage[1]
    return dict(sorted(found.items()))


DATASETS = _usages()
"""Every data set by the name of its file, and how it is asked for."""


def load_dataset(name: str, shape: Shape, *, on_bad: OnBad = "refuse") -> ImageSet:
    """The data set ``name`` at ``shape`` (C, H, W), with labels where it has any.

    Args:
        name: ``digits``, ``shapes``, ``photos``, ``folder:PATH`` or ``hf:NAME``.
        on_bad: whether an image that cannot be read is refused, or skipped with a warning that goes to
            the logger ``backdrift`` and so, unless somebody set it up, to standard error.

    Raises:
        ValueError: unknown data set, a shape that it cannot take, or images that it cannot read.
    """
    if on_bad not in get_args(OnBad):
        raise ValueError(f"on_bad is {' or '.join(get_args(OnBad))}, not {on_bad!r}")
    kind, colon, source = name.partition(":")
    if kind not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS.values())}")
    if colon and ":" not in DATASETS[kind]:
        raise ValueError(f"{kind} takes nothing after a colon, not {source!r}")
    found: ImageSet = importlib.import_module(f"backdrift.data.{kind}").load(source, shape, on_bad)
    if found.skipped:
        shown = "; ".join(found.skipped[:5]) + ("; ..." if len(found.skipped) > 5 else "")
        total = len(found.images) + len(found.skipped)
        message = "backdrift: %s: skipped %d of %d images: %s"
        logging.getLogger("backdrift").warning(message, found.name, len(found.skipped), total, shown)
    return found


def load_images(name: str, shape: Shape, *, on_bad: OnBad = "refuse") -> Tensor:
    """The images of :func:`load_dataset` alone: float32, (N, C, H, W), in [-1, 1]."""
    return load_dataset(name, shape, on_bad=on_bad).images
