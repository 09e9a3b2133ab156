"""Data sets of Hugging Face, made on the spot with the real library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from backdrift.data import load_dataset

SHAPE = (3, 8, 8)
CIFAR = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache but our own, no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(levels: list[int], features: datasets.Features = CIFAR, **columns: Any) -> datasets.Dataset:
    pictures = [Image.new("RGB", (9, 9), (level, level, level)) for level in levels]
    return datasets.Dataset.from_dict({"img": pictures, **columns}, features=features)


def levels_of(found: Any) -> list[int]:
    return ((found.images.mean((1, 2, 3)) + 1) * 127.5).round().int().tolist()  # type: ignore[no-any-return]


def test_the_training_split_of_what_was_saved(tmp_path: Path) -> None:
    splits = {"test": rows([1], label=[0]), "train": rows([10, 20, 30], label=[1, 0, 1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    found = load_dataset(f"hf:{tmp_path / 'saved'}", SHAPE)
    assert (levels_of(found), found.class_names, found.name) == ([10, 20, 30], ("cat", "dog"), "hf:saved")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 1]


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name, level in (("train/cat/1", 10), ("train/dog/1", 20)):
        path = tmp_path / "pets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (level, level, level)).save(path)
    found = load_dataset(f"hf:{tmp_path / 'pets'}", SHAPE)
    assert (sorted(levels_of(found)), found.class_names) == ([10, 20], ("cat", "dog"))


def test_a_bad_row_is_refused_or_skipped_with_its_label(tmp_path: Path) -> None:
    whole = rows([10, 20, 30, 40], label=[0, 1, 0, 1]).cast_column("img", datasets.Image(decode=False))
    cells = whole[:]["img"]
    cells[1], cells[2] = {"bytes": b"no picture", "path": None}, None
    broken = datasets.Dataset.from_dict({"img": cells, "label": [0, 1, 0, 1]}, features=CIFAR)
    broken.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="row 1: not a PNG"):
        load_dataset(f"hf:{tmp_path / 'saved'}", SHAPE)
    found = load_dataset(f"hf:{tmp_path / 'saved'}", SHAPE, on_bad="skip")
    assert (levels_of(found), [line[:5] for line in found.skipped]) == ([10, 40], ["row 1", "row 2"])
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]


def test_labels_that_are_missing_are_no_labels(tmp_path: Path) -> None:
    rows([10, 20], label=[0, None]).save_to_disk(tmp_path / "saved")
    found = load_dataset(f"hf:{tmp_path / 'saved'}", SHAPE)
    assert (found.labels, found.class_names) == (None, ())


def test_what_holds_no_images(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "words")
    with pytest.raises(ValueError, match="no image column; it has text"):
        load_dataset(f"hf:{tmp_path / 'words'}", SHAPE)
    rows([], label=[]).save_to_disk(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        with pytest.raises(ValueError, match=f"{name} cannot be loaded: "):
            load_dataset(f"hf:{tmp_path / name}", SHAPE)
    with pytest.raises(ValueError, match=r"needs a name or a folder; short names: mnist, .*cifar10"):
        load_dataset("hf:", SHAPE)


def test_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str) -> datasets.DatasetDict:
        asked.append(name)
        return datasets.DatasetDict({"train": rows([10], label=[0])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_dataset("hf:CIFAR10", SHAPE).name == "hf:uoft-cs/cifar10"
    assert load_dataset("hf:me/mine", SHAPE).name == "hf:me/mine"
    assert asked == ["uoft-cs/cifar10", "me/mine"]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'hf:cifar10 needs an extra: pip install "backdrift\[datasets\]"'):
        load_dataset("hf:cifar10", SHAPE)
