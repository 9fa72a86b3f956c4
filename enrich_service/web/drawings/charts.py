"""Coordinates of charts for inline SVG: lines, bars and ticks in a fixed size.

Colours are the classes s1 … s6 of the style sheet, so that charts follow light and dark mode
without inline styles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
COLOURS = 6
_TICKS = 5
_LOG_RANGE = 1e-6  # smallest value on a logarithmic axis, relative to the largest
_ZERO = 1e-100  # smaller differences count as zero; avoids denormal floats
_LARGEST = 1e100  # larger values are left out

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A grid line: its position and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One series; `points` in the format of an SVG polyline."""

    name: str
    colour: int
    points: str
    dots: tuple[tuple[float, float], ...]  # of a line with one point, which would be invisible


@dataclass(frozen=True)
class Bar:
    """One bar, and the value above it."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    text: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A chart of WIDTH × HEIGHT."""

    title: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    names: tuple[tuple[str, int], ...]  # of the legend, with their colours
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(
    title: str, series: Mapping[str, Points], *, x_label: str, log: bool = False
) -> Chart | None:
    """A chart of lines over a common x axis; None if there are no finite points.

    Without `log`, the y axis begins at 0 or below. With `log`, values below a millionth of the
    largest are left out, as rounding errors of 0.
    """
    values = [y for points in series.values() for _, y in points if _is_drawable(y)]
    minimum = max(_ZERO, *values, _ZERO) * _LOG_RANGE if log else -math.inf
    finite = {
        name: [(x, y) for x, y in points if _is_drawable(y) and y > minimum]
        for name, points in series.items()
    }
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    if not xs:
        return None
    if log:
        powers = range(math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys))) + 1)
        y_values = [10.0**power for power in powers]
        if len(y_values) == 1:
            y_values.append(y_values[0] * 10)
    else:
        y_values = ticks(min(0.0, *ys), max(ys))
    x_values = ticks(min(xs), max(xs), whole=True)
    low, high = min(xs), max(max(xs), min(xs) + 1)

    def at_x(x: float) -> float:
        return round(LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        bottom, top = y_values[0], y_values[-1]
        share = (
            math.log(y / bottom) / math.log(top / bottom) if log else (y - bottom) / (top - bottom)
        )
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for number, (name, points) in enumerate(finite.items()):
        placed = [(at_x(x), at_y(y)) for x, y in points]
        lines.append(
            Line(
                name=name,
                colour=number % COLOURS + 1,
                points=" ".join(f"{x},{y}" for x, y in placed),
                dots=tuple(placed) if len(placed) == 1 else (),
            )
        )
    return Chart(
        title=title,
        x_label=x_label,
        x_ticks=tuple(Tick(at_x(x), _short(x)) for x in x_values if low <= x <= high),
        y_ticks=tuple(Tick(at_y(y), _short(y)) for y in y_values),
        names=tuple((line.name, line.colour) for line in lines),
        lines=tuple(lines),
    )


def bar_chart(title: str, groups: Sequence[tuple[str, Mapping[str, float]]]) -> Chart | None:
    """A chart of bars in named groups, one colour per bar name; None without finite values."""
    groups = [
        (label, {name: value for name, value in bars.items() if _is_drawable(value)})
        for label, bars in groups
    ]
    names = list(dict.fromkeys(name for _, bars in groups for name in bars))
    highest = max((value for _, bars in groups for value in bars.values()), default=None)
    if highest is None:
        return None
    y_values = ticks(0.0, highest)
    span = HEIGHT - TOP - BOTTOM
    group_width = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(28.0, group_width * 0.8 / len(names))
    bars, labels = [], []
    for number, (label, values) in enumerate(groups):
        middle = LEFT + (number + 0.5) * group_width
        labels.append(Tick(round(middle, 1), label))
        start = middle - width * len(values) / 2
        for index, (name, value) in enumerate(values.items()):
            height = max(0.0, value) / y_values[-1] * span
            bars.append(
                Bar(
                    x=round(start + index * width + 1, 1),
                    y=round(HEIGHT - BOTTOM - height, 1),
                    width=round(width - 2, 1),
                    height=round(height, 1),
                    colour=names.index(name) % COLOURS + 1,
                    text=f"{value:.1f}",
                    title=f"{label}, {name}: {value:.1f}",
                )
            )
    return Chart(
        title=title,
        x_label="",
        x_ticks=tuple(labels),
        y_ticks=tuple(
            Tick(round(HEIGHT - BOTTOM - y / y_values[-1] * span, 1), _short(y)) for y in y_values
        ),
        names=tuple((name, number % COLOURS + 1) for number, name in enumerate(names)),
        bars=tuple(bars),
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Evenly spaced round numbers, from at most `low` to at least `high`."""
    span = high - low
    if span < max(_ZERO, abs(high) * 1e-12):
        span = max(abs(high), 1.0)
    minimum_step = span / _TICKS
    power = 10.0 ** math.floor(math.log10(minimum_step))
    step = next(
        factor * power for factor in (1, 2, 5, 10) if factor * power >= minimum_step * 0.999
    )
    if whole:
        step = max(1.0, round(step))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [number * step for number in range(first, last + 1)]


def _is_drawable(value: float) -> bool:
    return abs(value) < _LARGEST  # neither infinite nor NaN


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
