"""The list of rules, and that the code uses it and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import backdrift
from backdrift.core.rules import RULES

SOURCES = [path for path in Path(backdrift.__file__).parent.rglob("*.py") if path.name != "rules.py"]


def test_rules_are_well_formed() -> None:
    assert all(rule.id == key and re.fullmatch(r"BD\d{3}", key) for key, rule in RULES.items())
    assert list(RULES) == sorted(RULES)
    assert len({rule.name for rule in RULES.values()}) == len(RULES)
    for rule in RULES.values():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.name)
        assert rule.level in ("error", "warning", "note")
        assert rule.summary.endswith(".")
        assert rule.help.endswith(".")


def test_every_identifier_in_the_code_is_a_rule() -> None:
    named = {name for path in SOURCES for name in re.findall(r'"(BD\d{3})"', path.read_text("utf-8"))}
    assert named <= set(RULES)


def test_the_list_needs_nothing() -> None:
    heavy = "[m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules]"
    code = f"import sys, backdrift.core.rules; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
