"""The curve from scores to ratings that stands before PLCC and RMSE."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit

Array = NDArray[np.float64]

_EVALUATIONS = 20_000


class Curve(NamedTuple):
    """A curve from scores to ratings that does not fall.

    parameters: (b1, b2, b3, b4) of the logistic, or (slope, intercept) of the line that stands in for it, slope >= 0.
    logistic: whether the fit of the logistic succeeded.
    reason: why it did not, in words.
    """

    parameters: tuple[float, ...]
    logistic: bool
    reason: str = ""

    def __call__(self, scores: Array) -> Array:
        """Ratings (N,) that the curve gives to scores (N,)."""
        if self.logistic:
            return logistic(scores, *self.parameters)
        return np.asarray(self.parameters[0] * scores + self.parameters[1])


def logistic(x: Array, b1: float, b2: float, b3: float, b4: float) -> Array:
    """(b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2: from b2 on the left to b1 on the right, half-way at b3."""
    return np.asarray((b1 - b2) * expit((x - b3) / abs(b4)) + b2)


def fit_logistic(scores: Array, ratings: Array) -> Curve:
    """The four-parameter logistic of least squared error from scores (N,) to ratings (N,), both higher for better.

    VQEG, "Final report from the Video Quality Experts Group on the validation of objective models of video quality
    assessment, phase II" (2003), section 4.2: b1 and b2 begin at the largest and smallest rating, b3 at the mean score,
    b4 at the deviation of the scores (Levenberg-Marquardt, `scipy.optimize.curve_fit`; the fit is made in standard
    units, which moves no minimum). The curve never falls, so that no metric is turned round. Where the fit does not
    converge, gives a falling curve or has fewer than five different scores, the least-squares line stands in for it
    (ours): the best of those that do not fall, level at the mean rating for scores that go the wrong way.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    if len(np.unique(x)) < 5 or np.ptp(y) == 0:
        return _line(x, y, "fewer than five different scores, or all ratings alike")
    (mx, sx), (my, sy) = (x.mean(), x.std()), (y.mean(), y.std())
    u, v = (x - mx) / sx, (y - my) / sy
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # of the covariance, which is not used
            b, _ = curve_fit(logistic, u, v, p0=[v.max(), v.min(), 0.0, 1.0], maxfev=_EVALUATIONS)
    except RuntimeError:
        return _line(x, y, "the fit did not converge")
    if not np.isfinite(b).all() or b[3] == 0:
        return _line(x, y, "the fit did not converge")
    if b[0] <= b[1]:
        return _line(x, y, "the best curve falls")
    return Curve((float(b[0] * sy + my), float(b[1] * sy + my), float(b[2] * sx + mx), float(abs(b[3]) * sx)), True)


def _line(x: Array, y: Array, reason: str) -> Curve:
    spread = np.square(x - x.mean()).sum()
    slope = max(0.0, float(((x - x.mean()) * (y - y.mean())).sum() / spread)) if spread > 0 else 0.0
    return Curve((slope, float(y.mean() - slope * x.mean())), False, reason)
