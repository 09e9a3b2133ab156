"""Plug-ins: listed without importing, named loosely, built from text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from backdrift.core.registry import KINDS, available, build, plugin

KNOWN = {
    "attacks": {"baddiffusion"},
    "inversion": {"elijah", "fixed_point", "joint", "purediffusion", "terd"},
    "detection": {"backdrift", "elijah", "purediffusion", "terd"},
    "detection.inputs": {"terd", "ufid"},
    "repair": {"anp", "clipping", "elijah", "input_filter", "unlearn"},
}


def test_listing_imports_neither_torch_nor_a_plugin() -> None:
    code = (
        "import json, sys\n"
        "from backdrift.core.registry import KINDS, available\n"
        "found = {kind: available(kind) for kind in KINDS}\n"
        "rooms = tuple(f'backdrift.{kind}' for kind in KINDS)\n"
        "heavy = [m for m in sys.modules if m in ('torch', 'diffusers') or m.startswith(rooms)]\n"
        "print(json.dumps([found, heavy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found, heavy = json.loads(done.stdout)
    assert heavy == []
    assert set(found) == set(KNOWN)
    for kind, names in KNOWN.items():
        assert names <= set(found[kind])
        assert list(found[kind]) == sorted(found[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_plugin_is_there(kind: str) -> None:
    for name, summary in available(kind).items():
        cls = plugin(kind, name)
        if not cls.__module__.startswith("backdrift."):
            continue  # of another package
        assert cls.__module__ == f"backdrift.{kind}.{name}"
        assert cls.__name__.lower() == name.replace("_", "")
        assert summary.endswith(".")
        assert "\n" not in summary


def test_helpers_are_no_plugins() -> None:
    assert not any(name.startswith("_") for kind in KINDS for name in available(kind))
    assert "patterns" not in available("attacks")


def test_dashes_and_underscores_are_the_same() -> None:
    assert plugin("inversion", "fixed-point") is plugin("inversion", "fixed_point")


@pytest.mark.parametrize("typo", ["fixedpoint", "fixed-piont", "fixed_poin"])
def test_an_unknown_name_suggests(typo: str) -> None:
    with pytest.raises(ValueError, match="did you mean fixed_point") as caught:
        plugin("inversion", typo)
    assert "elijah" in str(caught.value)


def test_nothing_near_suggests_nothing() -> None:
    with pytest.raises(ValueError, match="known: ") as caught:
        plugin("detection", "zzz")
    assert "did you mean" not in str(caught.value)


def test_options_are_typed_by_their_fields() -> None:
    text = {
        "rounds": "3",
        "norms": "[0.2, 0.4]",
        "families": '["ode"]',
        "ode_alpha": "0.5",
        "regression": "true",
    }
    built = build("inversion", "fixed-point", text)
    assert built.rounds == 3
    assert built.norms == (0.2, 0.4)
    assert built.families == ("ode",)
    assert built.ode_alpha == 0.5
    assert built.regression is True
    assert built == build(
        "inversion",
        "fixed_point",
        {
            "rounds": 3,
            "norms": (0.2, 0.4),
            "families": ("ode",),
            "ode_alpha": 0.5,
            "regression": True,
        },
    )


def test_no_options_are_the_defaults() -> None:
    assert build("inversion", "fixed_point") == plugin("inversion", "fixed_point")()
    assert build("attacks", "baddiffusion", {}) == plugin("attacks", "baddiffusion")()


def test_an_unknown_option_names_the_fields() -> None:
    with pytest.raises(ValueError, match="no option 'lr'") as caught:
        build("inversion", "fixed_point", {"lr": 1})
    for name in ("noises", "rounds", "norms", "families"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"rounds": "many"}, {"norms": "[1"}, {"families": '["vp"]'}, {"regression": "perhaps"}]
)
def test_a_value_that_does_not_fit(options: dict[str, str]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"fixed_point: {name}="):
        build("inversion", "fixed_point", options)


def test_the_plugin_checks_its_own_values() -> None:
    with pytest.raises(ValueError, match="poison rate"):
        build("attacks", "baddiffusion", {"poison_rate": "1.5"})
