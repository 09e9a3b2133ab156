"""What a backdoor is to draw, by name: a drawing, or a set of images (D2D of TrojDiff)."""

from __future__ import annotations

from torch import Tensor

from backdrift.attacks.patterns import TARGETS, make_target
from backdrift.core.trigger import Trigger
from backdrift.data import ImageSet, OnBad, load_dataset

USAGES = (*TARGETS, "png:PATH", "class:NAME", "data:DATASET", "data:DATASET@CLASS")


def choose_target(
    name: str, data: ImageSet, *, trigger: Trigger | None = None, on_bad: OnBad = "refuse"
) -> Tensor:
    """One image (C, H, W), or a set (M, C, H, W), in [-1, 1].

    Args:
        name: a drawing of :func:`backdrift.attacks.patterns.make_target`; ``class:NAME`` for the images
            of one class of ``data`` (In-D2D); ``data:DATASET``, and ``@CLASS`` if not all of it is
            meant, for another data set (Out-D2D). Classes go by name or number.
        on_bad: what becomes of an image of another data set that cannot be read.

    Raises:
        ValueError: unknown name, data set or class.
    """
    shape = (data.images.shape[1], data.images.shape[2], data.images.shape[3])
    kind, _, rest = name.partition(":")
    if kind == "class":
        return _of_class(data, rest)
    if kind == "data":
        source, mark, wanted = rest.rpartition("@")
        other = load_dataset(source if mark else rest, shape, on_bad=on_bad)
        return _of_class(other, wanted) if mark else other.images
    if kind not in (*TARGETS, "png"):
        raise ValueError(f"unknown target {name!r}; known: {', '.join(USAGES)}")
    return make_target(name, shape, trigger=trigger)


def _of_class(data: ImageSet, wanted: str) -> Tensor:
    if data.labels is None:
        raise ValueError(f"{data.name} has no classes")
    names = list(data.class_names)
    if wanted not in names and not (wanted.isdecimal() and int(wanted) < len(names)):
        raise ValueError(f"{data.name} has no class {wanted!r}; it has {', '.join(names)}")
    number = names.index(wanted) if wanted in names else int(wanted)
    chosen = data.images[data.labels == number]
    if not len(chosen):
        raise ValueError(f"no image of {data.name} is of the class {wanted!r}")
    return chosen
