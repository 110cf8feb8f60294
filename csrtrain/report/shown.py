"""A run on the page, and figures of several with their legend."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from csrtrain.report import words
from csrtrain.report.charts import COLORS, Chart, Line, draw
from csrtrain.report.folders import Run
from csrtrain.report.markup import Markup, tag


class Shown(NamedTuple):
    """A run on the page: its number from 1, that of its color, and its name, behind the number if there are more."""

    run: Run
    number: int
    color: int
    label: str


def charts(charts: Sequence[Chart]) -> Markup:
    return tag("div", {"class": "charts"}, *map(draw, charts)) if charts else Markup()


def legend(entries: Sequence[tuple[str, int]]) -> Markup:
    """What the colors mean: names and their numbers."""
    items = []
    for name, color in entries:
        stroke = {"class": f"line c{color % COLORS} d{color // COLORS % 4}", "d": "M0 5H30", "stroke-width": "3"}
        swatch = tag("svg", {"viewBox": "0 0 30 10", "aria-hidden": "true"}, tag("path", stroke))
        items.append(tag("li", {}, swatch, name))
    return tag("ul", {"class": "legend"}, *items)


def runs_legend(shown: Sequence[Shown]) -> Markup:
    return legend([(one.label, one.color) for one in shown]) if len(shown) > 1 else Markup()


def lines(name: str, shown: Sequence[Shown]) -> list[Line]:
    several = len(shown) > 1
    return [
        Line(curve.steps, curve.values, one.color, str(one.number) if several else "")
        for one in shown
        if (curve := one.run.curves.get(name)) is not None
    ]


def value(run: Run, measure: str) -> str:
    last, low, high = (words.last(run.curves.get(f"{measure}{end}")) for end in ("", "_low", "_high"))
    if math.isfinite(low) and math.isfinite(high):
        return words.with_interval(last, low, high)
    return f"{last:.4g}" if math.isfinite(last) else ""
