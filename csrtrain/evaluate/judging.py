"""Everything that is said about the methods on one manifest."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from csrtrain.data.splits import Split
from csrtrain.evaluate.aggregate import aggregate, outliers, shift_and_speed
from csrtrain.evaluate.methods import Method, Reading
from csrtrain.evaluate.rated import Rated, agreement, by_type, compared, described_split, level_order, predict
from csrtrain.metrics import bootstrap


def judge(
    methods: Sequence[Method],
    rated: Rated,
    splits: Sequence[Split],
    reading: Reading,
    seed: int,
    with_aggregate: bool,
) -> dict[str, Any]:
    """Everything about one manifest (or pair of manifests): see docs/evaluation.md.

    Args:
        with_aggregate: also what needs the images again: shift tolerance, speed, high frequencies.
    """
    tested = np.unique(np.concatenate([split.test for split in splits]))
    groups = rated.groups[tested]
    weights = np.zeros((bootstrap.DRAWS, len(rated.quality)))
    weights[:, tested] = bootstrap.group_weights(groups, seed=seed)
    predictions = {method.name: predict(method, rated, splits, seed) for method in methods}
    found = {name: agreement(p, rated, splits, weights) for name, p in predictions.items()}
    results: dict[str, Any] = {"methods": {}}
    parts: dict[str, dict[str, float]] = {}
    for method in methods:
        predicted, measures = predictions[method.name], found[method.name]
        types = by_type(predicted, rated, splits, weights)
        levels = level_order(predicted, rated, splits, weights)
        row: dict[str, Any] = {
            "kind": method.kind,
            "head": method.head,
            "measures": {name: measure.described(groups) for name, measure in measures.items()},
            "types": {name: measure.described(groups) for name, measure in types.items()},
            "alphas": predicted.alphas,
            "curves": [curve._asdict() for curve in predicted.curves],
            "versus": {name: compared(measures, found[name], groups) for name in method.controls},
        }
        if levels is not None:
            row["level_order"] = levels.described(groups)
            row["level_order_of_types"] = {
                name: one.described(groups)
                for name in types
                if (one := level_order(predicted, rated, splits, weights, name)) is not None
            }
        if with_aggregate:
            tolerance, speed = shift_and_speed(method, predicted, rated, splits[0].test, reading)
            values = {name: row["measures"][name]["value"] for name in measures}
            parts[method.name] = {
                **{name: values[name] for name in ("srcc", "krcc", "plcc_logistic")},
                "1 - outlier_ratio": 1 - values.get("outlier_ratio", math.nan),
                "worst_type_srcc": float(np.min([t["value"] for t in row["types"].values()] or [math.nan])),
                "level_order": row["level_order"]["value"] if "level_order" in row else math.nan,
                "shift_tolerance": tolerance,
                "images_per_second": speed,
            }
        results["methods"][method.name] = row
    if with_aggregate:
        results["aggregate"] = aggregate(parts)
        results["outliers"] = outliers(predictions, methods, rated, splits, reading)
    first = splits[0].test
    results["scatter"] = {
        "rows": first.tolist(),
        "quality": rated.quality[first].tolist(),
        "scores": {name: p.scores[0].tolist() for name, p in predictions.items()},
    }
    results["splits"] = [described_split(split) for split in splits]
    results["test_images"], results["test_groups"] = len(tested), len(np.unique(groups))
    return results
