"""Sphinx configuration; ``make docs`` builds the site."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

project = "Backdrift"
author = "The Backdrift authors"
release = version = metadata.version("backdrift")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"Backdrift {release}"
exclude_patterns = ["_build", "_generated"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config"}
suppress_warnings = ["ref.python"]  # names that two modules have

generate.write(Path(__file__).parent / "_generated")
