"""How well methods agree with opinion scores: heads fitted in every split, and measures with intervals."""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from csrtrain import controls
from csrtrain.data.manifest import Manifest, numbered
from csrtrain.data.splits import Split
from csrtrain.evaluate.methods import Method
from csrtrain.files import shown
from csrtrain.metrics import bootstrap
from csrtrain.metrics.correlation import krcc, plcc, srcc
from csrtrain.metrics.levels import in_order, level_pairs
from csrtrain.metrics.logistic import Curve, fit_logistic
from csrtrain.metrics.representation import group_folds
from csrtrain.models import ridge

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Pair = Callable[[int], tuple[Array, Array]]

COMPARED = ("srcc", "krcc", "plcc_logistic")
_FOLDS = 5
_SEARCHED = 1000  # rows on which the strength of the SVR is chosen
_FEWEST = 5  # rows of a measure


class Rated(NamedTuple):
    """Rated images, N of them, as they are judged.

    quality: (N,) ratings, higher is better (dmos with its sign turned).
    deviation: (N,) of each rating, NaN where it is not known, or None.
    types: (N,) type of distortion, "" for none, or None.
    levels: (N,) level of distortion, NaN for none, or None.
    series: (N,) number of reference (of group, where there is none) and type.
    groups: (N,).
    addresses, references: (N,); references are None where there is no such column.
    """

    quality: Array
    deviation: Array | None
    types: NDArray[np.str_] | None
    levels: Array | None
    series: Rows
    groups: Rows
    addresses: list[str]
    references: list[str] | None


class Predicted(NamedTuple):
    """What a method says in every split.

    scores: per split (n,) of its test rows, higher is better.
    curves: per split, from scores to quality.
    alphas: of ridge, per split.
    head: of the first split, or of one fifth of it: values (M,F) -> scores (M,).
    """

    scores: list[Array]
    curves: list[Curve]
    alphas: list[float]
    head: Callable[[Array], Array]


def rated_of(manifest: Manifest) -> Rated:
    """The columns of a manifest that are judged by.

    Raises:
        ValueError: a level or a deviation is no number; the message names the lines.
    """
    columns = manifest.columns
    types = np.array(columns["type"]) if "type" in columns else None
    references = manifest.references or [""] * len(manifest)
    names = [name or f"group {group}" for name, group in zip(references, manifest.groups, strict=True)]
    keys = [f"{name}\0{kind}" for name, kind in zip(names, columns.get("type", [""] * len(manifest)), strict=True)]
    return Rated(
        manifest.ratings if manifest.higher_is_better else -manifest.ratings,
        _numbers(manifest, "std", lambda value: value >= 0, "at least 0"),
        types,
        _numbers(manifest, "level", math.isfinite, "finite"),
        numbered(keys),
        manifest.groups,
        manifest.addresses,
        manifest.references,
    )


def _numbers(manifest: Manifest, name: str, is_sound: Callable[[float], bool], wanted: str) -> Array | None:
    """(N,) of a column, NaN where it is empty; None without the column."""
    if name not in manifest.columns:
        return None
    found, wrong = np.full(len(manifest), np.nan), []
    for row, text in enumerate(manifest.columns[name]):
        try:
            found[row] = float(text) if text else np.nan
            if text and not is_sound(found[row]):
                raise ValueError
        except ValueError:
            wrong.append(f"line {manifest.lines[row]}: {name} is {shown(repr(text))}")
    if wrong:
        raise ValueError(f"Expected numbers, {wanted}, in {manifest.file}, got {'; '.join(wrong[:5])}. Correct them.")
    return found


def fit_head(method: Method, rows: Rows, rated: Rated, seed: int) -> tuple[Callable[[Array], Array], float]:
    """What makes scores of values, fitted to rows, and alpha; strengths are chosen by folds of groups inside them.

    Raises:
        ValueError: there are fewer than two groups, or all ratings are alike.
    """
    if method.head == "none":
        return lambda values: values[:, 0], math.nan
    values, quality, groups = method.values[rows].astype(np.float64), rated.quality[rows], rated.groups[rows]
    count = len(np.unique(groups))
    if count < 2 or np.ptp(quality) == 0:
        alike = ", all rated alike" if count > 1 else ""
        raise ValueError(
            f"Expected different ratings of at least 2 groups to fit the head of {method.name} to, got {count} groups "
            f"and {len(rows)} rows{alike}. Rate more images"
            f"{', or leave the controls out with --no-controls' if method.kind == 'control' else ''}."
        )
    folds = min(_FOLDS, count)
    if method.head == "svr":
        low, span = quality.min(), np.ptp(quality)
        predict = controls.fit_svr(values, (quality - low) / span, groups, folds, _SEARCHED)
        return lambda x: np.asarray(predict(x) * span + low), math.nan
    fitted = ridge.fit(values, quality, group_folds(groups, folds, seed))
    best = fitted.best(quality)
    weights, bias = fitted.weights[best], fitted.biases[best]
    return lambda x: np.asarray(x @ weights + bias), float(fitted.alphas[best])


def predict(method: Method, rated: Rated, splits: Sequence[Split], seed: int) -> Predicted:
    """Scores of the test rows of every split, and the curves to their ratings.

    Where a split has nothing to fit to (`whole`), the head of a control is fitted to the other four fifths of the test
    rows, by group; the mean rating of those is taken off, so that it does not count which fifth a row is in.
    """
    scores, alphas, heads = [], [], []
    for split in splits:
        if method.head == "none" or len(split.train):
            head, alpha = fit_head(method, split.train, rated, seed)
            scores.append(head(method.values[split.test].astype(np.float64)))
            alphas.append(alpha)
        else:
            groups = rated.groups[split.test]
            folds = group_folds(groups, min(_FOLDS, len(np.unique(groups))), seed)
            found = np.empty(len(split.test))
            for fold in np.unique(folds):
                rows = split.test[folds != fold]
                head, alpha = fit_head(method, rows, rated, seed)
                found[folds == fold] = (
                    head(method.values[split.test[folds == fold]].astype(np.float64)) - rated.quality[rows].mean()
                )
                alphas.append(alpha)
            scores.append(found)
        heads.append(head)
    curves = [fit_logistic(s, rated.quality[split.test]) for s, split in zip(scores, splits, strict=True)]
    return Predicted(scores, curves, [alpha for alpha in alphas if math.isfinite(alpha)], heads[0])


class Measured(NamedTuple):
    """A measure: per split, and (draws,) medians over the splits in bootstrap samples."""

    per_split: list[float]
    draws: Array

    def described(self, groups: Rows) -> dict[str, Any]:
        """Median over splits, its interval, and every split."""
        low, high = bootstrap.interval(self.draws, groups)
        return {"value": median(self.per_split), "low": low, "high": high, "per_split": self.per_split}


def measured(
    per_split: Callable[[int], float], drawn: Callable[[int, Array], Array], splits: Sequence[Split], weights: Array
) -> Measured:
    """A measure in every split, and in bootstrap samples of all groups, restricted to each split's test rows.

    So one image that is tested in several splits is drawn, or not, in all of them at once, and counts once.
    """
    points = [per_split(k) for k in range(len(splits))]
    draws = np.stack([drawn(k, weights[:, split.test]) for k, split in enumerate(splits)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # draws without a value
        return Measured(points, np.nanmedian(draws, axis=0))


def agreement(predicted: Predicted, rated: Rated, splits: Sequence[Split], weights: Array) -> dict[str, Measured]:
    """Measures of a method by name; curves are those fitted to all test rows of a split, also in bootstrap samples.

    Where a line stands in for the logistic, PLCC after it is that before it, its sign included: a level line has none.
    """
    quality = [rated.quality[split.test] for split in splits]
    scores = predicted.scores
    mapped = [curve(s) for curve, s in zip(predicted.curves, scores, strict=True)]
    square = [(m - q) ** 2 for m, q in zip(mapped, quality, strict=True)]
    straightened = [m if curve.logistic else s for curve, m, s in zip(predicted.curves, mapped, scores, strict=True)]

    def correlation(
        point: Callable[[Array, Array], float], drawn: Callable[[Array, Array, Array], Array], x: list[Array]
    ) -> Measured:
        return measured(lambda k: point(x[k], quality[k]), lambda k, w: drawn(x[k], quality[k], w), splits, weights)

    found = {
        "srcc": correlation(srcc, bootstrap.weighted_srcc, scores),
        "krcc": correlation(krcc, bootstrap.weighted_krcc, scores),
        "plcc": correlation(plcc, bootstrap.weighted_plcc, scores),
        "plcc_logistic": correlation(plcc, bootstrap.weighted_plcc, straightened),
        "rmse": measured(
            lambda k: math.sqrt(square[k].mean()),
            lambda k, w: np.sqrt(bootstrap.weighted_mean(square[k], w)),
            splits,
            weights,
        ),
    }
    if rated.deviation is not None and np.isfinite(rated.deviation).any():
        limits = [2 * rated.deviation[split.test] for split in splits]
        known = [np.flatnonzero(np.isfinite(limit)) for limit in limits]
        outside = [
            np.where(np.sqrt(s[rows]) > limit[rows], 1.0, 0.0)
            for s, limit, rows in zip(square, limits, known, strict=True)
        ]
        found["outlier_ratio"] = measured(
            lambda k: float(outside[k].mean()) if len(known[k]) else math.nan,
            lambda k, w: bootstrap.weighted_mean(outside[k], w[:, known[k]]),
            splits,
            weights,
        )
    return found


def by_type(predicted: Predicted, rated: Rated, splits: Sequence[Split], weights: Array) -> dict[str, Measured]:
    """SRCC per type of distortion, within each split's test rows of that type; NaN for fewer than five of them."""
    if rated.types is None:
        return {}
    found = {}
    for kind in sorted(set(rated.types) - {""}):
        rows = [np.flatnonzero(rated.types[split.test] == kind) for split in splits]
        if max(map(len, rows)) < _FEWEST:
            continue

        def pair(k: int, rows: list[Rows] = rows) -> tuple[Array, Array]:
            return predicted.scores[k][rows[k]], rated.quality[splits[k].test[rows[k]]]

        def point(k: int, rows: list[Rows] = rows, pair: Pair = pair) -> float:
            return srcc(*pair(k)) if len(rows[k]) >= _FEWEST else math.nan

        def drawn(k: int, w: Array, rows: list[Rows] = rows, pair: Pair = pair) -> Array:
            if len(rows[k]) < _FEWEST:
                return np.full(len(w), np.nan)
            return bootstrap.weighted_srcc(*pair(k), weights=w[:, rows[k]])

        found[str(kind)] = measured(point, drawn, splits, weights)
    return found


def level_order(
    predicted: Predicted, rated: Rated, splits: Sequence[Split], weights: Array, kind: str | None = None
) -> Measured | None:
    """Share of pairs of levels of one reference and type in the right order, ties count half; None without pairs.

    Args:
        kind: only of this type of distortion.
    """
    if rated.levels is None:
        return None
    pairs = []
    for split in splits:
        known = np.isfinite(rated.levels[split.test])
        if kind is not None and rated.types is not None:
            known &= rated.types[split.test] == kind
        rows = np.flatnonzero(known)
        mild, strong = level_pairs(rated.series[split.test[rows]], rated.levels[split.test[rows]])
        pairs.append((rows[mild], rows[strong]))
    if not any(len(mild) for mild, _ in pairs):
        return None
    right = [in_order(s, *pair) for s, pair in zip(predicted.scores, pairs, strict=True)]
    return measured(
        lambda k: float(right[k].mean()) if len(right[k]) else math.nan,
        lambda k, w: bootstrap.weighted_mean(right[k], w[:, pairs[k][0]]),
        splits,
        weights,
    )


def described_split(split: Split) -> dict[str, Any]:
    """How many rows, and a digest of which, so that two results can be seen to have the same."""
    rows = f"{split.train.tolist()} {split.test.tolist()}"
    return {
        "train": len(split.train),
        "test": len(split.test),
        "digest": hashlib.sha256(rows.encode()).hexdigest()[:16],
    }


def compared(
    measures: dict[str, Measured], control: dict[str, Measured], groups: Rows, names: Sequence[str] = COMPARED
) -> dict[str, Any]:
    """Differences to a control on the same bootstrap samples; it is beaten when the interval lies above 0."""
    found = {}
    for name in names:
        low, high = bootstrap.interval(measures[name].draws - control[name].draws, groups)
        difference = median(measures[name].per_split) - median(control[name].per_split)
        found[name] = {"difference": difference, "low": low, "high": high, "beats": low > 0}
    return found


def median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan
