"""Opening one file of a checkpoint, and replacing a file or folder as a whole."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backdrift.io.errors import CheckpointError, shown

# Not every platform has every flag.
_FLAGS = os.O_RDONLY
for _name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)
_CHUNK = 1 << 24


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """Opens a regular file once, without following links.

    Args:
        path: absolute, links resolved (see :mod:`backdrift.io.inventory`). On Linux a folder on the way
            that has become a link since then is refused; elsewhere only a link at the end is.

    Yields:
        The descriptor and the size of the file in bytes.

    Raises:
        CheckpointError: the file cannot be opened or is not a regular file.
    """
    try:
        fd = _open(path)
    except OSError as error:
        raise CheckpointError(f"cannot open {shown(path.name)}: {error.strerror}", "BD108") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{shown(path.name)} is not a regular file; remove it", "BD106")
        yield fd, status.st_size
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    if not hasattr(os, "O_PATH"):
        return os.open(path, _FLAGS)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(path.anchor, flags)
    try:
        for name in path.parts[1:-1]:
            inner = os.open(name, flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(path.name, _FLAGS, dir_fd=folder)
    finally:
        os.close(folder)


def read_into(fd: int, buffer: memoryview, offset: int) -> None:
    """Fills ``buffer`` with the bytes that start at ``offset``.

    Raises:
        CheckpointError: the file ends before.
    """
    done = 0
    while done < len(buffer):
        count = _read_at(fd, buffer[done:], offset + done)
        if count == 0:
            raise CheckpointError("a file became shorter while it was read; scan it again", "BD112")
        done += count


def _read_at(fd: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, min(len(buffer), _CHUNK))
    buffer[: len(data)] = data
    return len(data)


def read_up_to(path: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a regular file, or all of it when it is shorter."""
    with opened(path) as (fd, size):
        buffer = bytearray(min(size, limit))
        read_into(fd, memoryview(buffer), 0)
    return bytes(buffer)


@contextmanager
def replaced_folder(folder: str | Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """A new folder to write into, renamed to ``folder`` when the block ends without an error.

    Args:
        folder: where the result goes. Its parents are made.
        overwrite: replace an existing folder, if it holds a file named ``marker``.
        marker: the file by which a folder of the same kind is known.

    Raises:
        FileExistsError: ``folder`` is a file, or not empty and not to be replaced.
    """
    final = Path(folder).absolute()
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise FileExistsError(f"{folder} exists and is not a folder; choose another name")
    if final.is_dir() and any(final.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{folder} exists and is not empty; choose another name")
        if not (final / marker).is_file():
            raise FileExistsError(f"{folder} holds no {marker}; refusing to replace it")
    final.parent.mkdir(parents=True, exist_ok=True)
    suffix = secrets.token_hex(4)
    fresh = final.with_name(f".{final.name}.{suffix}.new")
    fresh.mkdir()
    try:
        yield fresh
        if final.is_dir():
            old = final.with_name(f".{final.name}.{suffix}.old")
            final.rename(old)
            try:
                fresh.rename(final)
            except OSError:
                old.rename(final)
                raise
            shutil.rmtree(old)
        else:
            fresh.rename(final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends without an error."""
    final = Path(path).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    fresh = final.with_name(f".{final.name}.{secrets.token_hex(4)}.new")
    try:
        yield fresh
        fresh.replace(final)
    finally:
        fresh.unlink(missing_ok=True)
