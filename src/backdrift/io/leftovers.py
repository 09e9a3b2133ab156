"""Names the files of a checkpoint that a scan does not look into, and says why."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from backdrift.core.results import NotScanned
from backdrift.io.errors import printable, shown
from backdrift.io.inventory import Entry, Inventory
from backdrift.io.labels import CARD, NOTICE_FILES

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
CODE = (".py", ".pyc", ".ipynb", ".sh", ".so", ".dll", ".exe", ".bat", ".js", ".jar", ".whl")
OTHER_FORMATS = (
    ".onnx", ".pb", ".gguf", ".dduf", ".flashpack", ".h5", ".msgpack", ".tflite",
    ".npz", ".npy", ".zip", ".tar", ".gz", ".7z",
)  # fmt: skip
_KINDS: dict[tuple[str, ...], str] = {
    PICKLES: "pickle weights: never opened",
    CODE: "code: never run",
    (".safetensors",): "weights that the pipeline does not use",
    OTHER_FORMATS: "weights in another format: never opened",
    (".index.json",): "an index of split weights: never opened",
}
_HARMLESS = (".md", ".txt", ".png", ".jpg", ".jpeg", ".gif", ".webp")
_HARMLESS_NAMES = ("LICENSE", "NOTICE", ".gitattributes", ".gitignore")


def leftovers(
    inventory: Inventory, used: Collection[str], folders: Collection[str], why: Mapping[str, str]
) -> list[NotScanned]:
    """Every file that is neither used nor a document or picture, sorted by name.

    The labels of a declared checkpoint are left out, so that removing them changes nothing.

    Args:
        used: names of the files that are read.
        folders: folders of the pipeline; an empty string is the root. Other folders are summed up
            in one line each.
        why: reasons for particular files, by name.
    """
    found: list[NotScanned] = []
    others: dict[str, list[Entry]] = {}
    for entry in inventory.entries:
        folder = entry.name.rpartition("/")[0]
        if entry.name in used or entry.name in (CARD, *NOTICE_FILES):
            continue
        if folder not in folders and entry.name not in why:
            others.setdefault(_outermost(folder, folders), []).append(entry)
        elif entry.name in why:
            found.append(NotScanned(what=printable(entry.name), why=why[entry.name]))
        elif not harmless(entry):
            reason = _kind(entry) or "not part of the pipeline: never opened"
            found.append(NotScanned(what=printable(entry.name), why=reason))
    found += [_summary(name, entries) for name, entries in others.items() if not _all(entries)]
    return sorted(found, key=lambda item: item.what)


def _outermost(folder: str, folders: Collection[str]) -> str:
    parts = folder.split("/")
    prefixes = ("/".join(parts[: n + 1]) for n in range(len(parts)))
    return next(prefix for prefix in prefixes if prefix not in folders)


def harmless(entry: Entry) -> bool:
    """Whether a file is a document or a picture by its name."""
    base = entry.name.rpartition("/")[2]
    return base in _HARMLESS_NAMES or base.lower().endswith(_HARMLESS)


def _all(entries: list[Entry]) -> bool:
    return all(map(harmless, entries))


def _kind(entry: Entry) -> str | None:
    name = entry.name.lower()
    return next((kind for suffixes, kind in _KINDS.items() if name.endswith(suffixes)), None)


def _summary(folder: str, entries: list[Entry]) -> NotScanned:
    risky = [entry.name[len(folder) + 1 :] for entry in entries if _kind(entry)]
    why = f"a folder that the pipeline does not use, {len(entries)} files"
    if risky:
        more = f" and {len(risky) - 3} more" if len(risky) > 3 else ""
        why += f"; weights or code in it: {', '.join(map(shown, risky[:3]))}{more}"
    return NotScanned(what=printable(folder) + "/", why=why)
