"""Backdrift finds backdoors in diffusion models.

The public API, imported lazily: ``import backdrift`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backdrift.core.results import Report, ScanDocument, Verdict
    from backdrift.io.errors import CheckpointError
    from backdrift.report.formats import render
    from backdrift.scanner import scan

__version__ = "0.1.0"

_HOMES = {
    "scan": "backdrift.scanner",
    "Report": "backdrift.core.results",
    "ScanDocument": "backdrift.core.results",
    "Verdict": "backdrift.core.results",
    "CheckpointError": "backdrift.io.errors",
    "render": "backdrift.report.formats",
}

__all__ = ["CheckpointError", "Report", "ScanDocument", "Verdict", "render", "scan"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'backdrift' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
