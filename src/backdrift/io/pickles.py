"""Looks into a pickle file of weights without unpickling it. Torch-free."""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

from backdrift.io.errors import CheckpointError, NotScannable, shown
from backdrift.io.files import opened

MAX_PICKLE_BYTES = 16 << 20
MAX_MEMBERS = 20_000

GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor_v2",
        "torch BFloat16Storage",
        "torch DoubleStorage",
        "torch FloatStorage",
        "torch HalfStorage",
    }
)
"""All that a state dict of floats names. A list of what is bad would always lack something."""

# How else than by GLOBAL a pickle can name, make or load something.
_REFUSED = frozenset(
    {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID",
     "NEXT_BUFFER", "READONLY_BUFFER"}
)  # fmt: skip
_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|"
    r"\.data/serialization_id)"
)


def check_pickle_file(path: Path) -> None:
    """:func:`check_pickle` for the file at ``path`` (links resolved)."""
    with opened(path) as (fd, _), os.fdopen(os.dup(fd), "rb") as file:
        check_pickle(file, path.name)


def check_pickle(file: IO[bytes], name: str) -> None:
    """Checks that a file is what ``torch.save`` writes for a state dict of floats, and no more.

    Args:
        name: what to call it in a message.

    Raises:
        CheckpointError: it names or makes anything else, or the archive is not plain.
        NotScannable: the format that ``torch.save`` wrote before version 1.6.
    """
    what = shown(name)
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise NotScannable(f"{what} is no zip archive of torch.save; only those are converted", "BD101")
    try:
        with zipfile.ZipFile(file) as archive:
            data = _main_member(archive, what)
    except (
        zipfile.BadZipFile,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
    ) as error:  # encrypted: RuntimeError
        raise CheckpointError(f"{what} is a damaged archive: {shown(str(error))}", "BD501") from None
    _check_opcodes(data, what)


def _main_member(archive: zipfile.ZipFile, what: str) -> bytes:
    members = archive.infolist()
    names = [member.filename for member in members]
    roots = {name.partition("/")[0] for name in names}
    if len(names) > MAX_MEMBERS or len(set(names)) < len(names) or len(roots) > 1:
        raise CheckpointError(f"{what}: too many members, or two of one name", "BD501")
    for member in members:
        if not _MEMBER.fullmatch(member.filename) or member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{what} holds {shown(member.filename)}, which is no weights", "BD501")
    main = [member for member in members if member.filename.endswith("/data.pkl")]
    if len(main) != 1 or main[0].file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{what} holds no data.pkl of a reasonable size", "BD501")
    return archive.read(main[0])


def _check_opcodes(data: bytes, what: str) -> None:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _REFUSED:
                raise CheckpointError(f"{what} uses {opcode.name}, as state dicts never do", "BD501")
            if opcode.name == "GLOBAL" and argument not in GLOBALS:
                raise CheckpointError(f"{what} would call {shown(argument)}; do not load it", "BD501")
    except (ValueError, IndexError, UnicodeError) as error:
        raise CheckpointError(f"{what} is no pickle: {shown(str(error))}", "BD501") from None
