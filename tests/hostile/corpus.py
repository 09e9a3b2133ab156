"""More than 200 folders that an attacker might publish, each from one trick. Nothing here is dangerous:
a payload that runs makes an empty file, the marker.

``cases()`` names them; ``build`` changes a copy of a good pipeline folder, which has one UNet and a
scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
BIN = "unet/diffusion_pytorch_model.bin"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
CONFIG, SCHEDULER, PIPELINE = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"

Build = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Case:
    """One hostile folder.

    Args:
        kind: the trick; ``name`` is unique.
        build: called with the folder and the marker that a payload would make.
        codes: exit codes that ``scan --static-only`` may give.
        pickle: scan it with ``--allow-pickle`` as well.
        advisory: where the trick was published.
    """

    kind: str
    name: str
    build: Build
    codes: tuple[int, ...]
    pickle: bool = False
    advisory: str = ""

    @property
    def refused(self) -> bool:
        """Whether a scan ends before the model runs, so that it costs little."""
        return bool(set(self.codes) & {2, 3}) or self.kind in ("values", "config unlike weights")


def cases() -> list[Case]:
    """Every case, in a fixed order."""
    from hostile import configs, files, pickles

    found = [case for part in (pickles, configs, files) for make in part.MAKERS for case in make()]
    assert len({case.name for case in found}) == len(found)
    return found


def write(name: str, text: str, folder: Path, marker: Path) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("MARKER", str(marker)), encoding="utf-8")


def edit(name: str, changes: dict[str, Any], folder: Path, marker: Path) -> None:
    path = folder / name
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))


def both(first: Build, second: Build, folder: Path, marker: Path) -> None:
    first(folder, marker)
    second(folder, marker)


def raw(name: str, data: bytes, folder: Path, marker: Path) -> None:
    (folder / name).write_bytes(data)
