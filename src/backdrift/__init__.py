"""Backdrift finds backdoors in diffusion models.

The public API, imported lazily: ``import backdrift`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backdrift.core.results import Report, ScanDocument, Verdict
    from backdrift.io.errors import CheckpointError
    from backdrift.isolation.limits import Limits
    from backdrift.isolation.parent import ScanStopped, scan_isolated
    from backdrift.report.formats import render
    from backdrift.scanner import scan

__version__ = "0.1.0"

_HOMES = {
    "scan": "backdrift.scanner",
    "scan_isolated": "backdrift.isolation.parent",
    "ScanStopped": "backdrift.isolation.parent",
    "Limits": "backdrift.isolation.limits",
    "Report": "backdrift.core.results",
    "ScanDocument": "backdrift.core.results",
    "Verdict": "backdrift.core.results",
    "CheckpointError": "backdrift.io.errors",
    "render": "backdrift.report.formats",
}

__all__ = [
    "CheckpointError",
    "Limits",
    "Report",
    "ScanDocument",
    "ScanStopped",
    "Verdict",
    "render",
    "scan",
    "scan_isolated",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'backdrift' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
