"""Plots as inline SVG; every colour is a class of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from backdrift.core.results import Curve
from backdrift.report.text import number, visible

_STRIP_TOP, _STRIP_ROW, _STRIP_AXIS = 22, 48, 28
_LANES = (0, 5, -5)

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _UPPER, _LOWER = 56, 14, 12, 46
_MAX_MARKED = 30
_MAX_POINTS = 400
_TOO_LARGE = 1e100


@dataclass(frozen=True)
class Strip:
    """One row of a strip plot: ``kind`` is its class in the style sheet, ``names`` are tooltips."""

    label: str
    values: Sequence[float]
    kind: str
    names: Sequence[str] = ()


@dataclass(frozen=True)
class _Scale:
    """A linear axis: the numbers from ``low`` to ``high`` lie between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        ticks = _ticks(min(values), max(values))
        return cls(min(ticks[0], *values), max(ticks[-1], *values), start, end, ticks)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def strip_plot(strips: Sequence[Strip], threshold: float | None) -> Markup | None:
    """Rows of dots over one axis, as wide as the page, and the threshold across all rows.

    None when there is nothing to draw.
    """
    strips = [strip for strip in strips if _placed(strip.values)]
    if not strips:
        return None
    values = [value for strip in strips for value in _placed(strip.values)]
    mark = _placed([] if threshold is None else [threshold])
    scale = _Scale.over(values + mark, 3, 97)
    bottom = _STRIP_TOP + _STRIP_ROW * len(strips)
    parts = [_strip_axis(scale, bottom)]
    parts += [_threshold(scale, value, bottom) for value in mark]
    for index, strip in enumerate(strips):
        parts.append(_strip(strip, _STRIP_TOP + _STRIP_ROW * index, scale))
    spoken = [_spoken(strip) for strip in strips] + [f"threshold {number(v)}" for v in mark]
    return _svg(
        '<svg class="strip" role="img" width="100%" height="{height}" aria-label="{label}">{body}</svg>',
        height=bottom + _STRIP_AXIS,
        label="Scores. " + "; ".join(spoken) + ".",
        body=Markup().join(parts),
    )


def line_plot(curve: Curve) -> Markup | None:
    """A curve with its axes, and its reference as a dashed line; None when there is no point."""
    points = _points(curve.x, curve.y)
    if not points:
        return None
    reference = _points(curve.x, curve.reference or [])
    across = _Scale.over([x for x, _ in points + reference], _LEFT, _WIDTH - _RIGHT)
    up = _Scale.over([y for _, y in points + reference], _HEIGHT - _LOWER, _UPPER)
    parts = [_frame(curve, across, up), _path(reference, across, up, "reference")]
    parts.append(_path(points, across, up, "curve"))
    if len(points) <= _MAX_MARKED:
        dot = '<circle class="curve-dot" cx="{x}" cy="{y}" r="2.6"/>'
        parts += [_svg(dot, x=across(x), y=up(y)) for x, y in points]
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    label = (
        f"{curve.name}: {curve.y_label} over {curve.x_label}, from {number(first_y)} at "
        f"{number(first_x)} to {number(last_y)} at {number(last_x)}."
    )
    return _svg(
        '<svg class="plot" role="img" viewBox="0 0 {width} {height}" aria-label="{label}">{body}</svg>',
        width=_WIDTH,
        height=_HEIGHT,
        label=label,
        body=Markup().join(parts),
    )


def _strip_axis(scale: _Scale, bottom: int) -> Markup:
    parts = [_svg('<line class="axis" x1="0" x2="100%" y1="{y}" y2="{y}"/>', y=bottom)]
    for tick in scale.ticks:
        parts.append(
            _svg(
                '<line class="axis" x1="{x}%" x2="{x}%" y1="{y}" y2="{end}"/>'
                '<text class="tick" x="{x}%" y="{base}" text-anchor="middle">{label}</text>',
                x=scale(tick),
                y=bottom,
                end=bottom + 5,
                base=bottom + 20,
                label=number(tick),
            )
        )
    return Markup().join(parts)


def _threshold(scale: _Scale, value: float, bottom: int) -> Markup:
    position = scale(value)
    return _svg(
        '<line class="threshold" x1="{x}%" x2="{x}%" y1="18" y2="{bottom}"/>'
        '<text class="tick strong" x="{x}%" y="12" text-anchor="{anchor}">threshold {value}</text>',
        x=position,
        bottom=bottom,
        anchor="end" if position > 70 else "start" if position < 30 else "middle",
        value=number(value),
    )


def _strip(strip: Strip, top: int, scale: _Scale) -> Markup:
    middle = top + 31
    parts = [
        _svg('<text class="row" x="0" y="{y}">{label}</text>', y=top + 12, label=strip.label),
        _svg('<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>', y=middle),
    ]
    for index, value in enumerate(strip.values):
        if not _has_a_place(value):
            continue
        name = f"{strip.names[index]}: " if strip.names else ""
        parts.append(
            _svg(
                '<svg x="{x}%" y="{y}" overflow="visible" class="dot {kind}">'
                "<title>{title}</title>{shape}</svg>",
                x=scale(value),
                y=middle + _LANES[index % len(_LANES)] * (len(strip.values) > 4),
                kind=strip.kind,
                title=name + number(value),
                shape=_SHAPES[strip.kind],
            )
        )
    return Markup().join(parts)


_SHAPES = {
    "clean": Markup('<circle r="4"/>'),
    "backdoored": Markup('<path d="M0-5 5 4H-5Z"/>'),
    "null": Markup('<rect x="-3.5" y="-3.5" width="7" height="7"/>'),
    "this": Markup('<path d="M0-9 8 0 0 9-8 0Z"/>'),
}


def _frame(curve: Curve, across: _Scale, up: _Scale) -> Markup:
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _LOWER
    line = '<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'
    text = '<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{label}</text>'
    parts = [_svg(line, kind="axis", x1=_LEFT, x2=right, y1=floor, y2=floor)]
    for tick in up.ticks:
        y = up(tick)
        parts.append(_svg(line, kind="grid", x1=_LEFT, x2=right, y1=y, y2=y))
        parts.append(_svg(text, x=_LEFT - 7, y=y + 4, anchor="end", label=number(tick)))
    for tick in across.ticks:
        x = across(tick)
        parts.append(_svg(line, kind="axis", x1=x, x2=x, y1=floor, y2=floor + 5))
        parts.append(_svg(text, x=x, y=floor + 19, anchor="middle", label=number(tick)))
    middle = (_LEFT + right) / 2
    parts.append(_svg(text, x=middle, y=_HEIGHT - 6, anchor="middle", label=curve.x_label))
    return Markup().join(parts)


def _path(points: list[tuple[float, float]], across: _Scale, up: _Scale, kind: str) -> Markup:
    if not points:
        return Markup()
    steps = " ".join(f"{across(x)},{up(y)}" for x, y in points)
    return _svg('<polyline class="{kind}" points="{steps}"/>', kind=kind, steps=steps)


def _points(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """The finite points, thinned out evenly where there are more than a plot can show."""
    pairs = [
        (float(a), float(b)) for a, b in zip(x, y, strict=False) if _has_a_place(a) and _has_a_place(b)
    ]
    stride = math.ceil(len(pairs) / _MAX_POINTS)
    return pairs[:: max(1, stride)]


def _placed(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if _has_a_place(value)]


def _has_a_place(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _TOO_LARGE


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers, the outer ones at or beyond ``low`` and ``high``."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-100):
        low, high = low - max(0.5, abs(low) / 2), high + max(0.5, abs(high) / 2)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _spoken(strip: Strip) -> str:
    values = _placed(strip.values)
    if len(values) == 1:
        return f"{strip.label}: {number(values[0])}"
    return f"{strip.label}: {number(min(values))} to {number(max(values))}"


def _svg(template: str, **fields: object) -> Markup:
    """A piece of SVG; every field is made visible and escaped unless it is markup already."""
    safe = {
        key: value if isinstance(value, Markup) else visible(str(value)) for key, value in fields.items()
    }
    return Markup(template).format(**safe)
