"""Several wishes in one table: our aggregate by definition, what a shift does, speed, and where errors are."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from csrtrain.data.splits import Split
from csrtrain.evaluate.methods import Method, Reading, high_frequency_shares, read_pair
from csrtrain.evaluate.rated import Predicted, Rated
from csrtrain.metrics import bootstrap
from csrtrain.metrics.correlation import srcc
from csrtrain.models.features import TILE

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

PARTS = (
    "srcc",
    "krcc",
    "plcc_logistic",
    "1 - outlier_ratio",
    "worst_type_srcc",
    "level_order",
    "shift_tolerance",
    "images_per_second",
)
"""What the aggregate is made of; higher is better."""
_TIMED = 32  # images of shift tolerance and speed
_SMALLEST = 64  # px: side of these


def shift_and_speed(
    method: Method, predicted: Predicted, rated: Rated, rows: Rows, reading: Reading
) -> tuple[float, float]:
    """Tolerance to a shift by one pixel, and images (pairs) per second; ours, both on at most 32 images.

    Tolerance: 1 - (mean change of the score when the image is shifted by one pixel down and right, its reference stays
    where it is) / (deviation of the scores over images): 1 is unmoved, 0 or less moves as far as images differ.
    Speed: decoded images, one at a time, with what moves them to the device and back; it depends on the machine and its
    load. Of larger images the upper left 1024 pixels, images with a side below 64 are left out.
    """
    chosen = rows[np.random.default_rng(0).permutation(len(rows))[:_TIMED]]
    still: list[float] = []
    moved: list[float] = []
    elapsed = 0.0
    for row in chosen:
        name = rated.references[row] if method.pairs and rated.references is not None else ""
        image, reference = read_pair(rated.addresses[row], name, method.channels, method.window, reading.slice_axis)
        if min(image.shape[2:]) < _SMALLEST:
            continue
        image = image[..., : TILE + 1, : TILE + 1]
        if reference is not None:
            reference = reference[..., : TILE + 1, : TILE + 1][..., :-1, :-1].contiguous()
        here, there = image[..., :-1, :-1].contiguous(), image[..., 1:, 1:].contiguous()
        if not still:
            method.respond(here, reference)  # the first call also chooses kernels
        start = time.perf_counter()
        score = predicted.head(method.respond(here, reference)[None])
        elapsed += time.perf_counter() - start
        still.append(float(score[0]))
        moved.append(float(predicted.head(method.respond(there, reference)[None])[0]))
    if len(still) < 2:
        return math.nan, math.nan
    spread = float(np.std(still))
    change = float(np.mean(np.abs(np.array(moved) - np.array(still))))
    return (1 - change / spread if spread > 0 else math.nan), len(still) / elapsed


def aggregate(parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Our aggregate by definition: the mean, over the parts that all methods have, of the rank among the methods.

    Args:
        parts: of each method `PARTS`, higher is better, NaN where there is none.

    Returns:
        parts that count, parts that are left out, and per method rank mean (1 is best in everything) and ranks; equal
        values share their mean rank.
    """
    names = list(parts)
    counted = [part for part in PARTS if all(math.isfinite(parts[name][part]) for name in names)]
    ranks = {part: rankdata([-parts[name][part] for name in names]) for part in counted}
    return {
        "definition": "ours: mean of the ranks among the methods, 1 is best, of each part with the same weight",
        "counted": counted,
        "left_out": [part for part in PARTS if part not in counted],
        "methods": {
            name: {
                "rank_mean": float(np.mean([ranks[part][k] for part in counted])) if counted else math.nan,
                "ranks": {part: float(ranks[part][k]) for part in counted},
                "parts": parts[name],
            }
            for k, name in enumerate(names)
        },
    }


def residuals(predicted: Predicted, rated: Rated, splits: Sequence[Split]) -> Array:
    """(N,) mean over the splits that test a row of |curve(score) - rating|; NaN where none does."""
    total, count = np.zeros(len(rated.quality)), np.zeros(len(rated.quality))
    for score, curve, split in zip(predicted.scores, predicted.curves, splits, strict=True):
        total[split.test] += np.abs(curve(score) - rated.quality[split.test])
        count[split.test] += 1
    return np.asarray(np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))


def outliers(
    predictions: dict[str, Predicted],
    methods: Sequence[Method],
    rated: Rated,
    splits: Sequence[Split],
    reading: Reading,
) -> dict[str, Any]:
    """Do the errors grow with the high frequencies of the reference (of the image, where there is none)?"""
    of_reference = rated.references is not None and all(rated.references)
    addresses = rated.references if of_reference and rated.references is not None else rated.addresses
    shares = high_frequency_shares(addresses, methods[0].window, reading)
    found: dict[str, Any] = {"of": "reference" if of_reference else "image", "high_frequency": shares.tolist()}
    for name, predicted in predictions.items():
        errors = residuals(predicted, rated, splits)
        rows = np.flatnonzero(np.isfinite(errors) & np.isfinite(shares))
        groups = rated.groups[rows]
        draws = bootstrap.weighted_srcc(errors[rows], shares[rows], bootstrap.group_weights(groups))
        low, high = bootstrap.interval(draws, groups)
        found.setdefault("methods", {})[name] = {
            "srcc": srcc(errors[rows], shares[rows]),
            "low": low,
            "high": high,
            "errors": errors.tolist(),
        }
    return found
