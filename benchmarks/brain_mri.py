"""Does pretraining learn anything? kNN accuracy on brain MRI slices against the controls.

    CSRTRAIN_DATA=DIR python -m benchmarks.brain_mri --write

Trains SimCLR and MoCo (ResNet-18, one channel, `mri` views) on the images of `DIR/brain_mri`, never seeing a label, and
classifies every slice by its nearest neighbours in the other folds: 5 folds, whole groups of near-duplicates in one
fold. Controls: the same network untrained, and raw pixels at 32 x 32. "Beats" means that the 95 % interval of the
paired bootstrap difference over groups excludes 0.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from sklearn.neighbors import KNeighborsClassifier

import csrtrain
from benchmarks import harness
from csrtrain.data.labels import read_labels
from csrtrain.data.unlabeled import UnlabeledData
from csrtrain.metrics.representation import group_folds, knn_correct, paired_bootstrap
from csrtrain.models.backbone import Backbone
from csrtrain.runs import checkpoints

NEIGHBOURS = (1, 5, 20)
METHODS = {"moco": 120, "simclr": 80}  # epochs that fit into an hour on one core


def train(method: str, data: Path, runs: Path, epochs: int, precision: str) -> tuple[Path, float]:
    """`csrtrain fit` and `csrtrain export` as a user types them; returns the bundle and the minutes it took."""
    run_dir = runs / f"brain_mri_{method}"
    command = [sys.executable, "-m", "csrtrain", "fit", "-c", f"medical_{method}", "--data.root", str(data)]
    command += ["--data.modality", "mri", "--data.labels", str(data / "labels.csv"), "--data.group_column", "group"]
    command += ["--trainer.max_epochs", str(epochs), "--trainer.precision", precision]
    command += ["--trainer.check_val_every_n_epoch", "10", "--trainer.default_root_dir", str(run_dir)]
    subprocess.run(command, check=True)  # a run that is complete says so and returns
    newest = checkpoints.newest(run_dir)
    assert newest is not None
    minutes = (newest.stat().st_mtime - (run_dir / "config.yaml").stat().st_mtime) / 60
    bundle = runs / f"brain_mri_{method}.safetensors"
    subprocess.run([sys.executable, "-m", "csrtrain", "export", str(run_dir), "-o", str(bundle)], check=True)
    return bundle, minutes


@torch.no_grad()
def representations(backbone: Any, batches: list[torch.Tensor]) -> np.ndarray:
    """(N,D) representations of the labelled images."""
    backbone.eval()
    return torch.cat([backbone.representation(images) for images in batches]).numpy()


def last_metrics(path: Path) -> dict[str, float]:
    """The last value of each column of a metrics.csv."""
    last: dict[str, float] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            last.update({name: float(value) for name, value in row.items() if value})
    return last


def euclidean_correct(h: np.ndarray, labels: np.ndarray, folds: np.ndarray, k: int) -> np.ndarray:
    """(N,) the same vote with scikit-learn's Euclidean neighbours, the usual one for pixels."""
    correct = np.empty(len(h), dtype=np.bool_)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        correct[test] = KNeighborsClassifier(k).fit(h[train], labels[train]).predict(h[test]) == labels[test]
    return correct


def evaluate(features: dict[str, np.ndarray], labels: Any, seed: int = 0) -> list[dict[str, Any]]:
    """kNN accuracy of each feature, and the difference of the trained ones to each control with its interval."""
    folds = group_folds(labels.groups, 5, seed)
    rows = []
    for k in NEIGHBOURS:
        correct = {name: knn_correct(h, labels.values, folds, k=k) for name, h in features.items()}
        correct["pixels, Euclidean"] = euclidean_correct(features["pixels"], labels.values, folds, k)
        for name, hits in correct.items():
            row: dict[str, Any] = {"neighbours": k, "representation": name, "accuracy": float(np.mean(hits))}
            if name in METHODS:
                for control in ("untrained", "pixels", "pixels, Euclidean"):
                    difference, low, high = paired_bootstrap(hits, correct[control], labels.groups)
                    row[f"minus {control}"] = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
                    row[f"beats {control}"] = bool(low > 0)
            rows.append(row)
    return rows


def main() -> None:
    """Train, evaluate, print, and write benchmarks/results/brain_mri.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, help="for both methods; default: what fits into an hour on one core")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    root = harness.data_root() / "brain_mri"
    labels = read_labels(str(root / "labels.csv"), "class", "group")

    data = UnlabeledData(str(root), channels=1, modality="mri", load_size=128, batch_size=64, workers=2)
    data.labels_path, data.group_column = str(root / "labels.csv"), "group"
    data.setup("fit")
    batches = [batch.images for batch in data.val_dataloader()]
    pixels = torch.cat([F.interpolate(images, (32, 32), mode="area").flatten(1) for images in batches])
    seed_everything(0, verbose=False)
    features = {
        "pixels": pixels.numpy(),
        "untrained": representations(Backbone("resnet18", channels=1), batches),
    }
    notes = []
    for method, epochs in METHODS.items():
        epochs = options.epochs or epochs
        bundle, minutes = train(method, root, options.runs, epochs, options.precision)
        features[method] = representations(csrtrain.load(str(bundle)), batches)
        metrics = last_metrics(options.runs / f"brain_mri_{method}" / "metrics.csv")
        notes.append(
            f"{method}: {epochs} epochs, {minutes:.1f} minutes, {options.precision}; at the end embedding std "
            f"{metrics['train/embedding_std']:.2f}, effective rank {metrics['train/effective_rank']:.1f} of 128, "
            f"alignment {metrics['train/alignment']:.2f}, uniformity {metrics['train/uniformity']:.2f}."
        )
    chosen = f" --epochs {options.epochs}" if options.epochs else ""
    command = f"CSRTRAIN_DATA=DIR python -m benchmarks.brain_mri{chosen} --write"
    title = "kNN accuracy on brain MRI slices, 5 folds by group"
    rows = evaluate(features, labels)
    result = harness.Result("brain_mri", title, rows, notes, ("torch", "timm", "lightning"), command)
    result.show(options.write)


if __name__ == "__main__":
    main()
