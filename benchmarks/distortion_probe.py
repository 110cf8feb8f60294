"""Does CONTRIQUE learn distortions? Type and severity from a linear probe, against the controls.

    CSRTRAIN_DATA=DIR python -m benchmarks.distortion_probe natural --write
    CSRTRAIN_DATA=DIR python -m benchmarks.distortion_probe mri --write

natural: trains CONTRIQUE and SimCLR (ResNet-18) on `DIR/natural`, and measures on photographs of `DIR/biq2021`, which
neither has seen. mri: on four of five parts of `DIR/brain_mri` by group, measured on the fifth. Both methods train for
as many epochs, in bf16, on one core; the result states the CPU minutes of each. The centre of every held-out image is
distorted by each type of the bank at a random level among those that change something. On the frozen representation of
full and half scale, 5 folds by group: logistic regression tells the type, and per type a ridge regression the severity.
Controls: the same network untrained, SimCLR's, and two without a network. "pixel statistics": mean, deviation, skewness
and kurtosis of each channel, mean absolute gradient and Laplacian. "hand-made statistics": 184 numbers of a colour
image chosen with these very distortions in mind (grey levels in use, blockiness, moments of gradients and Laplacians at
three scales), a much harder one. Each SRCC has its 95 % interval, bootstrap over groups. "Beats" means that the
interval of the paired difference excludes 0; `--also` sets other backbones beside, as that of the other domain.
"""

import argparse
import csv
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from numpy.typing import NDArray
from scipy.stats import kurtosis, rankdata, skew, spearmanr
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import csrtrain
from benchmarks import harness
from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.distort import rows_for
from csrtrain.data import decode
from csrtrain.data.images import native
from csrtrain.metrics.correlation import srcc_draws
from csrtrain.metrics.representation import group_folds, paired_bootstrap
from csrtrain.models.backbone import Backbone

SIDE = 192  # px of the distorted squares
IMAGES = 300
DRAWS = 500
METHODS = ("contrique", "simclr")
Array = NDArray[np.float64]


def lists(domain: str, root: Path, runs: Path) -> tuple[Path, list[tuple[str, str]]]:
    """The list of files to train on, and (path, group) of those to measure on."""
    runs.mkdir(parents=True, exist_ok=True)
    train = runs / f"{domain}.txt"
    if domain == "natural":
        train.write_text("\n".join(map(str, sorted((root / "natural").rglob("*.[jJ]*")))) + "\n")
        folder, fold = root / "biq2021", None
    else:
        folder, fold = root / "brain_mri", 0
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = np.unique([row["group"] for row in rows], return_inverse=True)[1]
    held_out = np.ones(len(rows), dtype=bool) if fold is None else group_folds(groups, 5) == fold
    if fold is not None:
        paths = [str(_find(folder, row["image"])) for row, out in zip(rows, held_out, strict=True) if not out]
        train.write_text("\n".join(paths) + "\n")
    # One image per group, so that near-duplicates do not count twice.
    first = np.unique(groups[held_out], return_index=True)[1]
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(held_out)[first])[:IMAGES]
    return train, [(str(_find(folder, rows[i]["image"])), rows[i]["group"]) for i in chosen]


def _find(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else next(folder.rglob(Path(name).name))


def train(method: str, domain: str, files: Path, runs: Path, epochs: int) -> tuple[Path, float]:
    """`csrtrain fit` and `csrtrain export` as a user types them; returns the bundle and the minutes it took."""
    run_dir = runs / f"{domain}_{method}"
    configs = {
        ("contrique", "natural"): ["contrique_small", "--model.jpeg2000", "true"],
        ("contrique", "mri"): ["medical_contrique", "--data.modality", "mri"],
        ("simclr", "natural"): ["natural_simclr"],
        ("simclr", "mri"): ["medical_simclr", "--data.modality", "mri"],
    }
    command = [sys.executable, "-m", "csrtrain", "fit", "-c", *configs[method, domain], "--data.root", str(files)]
    command += ["--trainer.max_epochs", str(epochs), "--trainer.default_root_dir", str(run_dir)]
    command += ["--trainer.precision", "bf16-mixed"]
    bundle, took = runs / f"{domain}_{method}.safetensors", runs / f"{domain}_{method}_minutes.txt"
    if not bundle.exists():
        start = _cpu_minutes()
        subprocess.run(command, check=True)  # a run that was stopped goes on
        took.write_text(str(_cpu_minutes() - start))
        subprocess.run([sys.executable, "-m", "csrtrain", "export", str(run_dir), "-o", str(bundle)], check=True)
    return bundle, float(took.read_text())


def _cpu_minutes() -> float:
    """CPU time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def distorted(domain: str, images: list[tuple[str, str]], channels: int) -> dict[str, Any]:
    """Every image with every type at a random level: pixels (N,C,S,S) uint8, types, severities, groups (N,)."""
    bank = DistortionBank(rows_for("natural" if domain == "natural" else "mri", channels, jpeg2000=True))
    kinds = len(bank.rows)
    rng = np.random.default_rng(1)
    pixels, severities = [], []
    for number, (path, _) in enumerate(images):
        image = native(decode.to_channels(decode.read(path), channels), SIDE, 0.5, 0.5)
        levels = np.array([[1.0 + rng.choice(np.flatnonzero(severities))] for severities in bank.severities])
        seeds = np.arange(kinds, dtype=np.int64)[:, None] + 1_000_003 * number
        drawn = bank.drawn(np.arange(kinds)[:, None], levels, seeds)
        pixels.append((bank(image.expand(kinds, -1, -1, -1).contiguous(), drawn) * 255).round().to(torch.uint8))
        severities.append(bank.severity(drawn)[:, 0])
    groups = np.unique([group for _, group in images], return_inverse=True)[1]
    return {
        "pixels": torch.cat(pixels),
        "types": np.tile(np.arange(kinds), len(images)),
        "severities": np.concatenate(severities),
        "groups": np.repeat(groups, kinds),
        "rows": bank.rows,
    }


@torch.no_grad()
def two_scales(backbone: Any, pixels: torch.Tensor) -> Array:
    """(N,2D) representations of full and half scale, each L2-normalised."""
    backbone.eval()
    parts = []
    for chunk in pixels.split(50):
        x = chunk.float().expand(-1, backbone.channels, -1, -1) / 255
        half = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
        parts.append(torch.cat([F.normalize(backbone.representation(v), dim=1) for v in (x, half)], dim=1))
    return torch.cat(parts).double().numpy()


def pixel_statistics(pixels: torch.Tensor) -> Array:
    """(N,6C) mean, deviation, skewness, kurtosis, mean absolute gradient and Laplacian of each channel."""
    features = []
    for image in pixels:
        x = image.double()[None] / 255
        row: list[float] = []
        for k, values in enumerate(x.flatten(2)[0].numpy()):
            channel, flat = x[:, k : k + 1], values.std() < 1e-6
            row += [values.mean(), values.std(), *((0.0, 0.0) if flat else (float(skew(values)), kurtosis(values)))]
            gradient = (channel[..., 1:] - channel[..., :-1]).abs().mean() + (
                channel[..., 1:, :] - channel[..., :-1, :]
            ).abs().mean()
            row += [float(gradient), float(_laplacian(channel).abs().mean())]
        features.append(row)
    return np.array(features)


def handmade_statistics(pixels: torch.Tensor) -> Array:
    """(N,F) moments of the channels, their gradients and Laplacians at three scales, blockiness, grey levels in use."""
    features = []
    for image in pixels:
        x = image.float()[None] / 255
        row: list[float] = [float(len(torch.unique(channel))) for channel in image]
        difference = (x[..., 1:] - x[..., :-1]).abs().mean((0, 1, 2))
        row += [float(difference[7::8].mean() / (difference.mean() + 1e-6))]
        for _ in range(3):
            maps = [x, x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :], _laplacian(x)]
            for values in (channel.flatten().double().numpy() for m in maps for channel in m[0]):
                row += [values.mean(), values.std(), np.abs(values).mean()]
                flat = values.std() < 1e-6
                row += [0.0, 0.0] if flat else [float(skew(values)), float(np.log1p(max(0, kurtosis(values) + 3)))]
            x = F.avg_pool2d(x, 2)
        features.append(row)
    return np.array(features)


def _laplacian(x: torch.Tensor) -> torch.Tensor:
    return 4 * x[..., 1:-1, 1:-1] - x[..., :-2, 1:-1] - x[..., 2:, 1:-1] - x[..., 1:-1, :-2] - x[..., 1:-1, 2:]


def predict_types(h: Array, types: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the type that logistic regression, fitted on the other folds, names."""
    predicted = np.empty_like(types)
    for fold in np.unique(folds):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        predicted[folds == fold] = model.fit(h[folds != fold], types[folds != fold]).predict(h[folds == fold])
    return predicted


def predict_severities(h: Array, severities: Array, folds: NDArray[np.int64]) -> Array:
    """(N,) severities of one type by ridge regression on ranks, its strength chosen inside the other folds."""
    predicted = np.empty(len(h))
    for fold in np.unique(folds):
        model = make_pipeline(StandardScaler(), RidgeCV(np.geomspace(1, 1e5, 11)))
        model.fit(h[folds != fold], rankdata(severities[folds != fold]))
        predicted[folds == fold] = model.predict(h[folds == fold])
    return predicted


def srcc_interval(a: Array, b: Array, truth: Array, groups: NDArray[np.int64]) -> tuple[float, float, float]:
    """Difference of two mean SRCCs over types and its 95 % interval, groups drawn with replacement.

    a, b, truth: (T,G), a column per group: each has every type once.
    """

    def mean_srcc(values: Array, columns: NDArray[np.int64]) -> float:
        return float(np.mean([spearmanr(v[columns], t[columns]).statistic for v, t in zip(values, truth, strict=True)]))

    rng = np.random.default_rng(0)
    everything = np.arange(len(groups))
    differences = []
    for _ in range(DRAWS):
        columns = rng.integers(0, len(groups), len(groups))
        differences.append(mean_srcc(a, columns) - mean_srcc(b, columns))
    low, high = np.percentile(differences, [2.5, 97.5])
    return mean_srcc(a, everything) - mean_srcc(b, everything), float(low), float(high)


def evaluate(features: dict[str, Array], data: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of the type and mean SRCC of the severity, then SRCC per type."""
    kinds = len(data["rows"])
    folds = group_folds(data["groups"], 5)
    hits = {name: predict_types(h, data["types"], folds) == data["types"] for name, h in features.items()}
    predicted = {name: np.empty((kinds, len(folds) // kinds)) for name in features}
    truth = data["severities"].reshape(-1, kinds).T  # (T,G)
    for t in range(kinds):
        rows = data["types"] == t
        for name, h in features.items():
            predicted[name][t] = predict_severities(h[rows], data["severities"][rows], folds[rows])
    of_group = data["groups"].reshape(-1, kinds)[:, 0]
    accuracy: dict[str, Any] = {"what": f"type, accuracy of {kinds}", **{n: float(v.mean()) for n, v in hits.items()}}
    per_type = {
        n: [float(spearmanr(p, t).statistic) for p, t in zip(v, truth, strict=True)] for n, v in predicted.items()
    }
    intervals = {
        n: [np.percentile(srcc_draws(p, t, of_group, DRAWS), [2.5, 97.5]) for p, t in zip(v, truth, strict=True)]
        for n, v in predicted.items()
    }
    severity: dict[str, Any] = {"what": "severity, mean SRCC", **{n: float(np.mean(v)) for n, v in per_type.items()}}
    for control in (name for name in features if name != "contrique"):
        for row, (difference, low, high) in (
            (accuracy, paired_bootstrap(hits["contrique"], hits[control], data["groups"])),
            (severity, srcc_interval(predicted["contrique"], predicted[control], truth, of_group)),
        ):
            row[f"minus {control}"] = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            row[f"beats {control}"] = bool(low > 0)
    rows = [accuracy, severity]
    for t, row in enumerate(data["rows"]):
        found = {n: f"{values[t]:.3f} [{{:.3f}}, {{:.3f}}]".format(*intervals[n][t]) for n, values in per_type.items()}
        rows.append({"what": f"severity of {row.name}, SRCC", **found})
        recall = {name: float(v[data["types"] == t].mean()) for name, v in hits.items()}
        rows.append({"what": f"type {row.name}, recall", **recall})
    return rows


def main() -> None:
    """Train, evaluate, print, and write benchmarks/results/distortion_probe_DOMAIN.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=("natural", "mri"))
    parser.add_argument("--epochs", type=int, default=130)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--also", action="append", default=[], metavar="NAME=BUNDLE", help="another backbone beside")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    root = harness.data_root()
    channels = 3 if options.domain == "natural" else 1
    files, images = lists(options.domain, root, options.runs)
    bundles, notes = {}, [f"{len(images)} held-out images, one per group, {SIDE} px from their centre."]
    for method in METHODS:
        bundles[method], minutes = train(method, options.domain, files, options.runs, options.epochs)
        count = len(files.read_text().splitlines())
        notes.append(f"{method}: {options.epochs} epochs of {count} images in {minutes:.0f} CPU minutes of one core.")
    data = distorted(options.domain, images, channels)
    seed_everything(0, verbose=False)
    features = {name: two_scales(csrtrain.load(str(path)), data["pixels"]) for name, path in bundles.items()}
    for argument in options.also:
        name, path = argument.split("=", 1)
        features[name] = two_scales(csrtrain.load(path), data["pixels"])
    features["untrained"] = two_scales(Backbone("resnet18", channels=channels), data["pixels"])
    features["pixel statistics"] = pixel_statistics(data["pixels"])
    features["hand-made statistics"] = handmade_statistics(data["pixels"])
    command = f"CSRTRAIN_DATA=DIR python -m benchmarks.distortion_probe {options.domain} --write"
    if options.epochs != 130:
        command += f" --epochs {options.epochs}"
    command += "".join(f" --also {argument.split('=')[0]}=BUNDLE" for argument in options.also)
    title = f"Type and severity of distortions from a linear probe, {options.domain}"
    rows = evaluate(features, data)
    packages = ("torch", "timm", "lightning", "scikit-learn")
    result = harness.Result(f"distortion_probe_{options.domain}", title, rows, notes, packages, command)
    result.show(options.write)


if __name__ == "__main__":
    main()
