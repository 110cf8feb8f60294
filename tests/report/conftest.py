"""Run directories as csrtrain fit leaves them, without a training."""

import json

import numpy as np
import pytest
import yaml

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 2, "max_steps": -1, "precision": "32-true", "default_root_dir": "/home/alice/runs/a"},
    "model": {
        "class_path": "csrtrain.pretrain.SimCLR",
        "init_args": {"backbone": "resnet18", "weights": "none", "temperature": 0.1},
    },
    "data": {
        "class_path": "csrtrain.data.unlabeled.UnlabeledData",
        "init_args": {"root": "/home/alice/images", "batch_size": 64, "modality": "mri", "labels": None, "seed": 0},
    },
}
MONITORS = "train/embedding_std,train/effective_rank,train/alignment,train/uniformity"
METRICS = f"""step,train/loss,val/knn_srcc,epoch,train/epoch_loss,{MONITORS}
0,,0.25,,,,,,
4,5.5,,0.0,,,,,
9,4.5,,0.0,,,,,
11,,0.5,0.0,5.0,0.9,20.5,0.5,-1.5
14,4.25,,1.0,,,,,
23,,0.75,1.0,4.375,0.95,30.25,0.25,-2.5
"""


HEAD_CONFIG = """seed_everything: 0
model:
  class_path: csrtrain.quality.NoReference
  init_args: {backbone: /home/alice/mri.safetensors, weights: none}
data:
  class_path: csrtrain.data.scored.ScoredData
  init_args: {manifest: /home/alice/ratings.csv, batch_size: 16}
"""
HEAD_METRICS = "step,alpha,test/srcc,test/srcc_low,test/srcc_high,epoch\n3,0.1,0.5,0.4,0.6,0.0\n"


def head_files():
    """What a no-reference head leaves beside its config and metrics."""
    rng = np.random.default_rng(0)
    rated = rng.uniform(1, 5, 200)
    rows = [
        f"/home/alice/images/{k}.png,{'test' if k % 4 == 0 else 'train'},{v:.4f},{v + e:.4f}"
        for k, (v, e) in enumerate(zip(rated, rng.normal(0, 0.5, 200), strict=True))
    ]
    return {
        "config.yaml": HEAD_CONFIG,
        "scores.csv": "\n".join(["path,split,mos,predicted", *rows]) + "\n",
        "learning_curve.csv": "ratings,srcc,srcc_min,srcc_max,draws\n20,0.3,0.1,0.4,10\n40,0.4,0.3,0.5,10\n",
    }


def spectrum(epochs=3, dimension=16):
    """`spectrum.csv` of a run whose projections spread out."""
    lines = ["step," + ",".join(f"share_{k + 1}" for k in range(dimension))]
    for epoch in range(epochs):
        values = np.exp(-np.arange(dimension) / (1 + epoch))
        lines.append(f"{12 * epoch + 11}," + ",".join(f"{v:.6g}" for v in values / values.sum()))
    return "\n".join(lines) + "\n"


ENVIRONMENT = {
    "python": "3.12.4",
    "cpu": "A processor @ 2.20GHz",
    "devices": ["A GPU", "A GPU"],
    "cuda": None,
    "precision": "32-true",
    "world_size": 2,
    "packages": {"csrtrain": "0.1.0", "torch": "2.15.0"},
}


def evaluation():
    """results.json as csrtrain evaluate writes it, in part."""

    def method(kind, value, versus):
        found = {"value": value, "low": value - 0.1, "high": value + 0.1}
        return {"kind": kind, "head": "ridge", "measures": {"srcc": found}, "versus": versus}

    versus = {"BRISQUE": {"srcc": {"difference": 0.2, "low": 0.05, "high": 0.35, "beats": True}}}
    return {
        "protocol": "splits",
        "seed": 0,
        "bootstrap_draws": 1000,
        "manifests": [{"file": "smith.csv", "rows": 100, "ratings": "mos", "digest": "0123456789abcdef"}],
        "broken": [{"manifest": "smith.csv", "line": 3, "reason": "/home/alice/x.png is broken"}],
        "evaluations": [
            {
                "train": "smith.csv",
                "test": "smith.csv",
                "methods": {"mri": method("backbone", 0.7, versus), "BRISQUE": method("control", 0.5, {})},
            }
        ],
    }


@pytest.fixture
def make_run(tmp_path):
    def make(name="run", metrics=METRICS, seed=0, **files):
        """A run directory; further files by name without the ending, `None` leaves one out."""
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {**CONFIG, "seed_everything": seed}
        config["data"] = {**CONFIG["data"], "init_args": {**CONFIG["data"]["init_args"], "seed": seed}}
        texts = {"config.yaml": yaml.safe_dump(config, sort_keys=False), "metrics.csv": metrics, **files}
        for file, text in texts.items():
            if text is not None:
                (folder / file).write_text(text)
        return folder

    return make


@pytest.fixture
def full(make_run, tmp_path):
    """Two seeds, a head and an evaluation, with every file there is."""
    files = {"spectrum.csv": spectrum(), "environment.json": json.dumps(ENVIRONMENT)}
    later = {
        "config.resume-20260102T030405.yaml": (make_run("x", seed=1) / "config.yaml")
        .read_text()
        .replace("epochs: 2", "epochs: 4")
    }
    folders = [make_run("a", **files), make_run("b", METRICS.replace("0.75", "0.80"), 1, **files, **later)]
    folders += [make_run("head", HEAD_METRICS, **head_files()), tmp_path / "results"]
    folders[-1].mkdir()
    (folders[-1] / "results.json").write_text(json.dumps(evaluation()))
    return folders
