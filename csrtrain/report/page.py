"""The page: sections of figures and tables about runs and evaluations."""

import base64
import datetime
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

import csrtrain
from csrtrain.report import compare, words
from csrtrain.report.charts import COLORS, Array, Chart, Cloud, Line, draw
from csrtrain.report.folders import Evaluation, Run, flatten
from csrtrain.report.markup import Markup, escaped, joined, table, tag
from csrtrain.report.paths import Hidden
from csrtrain.runs.monitors import COLLAPSED_RANK, COLLAPSED_STD

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the browser itself asks for nothing outside
_MOST_CHARTS = 24  # of measures that csrtrain does not know
_CLOUDS = {"train": ("held-out folds of train", 5), "val": ("split val", 3), "test": ("split test", 6)}  # with colors
_SIGNS = {"good": "good", "warning": "attention", "bad": "fault", "plain": "note"}


class Picture(NamedTuple):
    """A PNG and what it shows."""

    title: str
    png: bytes


class Shown(NamedTuple):
    """A run on the page: its number from 1, that of its color, and its name, behind the number if there are more."""

    run: Run
    number: int
    color: int
    label: str


def page(found: Sequence[Run | Evaluation], pictures: Mapping[str, Sequence[Picture]], now: float) -> str:
    """The whole HTML text.

    Args:
        found: runs and evaluations.
        pictures: of runs, by name.
        now: seconds since 1970.
    """
    hidden = Hidden()
    runs = [one for one in found if isinstance(one, Run)]
    evaluations = [one for one in found if isinstance(one, Evaluation)]
    groups = compare.seed_groups(runs)
    by_group = sum(len(group) > 1 for group in groups) > 1  # several configs with several seeds
    color = {number: k if by_group else number for k, group in enumerate(groups) for number in group}
    shown = [
        Shown(run, number + 1, color[number], f"{number + 1} {run.name}" if len(runs) > 1 else run.name)
        for number, run in enumerate(runs)
    ]
    pretrained, heads = ([one for one in shown if one.run.is_head == is_head] for is_head in (False, True))
    sections = [
        ("In words", _in_words(shown, hidden, now)),
        ("Final values", joined([_final_values(part, groups) for part in (pretrained, heads)])),
        ("Curves", _curves(shown)),
        ("Collapse", _monitors(pretrained)),
        ("Agreement with ratings", _heads(heads)),
        ("Evaluations", joined([_evaluation(one, hidden) for one in evaluations])),
        ("Images", _pictures(pictures)),
        ("Environment", _environment(shown, hidden)),
        ("Starts", _starts(shown, hidden)),
        ("Config", _configs(shown, hidden)),
    ]
    filled = [(title, content) for title, content in sections if content]
    links = [tag("a", {"href": f"#{_anchor(title)}"}, title) for title, _ in filled]
    counts = [
        f"{len(part)} {name}{'s' if len(part) > 1 else ''}"
        for part, name in ((runs, "run"), (evaluations, "evaluation"))
        if part
    ]
    made = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"csrtrain report: {', '.join(one.name for one in found)}"
    head = [
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("link", {"rel": "icon", "href": "data:,"}),
        tag("title", {}, title[:200]),
        tag("style", {}, Markup(files("csrtrain.report").joinpath("style.css").read_text())),
    ]
    body = [
        tag(
            "header",
            {},
            tag("h1", {}, "csrtrain report"),
            tag("p", {"class": "quiet"}, f"{' and '.join(counts)}. Made {made} by csrtrain {csrtrain.__version__}."),
            tag("nav", {"aria-label": "Sections"}, *links),
        ),
        tag("main", {}, *(_section(title, content) for title, content in filled)),
    ]
    html = tag("html", {"lang": "en"}, tag("head", {}, *head), tag("body", {}, *body))
    return f"<!DOCTYPE html>\n{html}\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _section(title: str, content: Markup) -> Markup:
    return tag("section", {"id": _anchor(title)}, tag("h2", {}, title), content)


def _charts(charts: Sequence[Chart]) -> Markup:
    return tag("div", {"class": "charts"}, *map(draw, charts)) if charts else Markup()


def _legend(entries: Sequence[tuple[str, int]]) -> Markup:
    """What the colors mean: names and their numbers."""
    items = []
    for name, color in entries:
        stroke = {"class": f"line c{color % COLORS} d{color // COLORS % 4}", "d": "M0 5H30", "stroke-width": "3"}
        swatch = tag("svg", {"viewBox": "0 0 30 10", "aria-hidden": "true"}, tag("path", stroke))
        items.append(tag("li", {}, swatch, name))
    return tag("ul", {"class": "legend"}, *items)


def _runs_legend(shown: Sequence[Shown]) -> Markup:
    return _legend([(one.label, one.color) for one in shown]) if len(shown) > 1 else Markup()


def _in_words(shown: Sequence[Shown], hidden: Hidden, now: float) -> Markup:
    cards = []
    for one in shown:
        said = [
            tag("li", {"class": verdict.kind}, tag("b", {}, _SIGNS[verdict.kind]), verdict.text)
            for verdict in words.verdicts(one.run, now)
        ]
        facts = [
            part for name, value in words.facts(one.run, hidden) for part in (tag("dt", {}, name), tag("dd", {}, value))
        ]
        cards.append(
            tag(
                "article",
                {"class": "card"},
                tag("h3", {}, one.label),
                tag("ul", {"class": "verdicts"}, *said),
                tag("dl", {}, *facts),
            )
        )
    return tag("div", {"class": "cards"}, *cards) if cards else Markup()


def _final_values(shown: Sequence[Shown], groups: Sequence[Sequence[int]]) -> Markup:
    """Runs of one kind beside each other, and what they have in mean and spread where only the seed differs."""
    runs = [one.run for one in shown]
    found = compare.measures(runs)
    if len(runs) < 2 or not found:
        return Markup()
    rows: list[list[object]] = []
    if not runs[0].is_head:
        rows.append(["steps", *(f"{run.steps:,}" for run in runs)])
    marked = False
    for measure in found:
        winners = compare.best(runs, measure)
        marked = marked or bool(winners)
        values = [_value(run, measure) for run in runs]
        marks = [tag("strong", {"class": "best"}, f"{value} best") for value in values]
        rows.append([measure, *(marks[k] if k in winners else value for k, value in enumerate(values))])
    what = "Heads" if runs[0].is_head else "Pretraining"
    parts = [table(f"{what}: last value of each measure", ["measure", *(one.label for one in shown)], rows)]
    said = "Best is marked where values compare: agreement with the same ratings or labels." if marked else ""
    if "train/loss" in found:
        said += " A loss compares only runs of one method, temperature and batch, and is not marked."
    parts.append(tag("p", {"class": "quiet"}, said) if said else Markup())
    members = [[one for one in shown if one.number - 1 in group] for group in groups]
    several = [group for group in members if len(group) > 1]
    if several:
        tops = [
            f"runs {', '.join(str(one.number) for one in group)} (seeds "
            f"{', '.join(str(one.run.config.get('seed_everything', '?')) for one in group)})"
            for group in several
        ]
        spreads = [
            [compare.mean_and_spread([words.last(one.run.curves.get(name)) for one in group]) for group in several]
            for name in found
        ]
        body = [[name, *cells] for name, cells in zip(found, spreads, strict=True) if any(cells)]
        caption = f"{what}: runs that differ in their seed alone, mean ± standard deviation (runs)"
        parts.append(table(caption, ["measure", *tops], body))
    return joined(parts)


def _value(run: Run, measure: str) -> str:
    value, low, high = (words.last(run.curves.get(f"{measure}{end}")) for end in ("", "_low", "_high"))
    if math.isfinite(low) and math.isfinite(high):
        return words.with_interval(value, low, high)
    return f"{value:.4g}" if math.isfinite(value) else ""


def _curves(shown: Sequence[Shown]) -> Markup:
    """Loss, learning rate, probes, and whatever else was logged more than once per run."""
    names = compare.measures([one.run for one in shown])
    monitors = [f"train/{name}" for name in words.MONITORS]
    kept = [
        name
        for name in names
        if name not in monitors and not name.startswith(("held_out/", "test/")) and not _is_head_measure(name)
    ]
    known = [name for name in ("train/loss", "train/epoch_loss") if name in kept]
    rates = [name for name in kept if _is_rate(name)]
    probes = [name for name in kept if name.startswith("val/")]
    rest = [name for name in kept if name not in (*known, *rates, *probes)]
    drawn = [*known, *rates, *probes, *rest[:_MOST_CHARTS]]
    shown = [one for one in shown if any(name in one.run.curves for name in drawn)]
    charts = [_metric_chart(name, shown) for name in drawn]
    if not charts:
        return Markup()
    more = f"{len(rest) - _MOST_CHARTS} more measures are in metrics.csv." if len(rest) > _MOST_CHARTS else ""
    return joined([_runs_legend(shown), _charts(charts), tag("p", {"class": "quiet"}, more) if more else ""])


def _is_rate(name: str) -> bool:
    return name.rpartition("/")[2].startswith(("lr", "learning_rate"))


def _is_head_measure(name: str) -> bool:
    """Measures of heads on split val, and their alpha: one value each, no curve."""
    return (
        name == "alpha"
        or (name.startswith("val/") and name.removeprefix("val/").split("_low")[0] in words.MEASURES)
        or (name.startswith("val/") and name.endswith(("_uncalibrated", "_most")))
    )


def _metric_chart(name: str, shown: Sequence[Shown]) -> Chart:
    titles = {
        "train/loss": "Loss of the training, per step",
        "train/epoch_loss": "Mean loss of each epoch",
        "val/knn_accuracy": "Probe: accuracy of kNN on the representation",
        "val/knn_srcc": "Probe: SRCC of kNN on the representation",
    }
    notes = ["Step 0 is the untrained backbone."] if name.startswith("val/knn_") else []
    title = titles.get(name, f"Learning rate ({name})" if _is_rate(name) else name)
    return Chart(title, "step", name.rpartition("/")[2], _lines(name, shown), notes=notes)


def _lines(name: str, shown: Sequence[Shown]) -> list[Line]:
    several = len(shown) > 1
    return [
        Line(curve.steps, curve.values, one.color, str(one.number) if several else "")
        for one in shown
        if (curve := one.run.curves.get(name)) is not None
    ]


def _monitors(shown: Sequence[Shown]) -> Markup:
    """The four monitors with the values that they are read against, and the spectrum."""
    read: dict[str, tuple[str, list[tuple[float, str]], list[float], str]] = {
        "embedding_std": (
            "Embedding standard deviation",
            [(COLLAPSED_STD, f"collapsed below {COLLAPSED_STD:g}"), (1.0, "1: spread evenly")],
            [0.0, 1.05],
            "0 when all images get the same projection.",
        ),
        "effective_rank": (
            "Effective rank of the projections",
            [(COLLAPSED_RANK, f"collapsed below {COLLAPSED_RANK:g}")],
            [0.0],
            "How many directions are in use; it depends on the dimension and on the images.",
        ),
        "alignment": ("Alignment", [(0.0, "0: views agree")], [], "Mean squared distance of two views of an image."),
        "uniformity": (
            "Uniformity",
            [(-4.0, "-4: most even"), (0.0, "0: collapsed")],
            [],
            "Lower is more even over the sphere.",
        ),
    }
    charts = []
    for name, (title, levels, within, note) in read.items():
        lines = _lines(f"train/{name}", shown)
        if lines:
            charts.append(Chart(title, "step", name, lines, levels=levels, within=within, notes=[note]))
    charts += _spectra(shown)
    return joined([_runs_legend(shown), _charts(charts)]) if charts else Markup()


def _spectra(shown: Sequence[Shown]) -> list[Chart]:
    """Singular values of the projections: of one run the first, middle and last epoch, of several the last of each."""
    lines: list[Line] = []
    tables = [(one, spectrum) for one in shown if (spectrum := _spectrum(one.run)) is not None]
    for one, (steps, shares) in tables:
        chosen = [len(steps) - 1] if len(shown) > 1 else sorted({0, (len(steps) - 1) // 2, len(steps) - 1})
        for place, k in enumerate(chosen):
            label = str(one.number) if len(shown) > 1 else f"{steps[k]:g}"
            color = one.color if len(shown) > 1 else len(chosen) - 1 - place
            lines.append(Line(np.arange(1.0, shares.shape[1] + 1), shares[k], color, label))
    if not lines:
        return []
    ends = "Numbers are those of the runs, at their last epoch." if len(shown) > 1 else "Numbers are steps."
    notes = [f"A flat curve uses many directions, a steep one few. {ends}"]
    title = "Spectrum: singular values of the projections"
    return [Chart(title, "rank of the singular value", "share of their sum", lines, log_y=True, notes=notes)]


def _spectrum(run: Run) -> tuple[Array, Array] | None:
    """Steps (E,) and shares (E,d) of the epochs."""
    if run.spectrum is None or "step" not in run.spectrum:
        return None
    columns = [column for column in run.spectrum if str(column).startswith("share_")]
    numbers = run.spectrum[["step", *columns]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    numbers = numbers[np.isfinite(numbers).all(1)]
    return (numbers[:, 0], numbers[:, 1:]) if len(numbers) and columns else None


def _heads(shown: Sequence[Shown]) -> Markup:
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
    charts = [chart for one in shown if (chart := _scatter(one)) is not None]
    used = {cloud.color for chart in charts for cloud in chart.clouds}
    parts.append(_legend([entry for entry in _CLOUDS.values() if entry[1] in used]) if used else Markup())
    if (curve := _learning_curve(shown)) is not None:
        parts.append(_runs_legend(shown))
        charts.append(curve)
    return joined([*parts, _charts(charts)])


def _head_table(one: Shown) -> Markup:
    """Measures with intervals, beside the control that the run itself has: all weights alike."""
    run, rows = one.run, []
    for split, where in words.SPLITS.items():
        for measure, title in words.MEASURES.items():
            key = f"{split}/{measure}"
            value = _value(run, key)
            if not value:
                continue
            plain = words.last(run.curves.get(f"{key}_uncalibrated"))
            low, high = (words.last(run.curves.get(f"{key}_gain_{end}")) for end in ("low", "high"))
            difference = words.last(run.curves.get(key)) - plain
            rows.append(
                [
                    f"{title}, {where}",
                    value,
                    f"{plain:.4g}" if math.isfinite(plain) else "",
                    words.with_interval(difference, low, high, "+") if math.isfinite(low) else "",
                    words.beats(low, high) if math.isfinite(plain) and measure in ("srcc", "two_afc") else "",
                    _value(run, f"{key}_most"),
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


def _evaluation(one: Evaluation, hidden: Hidden) -> Markup:
    """Tables of an evaluation: each method beside the controls; manifests are called by number."""
    results = one.results
    listed_manifests = results.get("manifests")
    manifests = [m for m in listed_manifests if isinstance(m, dict)] if isinstance(listed_manifests, list) else []
    named = {str(m.get("file")): f"ratings {k + 1}" for k, m in enumerate(manifests)}
    listed = "; ".join(
        f"{named[str(m.get('file'))]}: {m.get('rows')} rows of {m.get('ratings')}, digest {str(m.get('digest'))[:12]}"
        for m in manifests
    )
    parts = [
        tag("h3", {}, one.name),
        tag(
            "p",
            {},
            hidden.text(
                f"Protocol {results.get('protocol')}, seed {results.get('seed')}. {listed}. Intervals: 95 %, "
                f"{results.get('bootstrap_draws')} bootstrap samples of whole groups. A control is beaten when the "
                "interval of the paired difference lies above 0."
            ),
        ),
    ]
    broken = results.get("broken")
    if isinstance(broken, list) and broken:
        parts.append(tag("p", {}, f"{len(broken)} images could not be read and were left out."))
    for evaluation in results["evaluations"]:
        methods = {str(n): m for n, m in _mapping(evaluation.get("methods")).items() if isinstance(m, dict)}
        train, test = (named.get(str(evaluation.get(key)), "ratings") for key in ("train", "test"))
        fitted = evaluation.get("train")
        where = (
            test
            if fitted is None
            else f"{test}, random splits"
            if train == test
            else f"fitted to {train}, judged on {test}"
        )
        parts += _evaluation_tables(methods, where, hidden)
    return tag("div", {}, *parts)


def _evaluation_tables(methods: Mapping[str, dict[str, Any]], where: str, hidden: Hidden) -> list[Markup]:
    measures = list(dict.fromkeys(str(m) for method in methods.values() for m in _mapping(method.get("measures"))))
    heads = ["method", "kind", *(words.MEASURES.get(m, m.replace("_", " ")) for m in measures)]
    best = {m: _best(methods, m) for m in measures}
    rows: list[list[object]] = []
    versus: list[list[object]] = []
    for name, method in methods.items():
        cells: list[object] = []
        for measure in measures:
            text = _found(_mapping(_mapping(method.get("measures")).get(measure)), "value")
            cells.append(tag("strong", {"class": "best"}, f"{text} best") if name in best[measure] else text)
        rows.append([hidden.text(name), hidden.text(str(method.get("kind", ""))), *cells])
        for control, differences in _mapping(method.get("versus")).items():
            for measure, found in _mapping(differences).items():
                low, high = (_float(_mapping(found).get(end)) for end in ("low", "high"))
                title = words.MEASURES.get(str(measure), str(measure))
                text = _found(_mapping(found), "difference", "+")
                versus.append([hidden.text(name), hidden.text(str(control)), title, text, words.beats(low, high)])
    parts = [table(f"Measures: {where}", heads, rows)] if rows else []
    if versus:
        parts.append(table(f"Beside the controls: {where}", ["method", "minus", "measure", "difference", ""], versus))
    return parts


def _best(methods: Mapping[str, dict[str, Any]], measure: str) -> set[str]:
    """Names of the methods with the best value, controls included; none where all have it."""
    values = {n: _float(_mapping(_mapping(m.get("measures")).get(measure)).get("value")) for n, m in methods.items()}
    finite = [value for value in values.values() if math.isfinite(value)]
    if len(set(finite)) < 2:
        return set()
    top = min(finite) if measure in words.LOWER_IS_BETTER else max(finite)
    return {name for name, value in values.items() if value == top}


def _found(found: Mapping[str, Any], key: str, sign: str = "") -> str:
    return words.with_interval(_float(found.get(key)), _float(found.get("low")), _float(found.get("high")), sign)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else math.nan


def _pictures(pictures: Mapping[str, Sequence[Picture]]) -> Markup:
    figures = []
    for name, of_run in pictures.items():
        for picture in of_run:
            caption = f"{name}: {picture.title}"
            source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
            image = tag("img", {"src": source, "alt": caption})
            inner = tag("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}, image)
            figures.append(tag("figure", {"class": "wide"}, tag("figcaption", {}, caption), inner))
    return tag("div", {"class": "charts"}, *figures) if figures else Markup()


def _environment(shown: Sequence[Shown], hidden: Hidden) -> Markup:
    """Versions and hardware: of environment.json, without it the versions that the checkpoint holds."""
    columns: list[dict[str, Any]] = []
    for one in shown:
        run = one.run
        described = run.environment or {"packages": run.header.get("versions") or {}}
        columns.append(flatten(hidden.value(described), run.folder / "environment.json"))
    keys = list(dict.fromkeys(key for column in columns for key in column))
    heads = ["", *(one.label if len(shown) > 1 else "value" for one in shown)]

    def rows(wanted: Sequence[str]) -> list[list[object]]:
        return [[key.removeprefix("packages."), *(_plain(column.get(key)) for column in columns)] for key in wanted]

    missing = [one.label for one in shown if not one.run.environment]
    hardware = [key for key in keys if key and not key.startswith("packages.") and key != "packages"]
    packages = [key for key in keys if key.startswith("packages.")]
    parts = [table("Hardware and settings", heads, rows(hardware))] if hardware else []
    if packages:
        inner = table("Versions of packages", heads, rows(packages))
        parts.append(tag("details", {}, tag("summary", {}, f"Versions of {len(packages)} packages"), inner))
    if missing:
        said = f"{', '.join(missing)}: no environment.json; versions are those that the checkpoint holds."
        parts.append(tag("p", {"class": "quiet"}, said))
    for one in shown:
        for later in one.run.environments:
            own = flatten(one.run.environment, one.run.folder / "environment.json")
            changed = [key for key in {**own, **later.content} if own.get(key) != later.content.get(key)]
            said = hidden.text(f"{one.run.name}, start of {later.when}: another environment ({', '.join(changed)}).")
            parts.append(tag("p", {}, said))
    return joined(parts)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        counts = {one: value.count(one) for one in map(str, value)}
        return ", ".join(f"{one} x {value.count(one)}" if count > 1 else one for one, count in counts.items())
    return "" if value is None else str(value)


def _starts(shown: Sequence[Shown], hidden: Hidden) -> Markup:
    """When a run was begun, how often it was resumed, and what of its config each start changed."""
    rows = []
    for one in shown:
        run, before = one.run, one.run.config
        begun = [
            datetime.datetime.fromtimestamp(t).strftime("%Y-%m-%d %H:%M:%S") for t in (run.begun, run.written) if t
        ]
        rows.append([one.label, "1", begun[0] if begun else "", f"last row of metrics {begun[-1]}" if begun else ""])
        for number, start in enumerate(run.starts):
            changes = [
                f"{key}: {hidden.value(before.get(key), _key(key))} to "
                f"{hidden.value(start.content.get(key), _key(key))}"
                for key in dict.fromkeys([*before, *start.content])
                if before.get(key) != start.content.get(key)
            ]
            rows.append(
                [one.label, str(number + 2), start.when, "changed: " + "; ".join(changes) if changes else "same config"]
            )
            before = start.content
    if not rows:
        return Markup()
    counted = [f"{one.run.name}: resumed {words.times(len(one.run.starts))}." for one in shown if one.run.starts]
    said = " ".join(counted) or "No run was resumed." if len(shown) > 1 else " ".join(counted) or "Never resumed."
    heads = ["run", "start", "local time", "note"]
    return joined([tag("p", {}, said), tag("div", {"class": "long"}, table("Starts", heads, rows))])


def _key(key: str) -> str:
    return key.rpartition(".")[2]


def _configs(shown: Sequence[Shown], hidden: Hidden) -> Markup:
    parts: list[Markup] = []
    for is_head, kind in ((False, "pretraining"), (True, "heads")):
        part = [one for one in shown if one.run.is_head == is_head]
        if len(part) > 1:
            parts.append(_different(part, kind, hidden))
    for one in shown:
        if one.run.tree:
            text = yaml.safe_dump(hidden.value(one.run.tree), sort_keys=False, allow_unicode=True)
            name = f"Config of {one.label}" if len(shown) > 1 else "Config as resolved at the first start"
            parts.append(tag("details", {}, tag("summary", {}, name), tag("pre", {"tabindex": "0"}, escaped(text))))
    if parts:
        parts.append(
            tag(
                "p",
                {"class": "quiet"},
                "Paths and names of people are not shown: each stands as a number, the same one for the same place.",
            )
        )
    return joined(parts)


def _different(shown: Sequence[Shown], kind: str, hidden: Hidden) -> Markup:
    """The keys in which configs of one kind differ."""
    runs = [one.run for one in shown]
    rows = [
        [key, *(_plain(hidden.value(run.config[key], _key(key))) if key in run.config else "-" for run in runs)]
        for key in compare.different_keys(runs)
    ]
    if not rows:
        return tag("p", {}, f"The configs of {kind} are the same.")
    caption = f"What differs between the configs of {kind}"
    return tag("div", {"class": "long"}, table(caption, ["key", *(one.label for one in shown)], rows))
