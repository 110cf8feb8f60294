"""Fitting what differs between an image and its reference to opinion scores, and how well that agrees with them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray

from csrtrain.data.manifest import SPLITS
from csrtrain.metrics import bootstrap
from csrtrain.metrics.correlation import agreement, srcc_draws, srcc_interval
from csrtrain.metrics.representation import group_folds
from csrtrain.models.nonnegative import common_weight
from csrtrain.models.ridge import RidgeFit
from csrtrain.quality import one_pass

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Fit = Callable[[NDArray[np.float32], Array, Integers, tuple[float, ...]], RidgeFit]
_FEWEST_GROUPS = 5  # of an interval


class Outcome(NamedTuple):
    """What a fit to opinion scores came to.

    weights: (F,) float64.
    results: measured values by name.
    summary: the same in words.
    lines: of `scores.csv`.
    rating: name of the ratings.
    """

    weights: Array
    results: dict[str, float]
    summary: list[str]
    lines: list[Any]
    rating: str


def check(data: Any, folds: int) -> None:
    """Refuse ratings that nothing can be fitted to, before any image is read.

    Raises:
        ValueError: they are all alike, or there are fewer groups than folds.
    """
    rated, rows = data.rated, data.train_rows
    if np.ptp(rated.ratings[rows]) == 0:
        raise ValueError(
            f"Expected different ratings in {data.path}, got {rated.ratings[rows][0]:g} for all. Rate the images."
        )
    groups = len(np.unique(rated.groups[rows]))
    if groups < folds:
        raise ValueError(
            f"Expected at least model.folds = {folds} groups of training images in {data.path}, got {groups}. Rows of "
            "one reference are a group. Rate more, or lower model.folds."
        )


def fit(
    data: Any, found: one_pass.Differences, solve: Fit, alphas: tuple[float, ...], folds: int, untrained: list[str]
) -> Outcome:
    """Fit weights to the loss of quality: how far ratings are from the best of their range.

    Args:
        data: a `csrtrain.data.scored.PairData`.
        found: of its pairs.
        solve: differences (N,F), losses (N,), folds (N,), alphas -> fits, without an intercept.
        alphas: strengths to choose from, by the error of held-out folds of whole groups of train.
        folds: their number.
        untrained: names of backbones that nothing has trained.

    Raises:
        ValueError: no training image could be read, or none differs from its reference.
    """
    rated, rows = data.rated, found.whole
    ratings, groups = rated.ratings[rows], rated.groups[rows]
    splits = np.array(rated.splits)[rows] if rated.splits else np.full(len(rows), "train")
    differences = found.values[data.comparisons.of_rows[rows, 0]]
    train = splits == "train"
    if not train.any():
        raise ValueError(f"Expected rows of split train whose images can be read, got none in {data.path}.")
    if not differences[train].any():
        raise ValueError(
            f"Expected images of split train in {data.path} that differ from their references, got none. Give others."
        )
    low, high = data.rating_range or (ratings[train].min(), ratings[train].max())
    sign = 1.0 if rated.higher_is_better else -1.0
    best = float(high if rated.higher_is_better else low)
    losses = sign * (best - ratings)
    fold_of = group_folds(groups[train], folds, data.seed)
    fits = solve(differences[train], losses[train], fold_of, alphas)
    chosen = fits.best(losses[train])
    weights, alpha = fits.weights[chosen], float(alphas[chosen])
    predicted = differences.astype(np.float64) @ weights
    predicted[train] = fits.held_out[chosen]
    sums = differences.sum(1, keepdims=True, dtype=np.float64)
    plain = common_weight(sums[train], losses[train]) * sums[:, 0]
    for fold in np.unique(fold_of):
        out = np.flatnonzero(train)[fold_of == fold]
        within = np.flatnonzero(train)[fold_of != fold]
        plain[out] = common_weight(sums[within], losses[within]) * sums[out, 0]
    predicted = predicted.clip(min=0)
    summary = [
        f"Fitted {len(weights)} weights ({int((weights != 0).sum())} not 0) to {train.sum()} ratings "
        f"({rated.rating_name}, best {best:g}) of {len(np.unique(groups[train]))} groups; "
        f"{one_pass.chosen_alpha(alpha, alphas)}."
    ]
    if found.left_out:
        summary += [f"Left out the rows of {len(found.left_out)} broken images:", *found.left_out[: one_pass.LISTED]]
    if untrained:
        summary.append(f"The backbone {', '.join(untrained)} is untrained: name a bundle for a metric.")
    if rated.rating_name == "proxy":
        summary.append("The ratings are proxies: no opinion of people is in them.")
    results = {"alpha": alpha}
    for split in SPLITS:
        of = splits == split
        if of.sum() < 2:
            continue
        name = "held_out" if split == "train" else split
        where = f"{folds} folds of train, by group" if split == "train" else f"{of.sum()} images of {split}"
        values, words = _measured(best - sign * predicted[of], best - sign * plain[of], ratings[of], groups[of])
        results |= {f"{name}/{key}": value for key, value in values.items()}
        summary.append(f"{where}: {words}")
        shared = np.intersect1d(groups[of], groups[train]) if split != "train" else np.empty(0)
        if len(shared):
            summary.append(f"{len(shared)} groups of {split} are in train too: see csrtrain check-data.")
    lines = [
        (rated.addresses[row], rated.references[row], splits[k])
        + tuple(f"{value:.10g}" for value in (ratings[k], best - sign * predicted[k], predicted[k], sums[k, 0]))
        for k, row in enumerate(rows)
    ]
    finite = {key: value for key, value in results.items() if math.isfinite(value)}
    return Outcome(weights, finite, summary, lines, rated.rating_name)


def publish(module: LightningModule, outcome: Outcome) -> None:
    """Log the results, and write `scores.csv`: train rows are predicted by the fit without their fold."""
    module.log_dict(outcome.results, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
    header = ["path", "reference", "split", outcome.rating, "predicted", "distance", "distance_uncalibrated"]
    one_pass.write_table(module.trainer, "scores.csv", header, outcome.lines)


def _measured(predicted: Array, plain: Array, ratings: Array, groups: Integers) -> tuple[dict[str, float], str]:
    """How predicted ratings agree, beside those of all weights alike, by name and in words."""
    fitted, alike = agreement(predicted, ratings), agreement(plain, ratings)
    low, high = srcc_interval(predicted, ratings, groups)
    gain = (math.nan, math.nan)
    if len(np.unique(groups)) >= _FEWEST_GROUPS:
        draws = srcc_draws(predicted, ratings, groups) - srcc_draws(plain, ratings, groups)
        gain = (float(np.nanpercentile(draws, 2.5)), float(np.nanpercentile(draws, 97.5)))
    results = fitted | {f"{key}_uncalibrated": value for key, value in alike.items()}
    results |= {"srcc_low": low, "srcc_high": high, "srcc_gain_low": gain[0], "srcc_gain_high": gain[1]}
    first, second = (
        f"SRCC {of['srcc']:.3f}{interval}, KRCC {of['krcc']:.3f}, PLCC {of['plcc']:.3f}, RMSE {of['rmse']:.3g}"
        for of, interval in ((fitted, bootstrap.in_words(low, high)), (alike, ""))
    )
    difference = fitted["srcc"] - alike["srcc"]
    return results, (
        f"{first}; with all weights alike {second}; difference of SRCC {difference:+.3f}"
        f"{bootstrap.in_words(*gain, '+')}."
    )
