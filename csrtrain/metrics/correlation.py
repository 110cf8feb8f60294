"""How well scores agree with ratings: SRCC, KRCC, PLCC, RMSE, and intervals over groups."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from csrtrain.metrics.bootstrap import DRAWS, group_weights, interval, weighted_srcc

Array = NDArray[np.float64]


def srcc(scores: Array, ratings: Array) -> float:
    """Spearman's rank correlation of (N,) and (N,); NaN where all of one are alike."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return math.nan
    return float(spearmanr(scores, ratings).statistic)


def plcc(scores: Array, ratings: Array) -> float:
    """Pearson's correlation of (N,) and (N,), without a logistic fit; NaN where all of one are alike."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return math.nan
    return float(np.corrcoef(scores, ratings)[0, 1])


def krcc(scores: Array, ratings: Array) -> float:
    """Kendall's tau-b of (N,) and (N,); NaN where all of one are alike."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return math.nan
    return float(kendalltau(scores, ratings).statistic)


def agreement(scores: Array, ratings: Array) -> dict[str, float]:
    """SRCC, KRCC, PLCC and RMSE of scores (N,) in the units of the ratings (N,)."""
    return {
        "srcc": srcc(scores, ratings),
        "krcc": krcc(scores, ratings),
        "plcc": plcc(scores, ratings),
        "rmse": float(np.sqrt(np.mean(np.square(scores - ratings)))),
    }


def srcc_draws(scores: Array, ratings: Array, groups: NDArray[np.int64], draws: int = DRAWS, seed: int = 0) -> Array:
    """(draws,) SRCC of bootstrap samples of the groups, the same samples for every call with these groups and seed."""
    return weighted_srcc(scores, ratings, group_weights(groups, draws, seed))


def srcc_interval(scores: Array, ratings: Array, groups: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of SRCC, groups drawn with replacement; NaN for fewer than five groups, which say nothing."""
    return interval(srcc_draws(scores, ratings, groups), groups)
