"""Scores of real photographs from frozen backbones that saw no rating, beside the controls, on BIQ2021.

    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 train --epochs 44 --runs RUNS
    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 evaluate NAME=BUNDLE ... --write

train: CONTRIQUE (ResNet-18, 160 px) on `DIR/natural` as pristine images and the training images of `DIR/biq2021` as
authentic ones. evaluate: features of full and half scale of every whole image, ridge regression on the published
training split, its strength chosen by 5 folds by group inside it; SRCC on the published test split, and on that less
the images that share a group with a training image. Per subset fitted on that subset, and both together. Intervals:
95 %, bootstrap over groups of test images. "Beats" means that the interval of the paired difference excludes 0.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import spearmanr
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

import csrtrain
from benchmarks import harness
from csrtrain.controls import brisque_features
from csrtrain.data import decode
from csrtrain.metrics.correlation import srcc_draws
from csrtrain.metrics.representation import group_folds
from csrtrain.models import ridge
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures

FOLDS = 5
DRAWS = 2000
CONTROLS = ("untrained", "BRISQUE + SVR")
Array = NDArray[np.float64]


def read_rows(root: Path) -> list[dict[str, str]]:
    """The rows of BIQ2021's labels."""
    with (root / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def train(root: Path, runs: Path, epochs: int, precision: str, size: int) -> None:
    """`csrtrain fit` and `csrtrain export` as a user types them."""
    runs.mkdir(parents=True, exist_ok=True)
    authentic = runs / "biq2021_train.txt"
    images = root / "biq2021" / "images"
    train_rows = [row for row in read_rows(root / "biq2021") if row["split"] == "train"]
    authentic.write_text("".join(f"{images / row['image']}\n" for row in train_rows))
    run_dir = runs / "contrique_authentic"
    command = [sys.executable, "-m", "csrtrain", "fit", "-c", "contrique_small", "--data.root", str(root / "natural")]
    command += ["--data.authentic", str(authentic), "--model.size", str(size), "--data.load_size", str(2 * size)]
    command += ["--data.batch_size", "32", "--trainer.max_epochs", str(epochs), "--trainer.precision", precision]
    command += ["--trainer.default_root_dir", str(run_dir)]
    subprocess.run(command, check=True)
    bundle = runs / "contrique_authentic.safetensors"
    subprocess.run([sys.executable, "-m", "csrtrain", "export", str(run_dir), "-o", str(bundle)], check=True)


@torch.no_grad()
def representations(backbone: Backbone, paths: list[Path]) -> Array:
    """(N,2D) features of full and half scale of whole images."""
    model = FrozenFeatures([backbone], [Contract()])
    found = []
    for path in track(paths, "Features"):
        image = decode.to_channels(decode.read(str(path)), 3)[None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(model(image)[0].double().numpy())
    return np.stack(found)


def ridge_scores(h: Array, y: Array, groups: NDArray[np.int64], train: NDArray[np.bool_]) -> tuple[Array, float]:
    """Scores of the rows that are not for training, and alpha."""
    fitted = ridge.fit(h[train], y[train], group_folds(groups[train], FOLDS))
    best = fitted.best(y[train])
    return h[~train] @ fitted.weights[best] + fitted.biases[best], float(fitted.alphas[best])


def svr_scores(h: Array, y: Array, groups: NDArray[np.int64], train: NDArray[np.bool_]) -> Array:
    """The same of a support vector regression with an RBF kernel, as BRISQUE is used."""
    grid = {"svr__C": [0.1, 1, 10], "svr__gamma": [0.003, 0.01, 0.03, 0.1]}
    search = GridSearchCV(make_pipeline(StandardScaler(), SVR(epsilon=0.02)), grid, cv=GroupKFold(FOLDS))
    return np.asarray(search.fit(h[train], y[train], groups=groups[train]).predict(h[~train]))


def evaluate(features: dict[str, Array], rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A row per set of test images and kind of features."""
    y = np.array([float(row["mos"]) for row in rows])
    groups = np.array([int(row["group"]) for row in rows])
    is_train = np.array([row["split"] == "train" for row in rows])
    found: list[dict[str, Any]] = []
    for subset in ("ss01", "ss02", "both"):
        chosen = np.array([subset in ("both", row["subset"]) for row in rows])
        train, group, mos = is_train[chosen], groups[chosen], y[chosen]
        scores: dict[str, Array] = {}
        alphas: dict[str, float] = {}
        for name, h in features.items():
            if name == "BRISQUE + SVR":
                scores[name] = svr_scores(h[chosen], mos, group, train)
            else:
                scores[name], alphas[name] = ridge_scores(h[chosen], mos, group, train)
        test_groups, test_mos = group[~train], mos[~train]
        for clean in (False, True):
            kept = ~np.isin(test_groups, group[train]) if clean else np.ones(len(test_mos), dtype=bool)
            draws = {name: srcc_draws(s[kept], test_mos[kept], test_groups[kept], DRAWS) for name, s in scores.items()}
            for name, s in scores.items():
                low, high = np.percentile(draws[name], [2.5, 97.5])
                row: dict[str, Any] = {
                    "test images": f"{subset}, {'apart from train, ' if clean else ''}{kept.sum()}",
                    "features": name,
                    "SRCC": float(spearmanr(s[kept], test_mos[kept]).statistic),
                    "interval": f"[{low:.3f}, {high:.3f}]",
                    "PLCC": float(np.corrcoef(s[kept], test_mos[kept])[0, 1]),
                    "alpha": alphas.get(name),
                }
                for control in CONTROLS:
                    if name not in CONTROLS:
                        low, high = np.percentile(draws[name] - draws[control], [2.5, 97.5])
                        row[f"minus {control}"] = f"[{low:+.3f}, {high:+.3f}]"
                        row[f"beats {control}"] = bool(low > 0)
                found.append(row)
    return found


def main() -> None:
    """Train, or evaluate bundles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "evaluate"))
    parser.add_argument("bundles", nargs="*", metavar="NAME=BUNDLE")
    parser.add_argument("--epochs", type=int, default=44)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--note", action="append", default=[], help="what a bundle was trained on, for the result")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if "CSRTRAIN_DATA" not in os.environ:
        raise SystemExit("Expected the folder of data sets in CSRTRAIN_DATA, got none. Set it.")
    root = Path(os.environ["CSRTRAIN_DATA"])
    if options.what == "train":
        train(root, options.runs, options.epochs, options.precision, options.size)
        return
    rows = read_rows(root / "biq2021")
    paths = [root / "biq2021" / "images" / row["image"] for row in rows]
    torch.manual_seed(0)
    features = {"untrained": representations(Backbone("resnet18"), paths)}
    features["BRISQUE + SVR"] = np.stack([brisque_features(decode.read(str(path))).numpy() for path in track(paths)])
    bundles = dict(argument.split("=", 1) for argument in options.bundles)
    for name, path in bundles.items():
        features[name] = representations(csrtrain.load(path), paths)
    names = list(bundles)
    if len(names) > 1:
        features[" + ".join(names[:2])] = np.concatenate([features[name] for name in names[:2]], axis=1)
    notes = [f"{name}: trained {bundle_words(path)}" for name, path in bundles.items()]
    notes += [*options.note, "Features in bf16; whole images at full and half scale, each part of length 1."]
    title = "SRCC with opinion scores on BIQ2021 from frozen backbones and a ridge head"
    command = "CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 evaluate NAME=BUNDLE ... --write"
    packages = ("torch", "timm", "lightning", "scikit-learn")
    result = harness.Result("biq2021", title, evaluate(features, rows), notes, packages, command)
    result.show()
    if options.write:
        result.write()


def bundle_words(path: str) -> str:
    """Method, steps and data of a bundle."""
    training = csrtrain.load(path).header.training
    return f"by {training['method']}, {training['steps']} steps; {training['data']}."


if __name__ == "__main__":
    main()
