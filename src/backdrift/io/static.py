"""What the files beside a model show: pickle, programs, other formats, false names. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from backdrift.core.static import StaticFinding
from backdrift.io.errors import CheckpointError, printable
from backdrift.io.files import read_up_to
from backdrift.io.inventory import Entry, Inventory
from backdrift.io.labels import CARD, NOTICE_FILES
from backdrift.io.leftovers import CODE, OTHER_FORMATS, PICKLES, harmless

SHOWN_PER_RULE = 20
_FIRST_BYTES = 16

_BY_NAME: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (PICKLES, "BD101", "a pickle file, which can run code when it is loaded; it was not opened"),
    ((".bin.index.json",), "BD101", "an index of pickle weights; it was not opened"),
    (CODE, "BD102", "a program; it was not run"),
    (OTHER_FORMATS, "BD103", "weights or an archive in a format that is not scanned"),
    ((".safetensors",), "BD104", "weights that the pipeline does not use; not scanned"),
)
_BY_CONTENT: tuple[tuple[bytes, str, str], ...] = (
    *((bytes([0x80, version]), "BD101", "a pickle") for version in range(2, 6)),
    (b"PK\x03\x04", "BD103", "a zip archive, as PyTorch's pickle files are"),
    (b"\x7fELF", "BD102", "a program or library"),
    (b"MZ", "BD102", "a program or library"),
    (b"\xcf\xfa\xed\xfe", "BD102", "a program or library"),
    (b"#!", "BD102", "a script"),
    (b"GGUF", "BD103", "GGUF weights"),
    (b"\x89HDF", "BD103", "HDF5 data"),
    (b"\x1f\x8b", "BD103", "a gzip archive"),
)


def static_findings(inventory: Inventory, used: Collection[str]) -> list[StaticFinding]:
    """Findings about every file that the scan does not use, the gravest first.

    A file that its name does not explain is known by its first 16 bytes. At most 20 findings of one
    rule are listed; one more says how many there are beyond. The labels of a declared checkpoint are
    left out, so that removing them changes nothing.

    Args:
        used: names of the files that the scan reads.
    """
    skipped = {*used, CARD, *NOTICE_FILES}
    return _listed([f for e in inventory.entries if e.name not in skipped for f in _of(e)])


def findings_by_name(names: Collection[str]) -> list[StaticFinding]:
    """The same about files that are not here, by their names alone."""
    return _listed([finding for name in names for finding in _by_name(name)])


def _listed(found: list[StaticFinding]) -> list[StaticFinding]:
    count = Counter(finding.rule for finding in found)
    listed: list[StaticFinding] = []
    seen: Counter[str] = Counter()
    for finding in found:
        seen[finding.rule] += 1
        if seen[finding.rule] <= SHOWN_PER_RULE:
            listed.append(finding)
    for rule, total in count.items():
        if total > SHOWN_PER_RULE:
            listed.append(StaticFinding.of(rule, "", f"{total - SHOWN_PER_RULE} more files like these"))
    grave = ("error", "warning", "note")
    return sorted(listed, key=lambda f: (grave.index(f.level), f.rule, not f.file, f.file))


def _by_name(name: str) -> Iterator[StaticFinding]:
    for suffixes, rule, message in _BY_NAME:
        if name.lower().endswith(suffixes):
            yield StaticFinding.of(rule, printable(name), message)
            return


def _of(entry: Entry) -> Iterator[StaticFinding]:
    name, lower = printable(entry.name), entry.name.lower()
    explained = [*_by_name(entry.name)]
    if explained:
        yield from explained
        return
    try:
        start = read_up_to(entry.path, _FIRST_BYTES)
    except CheckpointError as error:
        yield StaticFinding.of(error.rule, name, str(error))
        return
    for magic, rule, what in _BY_CONTENT:
        if start.startswith(magic):
            disguised = harmless(entry) or lower.endswith(".json")
            yield StaticFinding.of("BD105" if disguised else rule, name, f"{what}, by its first bytes")
            return
