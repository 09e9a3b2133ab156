"""What every data set keeps, and what the drawn ones show."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch.nn.functional import avg_pool2d

from backdrift.data import DATASETS, load_dataset, load_images


def _folder(place: Path) -> str:
    for number in range(6):
        path = place / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9 + number, 12), 80).save(path)
    return f"folder:{place / 'images'}"


def _saved(place: Path) -> str:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])}
    )
    rows = {"image": [Image.new("RGB", (9, 12), (40 * i, 9, 9)) for i in range(6)], "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(place / "saved")
    return f"hf:{place / 'saved'}"


NAMED: dict[str, Callable[[Path], str]] = {
    "digits": lambda place: "digits",
    "shapes": lambda place: "shapes",
    "photos": lambda place: "photos",
    "folder": _folder,
    "hf": _saved,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DATASETS)
def test_what_a_data_set_keeps(name: str, channels: int, tmp_path: Path) -> None:
    shape, source = (channels, 8, 8), NAMED[name](tmp_path)
    found = load_dataset(source, shape)
    assert found.images.shape[1:] == shape
    assert found.images.dtype == torch.float32
    assert -1 <= found.images.min() < found.images.max() <= 1
    assert found.labels is not None
    assert found.labels.shape == found.images.shape[:1]
    assert set(found.labels.tolist()) == set(range(len(found.class_names)))
    assert found.name.partition(":")[0] == name
    assert str(tmp_path) not in found.name
    assert found.sha256 == hashlib.sha256(found.images.numpy().astype("<f4").tobytes()).hexdigest()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = load_images(source, shape)
    assert again.equal(found.images)
    assert torch.get_rng_state().equal(state)
    for wrong in ((2, 8, 8), (3, 0, 8)):
        with pytest.raises(ValueError, match="1 or 3 channels"):
            load_dataset(source, wrong)


def test_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'cifar'; known: digits, folder:PATH, hf:NAME"):
        load_dataset("cifar", (3, 32, 32))
    with pytest.raises(ValueError, match="digits takes nothing after a colon"):
        load_dataset("digits:3", (1, 8, 8))
    with pytest.raises(ValueError, match="on_bad is refuse or skip"):
        load_dataset("digits", (1, 8, 8), on_bad="ask")  # type: ignore[arg-type]


def test_some_images_are_drawn_by_the_seed() -> None:
    found = load_dataset("digits", (1, 8, 8))
    some = found.some(40, seed=1)
    rows = {row.numpy().tobytes() for row in found.images}
    assert {row.numpy().tobytes() for row in some} <= rows
    assert some.equal(found.some(40, seed=1))
    assert not some.equal(found.some(40, seed=2))
    assert found.some(None, seed=1) is found.images
    with pytest.raises(ValueError, match="1797 images, not 1798"):
        found.some(1798, seed=0)


def test_digits_are_those_of_scikit_learn() -> None:
    known, found = load_digits(), load_dataset("digits", (1, 8, 8))
    assert np.allclose(found.images[:, 0].numpy(), known.images / 8 - 1, atol=1e-6)
    assert found.labels is not None
    assert found.labels.tolist() == known.target.tolist()
    coloured = load_images("digits", (3, 8, 8))
    assert not coloured[:, 0].equal(coloured[:, 1])
    assert ((coloured + 1) <= (found.images + 1) + 1e-6).all()


def test_shapes_are_the_same_scenes_at_every_size_and_in_grey() -> None:
    small, large = load_images("shapes", (3, 16, 16)), load_images("shapes", (3, 64, 64))
    assert (avg_pool2d(large, 4) - small).abs().mean() < 0.03
    grey = load_images("shapes", (1, 16, 16))
    luma = (small * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert (grey - luma).abs().max() < 0.02
    wide = load_images("shapes", (3, 16, 24))
    assert wide.shape == (2048, 3, 16, 24)


def test_patches_have_the_colours_of_the_photograph_that_their_class_names() -> None:
    found = load_dataset("photos", (3, 64, 64))
    assert (len(found.images), found.class_names) == (2048, ("china", "flower"))
    assert found.labels is not None
    whole = [torch.from_numpy(photo / 127.5 - 1).mean((0, 1)) for photo in load_sample_images().images]
    means = [found.images[found.labels == kind].mean((0, 2, 3)) for kind in (0, 1)]
    apart = [[float((mean - photo).norm()) for photo in whole] for mean in means]
    assert apart[0][0] < apart[0][1] / 2
    assert apart[1][1] < apart[1][0] / 2
    assert found.images.std((1, 2, 3)).min() > 0.02
    if find_spec("skimage") is None:
        with pytest.raises(ValueError, match="pip install scikit-image"):
            load_dataset("photos:skimage", (3, 16, 16))
    with pytest.raises(ValueError, match="nothing or skimage"):
        load_dataset("photos:more", (3, 16, 16))
