"""Folders of image files: what an image becomes, and what is no image."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backdrift.data import ImageSet, load_dataset

SHAPE = (3, 8, 8)
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With one good image."""
    place = tmp_path / "images"
    place.mkdir()
    Image.new("RGB", (8, 8), GREEN).save(place / "good.png")
    return place


def load(folder: Path, shape: tuple[int, int, int] = SHAPE, **how: str) -> ImageSet:
    return load_dataset(f"folder:{folder}", shape, **how)  # type: ignore[arg-type]


def only(folder: Path, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """The one image beside the good one."""
    return load(folder, shape).images[0]


def colour(image: torch.Tensor) -> list[int]:
    """Of an image of one colour, in 0 to 255."""
    assert image.std((1, 2)).max() < 0.05
    return ((image.mean((1, 2)) + 1) * 127.5).round().int().tolist()  # type: ignore[no-any-return]


def test_the_middle_is_cut_and_resized(folder: Path) -> None:
    wide = Image.new("RGB", (24, 8), RED)
    wide.paste(GREEN, (8, 0, 16, 8))
    wide.save(folder / "a.png")
    assert colour(only(folder)) == [0, 255, 0]
    wide.resize((240, 80), Image.Resampling.NEAREST).save(folder / "a.png")
    assert colour(only(folder)[:, 1:-1, 1:-1]) == [0, 255, 0]
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(levels).save(folder / "a.png")
    assert ((only(folder, (1, 8, 8))[0] + 1) * 127.5).round().int().tolist() == levels.tolist()


@pytest.mark.parametrize(
    ("name", "mode", "fill", "seen"),
    [
        ("a.png", "RGBA", (255, 0, 0, 0), WHITE),
        ("a.png", "RGBA", (255, 0, 0, 255), RED),
        ("a.png", "LA", (0, 0), WHITE),
        ("a.png", "L", 128, (128, 128, 128)),
        ("a.png", "1", 1, WHITE),
        ("a.png", "I;16", 65535, WHITE),
        ("a.bmp", "RGB", RED, RED),
        ("a.webp", "RGB", WHITE, WHITE),
        ("a.JPG", "CMYK", (0, 0, 0, 0), WHITE),
    ],
)
def test_every_kind_of_pixels(
    folder: Path, name: str, mode: str, fill: object, seen: tuple[int, int, int]
) -> None:
    Image.new(mode, (8, 8), fill).save(folder / name)  # type: ignore[arg-type]
    assert np.allclose(colour(only(folder)), seen, atol=2)


def test_photographs_stand_upright_and_films_show_their_first_frame(folder: Path) -> None:
    """A camera on its side says so in EXIF: orientation 6, the first row is the right side."""
    drawn = Image.new("RGB", (8, 8), WHITE)
    drawn.paste((0, 0, 0), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn.save(folder / "a.jpg", exif=exif, quality=100, subsampling=0)
    upright = only(folder)
    assert upright[:, :, 4:].mean() < -0.9
    assert upright[:, :, :4].mean() > 0.9
    (folder / "a.jpg").unlink()
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, GREEN)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    assert colour(only(folder)) == [255, 0, 0]


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def cut(folder: Path) -> bytes:
    """Half of a PNG."""
    noise = folder.parent / "noise.png"
    Image.effect_noise((64, 64), 90).save(noise)
    return noise.read_bytes()[: noise.stat().st_size // 2]


def bad(folder: Path, kind: str) -> str:
    """Puts it there and says what is wrong with it."""
    path, outside = folder / f"{kind}.png", folder.parent / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    contents = {"text": b"no picture", "empty": b"", "bomb": bomb(), "cut": cut(folder), "notes": b"x"}
    if kind == "notes":
        path = folder / "notes.txt"
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "outside":
        path.symlink_to(outside)
    elif kind == "lost":
        path.symlink_to(folder / "nowhere.png")
    else:
        os.mkfifo(path)
    return {
        "text": "not a PNG, JPEG, BMP, WebP or GIF image",
        "empty": "empty file",
        "bomb": "more than 89,478,485 pixels",
        "cut": "damaged: ",
        "notes": "not named as an image",
        "outside": "a link out of the folder",
        "lost": "a link that leads nowhere",
        "pipe": "not a regular file",
    }[kind]


@pytest.mark.parametrize("kind", ["text", "empty", "bomb", "cut", "notes", "outside", "lost", "pipe"])
def test_what_is_no_image_is_named_and_refused_or_skipped(folder: Path, kind: str) -> None:
    wrong = bad(folder, kind)
    with pytest.raises(ValueError, match=f"{kind}.*{wrong}.*--on-bad-image skip"):
        load(folder)
    found = load(folder, on_bad="skip")
    assert len(found.images) == len(found.skipped) == 1
    assert found.skipped[0].startswith(f"{kind}.")
    assert wrong in found.skipped[0]


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, fill in (("b/2", RED), ("a/deeper/1", GREEN), ("b/1", WHITE)):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), fill).save(path)
    (tmp_path / "a" / "bad.png").write_bytes(b"")
    found = load(tmp_path, on_bad="skip")
    assert found.class_names == ("a", "b")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1]
    assert [colour(image) for image in found.images] == [list(GREEN), list(WHITE), list(RED)]
    Image.new("RGB", (9, 9)).save(tmp_path / "beside.png")
    with pytest.raises(ValueError, match="both in the folder and in sub-folders"):
        load(tmp_path, on_bad="skip")


def test_hidden_files_do_not_count(folder: Path) -> None:
    for name in (".hidden.png", "Thumbs.db", ".cache/x.png"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    found = load(folder)
    assert (len(found.images), found.labels, found.class_names, found.name) == (
        1,
        None,
        (),
        "folder:images",
    )


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="no files"):
        load(tmp_path)
    (tmp_path / "line\nbreak.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no image that can be read; line\\nbreak.png: not a PNG"):
        load(tmp_path, on_bad="skip")
