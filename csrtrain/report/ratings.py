"""How heads agree with ratings: measures beside their control, scatter, learning curve."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from csrtrain.report import words
from csrtrain.report.charts import Array, Chart, Cloud, Line
from csrtrain.report.markup import Markup, joined, table, tag
from csrtrain.report.shown import Shown, charts, legend, runs_legend, value

_CLOUDS = {"train": ("held-out folds of train", 5), "val": ("split val", 3), "test": ("split test", 6)}  # with colors


def heads(shown: Sequence[Shown]) -> Markup:
    parts: list[Markup] = []
    tables = [one for one in shown if any(f"{s}/{m}" in one.run.curves for s in words.SPLITS for m in words.MEASURES)]
    for one in tables:
        parts.append(_head_table(one))
    if any("held_out/srcc" in one.run.curves and "held_out/srcc_uncalibrated" not in one.run.curves for one in tables):
        parts.append(
            tag(
                "p",
                {"class": "quiet"},
                "A fit of a no-reference head has no control beside it. csrtrain evaluate makes them: an untrained "
                "backbone and BRISQUE, with intervals of the difference. Its folder can be named here too.",
            )
        )
    found = [chart for one in shown if (chart := _scatter(one)) is not None]
    used = {cloud.color for chart in found for cloud in chart.clouds}
    parts.append(legend([entry for entry in _CLOUDS.values() if entry[1] in used]) if used else Markup())
    if (curve := _learning_curve(shown)) is not None:
        parts.append(runs_legend(shown))
        found.append(curve)
    return joined([*parts, charts(found)])


def _head_table(one: Shown) -> Markup:
    """Measures with intervals, beside the control that the run itself has: all weights alike."""
    run, rows = one.run, []
    for split, where in words.SPLITS.items():
        for measure, title in words.MEASURES.items():
            key = f"{split}/{measure}"
            text = value(run, key)
            if not text:
                continue
            plain = words.last(run.curves.get(f"{key}_uncalibrated"))
            low, high = (words.last(run.curves.get(f"{key}_gain_{end}")) for end in ("low", "high"))
            difference = words.last(run.curves.get(key)) - plain
            rows.append(
                [
                    f"{title}, {where}",
                    text,
                    f"{plain:.4g}" if math.isfinite(plain) else "",
                    words.with_interval(difference, low, high, "+") if math.isfinite(low) else "",
                    words.beats(low, high) if math.isfinite(plain) and measure in ("srcc", "two_afc") else "",
                    value(run, f"{key}_most"),
                ]
            )
    heads = ["measure", "value [95 %]", "all weights alike", "difference [95 %]", "control", "highest possible"]
    kept = [k for k in range(len(heads)) if k < 2 or any(row[k] for row in rows)]
    return table(f"Measures: {one.label}", [heads[k] for k in kept], [[row[k] for k in kept] for row in rows])


def _scatter(one: Shown) -> Chart | None:
    """Predicted against rated; of a distance fitted to choices the share of votes against the difference."""
    scores = one.run.scores
    if scores is None or "split" not in scores or not len(scores):
        return None
    columns = [str(column) for column in scores.columns]
    if "judge" in columns and {"d0", "d1"} <= set(columns):
        first, second = (_floats(scores[column]) for column in ("d0", "d1"))
        with np.errstate(invalid="ignore", divide="ignore"):
            x, y = (first - second) / (first + second), _floats(scores["judge"])
        title, x_label, y_label, diagonal = (
            f"Choices: {one.label}",
            "(d0 - d1) / (d0 + d1)",
            "share who chose p1",
            False,
        )
    elif "predicted" in columns and columns.index("predicted") > 0:
        rating = columns[columns.index("predicted") - 1]
        x, y = _floats(scores["predicted"]), _floats(scores[rating])
        title, x_label, y_label, diagonal = f"Predicted and rated: {one.label}", "predicted", f"rated ({rating})", True
    else:
        return None
    clouds = []
    for split, (_, color) in _CLOUDS.items():
        of = (scores["split"] == split).to_numpy()
        if of.any():
            clouds.append(Cloud(x[of], y[of], color))
    if not clouds:
        return None
    total = sum(len(cloud.x) for cloud in clouds)
    note = f"{total:,} rows; of each split at most 1,500 are drawn." if total > 1500 else f"{total:,} rows."
    lines = [] if diagonal else _tenths(x, y)
    note += " The curve is the mean of tenths of the rows." if lines else " On the dashed line both agree."
    return Chart(title, x_label, y_label, lines, clouds, diagonal=diagonal, notes=[note])


def _tenths(x: Array, y: Array) -> list[Line]:
    """Means of tenths of the rows in the order of x, as a curve; nothing for few rows."""
    good = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[good], kind="stable")
    if len(order) < 50:
        return []
    parts = [(float(x[good][part].mean()), float(y[good][part].mean())) for part in np.array_split(order, 10)]
    return [Line(np.array([a for a, _ in parts]), np.array([b for _, b in parts]))]


def _floats(column: Any) -> Array:
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


def _learning_curve(shown: Sequence[Shown]) -> Chart | None:
    lines = []
    for one in shown:
        found = one.run.learning_curve
        if found is None or not {"ratings", "srcc", "srcc_min", "srcc_max"} <= set(found):
            continue
        numbers = np.array([_floats(found[key]) for key in ("ratings", "srcc", "srcc_min", "srcc_max")])
        numbers = numbers[:, np.isfinite(numbers).all(0) & (numbers[0] > 0)]
        if numbers.shape[1]:
            x, y, low, high = numbers
            lines.append(Line(x, y, one.color, str(one.number) if len(shown) > 1 else "", low, high))
    if not lines:
        return None
    notes = ["Mean of ten draws of whole groups, and their range; judged on images of other groups."]
    return Chart("SRCC by number of ratings", "ratings", "SRCC", lines, log_x=True, notes=notes)
