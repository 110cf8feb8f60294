"""Results as files: results.json, table.csv, report.md, and plots."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from csrtrain.evaluate import plots
from csrtrain.files import write_atomically

TITLES = {
    "srcc": "SRCC",
    "krcc": "KRCC",
    "plcc": "PLCC raw",
    "plcc_logistic": "PLCC logistic",
    "rmse": "RMSE logistic",
    "outlier_ratio": "outlier ratio",
    "two_afc": "2AFC",
    "two_afc_subsets": "2AFC, mean of subsets",
    "jnd": "JND mAP",
}
"""Headings of the measures, in their order."""


def write(folder: str | Path, results: dict[str, Any]) -> list[Path]:
    """Write results into a folder, each file whole or not at all.

    Args:
        folder: is made if there is none.
        results: from `csrtrain.evaluate.evaluate`.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plots.draw(results)
    content = {
        "results.json": json.dumps(_plain(results), indent=1, allow_nan=False).encode() + b"\n",
        "table.csv": _csv(results),
        "report.md": markdown(results, list(pictures)).encode(),
        **pictures,
    }
    for name, data in content.items():
        write_atomically(folder / name, data)
    return [folder / name for name in content]


def table(results: dict[str, Any]) -> pd.DataFrame:
    """A row per method and evaluation: its measures with intervals, and how it stands to each control."""
    rows = []
    for evaluation in results["evaluations"]:
        for name, method in evaluation["methods"].items():
            row: dict[str, Any] = {
                "train": evaluation["train"],
                "test": evaluation["test"],
                "method": name,
                "kind": method["kind"],
                "head": method["head"],
            }
            for measure, found in method["measures"].items():
                row |= {measure: found["value"], f"{measure}_low": found["low"], f"{measure}_high": found["high"]}
            if "level_order" in method:
                row["level_order"] = method["level_order"]["value"]
            for control, differences in method["versus"].items():
                measure, difference = next(iter(differences.items()))
                for key in ("low", "high", "beats"):
                    row[f"{measure} minus {control}: {key}"] = difference[key]
            if "aggregate" in evaluation:
                row["aggregate_rank_mean"] = evaluation["aggregate"]["methods"][name]["rank_mean"]
            rows.append(row)
    return pd.DataFrame(rows)


def _csv(results: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    table(results).to_csv(buffer, index=False, float_format="%.7g")
    return buffer.getvalue()


def markdown(results: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """The results as a page to read."""
    manifests = "; ".join(
        f"{m['file']} ({m['rows']} rows of {m['ratings']}, digest {m['digest'][:12]})" for m in results["manifests"]
    )
    lines = [
        "# Evaluation",
        "",
        f"Protocol {results['protocol']}, seed {results['seed']}. Manifests: {manifests}.",
        f"Intervals: 95 %, {results['bootstrap_draws']} bootstrap samples of whole groups.",
        "A control is beaten when the interval of the paired difference lies above 0.",
        "",
        *(f"- {note}" for note in results["notes"]),
    ]
    for evaluation in results["evaluations"]:
        lines += ["", f"## {_name(evaluation)}", "", *_evaluation(evaluation)]
    if results["broken"]:
        lines += ["", f"## Not evaluated: {len(results['broken'])}", ""]
        lines += [f"- {one['manifest']}, line {one['line']}: {one['reason']}" for one in results["broken"]]
    for name in pictures:
        lines += ["", f"![{Path(name).stem.replace('_', ' ')}]({name})"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join([*lines, "", f"Made with {versions}."]) + "\n"


def _name(evaluation: dict[str, Any]) -> str:
    if evaluation["train"] is None:
        return str(evaluation["test"])
    if evaluation["train"] == evaluation["test"]:
        return f"{evaluation['test']}, random splits"
    return f"Fitted to {evaluation['train']}, judged on {evaluation['test']}"


def _evaluation(evaluation: dict[str, Any]) -> list[str]:
    methods: dict[str, Any] = evaluation["methods"]
    sizes = ", ".join(sorted({f"{split['train']} / {split['test']}" for split in evaluation["splits"]})[:3])
    count = len(evaluation["splits"])
    lines = [
        f"{evaluation['test_images']} rows of {evaluation['test_groups']} groups judged; {count} split"
        f"{'s, medians over them' if count > 1 else ''} (rows train / test: {sizes}).",
        "",
    ]
    known = [m for m in TITLES if any(m in method["measures"] for method in methods.values())]
    rows = [[name, *(_value(method["measures"].get(m)) for m in known)] for name, method in methods.items()]
    lines += _grid(["method", *(TITLES[m] for m in known)], rows)
    lines += _versus(methods)
    for key, title in (
        ("types", "SRCC per type of distortion"),
        ("level_order_of_types", "Levels in the right order, per type"),
        ("subsets", "Per subset"),
    ):
        kinds = list(dict.fromkeys(kind for method in methods.values() for kind in method.get(key, {})))
        if kinds:
            body = [
                [name, *(_value(method.get(key, {}).get(kind)) for kind in kinds)] for name, method in methods.items()
            ]
            lines += ["", f"### {title}", "", *_grid(["method", *kinds], body)]
    orders = [[name, _value(method["level_order"])] for name, method in methods.items() if "level_order" in method]
    if orders:
        lines += ["", "### Monotonicity: share of pairs of levels in the right order", ""]
        lines += _grid(["method", "in order"], orders)
    if "aggregate" in evaluation:
        lines += _aggregate(evaluation["aggregate"])
    if "outliers" in evaluation:
        found = evaluation["outliers"]
        lines += ["", f"### Errors and the high frequencies of the {found['of']}", ""]
        lines += ["SRCC of |rating - curve(score)| with the share of power above half of the highest frequency.", ""]
        body = [[name, _value({"value": one["srcc"], **one})] for name, one in found["methods"].items()]
        lines += _grid(["method", "SRCC"], body)
    lines += _fits(methods)
    return lines


def _versus(methods: dict[str, Any]) -> list[str]:
    rows = []
    for name, method in methods.items():
        for control, differences in method["versus"].items():
            for measure, found in differences.items():
                low, high = found["low"], found["high"]
                verdict = "beats" if found["beats"] else "is beaten" if high < 0 else "neither"
                interval = f" [{low:+.3f}, {high:+.3f}]"
                if not math.isfinite(low):
                    verdict, interval = "no interval", ""
                difference = f"{found['difference']:+.3f}{interval}" if math.isfinite(found["difference"]) else ""
                rows.append([name, control, TITLES[measure], difference, verdict])
    if not rows:
        return []
    return ["", "### Beside the controls", "", *_grid(["method", "minus", "measure", "difference", ""], rows)]


def _aggregate(found: dict[str, Any]) -> list[str]:
    lines = ["", "### Aggregate (ours)", "", f"{found['definition'][0].upper()}{found['definition'][1:]}."]
    if found["left_out"]:
        lines.append(f"Not counted, because a method has none: {', '.join(map(_part, found['left_out']))}.")
    rows = []
    for name, method in sorted(found["methods"].items(), key=lambda item: item[1]["rank_mean"]):
        parts = [f"{method['parts'][part]:.3g} ({method['ranks'][part]:g})" for part in found["counted"]]
        rows.append([name, f"{method['rank_mean']:.2f}", *parts])
    return [*lines, "", *_grid(["method", "rank mean", *(f"{_part(part)} (rank)" for part in found["counted"])], rows)]


def _part(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def _fits(methods: dict[str, Any]) -> list[str]:
    """Which logistic fits gave way to a line, and why."""
    lines = []
    for name, method in methods.items():
        failed = [curve["reason"] for curve in method.get("curves", []) if not curve["logistic"]]
        if failed:
            lines.append(
                f"- {name}: in {len(failed)} of {len(method['curves'])} splits a line stands in for the logistic "
                f"({', '.join(sorted(set(failed)))})."
            )
    return ["", *lines] if lines else []


def _value(found: dict[str, Any] | None) -> str:
    if found is None or not math.isfinite(found["value"]):
        return ""
    interval = f" [{found['low']:.3f}, {found['high']:.3f}]" if math.isfinite(found["low"]) else ""
    return f"{found['value']:.3f}{interval}"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), "|" + "---|" * len(heads), *map(line, rows)]


def _plain(value: Any) -> Any:
    """JSON has no NaN: None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
