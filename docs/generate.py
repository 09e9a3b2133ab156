"""The parts of the reference that come from the code: commands, rules, methods, fields of a report."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from backdrift.cli.main import app
from backdrift.core.registry import KINDS, available
from backdrift.core.rules import RULES
from backdrift.report.json import schema


def write(folder: Path) -> None:
    """Writes every generated page into a folder."""
    folder.mkdir(exist_ok=True)
    pages = {"commands": commands(), "rules": rules(), "methods": methods(), "report": report()}
    for name, lines in pages.items():
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def commands() -> Iterator[str]:
    """Every command with its arguments and options, as ``--help`` has them."""
    yield from _command("backdrift", typer.main.get_command(app))


def _command(name: str, command: Any) -> Iterator[str]:
    parts = getattr(command, "commands", None)
    if parts is not None:
        for key, part in parts.items():
            yield from _command(f"{name} {key}", part)
        return
    yield f"## {name}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    rows = [_parameter(parameter) for parameter in command.params]
    if rows:
        yield "| | default | |\n|---|---|---|"
        yield from rows
        yield ""


def _parameter(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if not names.startswith("-"):
        names = parameter.metavar or names.upper()
    text = getattr(parameter, "help", None) or ""
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        text += f" One of {', '.join(map(str, get_args(annotation)))}."
    default = parameter.default
    shown = "" if callable(default) or default in (None, False, (), []) else f"`{default}`"
    cells = (f"`{names}`", shown, text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def rules() -> Iterator[str]:
    """A section for every rule."""
    for rule in RULES.values():
        yield f"## {rule.id} {rule.name}\n"
        yield f"*{rule.level}.* {rule.summary}\n\n{rule.help}\n"


def methods() -> Iterator[str]:
    """The plug-ins, as ``backdrift list`` names them."""
    for kind in KINDS:
        yield f"## {kind}\n\n| | |\n|---|---|"
        for name, summary in available(kind).items():
            yield f"| `{name}` | {summary.replace('|', chr(92) + '|')} |"
        yield ""


def report() -> Iterator[str]:
    """Every object of the JSON report with its fields."""
    tree = schema()
    objects = {"ScanDocument": tree, **tree.get("$defs", {})}
    for name, part in objects.items():
        if "properties" not in part:
            continue
        text = inspect.cleandoc(part.get("description", "")).split("\n\nArgs:")[0]
        yield f"## {name}\n\n{text}\n\n| field | type |\n|---|---|"
        for field, kind in part["properties"].items():
            yield f"| `{field}` | {_type(kind, objects)} |"
        yield ""


def _type(kind: dict[str, Any], objects: dict[str, Any]) -> str:
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        plain = "properties" not in objects[name]
        return _type(objects[name], objects) if plain else f"[{name}](#{name.lower()})"
    if "anyOf" in kind:
        return " or ".join(_type(part, objects) for part in kind["anyOf"])
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    if kind.get("type") == "array" and "items" in kind:
        return f"list of {_type(kind['items'], objects)}"
    return str(kind.get("type", "anything"))
