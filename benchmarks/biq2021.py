"""Scores of real photographs from frozen backbones that saw no rating, beside the controls, on BIQ2021.

    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 train --epochs 44 --runs RUNS
    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 train --epochs -1 --name contrique128 --runs RUNS \\
        --option=--trainer.max_steps=3600 --option=--model.size=128 --option=--data.load_size=256 \\
        --option=--data.authentic_fraction=0.25 --option=--seed_everything=1
    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 train --method simclr --epochs 25 --runs RUNS
    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 train --method moco --epochs 25 --runs RUNS
    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 evaluate NAME=BUNDLE ... --write
    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 factors NAME=BUNDLE ... --runs RUNS --write
    CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 domain BACKBONE ... --option=... --write

train: CONTRIQUE (ResNet-18, 160 px, batch 32) on `DIR/natural` as pristine images and the training images of
`DIR/biq2021` as authentic ones; SimCLR and MoCo on the same images at the 96 px and batch 64 of their configs.
evaluate: features of full and half scale of every whole image (kept in RUNS), of the last stage and of all stages but
the stem (`model.stages`; so the untrained control), ridge regression on the published training split, its strength
chosen by 5 folds by group inside it; SRCC on the published test split, and on that less the images that share a group
with a training image. Fitted per subset on that subset, and on both together: what that gives on each. Beside it every
image of a subset scored by a head fitted to four fifths of the groups without its own, because the published test
images are few: the pixels of the published training images were seen in the training of a backbone, no rating was.
Intervals: 95 %, bootstrap over groups of test images. "Beats" means that the interval of the paired difference excludes
0. Bundles stand side by side too: the first two, the first three, and so on.
factors: short trainings of CONTRIQUE that differ in one thing, all of the same number of pixels, each in turn, and
evaluated in the same way; what RUNS has already is not trained again. Beside them bundles, as of a longer training.
domain: `csrtrain fit -c nr_linear` on both subsets, then how many of the published test images, and of other kinds of
images, `csrtrain score` flags as out of domain.
"""

import argparse
import csv
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import binomtest, spearmanr

import csrtrain
from benchmarks import harness
from csrtrain.bundle import load_metric
from csrtrain.controls import brisque_features, fit_svr
from csrtrain.data import decode
from csrtrain.data.index import addresses_of
from csrtrain.metrics.correlation import srcc_draws
from csrtrain.metrics.representation import group_folds
from csrtrain.models import ridge
from csrtrain.models.backbone import Backbone
from csrtrain.models.domain import nearest
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric
from csrtrain.score import extract, score_images

BATCH = 8
FOLDS = 5
DRAWS = 2000
BRISQUE = "BRISQUE + SVR"
CONTROLS = ("untrained", BRISQUE)
STAGES = (1, 2, 3, 4)
ALL = ", all stages"
Array = NDArray[np.float64]

STEPS = 240
"""Of a short training of 32 images of 160 px per step."""
FACTORS: dict[str, tuple[float, list[str]]] = {
    "as it is": (1, []),
    "RGB only": (1, ["--model.color_spaces", "false"]),
    "batch 64": (1 / 2, ["--data.batch_size", "64"]),
    "224 px": ((160 / 224) ** 2, ["--model.size", "224", "--data.load_size", "448"]),
    "authentic 0.25": (1, ["--data.authentic_fraction", "0.25"]),
    "authentic 0.75": (1, ["--data.authentic_fraction", "0.75"]),
}
"""What a short training does otherwise: its share of STEPS, for the same number of pixels, and the options."""


def read_rows(root: Path) -> list[dict[str, str]]:
    """The rows of BIQ2021's labels."""
    with (root / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def labels(rows: list[dict[str, str]]) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    """(N,) MOS, group, and whether the row is for training."""
    y = np.array([float(row["mos"]) for row in rows])
    groups = np.array([int(row["group"]) for row in rows])
    return y, groups, np.array([row["split"] == "train" for row in rows])


def train(method: str, root: Path, runs: Path, length: list[str], name: str, others: list[str]) -> Path:
    """`csrtrain fit` and `csrtrain export` as a user types them; the bundle."""
    runs.mkdir(parents=True, exist_ok=True)
    images = root / "biq2021" / "images"
    captured = [str(images / row["image"]) for row in read_rows(root / "biq2021") if row["split"] == "train"]
    listed = runs / f"{method}_images.txt"
    run_dir, bundle = runs / name, runs / f"{name}.safetensors"
    command = [sys.executable, "-m", "csrtrain", "fit"]
    if method == "contrique":
        command += ["-c", "contrique_small", "--data.root", str(root / "natural"), "--data.authentic", str(listed)]
        command += ["--model.size", "160", "--data.load_size", "320", "--data.batch_size", "32"]
    else:
        captured += addresses_of(str(root / "natural"))
        command += ["-c", f"natural_{method}", "--data.root", str(listed)]
    listed.write_text("".join(f"{path}\n" for path in captured))
    command += ["--trainer.precision", "bf16-mixed", *length, *others]
    subprocess.run([*command, "--trainer.default_root_dir", str(run_dir)], check=True)
    subprocess.run([sys.executable, "-m", "csrtrain", "export", str(run_dir), "-o", str(bundle)], check=True)
    return bundle


@torch.no_grad()
def representations(backbone: Backbone, paths: list[Path], contract: Contract) -> Array:
    """(N,F) features of full and half scale of whole images; neighbours of one size go together."""
    model, found = FrozenFeatures([backbone], [contract]).folded(), []
    images = (decode.to_channels(decode.read(str(path)), backbone.channels) for path in track(paths, "Features"))
    for _, alike in itertools.groupby(images, key=lambda image: image.shape):
        while batch := list(itertools.islice(alike, BATCH)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found.append(model(torch.stack(batch)).double().numpy())
    return np.concatenate(found)


def features_of(name: str, bundle: str | None, paths: list[Path], runs: Path) -> Array:
    """(N,F) features of all stages of a bundle, or of a control, kept in RUNS for the next call with the same ones."""
    digest = hashlib.sha256(Path(bundle).read_bytes() if bundle else name.encode())
    digest.update("".join(str(path) for path in paths).encode() + bytes(() if name == BRISQUE else STAGES))
    kept = runs / f"features-{digest.hexdigest()[:16]}.npy"
    if not kept.exists():
        if name == BRISQUE:
            found = np.stack([brisque_features(decode.read(str(path))).numpy() for path in track(paths)])
        else:
            torch.manual_seed(0)
            backbone = csrtrain.load(bundle) if bundle else Backbone("resnet18")
            found = representations(backbone, paths, Contract(stages=STAGES))
        runs.mkdir(parents=True, exist_ok=True)
        np.save(kept, found)
    return np.asarray(np.load(kept), dtype=np.float64)


def last_stage(h: Array) -> Array:
    """The columns of the last stage, whose width is the sum of the others', and the first's once more: the default."""
    full, half = np.split(h, 2, axis=1)
    begin = full.shape[1] * 7 // 15
    return np.concatenate([full[:, begin:], half[:, begin:]], axis=1)


def ridge_scores(h: Array, y: Array, groups: NDArray[np.int64], train: NDArray[np.bool_]) -> tuple[Array, float]:
    """Scores of the rows that are not for training, and alpha."""
    fitted = ridge.fit(h[train], y[train], group_folds(groups[train], FOLDS))
    best = fitted.best(y[train])
    return h[~train] @ fitted.weights[best] + fitted.biases[best], float(fitted.alphas[best])


def svr_scores(h: Array, y: Array, groups: NDArray[np.int64], train: NDArray[np.bool_]) -> Array:
    """The same of a support vector regression with an RBF kernel, as BRISQUE is used."""
    return fit_svr(h[train], y[train], groups[train], FOLDS)(h[~train])


def evaluate(features: dict[str, Array], rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A row per set of test images and kind of features."""
    y, groups, is_train = labels(rows)
    subsets = np.array([row["subset"] for row in rows])
    found: list[dict[str, Any]] = []
    for fitted in ("ss01", "ss02", "both"):
        chosen = (subsets == fitted) | (fitted == "both")
        selected = {name: h[chosen] for name, h in features.items()}
        train, mos, group = is_train[chosen], y[chosen], groups[chosen]
        scores, alphas = fitted_scores(selected, mos, group, train)
        test, test_mos, test_groups = subsets[chosen][~train], mos[~train], group[~train]
        shared = np.isin(test_groups, group[train])
        for tested in ("ss01", "ss02", "both") if fitted == "both" else (fitted,):
            title = tested if tested == fitted else f"{tested}, ratings of both"
            for clean in (False, True):
                kept = ((test == tested) | (tested == "both")) & ~(shared & clean)
                images = f"{title}, {'apart from train, ' if clean else ''}{kept.sum()}"
                held = {name: s[kept] for name, s in scores.items()}
                found += compared(images, held, alphas, test_mos[kept], test_groups[kept])
        if fitted != "both":
            out_of_fold = {name: np.empty(len(mos)) for name in features}
            fold = group_folds(group, FOLDS)
            for k in range(FOLDS):
                for name, s in fitted_scores(selected, mos, group, fold != k)[0].items():
                    out_of_fold[name][fold == k] = s
            found += compared(f"{fitted}, all in {FOLDS} folds, {len(mos)}", out_of_fold, {}, mos, group)
    return found


def fitted_scores(
    features: dict[str, Array], mos: Array, groups: NDArray[np.int64], train: NDArray[np.bool_]
) -> tuple[dict[str, Array], dict[str, float]]:
    """Scores of the rows that are not for training, of each kind of features, and alpha."""
    scores: dict[str, Array] = {}
    alphas: dict[str, float] = {}
    for name, h in features.items():
        if name == BRISQUE:
            scores[name] = svr_scores(h, mos, groups, train)
        else:
            scores[name], alphas[name] = ridge_scores(h, mos, groups, train)
    return scores, alphas


def compared(
    images: str, scores: dict[str, Array], alphas: dict[str, float], mos: Array, groups: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """A row per kind of features on the same test images."""
    found: list[dict[str, Any]] = []
    draws = {name: srcc_draws(s, mos, groups, DRAWS) for name, s in scores.items()}
    for name, s in scores.items():
        low, high = np.percentile(draws[name], [2.5, 97.5])
        row: dict[str, Any] = {
            "test images": images,
            "features": name,
            "SRCC": float(spearmanr(s, mos).statistic),
            "interval": f"[{low:.3f}, {high:.3f}]",
            "PLCC": float(np.corrcoef(s, mos)[0, 1]),
            "alpha": alphas.get(name),
        }
        for control in CONTROLS:
            if name.removesuffix(ALL) not in CONTROLS:
                of = control + ALL if name.endswith(ALL) and control == "untrained" else control
                low, high = np.percentile(draws[name] - draws[of], [2.5, 97.5])
                row[f"minus {control}"] = f"[{low:+.3f}, {high:+.3f}]"
                row[f"beats {control}"] = bool(low > 0)
        found.append(row)
    return found


def fewer_ratings(name: str, h: Array, rows: list[dict[str, str]]) -> str:
    """What limits the harder subset: SRCC on its test images with fewer of its ratings, and with the other's."""
    y, groups, is_train = labels(rows)
    harder = np.array([row["subset"] == "ss02" for row in rows])
    own, test = np.flatnonzero(is_train & harder), np.flatnonzero(~is_train & harder)

    def srcc(train_rows: NDArray[np.int64]) -> float:
        chosen = np.concatenate([train_rows, test])
        scores, _ = ridge_scores(h[chosen], y[chosen], groups[chosen], is_train[chosen])
        return float(spearmanr(scores, y[test]).statistic)

    rng = np.random.default_rng(0)
    found = [
        f"{count} ratings {np.mean([srcc(rng.permutation(own)[:count]) for _ in range(5)]):.3f}"
        for count in (100, 200, 400, 800)
    ]
    other = srcc(np.flatnonzero(is_train & ~harder))
    return (
        f"{name} on the test images of ss02, mean SRCC of 5 draws: {', '.join(found)}, all {len(own)} {srcc(own):.3f}; "
        f"with the ratings of ss01 alone {other:.3f}."
    )


def factors(
    root: Path, runs: Path, rows: list[dict[str, str]], paths: list[Path], bundles: dict[str, str]
) -> harness.Result:
    """Train every variant that RUNS lacks, and set each, and each bundle, beside the first."""
    features: dict[str, Array] = {}
    for name, (share, options) in FACTORS.items():
        slug = "short_" + name.replace(" ", "_").replace(".", "")
        bundle = runs / f"{slug}.safetensors"
        if not bundle.exists():
            length = ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(round(STEPS * share))]
            bundle = train("contrique", root, runs, length, slug, options)
        features[name] = last_stage(features_of(name, str(bundle), paths, runs))
    features |= {name: last_stage(features_of(name, bundle, paths, runs)) for name, bundle in bundles.items()}
    first = next(iter(FACTORS))
    y, groups, is_train = labels(rows)
    table: list[dict[str, Any]] = [{"training": name} for name in features]
    for subset in ("ss01", "ss02", "both"):
        chosen = np.array([subset in ("both", row["subset"]) for row in rows])
        train_rows, group, mos = is_train[chosen], groups[chosen], y[chosen]
        scores = {name: ridge_scores(h[chosen], mos, group, train_rows)[0] for name, h in features.items()}
        held = mos[~train_rows]
        draws = {name: srcc_draws(s, held, group[~train_rows], DRAWS) for name, s in scores.items()}
        for row in table:
            name = row["training"]
            row[f"SRCC {subset}"] = float(spearmanr(scores[name], held).statistic)
            if name != first:
                low, high = np.percentile(draws[name] - draws[first], [2.5, 97.5])
                row[f"minus {first}, {subset}"] = f"[{low:+.3f}, {high:+.3f}]"
    notes = [
        f"{STEPS} steps of 32 images of 160 px, or as many pixels; one seed each, so differences below about 0.02 may "
        "be the seed's. The published test split, intervals: 95 %, paired bootstrap over groups.",
        *(f"{name}: {harness.trained(bundle)}" for name, bundle in bundles.items()),
    ]
    title = "CONTRIQUE on BIQ2021, short trainings that differ in one thing"
    command = "CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 factors NAME=BUNDLE ... --runs RUNS --write"
    return harness.Result("biq2021_factors", title, table, notes, ("torch", "timm", "lightning"), command)


def representations_alone(metric: NoReferenceMetric, addresses: list[str]) -> float:
    """The share of images whose representation alone is beyond its limit."""
    h = torch.from_numpy(extract(metric.features, addresses, bf16=True, workers=1).features)
    distance = nearest(h, metric.domain.representations) / metric.domain.limits[0]
    return float((distance > 1).float().mean())


def domain(root: Path, runs: Path, backbones: list[str], options: list[str]) -> harness.Result:
    """Fit a metric to the training split, score other images, and count the flags."""
    runs.mkdir(parents=True, exist_ok=True)
    rows = read_rows(root / "biq2021")
    manifest, run_dir, metric = runs / "biq2021.csv", runs / "nr_biq2021", runs / "nr_biq2021.safetensors"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "mos", "group", "split"])
        for row in rows:
            path = root / "biq2021" / "images" / row["image"]
            writer.writerow([path, row["mos"], row["group"], row["split"]])
    command = [sys.executable, "-m", "csrtrain", "fit", "-c", "nr_linear", f"--model.backbone=[{','.join(backbones)}]"]
    command += ["--data.manifest", str(manifest), "--trainer.precision", "bf16-mixed", "--model.learning_curve", "true"]
    subprocess.run([*command, *options, "--trainer.default_root_dir", str(run_dir)], check=True)
    subprocess.run([sys.executable, "-m", "csrtrain", "export", str(run_dir), "-o", str(metric)], check=True)
    kinds: dict[str, list[str]] = {
        "biq2021, test": [str(root / "biq2021" / "images" / row["image"]) for row in rows if row["split"] == "test"]
    }
    for name in ("natural", "chest_xray", "brain_mri", "hip_ultrasound", "drimdb"):
        found = addresses_of(str(root / name))
        kinds[name] = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:500]]
    loaded = load_metric(metric)
    table: list[dict[str, Any]] = []
    for name, addresses in kinds.items():
        scored = score_images(loaded, addresses, bf16=True, workers=1)
        flagged = scored["out_of_domain"].dropna().to_numpy(dtype=float)
        interval = binomtest(int(flagged.sum()), len(flagged)).proportion_ci(method="wilson")
        target = {"biq2021, test": (0.0, 0.05), "chest_xray": (0.9, 1.0)}.get(name)
        table.append(
            {
                "images": f"{name}, {len(flagged)}",
                "flagged": float(flagged.mean()),
                "interval": f"[{interval.low:.3f}, {interval.high:.3f}]",
                "target": "" if target is None else f"{target[0]:g} to {target[1]:g}",
                "verdict": "" if target is None else "met" if target[0] <= flagged.mean() <= target[1] else "missed",
                "by representations alone": None if target is None else representations_alone(loaded, addresses),
                "median distance": float(scored["distance"].median()),
                "median score": float(scored["score"].median()),
            }
        )
    results = loaded.header.results
    notes = [
        *(f"Backbone {harness.trained(backbone)}" for backbone in backbones),
        "Options of csrtrain fit: " + (" ".join(options) or "none") + ".",
        f"SRCC on the test split {results['test/srcc']:.3f} [{results['test/srcc_low']:.3f}, "
        f"{results['test/srcc_high']:.3f}], on held-out folds of train {results['held_out/srcc']:.3f}.",
    ]
    notes += ["Learning curve: " + (run_dir / "learning_curve.csv").read_text().replace("\n", "; ")]
    title = "Images that a metric fitted to BIQ2021 flags as out of its domain"
    command_line = "CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 domain BACKBONE ... --option=... --write"
    return harness.Result("domain", title, table, notes, ("torch", "timm"), command_line)


def main() -> None:
    """Train, or evaluate bundles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "evaluate", "factors", "domain"))
    parser.add_argument("bundles", nargs="*", metavar="NAME=BUNDLE", help="for domain bundles without names")
    parser.add_argument("--epochs", type=int, default=44)
    parser.add_argument("--method", choices=("contrique", "simclr", "moco"), default="contrique")
    parser.add_argument(
        "--name", help="of the run and its bundle in RUNS, the method; or of evaluate's result, biq2021"
    )
    parser.add_argument("--option", action="append", default=[], help="more of csrtrain fit: --option=--model.size=224")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--note", action="append", default=[], help="what a bundle was trained on, for the result")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    root = harness.data_root()
    if options.what == "train":
        length = ["--trainer.max_epochs", str(options.epochs)]
        train(options.method, root, options.runs, length, options.name or options.method, options.option)
        return
    if options.what == "domain":
        result = domain(root, options.runs, options.bundles, options.option)
        result.show(options.write)
        return
    rows = read_rows(root / "biq2021")
    paths = [root / "biq2021" / "images" / row["image"] for row in rows]
    if options.what == "factors":
        result = factors(root, options.runs, rows, paths, harness.named(options.bundles))
        result.show(options.write)
        return
    bundles = harness.named(options.bundles)
    if set(bundles) & set(CONTROLS):
        raise SystemExit(f"Expected names of bundles other than {' and '.join(CONTROLS)}. Choose others.")
    names = list(bundles)
    stages = {name: features_of(name, bundles.get(name), paths, options.runs) for name in (*CONTROLS, *names)}
    brisque = stages.pop(BRISQUE)
    last = {name: last_stage(h) for name, h in stages.items()}
    for count in range(2, len(names) + 1):
        for kind in (last, stages):
            kind[" + ".join(names[:count])] = np.concatenate([kind[name] for name in names[:count]], axis=1)
    features = {BRISQUE: brisque} | last | {name + ALL: h for name, h in stages.items()}
    notes = [f"{name}: {harness.trained(path)}" for name, path in bundles.items()]
    if names:
        notes.append(fewer_ratings(names[0], features[names[0]], rows))
    notes.append(
        f"All in {FOLDS} folds: one SRCC over the scores of {FOLDS} heads, each fitted to the other folds of groups. "
        "The backbones had seen the pixels of the published training images, 83 % of these, and no rating."
    )
    notes += [*options.note, "Features in bf16; whole images at full and half scale, each part of length 1."]
    title = "SRCC with opinion scores on BIQ2021 from frozen backbones and a ridge head"
    name = options.name or "biq2021"
    command = "CSRTRAIN_DATA=DIR python -m benchmarks.biq2021 evaluate NAME=BUNDLE ... --write"
    command += f" --name {name}" if options.name else ""
    packages = ("torch", "timm", "lightning", "scikit-learn")
    result = harness.Result(name, title, evaluate(features, rows), notes, packages, command)
    result.show(options.write)


if __name__ == "__main__":
    main()
