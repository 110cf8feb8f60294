"""Ridge regression with a search for alpha: 8,000 x 4,096, 10 folds, 10 alphas, float64, beside scikit-learn.

    python -m benchmarks ridge

The peer fits scikit-learn's `Ridge` for every fold and alpha and predicts what was left out, as `GridSearchCV` does.
One round, because it takes minutes; both compute every held-out prediction, and these are compared.
"""

import time

import numpy as np
from sklearn.linear_model import Ridge

from benchmarks import harness
from csrtrain.models import ridge

ROWS, DIM, FOLDS = 8000, 4096, 10
ALPHAS = tuple(np.geomspace(1e-3, 1e3, 10).tolist())


def run() -> harness.Result:
    """Representations of length 1 with a spectrum that falls as that of a trained network does."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((ROWS, DIM)) * np.geomspace(1, 1e-3, DIM)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    y = h @ rng.standard_normal(DIM) + 0.1 * rng.standard_normal(ROWS)
    folds = rng.permutation(ROWS) % FOLDS
    start = time.perf_counter()
    ours = ridge.fit(h, y, folds, ALPHAS)
    seconds = time.perf_counter() - start
    held_out = np.empty((len(ALPHAS), ROWS))
    start = time.perf_counter()
    for a, alpha in enumerate(ALPHAS):
        for fold in range(FOLDS):
            out = folds == fold
            held_out[a, out] = Ridge(alpha).fit(h[~out], y[~out]).predict(h[out])
    theirs = time.perf_counter() - start
    rows = [
        harness.compared("alpha search: s", seconds, theirs, 2.5),
        {
            "what": "largest difference of a held-out prediction, share of the ratings' standard deviation",
            "ours": float(np.abs(ours.held_out - held_out).max() / y.std()),
            "target": "<= 1e-9",
            "verdict": "met" if np.abs(ours.held_out - held_out).max() <= 1e-9 * y.std() else "missed",
        },
    ]
    for a in (0, len(ALPHAS) - 1):
        weights = Ridge(ALPHAS[a]).fit(h, y).coef_
        difference = float(np.abs(ours.weights[a] - weights).max() / np.abs(weights).max())
        rows.append(
            {
                "what": f"alpha {ALPHAS[a]:g}: largest difference of a weight, share of the largest",
                "ours": difference,
                "target": "<= 1e-9",
                "verdict": "met" if difference <= 1e-9 else "missed",
            }
        )
    notes = [
        f"{ROWS:,} x {DIM:,}, {FOLDS} folds, {len(ALPHAS)} alphas from {ALPHAS[0]:g} to {ALPHAS[-1]:g}, one round."
    ]
    return harness.Result("ridge", "Ridge regression with a search for alpha", rows, notes, ("torch", "scikit-learn"))
