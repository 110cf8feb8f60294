"""Pictures of results, drawn without a display."""

import io
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from csrtrain.metrics.logistic import Curve

_COLUMNS = 3
_DPI = 110
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9730d", "#8a8f98"
_CORRELATIONS = {"srcc": "SRCC", "krcc": "KRCC", "plcc": "PLCC raw", "plcc_logistic": "PLCC logistic"}


def draw(results: dict[str, Any]) -> dict[str, bytes]:
    """Name of a PNG -> its bytes."""
    pictures: dict[str, bytes] = {}
    for number, evaluation in enumerate(results["evaluations"]):
        mark = f"_{number + 1}" if len(results["evaluations"]) > 1 else ""
        methods = evaluation["methods"]
        if "scatter" in evaluation:
            pictures[f"correlations{mark}.png"] = _correlations(methods)
            pictures[f"scatter{mark}.png"] = _scatter(evaluation)
        if any(method.get("types") for method in methods.values()):
            pictures[f"types{mark}.png"] = _bars(methods, "types", "SRCC per type of distortion (median, 95 %)")
        if any("level_order" in method for method in methods.values()):
            pictures[f"monotonicity{mark}.png"] = _orders(methods)
        for measure, title in (("two_afc", "2AFC score"), ("jnd", "JND average precision")):
            if measure in next(iter(methods.values()))["measures"]:
                shown = {
                    name: {**m, "shown": {**m["subsets"], "all": m["measures"][measure]}} for name, m in methods.items()
                }
                pictures[f"{measure}{mark}.png"] = _bars(shown, "shown", f"{title} (95 %)")
        if "outliers" in evaluation:
            pictures[f"outliers{mark}.png"] = _outliers(evaluation)
    if results["protocol"] == "cross":
        pictures = {"cross.png": _cross(results), **pictures}
    return pictures


def _panels(count: int, width: float = 4.0, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, k + 1) for k in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _color(method: dict[str, Any]) -> str:
    return _GREY if method["kind"] == "control" else _BLUE


def _scatter(evaluation: dict[str, Any]) -> bytes:
    """Rated against predicted, of the first split's test rows, with the curve."""
    methods, found = evaluation["methods"], evaluation["scatter"]
    figure, axes = _panels(len(methods))
    quality = np.array(found["quality"])
    for axis, (name, method) in zip(axes, methods.items(), strict=True):
        scores = np.array(found["scores"][name])
        axis.plot(scores, quality, ".", color=_color(method), alpha=0.5, markersize=4)
        curve = Curve(**method["curves"][0])
        grid = np.linspace(scores.min(), scores.max(), 200)
        kind = "logistic" if curve.logistic else "line (no logistic)"
        axis.plot(grid, curve(grid), color=_ORANGE, linewidth=2, label=kind)
        axis.set_title(_short(name), fontsize=9)
        axis.set_xlabel("score (higher is better)")
        axis.set_ylabel("rating (higher is better)")
        axis.legend(fontsize=7, frameon=False, loc="upper left")
    count = len(evaluation["splits"])
    figure.suptitle(
        f"{evaluation['test']}: {'first split, ' if count > 1 else ''}{len(quality)} test rows", fontsize=10
    )
    return _png(figure)


def _bars(methods: dict[str, Any], key: str, title: str) -> bytes:
    """A group of bars per type or subset, a bar per method."""
    kinds = list(dict.fromkeys(kind for method in methods.values() for kind in method.get(key, {})))
    shown = [(name, method) for name, method in methods.items() if method.get(key)]
    figure = Figure(figsize=(max(6.0, 0.25 * len(kinds) * len(shown) + 2), 4.0), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    width = 0.8 / len(shown)
    own = [name for name, method in shown if method["kind"] != "control"]
    for k, (name, method) in enumerate(shown):
        values = [method[key].get(kind, {"value": math.nan, "low": math.nan, "high": math.nan}) for kind in kinds]
        places = np.arange(len(kinds)) + (k - (len(shown) - 1) / 2) * width
        heights = np.array([v["value"] for v in values])
        shade = 0.35 + 0.5 * (own.index(name) if name in own else k - len(own)) / max(1, len(shown) - 1)
        from_map = "Blues_r" if name in own else "Greys_r"
        axis.bar(places, heights, width, label=_short(name), color=_shade(from_map, shade))
        ends = np.array([[h - v["low"], v["high"] - h] for h, v in zip(heights, values, strict=True)]).T
        if np.isfinite(ends).any():
            axis.errorbar(places, heights, np.maximum(ends, 0), fmt="none", ecolor="black", elinewidth=0.8)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xticks(np.arange(len(kinds)), [_short(kind, 20) for kind in kinds], rotation=40, ha="right", fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure)


def _shade(name: str, value: float) -> Any:
    from matplotlib import colormaps

    return colormaps[name](value * 0.8)


def _correlations(methods: dict[str, Any]) -> bytes:
    """The four correlations of every method: medians over the splits and intervals."""
    figure = Figure(figsize=(13.0, 1.2 + 0.42 * len(methods)), layout="constrained")
    for axis, (measure, title) in zip(figure.subplots(1, 4, sharey=True), _CORRELATIONS.items(), strict=True):
        rows = [(name, method["measures"][measure], _color(method)) for name, method in methods.items()]
        _dots(axis, rows, f"{title} (95 %)", 0)
    return _png(figure)


def _orders(methods: dict[str, Any]) -> bytes:
    """Share of level pairs in the right order, overall."""
    shown = [(name, method) for name, method in methods.items() if "level_order" in method]
    figure = Figure(figsize=(7.0, 1.2 + 0.42 * len(shown)), layout="constrained")
    rows = [(name, method["level_order"], _color(method)) for name, method in shown]
    _dots(figure.add_subplot(), rows, "Levels of distortion in the right order (95 %)", 0.5)
    return _png(figure)


def _dots(axis: Axes, rows: list[tuple[str, dict[str, Any], str]], title: str, chance: float) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    for place, (_, found, color) in enumerate(rows):
        axis.plot([found["low"], found["high"]], [place, place], color=color, linewidth=2)
        axis.plot(found["value"], place, "o", color=color)
    axis.axvline(chance, color=_GREY, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [_short(name) for name, _, _ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(title, fontsize=10)


def _outliers(evaluation: dict[str, Any]) -> bytes:
    """Errors against the share of high frequencies."""
    found = evaluation["outliers"]
    figure, axes = _panels(len(found["methods"]))
    shares = np.array(found["high_frequency"], dtype=float)
    for axis, (name, one) in zip(axes, found["methods"].items(), strict=True):
        errors = np.array(one["errors"], dtype=float)
        axis.plot(
            np.maximum(shares, 1e-6), errors, ".", color=_color(evaluation["methods"][name]), alpha=0.5, markersize=4
        )
        axis.set_xscale("log")
        axis.set_title(f"{_short(name, 34)}, SRCC {one['srcc']:+.2f}", fontsize=9)
        axis.set_xlabel(f"high-frequency share of the {found['of']}")
        axis.set_ylabel("|rating - curve(score)|")
    return _png(figure)


def _cross(results: dict[str, Any]) -> bytes:
    """SRCC of every pair of manifests, a matrix per method."""
    evaluations = results["evaluations"]
    names = [manifest["file"] for manifest in results["manifests"]]
    methods = list(evaluations[0]["methods"])
    figure, axes = _panels(len(methods), 3.8, 3.6)
    for axis, name in zip(axes, methods, strict=True):
        matrix = np.full((len(names), len(names)), np.nan)
        for k, one in enumerate(evaluations):
            matrix[k // len(names), k % len(names)] = one["methods"][name]["measures"]["srcc"]["value"]
        axis.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        for (row, column), value in np.ndenumerate(matrix):
            color = "white" if value > 0.6 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
        labels = [_short(one.removesuffix(".csv"), 14) for one in names]
        axis.set_xticks(range(len(names)), labels, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(names)), labels, fontsize=8)
        axis.set_xlabel("judged on")
        axis.set_ylabel("fitted to")
        axis.set_title(_short(name, 34), fontsize=9)
    figure.suptitle("SRCC across manifests; diagonal: random splits", fontsize=10)
    return _png(figure)
