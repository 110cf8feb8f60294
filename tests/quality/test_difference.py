"""Fitting CONTRIQUE's full-reference regressor by the command line; the ratings are made up from noise (a proxy)."""

import csv
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import csrtrain
from csrtrain import bundle
from csrtrain.cli import main
from csrtrain.data import decode
from csrtrain.models.features import Contract, FrozenFeatures


@pytest.fixture
def ratings(noise, write_table, tmp_path):
    rows = []
    for k, v in itertools.product(range(len(noise)), range(noise.shape[1])):
        split = "test" if k >= 9 else "train"
        rows.append({"path": f"{k}-{v}.png", "reference": f"{k}.png", "mos": 5 - noise[k, v] / 10, "split": split})
    rows.append({"path": "10.png", "reference": "10.png", "mos": 5, "split": "test"})  # a reference is one, too
    write_table(tmp_path / "m.csv", rows)
    return rows


def arguments(folder, *extra, run="run"):
    return [
        *("fit", "-c", "fr_difference", f"--data.manifest={folder / 'm.csv'}", "--data.workers=0"),
        *("--data.rating_range=[1,5]", f"--model.backbone={folder / 'a.safetensors'}", "--trainer.accelerator=cpu"),
        *(f"--trainer.default_root_dir={folder / run}", *extra),
    ]


def exported(folder, run="run"):
    assert main(["export", str(folder / run), "-o", str(folder / f"{run}.safetensors")]) == 0
    return csrtrain.load(folder / f"{run}.safetensors")


def test_the_head_is_ridge_regression_without_an_intercept(ratings, tmp_path, capsys):
    assert main(arguments(tmp_path)) == 0
    said = capsys.readouterr().out
    metric = exported(tmp_path)
    features = FrozenFeatures([bundle.load_backbone(tmp_path / "a.safetensors")], [Contract()])
    with torch.no_grad():
        h = [
            [features(decode.read(str(tmp_path / r[k]))[None])[0].double() for k in r if k in ("path", "reference")]
            for r in ratings
        ]
    d = np.stack([(x - y).abs().numpy() for x, y in h])
    loss, results = np.array([5 - row["mos"] for row in ratings]), metric.header.results
    expected = Ridge(results["alpha"], fit_intercept=False).fit(d[:45], loss[:45])
    np.testing.assert_allclose(metric.weight, expected.coef_, atol=1e-3 * abs(expected.coef_).max())
    with (tmp_path / "run" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    distances = np.array([float(row["distance"]) for row in rows])
    np.testing.assert_allclose(distances[45:], expected.predict(d[45:]).clip(min=0), atol=2e-3)
    assert not np.allclose(distances[:45], expected.predict(d[:45]), atol=2e-3)  # those are without their fold
    assert distances[-1] == 0 and rows[-1]["path"] == rows[-1]["reference"]
    x, y = (decode.read(str(tmp_path / name))[None] for name in ("10-2.png", "10.png"))
    assert float(metric.distance(x, y)) == pytest.approx(distances[52], abs=2e-3)
    assert float(metric.distance(y, y)) == 0
    assert metric.header.distance == {
        "of": "representations",
        "identical": 0.0,
        "direction": "lower is closer",
        "fitted_to": "mos",
    }
    assert "45 ratings (mos, best 5) of 9 groups" in said and f"SRCC {results['test/srcc']:.3f}" in said
    assert results["test/srcc"] > 0.5 and "test/srcc_uncalibrated" in results


def test_a_complete_run_says_so_and_refuses_another_backbone(ratings, save_bundle, tmp_path, capsys):
    assert main(arguments(tmp_path)) == 0 and main(arguments(tmp_path)) == 0
    assert "This run is complete" in capsys.readouterr().out
    save_bundle(tmp_path / "a.safetensors", seed=3)
    assert main(arguments(tmp_path)) == 2
    assert "Expected the backbone that the run was fitted to" in capsys.readouterr().err


def test_bf16_and_another_contract(ratings, tmp_path):
    options = ["--model.scales=[1.0]", "--model.l2=false", "--trainer.precision=bf16-mixed"]
    assert main(arguments(tmp_path, *options)) == 0
    assert exported(tmp_path).features.contracts == (Contract((1.0,), False),)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_weights_and_no_row_twice(ratings, tmp_path):
    assert main(arguments(tmp_path, "--data.batch_size=6", run="one")) == 0
    command = [sys.executable, "-m", "csrtrain", *arguments(tmp_path, "--data.batch_size=6", run="two")]
    done = subprocess.run(
        [*command, "--trainer.devices=2"], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = exported(tmp_path, "one"), exported(tmp_path, "two")
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-3, atol=float(1e-4 * one.weight.abs().max()))
    lines = (tmp_path / "two" / "scores.csv").read_text().splitlines()
    assert len(lines) == 62 and len(set(lines)) == 62


def test_bad_options(ratings, tmp_path, capsys):
    assert main(arguments(tmp_path, "--model.folds=1")) == 2
    assert "Expected model.folds >= 2, got 1" in capsys.readouterr().err
    assert main(arguments(tmp_path, "--model.alphas=[-1.0]")) == 2
    assert "Expected alphas above 0" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["fr_difference", "fr_mos"])
def test_images_that_are_their_references_are_refused(ratings, write_table, tmp_path, capsys, config):
    write_table(tmp_path / "m.csv", [{**row, "path": row["reference"]} for row in ratings])
    assert main([config if word == "fr_difference" else word for word in arguments(tmp_path)]) == 2
    assert "m.csv that differ from their references, got none" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
