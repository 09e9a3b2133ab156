"""A model of the Hugging Face Hub: safetensors and JSON of one commit, checked as they come. Torch-free."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, NotScannable, shown
from backdrift.io.inventory import MAX_FILES
from backdrift.io.latents import CODEC_FOLDER
from backdrift.io.leftovers import PICKLES
from backdrift.io.plan import EMA_FOLDER, check_layout
from backdrift.io.strict_json import MAX_INDEX_BYTES
from backdrift.io.weights import Bounds

Progress = Callable[[int, int, str], None]

FOLDERS = ("", "unet", EMA_FOLDER, CODEC_FOLDER, "scheduler")
"""Where a model that is covered has its files; nothing else is downloaded."""
CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "backdoor.json")

_NAME = re.compile(r"([\w][\w.-]{0,95}/[\w][\w.-]{0,95})@([\w][\w./-]{0,254})", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """``org/name@revision``: a branch, a tag or a commit of a repository."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Fetched:
    """A downloaded model.

    Args:
        folder: the snapshot in the cache.
        commit: that the revision stood for, 40 hexadecimal characters.
        left: names of files of the repository that were not downloaded, sorted.
    """

    folder: Path
    commit: str
    left: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """A file as the Hub announces it: ``digest`` is SHA-256 of large files, git's SHA-1 of others."""

    name: str
    size: int
    digest: str


def parse_reference(text: str) -> Reference | None:
    """``org/name@revision``, unless there is a file or folder of that name; None for anything else."""
    found = _NAME.fullmatch(text)
    if found is None or os.path.lexists(text):
        return None
    return Reference(found[1], found[2])


def fetch(reference: Reference, bounds: Bounds | None = None, progress: Progress | None = None) -> Fetched:
    """Downloads what a scan reads into the Hub's own cache.

    The revision is resolved to a commit once, and every file is of that commit. Sizes are checked before
    anything is downloaded, configs before weights; sizes and digests again of what has come.
    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they always do.

    Args:
        bounds: the largest weights to accept, all files together.
        progress: called as ``progress(done, total, text)``, in bytes.

    Raises:
        ValueError: the extra is not installed.
        NoSuchCheckpoint: no such repository or revision, or none that the token may see.
        NotScannable: another kind of model, pickle weights only, or nothing to scan.
        CheckpointError: too large, damaged or refused; the Hub cannot be reached.
    """
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")  # read when the library is imported
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f'{reference} needs an extra: pip install "backdrift[hub]"') from None
    try:
        info = huggingface_hub.HfApi(library_name="backdrift").model_info(
            reference.repository, revision=reference.revision, files_metadata=True
        )
    except Exception as error:
        raise _refusal(error, reference, huggingface_hub.errors) from None
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise CheckpointError(f"{reference}: the Hub names no commit", "BD113")
    names = [sibling.rfilename for sibling in info.siblings or []]
    configs, weights = _chosen(info.siblings or [], reference, bounds or Bounds())
    done, total = 0, sum(file.size for file in (*configs, *weights))
    folder = Path()
    for number, file in enumerate((*configs, *weights)):
        if number == len(configs):
            check_layout(folder)
        if progress is not None:
            progress(done, total, f"download: {file.name}")
        try:
            place = huggingface_hub.hf_hub_download(
                reference.repository, file.name, revision=info.sha, library_name="backdrift"
            )
        except Exception as error:
            raise _refusal(error, reference, huggingface_hub.errors) from None
        folder = _checked(Path(place), file, info.sha)
        done += file.size
    left = set(names).difference(file.name for file in (*configs, *weights))
    return Fetched(folder, info.sha, tuple(sorted(left)))


def _chosen(
    siblings: Sequence[Any], reference: Reference, bounds: Bounds
) -> tuple[list[_File], list[_File]]:
    """Configs and weights to download."""
    if len(siblings) > MAX_FILES:
        raise CheckpointError(f"{reference} holds more than {MAX_FILES} files", "BD109")
    wanted = [s for s in siblings if s.rfilename.rpartition("/")[0] in FOLDERS]
    configs = [_announced(s) for s in wanted if _is_config(s.rfilename.rpartition("/")[2])]
    weights = [_announced(s) for s in wanted if s.rfilename.endswith(".safetensors")]
    if not weights:
        pickles = [s.rfilename for s in siblings if s.rfilename.lower().endswith(PICKLES)]
        if pickles:
            raise NotScannable(
                f"{reference} has only pickle weights ({', '.join(map(shown, pickles[:3]))}), which are "
                "never downloaded; ask the publisher for safetensors",
                "BD101",
            )
        raise NotScannable(f"{reference} has no .safetensors weights; nothing to scan")
    if not configs:
        raise NotScannable(f"{reference} has no model_index.json and no config.json; nothing to scan")
    large = next((file for file in configs if file.size > MAX_INDEX_BYTES), None)
    if large is not None:
        raise CheckpointError(f"{shown(large.name)} is larger than {MAX_INDEX_BYTES} bytes", "BD202")
    size = sum(file.size for file in weights)
    if size > bounds.size:
        raise CheckpointError(
            f"{reference} holds {size} bytes of weights; at most {bounds.size} (--max-size) are downloaded",
            "BD306",
        )
    return configs, weights


def _is_config(name: str) -> bool:
    return name in CONFIGS or (name.endswith(".json") and ".safetensors.index" in name)


def _announced(sibling: Any) -> _File:
    name, size = sibling.rfilename, sibling.size
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if not isinstance(size, int) or size < 0 or not isinstance(digest, str):
        raise CheckpointError(f"the Hub announces no size or no digest of {shown(name)}", "BD113")
    return _File(name, size, digest)


def _checked(place: Path, file: _File, commit: str) -> Path:
    """The folder of the snapshot, when the file in it is the one that was announced; else it is deleted."""
    folder = place
    for _ in file.name.split("/"):
        folder = folder.parent
    if folder.name != commit:
        raise CheckpointError(f"the Hub sent {shown(file.name)} of another commit", "BD113")
    size = place.stat().st_size
    if size == file.size:
        digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % size)
        with place.open("rb") as data:
            while part := data.read(1 << 20):
                digest.update(part)
        if digest.hexdigest() == file.digest:
            return folder
    for path in {place.resolve(), place}:
        path.unlink()
    raise CheckpointError(
        f"{shown(file.name)} is not what the Hub announced, by its size or digest; it was deleted", "BD113"
    )


def _refusal(error: Exception, reference: Reference, known: Any) -> CheckpointError:
    """One line for what the library raised."""
    if isinstance(error, known.GatedRepoError):
        return CheckpointError(
            f"{reference} is gated: accept its terms on the Hub, and set HF_TOKEN to a token of yours",
            "BD113",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, known.RepositoryNotFoundError | known.RevisionNotFoundError) or status == 401:
        return NoSuchCheckpoint(
            f"{reference}: no such model or revision on the Hub, or none that HF_TOKEN may see"
        )
    if isinstance(error, known.OfflineModeIsEnabled):
        return CheckpointError(
            f"{reference}: HF_HUB_OFFLINE is set; give the folder of a model that is here already", "BD113"
        )
    if status is not None:
        advice = "; check HF_TOKEN and what it may see" if status == 403 else "; try again later"
        return CheckpointError(f"{reference}: the Hub answers {status}{advice}", "BD113")
    text = (str(error) or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{reference} cannot be downloaded: {shown(text, 200)}", "BD113")
