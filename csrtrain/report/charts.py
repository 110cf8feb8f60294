"""Charts as SVG, written by hand: text stays text, colours follow the page, and a curve of any length stays small."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from csrtrain.report.markup import Markup, escaped, tag

Array = NDArray[np.float64]

COLORS = 7  # of the page, see its style
_BUCKETS = 150  # of a curve, which keeps the least and the greatest value of each
_DOTTED = 30  # a curve of at most as many points shows them
_POINTS = 1500  # of a cloud
_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 18, 10, 40
_LARGEST = 1e30  # what is drawn as larger would overflow


@dataclass(frozen=True)
class Line:
    """A curve: values (N,) at x (N,), not finite ones included; its color is a number, and so is its label.

    low and high, where given, are the ends of a band around it.
    """

    x: Array
    y: Array
    color: int = 0
    label: str = ""
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class Cloud:
    """Points (N,), (N,)."""

    x: Array
    y: Array
    color: int = 0


@dataclass(frozen=True)
class Chart:
    """What a figure shows.

    levels: horizontal lines, a value and what it says. within: values of y that the axis holds in any case.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    clouds: Sequence[Cloud] = ()
    levels: Sequence[tuple[float, str]] = ()
    within: Sequence[float] = ()
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False
    notes: Sequence[str] = field(default=())


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """At most 300 points of a finite curve that look like all: the least and greatest of each of 150 pieces, and the
    ends."""
    if len(x) <= 2 * _BUCKETS:
        return x, y
    kept = {0, len(x) - 1}
    for piece in np.array_split(np.arange(len(x)), _BUCKETS):
        kept |= {int(piece[y[piece].argmin()]), int(piece[y[piece].argmax()])}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def draw(chart: Chart) -> Markup:
    """A figure with its caption; the picture carries the numbers in words for those who do not see it."""
    scale_x, scale_y = _scales(chart)
    parts = [_grid(chart, scale_x, scale_y)]
    parts += [_level(value, text, scale_y) for value, text in chart.levels]
    parts += [_cloud(cloud, scale_x, scale_y) for cloud in chart.clouds]
    if chart.diagonal:
        low, high = max(scale_x.low, scale_y.low), min(scale_x.high, scale_y.high)
        if low < high:
            ends = f"M{scale_x(low):.1f} {scale_y(low):.1f}L{scale_x(high):.1f} {scale_y(high):.1f}"
            parts.append(tag("path", {"class": "level", "d": ends}))
    parts += [_line(line, scale_x, scale_y) for line in chart.lines]
    parts += _labels(chart.lines, scale_x, scale_y)
    words = describe(chart)
    picture = tag(
        "svg",
        {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": words, "class": "chart"},
        tag("title", {}, words),
        *parts,
    )
    caption = tag("figcaption", {}, chart.title, *(tag("span", {"class": "note"}, note) for note in chart.notes))
    return tag("figure", {}, caption, picture)


def describe(chart: Chart) -> str:
    """The title, and of each curve where it begins and ends."""
    words = [f"{chart.title}: {chart.y_label} against {chart.x_label}."]
    for line in chart.lines:
        good = np.isfinite(line.y)
        name = f"{line.label}: " if line.label else ""
        if good.any():
            x, y = line.x[good], line.y[good]
            words.append(f"{name}{y[0]:.4g} at {x[0]:g}, {y[-1]:.4g} at {x[-1]:g}, {y.min():.4g} to {y.max():.4g}.")
        if not good.all():
            words.append(f"{name}{int((~good).sum())} values are not finite.")
    words += [f"{len(cloud.x)} points." for cloud in chart.clouds]
    words += [f"Line at {value:g}: {text}." for value, text in chart.levels]
    return " ".join(words)


class _Scale:
    """From values to places, straight or by logarithm."""

    def __init__(self, values: Array, start: float, end: float, log: bool, pad: float) -> None:
        values = values[np.isfinite(values)].clip(-_LARGEST, _LARGEST)
        self._whole = bool((values == values.round()).all())
        values = values[values > 0] if log else values
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 2.0) if log else (0.0, 1.0)
        if log:
            low, high = (low / 1.5, high * 1.5) if low == high else (low, high)
        else:
            margin = pad * (high - low) if high > low else max(abs(high) * 0.1, 0.5 if high == 0 else 1e-9)
            low, high = low - margin, high + margin
        self.low, self.high, self.log = low, high, log
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        value = min(max(value, -_LARGEST), _LARGEST)
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Places for about five numbers; whole ones where all values are."""
        if self.log:
            subs = (1.0, 2.0, 5.0) if self.high < 300 * self.low else (1.0,)
            found = LogLocator(subs=subs, numticks=7).tick_values(self.low, self.high)
        else:
            found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self._whole).tick_values(self.low, self.high)
        inside = [float(tick) for tick in found if self.low <= tick <= self.high]
        return inside if len(inside) > 1 else sorted({self.low, self.high})


def _scales(chart: Chart) -> tuple[_Scale, _Scale]:
    drawn: list[Line | Cloud] = [*chart.lines, *chart.clouds]
    good = [np.isfinite(one.y) for one in drawn]
    x = np.concatenate([np.empty(0), *(one.x for one in drawn)])
    bands = [band for line in chart.lines for band in (line.low, line.high) if band is not None]
    y = [one.y[mask] for one, mask in zip(drawn, good, strict=True)]
    heights = np.concatenate([*y, *bands, np.array([*chart.within, *(value for value, _ in chart.levels)])])
    return (
        _Scale(x, _LEFT, _WIDTH - _RIGHT, chart.log_x, 0.02),
        _Scale(heights.astype(np.float64), _HEIGHT - _BOTTOM, _TOP, chart.log_y, 0.05),
    )


def _number(value: float) -> str:
    """A tick in few letters."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if 10 * size <= abs(value) < 1000 * size * 1000:
            return f"{value / size:g}{letter}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def _grid(chart: Chart, scale_x: _Scale, scale_y: _Scale) -> Markup:
    parts, bottom = [], _HEIGHT - _BOTTOM
    for tick in scale_y.ticks():
        place = f"{scale_y(tick):.1f}"
        parts.append(tag("path", {"class": "grid", "d": f"M{_LEFT} {place}H{_WIDTH - _RIGHT}"}))
        parts.append(_text(_LEFT - 6, scale_y(tick) + 3.5, _number(tick), "end"))
    for tick in scale_x.ticks():
        parts.append(tag("path", {"class": "grid", "d": f"M{scale_x(tick):.1f} {bottom}v4"}))
        parts.append(_text(scale_x(tick), bottom + 15, _number(tick), "middle"))
    parts.append(tag("path", {"class": "axis", "d": f"M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"}))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, chart.x_label, "middle"))
    middle = (_TOP + bottom) / 2
    turned = {"transform": f"rotate(-90 11 {middle:.0f})", "x": "11", "y": f"{middle:.0f}", "text-anchor": "middle"}
    parts.append(tag("text", turned, chart.y_label))
    return Markup("".join(parts))


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return tag("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}, text)


def _level(value: float, text: str, scale_y: _Scale) -> Markup:
    place = scale_y(value)
    above = place - 4 if place > _TOP + 14 else place + 11
    return Markup(
        tag("path", {"class": "level", "d": f"M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"})
        + tag("text", {"x": _WIDTH - _RIGHT, "y": f"{above:.1f}", "text-anchor": "end", "class": "says"}, text)
    )


def _cloud(cloud: Cloud, scale_x: _Scale, scale_y: _Scale) -> Markup:
    good = np.flatnonzero(np.isfinite(cloud.x) & np.isfinite(cloud.y))
    if len(good) > _POINTS:
        good = np.sort(np.random.default_rng(0).permutation(good)[:_POINTS])
    places = "".join(f"M{scale_x(x):.1f} {scale_y(y):.1f}h0" for x, y in zip(cloud.x[good], cloud.y[good], strict=True))
    return tag("path", {"class": f"points c{cloud.color % COLORS}", "d": places})


def _line(line: Line, scale_x: _Scale, scale_y: _Scale) -> Markup:
    parts: list[Markup] = []
    color = f"c{line.color % COLORS} d{line.color // COLORS % 4}"
    if line.low is not None and line.high is not None:
        there = [f"{scale_x(x):.1f} {scale_y(y):.1f}" for x, y in zip(line.x, line.high, strict=True)]
        back = [f"{scale_x(x):.1f} {scale_y(y):.1f}" for x, y in zip(line.x[::-1], line.low[::-1], strict=True)]
        parts.append(tag("path", {"class": f"band c{line.color % COLORS}", "d": f"M{'L'.join([*there, *back])}Z"}))
    good = np.isfinite(line.y) & ((line.y > 0) if scale_y.log else True) & ((line.x > 0) if scale_x.log else True)
    for piece in _pieces(good):
        x, y = thinned(line.x[piece], line.y[piece])
        places = [f"{scale_x(a):.1f} {scale_y(b):.1f}" for a, b in zip(x, y, strict=True)]
        if len(places) > 1:
            parts.append(tag("path", {"class": f"line {color}", "d": "M" + "L".join(places)}))
        if len(places) == 1 or good.sum() <= _DOTTED:
            dots = "".join(f"M{place}h0" for place in places)
            parts.append(tag("path", {"class": f"dots c{line.color % COLORS}", "d": dots}))
    missing, _ = thinned(line.x[~np.isfinite(line.y)], np.zeros(int((~np.isfinite(line.y)).sum())))
    if len(missing):  # a stroke at the foot for each
        feet = "".join(f"M{scale_x(x):.1f} {_HEIGHT - _BOTTOM}v-8" for x in missing)
        parts.append(tag("path", {"class": "lost", "d": feet}))
    return Markup("".join(parts))


def _pieces(good: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Runs of True; of a curve in shreds the whole instead."""
    indices = np.flatnonzero(good)
    if not len(indices):
        return []
    pieces = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    return pieces if len(pieces) <= 20 else [indices]


def _labels(lines: Sequence[Line], scale_x: _Scale, scale_y: _Scale) -> list[Markup]:
    """The label of each curve at its end, moved apart where they would overlap."""
    ends: list[tuple[float, float, Line]] = []
    for line in lines:
        good = np.flatnonzero(np.isfinite(line.y) & ((line.y > 0) if scale_y.log else True))
        if line.label and len(good):
            ends.append((scale_y(float(line.y[good[-1]])), scale_x(float(line.x[good[-1]])), line))
    parts: list[Markup] = []
    placed: list[tuple[float, float]] = []
    for y, x, line in sorted(ends, key=lambda end: end[0]):
        lowest = max((other + 11 for other, at in placed if abs(at - x) < 16), default=-math.inf)
        placed.append((max(y + 3.5, lowest), x))
        color = f"end c{line.color % COLORS}"
        where = {"x": f"{x + 4:.1f}", "y": f"{min(placed[-1][0], _HEIGHT - 2):.1f}", "class": color}
        parts.append(tag("text", where, escaped(line.label)))
    return parts
