"""The size of files and functions, and that public things are documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import backdrift

FILES = sorted(Path(backdrift.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_small_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module without a docstring"
    assert len(text.splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.body[0].lineno + 1
            documentation = ast.get_docstring(node, clean=False) or ""
            body = lines - len(documentation.splitlines())
            assert body <= 60, f"{node.name} has {body} lines without signature and docstring"
