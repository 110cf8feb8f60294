"""What `csrtrain evaluate` found: each method beside the controls."""

import math
from collections.abc import Mapping
from typing import Any

from csrtrain.report import words
from csrtrain.report.folders import Evaluation
from csrtrain.report.markup import Markup, table, tag
from csrtrain.report.paths import Hidden


def evaluation(one: Evaluation, hidden: Hidden) -> Markup:
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
        where = f"fitted to {train}, judged on {test}" if train != test else f"{test}, random splits"
        where = test if evaluation.get("train") is None else where
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
