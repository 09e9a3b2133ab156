"""Models on a Hub: pinned, bounded, checked, and never pickle or code."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load as read
from safetensors.torch import save

from backdrift.bench.recipes import Recipe, make
from backdrift.cli.main import call
from backdrift.io.errors import CheckpointError, NoSuchCheckpoint, NotScannable
from backdrift.io.hub import Reference, fetch, parse_reference
from backdrift.io.load import load
from backdrift.io.plan import plan
from backdrift.io.weights import Bounds
from backdrift.isolation import process, wire
from hub_server import Hub, content_of, served
from report import sample
from tiny import SHAPE, tiny_checkpoint

ONE, TWO = "1" * 40, "2" * 40
MAIN = Reference("org/name", "main")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return content_of(tiny_checkpoint(tmp_path_factory.mktemp("hub") / "model"))


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub whose branch ``main`` holds a model, with a cache of its own."""
    made = Hub({ONE: dict(files)}, {"main": ONE})
    known = huggingface_hub.constants
    with served(made) as address:
        monkeypatch.setattr(known, "ENDPOINT", address)
        monkeypatch.setattr(
            known, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(known, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(known, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(known, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield made
        huggingface_hub.close_session()


def test_a_recipe_goes_on_from_it(hub: Hub, tmp_path: Path) -> None:
    how: dict[str, Any] = {"base": "org/name@main", "shape": SHAPE, "steps": 1, "batch_size": 4}
    make(Recipe(**how), tmp_path / "model")
    assert load(plan(tmp_path / "model")).sample_shape == SHAPE
    with pytest.raises(ValueError, match="org/name@main has the shape"):
        make(Recipe(**{**how, "shape": (3, 32, 32)}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def downloaded(hub: Hub) -> set[str]:
    return {path.split("/", 4)[4] for path in hub.asked if "/resolve/" in path}


@pytest.mark.parametrize(
    "text",
    ["org/name", "org/name@", "@main", "a/b/c@main", "./org/name@main", "../x@y", "org/na me@x", "a@b"],
)
def test_what_is_no_reference(text: str) -> None:
    assert parse_reference(text) is None


def test_a_reference_and_a_path_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_reference("org/name@v1.0") == Reference("org/name", "v1.0")
    assert parse_reference("org/name@refs/pr/1") == Reference("org/name", "refs/pr/1")
    Path("org").mkdir()
    Path("org/name@v1.0").mkdir()
    assert parse_reference("org/name@v1.0") is None


def test_the_folder_is_the_model_at_the_commit(hub: Hub) -> None:
    seen: list[tuple[int, int, str]] = []
    found = fetch(MAIN, progress=lambda *row: seen.append(row))
    assert (found.commit, found.left) == (ONE, ())
    assert found.folder.name == ONE
    assert load(plan(found.folder)).sample_shape == (1, 8, 8)
    assert seen[0][0] == 0
    assert seen[-1][0] < seen[-1][1] == sum(map(len, hub.commits[ONE].values()))
    asked = len(hub.asked)
    assert fetch(MAIN) == found
    assert len(hub.asked) == asked + 1, "what is in the cache is not asked for again"


def test_pickle_code_and_documents_stay_there(hub: Hub) -> None:
    extra = {
        "unet/diffusion_pytorch_model.bin": b"x",
        "pipeline.py": b"x",
        "README.md": b"x",
        "vae/diffusion_pytorch_model.safetensors": b"x",
        "data.json": b"x" * 10_000_000,
        "unet/evil.so": b"x",
    }
    hub.commits[ONE] |= extra
    found = fetch(MAIN)
    assert found.left == tuple(sorted(extra))
    assert downloaded(hub).isdisjoint(extra)
    assert {*content_of(found.folder)}.isdisjoint(extra)


def test_a_branch_that_moves_after_it_was_resolved(hub: Hub) -> None:
    changed = {name: value + 1 for name, value in torch_state(hub.commits[ONE]).items()}
    hub.commits[TWO] = {**hub.commits[ONE], WEIGHTS: save(changed)}
    hub.moves = lambda revision: hub.revisions.update({revision: TWO})
    found = fetch(MAIN)
    assert found.commit == ONE
    assert (found.folder / WEIGHTS).read_bytes() == hub.commits[ONE][WEIGHTS]
    assert all(f"/resolve/{ONE}/" in path for path in hub.asked if "/resolve/" in path)
    assert fetch(MAIN).commit == TWO


def torch_state(files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    return read(files[WEIGHTS])


def refused(kind: type[CheckpointError], match: str, rule: str, bounds: Bounds | None = None) -> None:
    with pytest.raises(kind, match=match) as caught:
        fetch(MAIN, bounds)
    assert caught.value.rule == rule
    assert "\n" not in str(caught.value)


def test_no_repository_no_revision_no_access(hub: Hub) -> None:
    with pytest.raises(NoSuchCheckpoint, match="no such model"):
        fetch(Reference("org/other", "main"))
    with pytest.raises(NoSuchCheckpoint, match="no such model or revision"):
        fetch(Reference("org/name", "absent"))
    hub.error = (401, "GatedRepo")
    refused(CheckpointError, "is gated", "BD113")
    hub.error = (403, "GatedRepo")
    refused(CheckpointError, "is gated", "BD113")
    hub.error = (401, "")
    refused(NoSuchCheckpoint, "none that HF_TOKEN may see", "BD111")
    hub.error = (403, "")
    refused(CheckpointError, "answers 403", "BD113")
    hub.error = (500, "")
    refused(CheckpointError, "answers 500", "BD113")


def test_the_token_is_that_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(MAIN)
    assert {*hub.tokens} == {"Bearer hf_secret"}


def test_offline_and_no_server(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    refused(CheckpointError, "HF_HUB_OFFLINE", "BD113")
    assert not hub.asked
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    huggingface_hub.close_session()
    refused(CheckpointError, "cannot be downloaded", "BD113")


def test_only_pickle_or_nothing(hub: Hub) -> None:
    hub.commits[ONE]["unet/diffusion_pytorch_model.bin"] = hub.commits[ONE].pop(WEIGHTS)
    refused(NotScannable, "only pickle weights", "BD101")
    hub.commits[ONE] = {"README.md": b"x"}
    refused(NotScannable, "nothing to scan", "BD004")
    assert not downloaded(hub)


def test_sizes_are_checked_before_anything_is_downloaded(hub: Hub) -> None:
    size = len(hub.commits[ONE][WEIGHTS])
    refused(CheckpointError, "--max-size", "BD306", Bounds(size=size - 1))
    hub.announced["unet/config.json"] = {"size": 10**9}
    refused(CheckpointError, r"unet/config\.json", "BD202")
    hub.announced["unet/config.json"] = {"size": None}
    refused(CheckpointError, "announces no size", "BD113")
    assert not downloaded(hub)


def test_a_kind_that_is_not_covered_costs_no_weights(hub: Hub) -> None:
    index = json.loads(hub.commits[ONE]["model_index.json"])
    index |= {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    hub.commits[ONE]["model_index.json"] = json.dumps(index).encode()
    refused(NotScannable, "text-to-image", "BD004")
    assert WEIGHTS not in downloaded(hub)


@pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json"])
def test_another_content_than_announced(hub: Hub, name: str, tmp_path: Path) -> None:
    right = hub.commits[ONE][name]
    hub.sent[name] = right[:-1] + bytes([right[-1] ^ 1])
    refused(CheckpointError, "not what the Hub announced", "BD113")
    assert not [path for path in (tmp_path / "cache").rglob(Path(name).name) if path.parent.name == "unet"]
    hub.sent.clear()
    assert fetch(MAIN).commit == ONE
    hub.announced[name] = {"size": len(right) + 1}
    refused(CheckpointError, "by its size or digest", "BD113")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install \"backdrift\[hub\]\""):
        fetch(MAIN)


def test_the_report_names_the_commit_and_what_was_left(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.commits[ONE]["unet/old.bin"] = b"x"
    out = tmp_path / "report.json"
    arguments = ["--in-process", "--budget", "quick", "--quiet", "--format", "json", "-o", str(out)]
    assert call(["scan", "org/name@main", *arguments]) == 0
    (report,) = json.loads(out.read_text())["reports"]
    assert report["subject"]["path"] == f"org/name@{ONE}"
    assert [(f["rule"], f["file"]) for f in report["static"]] == [("BD101", "unet/old.bin")]
    assert "left on the Hub: unet/old.bin" in [item["what"] for item in report["not_measured"]]
    capfd.readouterr()
    for wrong, word in (
        ("--static-only", "--static-only takes folders"),
        ("--dry-run", "--dry-run takes folders"),
    ):
        assert call(["scan", "org/name@main", wrong]) == 4
        assert word in capfd.readouterr().err
    assert call(["scan", "org/other@main", "--in-process"]) == 4
    assert "no such model" in capfd.readouterr().err


def test_so_does_a_partial_one(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that says what it has and dies."""
    hub.commits[ONE]["unet/old.bin"] = b"x"
    says = wire.partial_frame(sample.report(partial=True, evidence=[]))
    code = f"import os, sys; sys.stdin.buffer.readline(); os.write(1, {says!r}); sys.exit(3)"
    monkeypatch.setattr(process, "_BOOT", code)
    out = tmp_path / "report.json"
    assert call(["scan", "org/name@main", "-q", "--exit-zero", "--format", "json", "-o", str(out)]) == 2
    (failure,) = json.loads(out.read_text())["failures"]
    assert failure["path"] == "org/name@main"
    assert failure["partial"]["subject"]["path"] == f"org/name@{ONE}"
    assert "unet/old.bin" in [found["file"] for found in failure["partial"]["static"]]
