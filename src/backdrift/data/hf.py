"""A data set of the Hugging Face hub, or one that ``datasets`` saved to disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from backdrift.data._decode import BadImage, decode_all, printable
from backdrift.data._imageset import ImageSet, OnBad, Shape, check_shape

USAGE = "hf:NAME"
ALIASES = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "celeba": "flwrlabs/celeba",
    "celeba-hq": "korexyz/celeba-hq-256x256",
}


def load(source: str, shape: Shape, on_bad: OnBad) -> ImageSet:
    """The first image column of the data set ``source``, at ``shape`` (C, H, W), C 1 or 3.

    ``source`` is a folder, an alias, or a name on the hub. A folder is either the work of
    ``save_to_disk`` or what ``datasets.load_dataset`` takes. Of several splits it is "train", or else the
    first one. The first class-label column gives the labels, unless one is missing. Images are cut and
    resized as those of a folder.

    Raises:
        ValueError: the extra is not installed, no such data set, no image column, another number of
            channels, or a bad image where ``on_bad`` is "refuse".
    """
    check_shape("images of a Hugging Face data set", shape)
    if not source:
        raise ValueError(f"hf: needs a name or a folder; short names: {', '.join(ALIASES)}")
    try:
        import datasets
    except ImportError:
        raise ValueError(f'hf:{source} needs an extra: pip install "backdrift[datasets]"') from None
    where = printable(f"hf:{source}")
    rows, name = _rows(datasets, source, where)
    features = rows.features
    column = _first(features, datasets.Image)
    if column is None:
        raise ValueError(f"{where}: no image column; it has {', '.join(features) or 'none'}")
    encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    images, kept, skipped = decode_all(
        [f"row {i}" for i in range(len(rows))], lambda i: _open(encoded[i][column]), shape, on_bad, where
    )
    labels, classes = None, tuple[str, ...]()
    if label := _first(features, datasets.ClassLabel):
        labels = _labels(rows.select_columns([label])[:][label], kept)
        classes = () if labels is None else tuple(features[label].names)
    return ImageSet(images, labels, classes, printable(f"hf:{name}"), skipped)


def _rows(datasets: Any, source: str, where: str) -> tuple[Any, str]:
    """The rows and the name that a record may hold: a folder's own, without the path."""
    folder = Path(source).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            found, name = datasets.load_from_disk(str(folder)), folder.resolve().name
        elif folder.is_dir():
            found, name = datasets.load_dataset(str(folder.resolve())), folder.resolve().name
        else:
            name = ALIASES.get(source.lower(), source)
            found = datasets.load_dataset(name)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where} cannot be loaded: {type(error).__name__}: {reason}") from None
    if isinstance(found, dict):
        if not found:
            raise ValueError(f"{where}: no split")
        found = found["train"] if "train" in found else next(iter(found.values()))
    if not len(found):
        raise ValueError(f"{where}: no rows")
    return found.with_format(None), name


def _first(features: dict[str, Any], kind: type[Any]) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def _labels(values: list[int | None], kept: list[int]) -> Tensor | None:
    chosen = [values[i] for i in kept]
    known = [value for value in chosen if value is not None and value >= 0]
    return torch.tensor(known) if len(known) == len(chosen) else None


def _open(cell: dict[str, Any] | None) -> BinaryIO:
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise BadImage("no image")
    if cell["bytes"] is not None:
        return io.BytesIO(cell["bytes"])
    path = Path(cell["path"])
    if not path.is_file():
        raise BadImage("its file is not there")
    return path.open("rb")
