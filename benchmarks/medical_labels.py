"""Good from bad medical images by a ridge head on frozen backbones: a smoke test on two small sets.

    CSRTRAIN_DATA=DIR python -m benchmarks.medical_labels NAME=BUNDLE ... --write

`DIR/drimdb`: fundus photographs, good or bad, less the rows with the burned-in time stamp. `DIR/hip_ultrasound`:
standard or substandard planes. Area under the ROC curve (AUC) of predictions for images that the head did not see: 10
folds, the ridge's strength chosen by 5 folds inside the other nine. Intervals: 95 %, bootstrap over images.
"""

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.ndimage import laplace
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from benchmarks import harness
from csrtrain.augment.color import luma
from csrtrain.data import decode
from csrtrain.data.index import addresses_of
from csrtrain.metrics.representation import group_folds
from csrtrain.models import ridge
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures

SETS = {
    "drimdb": ("drimdb/good", "drimdb/bad", 40),  # good, bad, rows of the time stamp
    "hip_ultrasound": (
        "hip_ultrasound/SPJ_dataset/standard_ultrasound",
        "hip_ultrasound/SPJ_dataset/substandard_ultrasound",
        0,
    ),
}
OUTER, INNER, DRAWS = 10, 5, 2000
Array = NDArray[np.float64]


def held_out(h: Array, y: Array) -> Array:
    """Predictions of each row by a head that did not see it, less the mean of what that head saw.

    The mean moves against what is held out, and with it predictions that are hardly more than a mean: the AUC of noise
    would be below 0.5. Folds have equal shares of good images for the same reason.
    """
    out = np.empty(len(y))
    for train, test in StratifiedKFold(OUTER, shuffle=True, random_state=0).split(h, y):
        fitted = ridge.fit(h[train], y[train], group_folds(np.arange(len(train)), INNER))
        best = fitted.best(y[train])
        out[test] = h[test] @ fitted.weights[best] + fitted.biases[best] - y[train].mean()
    return out


def auc_interval(scores: Array, y: Array) -> tuple[float, float, float]:
    """AUC and the 95 % interval of it."""
    rng = np.random.default_rng(0)
    draws = []
    while len(draws) < DRAWS:
        picked = rng.integers(0, len(y), len(y))
        if 0 < y[picked].sum() < len(y):
            draws.append(roc_auc_score(y[picked], scores[picked]))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(roc_auc_score(y, scores)), float(low), float(high)


@torch.no_grad()
def features(backbone: Backbone, images: list[Tensor]) -> Array:
    """(N,2D) of full and half scale."""
    model = FrozenFeatures([backbone], [Contract()])
    inputs = (decode.to_channels(image, backbone.channels)[None] for image in track(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return np.stack([model(image)[0].double().numpy() for image in inputs])


def main() -> None:
    """Both sets, all bundles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="NAME=BUNDLE")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    root = harness.data_root()
    bundles = harness.named(options.bundles)
    backbones = harness.backbones(bundles)
    rows: list[dict[str, Any]] = []
    notes = [f"{name}: {harness.trained(path)}" for name, path in bundles.items()]
    notes.append("Features in bf16; whole images at full and half scale, each part of length 1.")
    notes.append("The sets name no patients: images of one may lie on both sides of a fold.")
    for name, (good, bad, top) in SETS.items():
        addresses = [addresses_of(str(root / folder)) for folder in (good, bad)]
        images = [decode.read(address)[:, top:] for address in (*addresses[0], *addresses[1])]
        y = np.repeat([1.0, 0.0], [len(addresses[0]), len(addresses[1])])
        grey = [luma(decode.to_channels(image, 3)[None].float() / 255)[0, 0].numpy() for image in images]
        scores = {"sharpness (variance of the Laplacian), no fit": np.array([laplace(image).var() for image in grey])}
        scores |= {key: held_out(features(backbone, images), y) for key, backbone in backbones.items()}
        noise = [held_out(np.random.default_rng(seed).standard_normal((len(y), 64)) / 8, y) for seed in range(20)]
        of_noise = np.mean([roc_auc_score(y, score) for score in noise])
        notes.append(f"{name}: mean AUC of 20 draws of noise as features {of_noise:.3f}.")
        for key, score in scores.items():
            auc, low, high = auc_interval(score.astype(np.float64), y)
            counts = f"{len(addresses[0])} good, {len(addresses[1])} bad"
            row = {"images": f"{name}: {counts}", "features": key, "AUC": auc, "interval": f"[{low:.3f}, {high:.3f}]"}
            rows.append(row)
    command = "CSRTRAIN_DATA=DIR python -m benchmarks.medical_labels NAME=BUNDLE ... --write"
    title = "Good from bad medical images by a ridge head on frozen backbones"
    result = harness.Result("medical_labels", title, rows, notes, ("torch", "timm", "scikit-learn"), command)
    result.show(options.write)


if __name__ == "__main__":
    main()
