"""Plug-ins by file name: ``inversion/fixed_point.py`` holds ``FixedPoint`` and is ``fixed_point``.

Those of other packages come by entry point; a name of ours is never theirs.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from difflib import get_close_matches
from importlib import metadata, resources
from pathlib import Path
from typing import Any

KINDS = ("attacks", "inversion", "detection", "detection.inputs", "repair")
"""Packages below ``backdrift`` whose files are plug-ins."""


def _key(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def available(kind: str) -> dict[str, str]:
    """Name and summary of every plug-in of a kind; imports none of them.

    A module of ours is a plug-in when it defines a class named as the file (underscores left out); its
    summary is the first line of its docstring. One of another package is an entry point of the group
    ``backdrift.KIND``, whose summary is that of the package.

    Raises:
        ValueError: another package takes a name that is taken.
    """
    found = _own(kind)
    for name, entry in _installed(kind).items():
        summaries = entry.dist.metadata.get_all("Summary") if entry.dist else None
        found[name] = f"{(summaries or ['No summary.'])[0]} ({_origin(entry)})"
    return dict(sorted(found.items()))


def _own(kind: str) -> dict[str, str]:
    found = {}
    for entry in resources.files("backdrift").joinpath(*kind.split(".")).iterdir():
        name = entry.name.removesuffix(".py")
        if not entry.name.endswith(".py") or name.startswith("_"):
            continue
        text = entry.read_text(encoding="utf-8")
        classes = re.findall(r"^class (\w+)", text, flags=re.MULTILINE)
        if any(_key(c) == _key(name) for c in classes):
            found[name] = text.split('"""')[1].strip().splitlines()[0]
    return found


def _installed(kind: str) -> dict[str, metadata.EntryPoint]:
    """Those of other packages."""
    own, found = _own(kind), dict[str, metadata.EntryPoint]()
    for entry in metadata.entry_points(group=f"backdrift.{kind}"):
        name = entry.name.replace("-", "_")
        if name in own or name in found:
            other = _origin(found[name]) if name in found else "backdrift"
            raise ValueError(
                f"{_origin(entry)} and {other} both have a {kind} plug-in {name!r}: uninstall one"
            )
        found[name] = entry
    return found


def _origin(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def plugin(kind: str, name: str) -> type[Any]:
    """The class of a plug-in; dashes and underscores in the name are the same.

    Raises:
        ValueError: no such plug-in, naming the known ones; or one of another package that cannot be
            imported or is no frozen dataclass.
    """
    module = name.replace("-", "_")
    if module in _own(kind):
        content = importlib.import_module(f"backdrift.{kind}.{module}")
        found = next(v for k, v in vars(content).items() if _key(k) == _key(module))
        assert isinstance(found, type)
        return found
    installed = _installed(kind)
    if module in installed:
        return _loaded(installed[module])
    known = available(kind)
    near = get_close_matches(module, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"no {kind} plug-in {name!r}; known: {', '.join(known)}{hint}")


def _loaded(entry: metadata.EntryPoint) -> type[Any]:
    where = f"{entry.value} of {_origin(entry)}"
    try:
        found = entry.load()
    except Exception as error:
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    frozen = getattr(getattr(found, "__dataclass_params__", None), "frozen", False)
    if not isinstance(found, type) or not frozen:
        raise ValueError(f"{where} is no frozen dataclass")
    return found


def build(kind: str, name: str, options: dict[str, Any] | None = None) -> Any:
    """A plug-in with options, typed and checked against its fields.

    Args:
        options: field values; text is converted to the type of the field (tuples from JSON lists).

    Raises:
        ValueError: unknown plug-in or field, or a value that does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    cls = plugin(kind, name)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in options or {}:
        if key not in fields:
            raise ValueError(f"{name} has no option {key!r}; it has: {', '.join(fields)}")
    values = {}
    for key, value in (options or {}).items():
        adapter = TypeAdapter(_field_type(cls, key))
        try:
            tuple_text = isinstance(value, str) and value.startswith("[")
            read = adapter.validate_json if tuple_text else adapter.validate_python
            values[key] = read(value)
        except ValidationError as error:
            raise ValueError(f"{name}: {key}={value!r}: {error.errors()[0]['msg']}") from None
    return cls(**values)


def file_options(kind: str, name: str, options: dict[str, Any] | None) -> dict[str, Path]:
    """Those options of a plug-in that name a file, by the type of the field; without empty ones."""
    from typing import get_args

    cls, found = plugin(kind, name), {}
    for key, value in (options or {}).items():
        kinds = _field_type(cls, key)
        if value and Path in (kinds, *get_args(kinds)):
            found[key] = Path(value)
    return found


def _field_type(cls: type[Any], name: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(cls)[name]
