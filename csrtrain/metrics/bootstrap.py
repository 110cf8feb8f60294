"""Bootstrap over groups: how often each row is drawn, and what measures make of rows that count several times.

A measure of rows with weights (how often each was drawn) equals the measure of the rows repeated; no row is copied.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 1000
FEWEST = 5
"""Groups below which an interval says nothing."""
_ROWS = 512  # of the matrix of pairs at once
_DRAWS_AT_ONCE = 128


def group_weights(groups: NDArray[np.int64], draws: int = DRAWS, seed: int = 0) -> Array:
    """(draws,N) how often each row is drawn, as many groups as there are, with replacement, whole groups together."""
    unique, inverse = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = np.stack(
        [np.bincount(rng.integers(0, len(unique), len(unique)), minlength=len(unique)) for _ in range(draws)]
    )
    return np.asarray(drawn[:, inverse], dtype=np.float64)


def interval(values: Array, groups: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of (draws,) values; NaN for fewer than five groups, or no finite value."""
    if len(np.unique(groups)) < FEWEST or not np.isfinite(values).any():
        return math.nan, math.nan
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def in_words(low: float, high: float, sign: str = "") -> str:
    """` [0.401, 0.623]`, or that there is none."""
    return f" [{low:{sign}.3f}, {high:{sign}.3f}]" if math.isfinite(low) and math.isfinite(high) else " (no interval)"


def weighted_mean(x: Array, weights: Array) -> Array:
    """(draws,) mean of (N,) or (draws,N); NaN where no row was drawn."""
    total = weights.sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray((weights * x).sum(1) / total)


def weighted_plcc(x: Array, y: Array, weights: Array) -> Array:
    """(draws,) Pearson's correlation of (N,) or (draws,N) each; NaN where all of one are alike."""
    dx = x - weighted_mean(x, weights)[:, None]
    dy = y - weighted_mean(y, weights)[:, None]
    spread_x, spread_y = weighted_mean(dx**2, weights), weighted_mean(dy**2, weights)
    size = max(float(np.max(np.abs(x), initial=0)), 1e-300), max(float(np.max(np.abs(y), initial=0)), 1e-300)
    spread_x[spread_x <= (1e-14 * size[0]) ** 2] = np.nan
    spread_y[spread_y <= (1e-14 * size[1]) ** 2] = np.nan
    return np.asarray(weighted_mean(dx * dy, weights) / np.sqrt(spread_x * spread_y))


def weighted_srcc(x: Array, y: Array, weights: Array) -> Array:
    """(draws,) Spearman's rank correlation of (N,) and (N,); equal values share their mean rank."""
    found = np.empty(len(weights))
    for start in range(0, len(weights), _DRAWS_AT_ONCE):
        part = weights[start : start + _DRAWS_AT_ONCE]
        found[start : start + _DRAWS_AT_ONCE] = weighted_plcc(_ranks(x, part), _ranks(y, part), part)
    return found


def weighted_krcc(x: Array, y: Array, weights: Array) -> Array:
    """(draws,) Kendall's tau-b of (N,) and (N,); memory grows with N, not with its square."""
    agreeing = np.zeros(len(weights))
    single = weights.astype(np.float32)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        signs = np.sign(x[rows, None] - x) * np.sign(y[rows, None] - y)
        # Whole numbers below 2^24: exact in float32.
        agreeing += ((single @ signs.T.astype(np.float32)) * weights[:, rows]).sum(1)
    pairs = (weights.sum(1) ** 2 - _tied(x, weights)) * (weights.sum(1) ** 2 - _tied(y, weights))
    pairs[pairs <= 0] = np.nan
    return np.asarray(agreeing / np.sqrt(pairs))


def _runs(x: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of (N,), and where in it each run of equal values begins."""
    order = np.argsort(x, kind="stable")
    return order, np.flatnonzero(np.diff(x[order], prepend=np.nan) != 0)


def _tied(x: Array, weights: Array) -> Array:
    """(draws,) ordered pairs of equal values, each row with itself too."""
    order, starts = _runs(x)
    return np.asarray((np.add.reduceat(weights[:, order], starts, axis=1) ** 2).sum(1))


def _ranks(x: Array, weights: Array) -> Array:
    """(draws,N) mean rank of each value of (N,) among the rows that were drawn."""
    order, starts = _runs(x)
    tied = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(tied, axis=1) - tied / 2
    run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(x)))
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, run]
    return ranks
