"""A folder of image files, with or without one sub-folder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import torch

from backdrift.data._decode import BadImage, decode_all, printable
from backdrift.data._imageset import ImageSet, OnBad, Shape, check_shape

USAGE = "folder:PATH"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
IGNORED = ("thumbs.db", "desktop.ini")


def load(source: str, shape: Shape, on_bad: OnBad) -> ImageSet:
    """All images below the folder ``source``, in the order of their names.

    An image is cut to the proportions of ``shape`` (C, H, W) around its centre and resized with
    antialiasing; C is 1 or 3. With sub-folders, the first one on the way to an image is its class. Hidden
    files are left out; any other file that is not an image is a bad image, and so is a link that leads
    out of the folder or to a folder.

    Raises:
        ValueError: no such folder, nothing in it, images both in it and in sub-folders, another number
            of channels, or a bad image where ``on_bad`` is "refuse".
    """
    check_shape("images of a folder", shape)
    root = Path(source).expanduser()
    where = printable(f"folder:{source}")
    if not source or not root.is_dir():
        raise ValueError(f"{where}: no such folder")
    root = root.resolve()
    paths = _files(root)
    if not paths:
        raise ValueError(f"{where}: no files")
    classes = _classes([path for path in paths if path.suffix.lower() in SUFFIXES], where)
    images, kept, skipped = decode_all(
        [path.as_posix() for path in paths], lambda i: _open(root, paths[i]), shape, on_bad, where
    )
    labels = None
    if classes:
        labels = torch.tensor([classes.index(paths[i].parts[0]) for i in kept])
    names = tuple(printable(name) for name in classes)
    return ImageSet(images, labels, names, printable(f"folder:{root.name}"), skipped)


def _files(root: Path) -> list[Path]:
    """Every file and every link below ``root``, relative to it and sorted."""

    def fail(error: OSError) -> None:
        raise ValueError(f"{printable(str(error.filename))}: {error.strerror}")

    found = []
    for parent, folders, files in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            if not name.startswith(".") and name.lower() not in IGNORED:
                found.append((Path(parent) / name).relative_to(root))
    return sorted(found, key=lambda path: path.parts)


def _classes(images: list[Path], where: str) -> list[str]:
    nested = [path for path in images if len(path.parts) > 1]
    if nested and len(nested) < len(images):
        raise ValueError(f"{where}: images both in the folder and in sub-folders")
    return sorted({path.parts[0] for path in nested})


def _open(root: Path, relative: Path) -> BinaryIO:
    path = root / relative
    if path.is_symlink():
        try:
            inside = path.resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError):
            raise BadImage("a link that leads nowhere") from None
        if not inside or path.is_dir():
            raise BadImage("a link out of the folder or to a folder; such links are not followed")
    if path.suffix.lower() not in SUFFIXES:
        raise BadImage(f"not named as an image ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise BadImage("not a regular file")
    if not path.stat().st_size:
        raise BadImage("empty file")
    return path.open("rb")
