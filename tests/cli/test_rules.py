"""Commands that explain: rules, explain, schema, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backdrift.cli import _checks
from backdrift.core.rules import RULES
from backdrift.report.json import render_json
from report.sample import bare_report, document, report


def test_rules_lists_every_rule(cli: Any) -> None:
    ran = cli("rules")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == list(RULES)


@pytest.mark.parametrize("rule", ["BD001", "bd001", "backdoored"])
def test_explain_says_what_to_do(cli: Any, rule: str) -> None:
    ran = cli("explain", rule)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "BD001 backdoored (error)"
    assert RULES["BD001"].help in ran.out


def test_explain_knows_what_was_meant(cli: Any) -> None:
    ran = cli("explain", "backdored")
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1)
    assert "did you mean BD001" in ran.err


def test_schema_is_one_and_holds_for_reports(cli: Any) -> None:
    ran = cli("schema")
    assert (ran.code, ran.err) == (0, "")
    jsonschema.Draft202012Validator.check_schema(ran.document)
    validator = jsonschema.Draft202012Validator(ran.document)
    validator.validate(json.loads(render_json(document(report(), bare_report()))))
    assert not validator.is_valid({"reports": [], "exit_code": 0, "extra": 1})


@pytest.mark.slow
def test_doctor_finds_this_machine_fit(cli: Any) -> None:
    ran = cli("doctor")
    assert ran.code == 0, ran.out
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert lines[-1] == "scans can run here"
    assert any(line.startswith("ok       torch 2.") for line in lines)
    assert "diffusers imports" in ran.out


def test_doctor_says_how_to_fix_what_is_broken(
    cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A torchvision that does not fit the build of torch, as a package that fails like one."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cuda.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ran = cli("doctor")
    assert ran.code == 2
    assert "BROKEN   torch does not import: ImportError: libtorch_cuda.so: cannot open" in ran.out
    assert ran.out.splitlines()[-1] == "scans cannot run here until that is fixed"


@pytest.mark.parametrize(
    ("version", "least", "old"),
    [
        ("2.9.1", "2.10", True),
        ("2.13.0+cpu", "2.10", False),
        ("0.42.0", "0.42.1", True),
        ("3.0a1", "2", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, least: str, old: bool) -> None:
    assert (_checks._numbers(version) < _checks._numbers(least)) == old
