"""Fitting a no-reference head by the command line, on small images whose rating is how little noise they have."""

import csv
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge

import csrtrain
from csrtrain import bundle
from csrtrain.cli import main
from csrtrain.data import decode
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.quality import one_pass

COUNT = 44


def write_images(folder, channels=3):
    """Images of two shapes, four of one scene, with more or less noise; the manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(COUNT):
        if k % 4 == 0:
            scene = rng.integers(60, 190, (6, 7, channels)).repeat(12, 0).repeat(12, 1)
        noise = float(rng.uniform(0, 60))
        image = np.clip(scene + noise * rng.standard_normal(scene.shape), 0, 255).astype(np.uint8)
        image = image if k % 8 < 4 else image[:64, :64]
        Image.fromarray(image if channels == 3 else image[..., 0]).save(folder / f"{k}.png")
        rows.append(
            {"path": f"{k}.png", "mos": 5 - noise / 15, "group": k // 4, "split": "test" if k >= 36 else "train"}
        )
    write_manifest(folder, rows)
    return rows


def write_manifest(folder, rows):
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save_bundle(path, channels=3, seed=0, **features):
    torch.manual_seed(seed)
    backbone = Backbone("test_resnet", channels=channels)
    bundle.save(path, backbone, bundle.header_for(backbone, features={"scales": [1.0, 0.5], "l2": True, **features}))


@pytest.fixture
def rows(tmp_path):
    save_bundle(tmp_path / "a.safetensors")
    return write_images(tmp_path)


def fit(folder, *extra, run="run"):
    arguments = ["fit", "-c", "nr_linear", f"--data.manifest={folder / 'm.csv'}", "--data.workers=0"]
    if not any("model.backbone" in option for option in extra):
        arguments.append(f"--model.backbone={folder / 'a.safetensors'}")
    arguments += [f"--trainer.default_root_dir={folder / run}", "--trainer.accelerator=cpu", *extra]
    return main(arguments)


def exported(folder, run="run"):
    assert main(["export", str(folder / run), "-o", str(folder / f"{run}.safetensors")]) == 0
    return csrtrain.load(folder / f"{run}.safetensors")


def features_of(folder, rows, name="a"):
    model = FrozenFeatures([bundle.load_backbone(folder / f"{name}.safetensors")], [Contract()])
    with torch.no_grad():
        return np.stack([model(decode.read(str(folder / row["path"]))[None])[0].double().numpy() for row in rows])


def test_the_head_is_ridge_regression_on_frozen_features(rows, tmp_path, capsys):
    assert fit(tmp_path) == 0
    said = capsys.readouterr().out
    metric = exported(tmp_path)
    h, y = features_of(tmp_path, rows), np.array([row["mos"] for row in rows])
    alpha = metric.header.results["alpha"]
    expected = Ridge(alpha=alpha).fit(h[:36], y[:36])
    np.testing.assert_allclose(metric.head.weight[0].detach(), expected.coef_, atol=2e-4 * abs(expected.coef_).max())
    with (tmp_path / "run" / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    predicted = np.array([float(row["predicted"]) for row in scores])
    np.testing.assert_allclose(predicted[36:], expected.predict(h[36:]), atol=1e-3)
    assert not np.allclose(predicted[:36], expected.predict(h[:36]), atol=1e-3)  # those are without their fold
    assert [row["split"] for row in scores] == [row["split"] for row in rows]
    low, high = y[:36].min(), y[:36].max()
    image = decode.read(str(tmp_path / "40.png"))[None]
    assert float(metric.score(image)) == pytest.approx(100 * (predicted[40] - low) / (high - low), abs=0.05)
    results = metric.header.results
    assert f"SRCC {results['test/srcc']:.3f}" in said and "36 ratings (mos" in said and "of 9 groups" in said
    assert results["held_out/srcc"] > 0.5  # noise is seen by an untrained network, too
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_the_score_of_pristine_images_is_kept(rows, tmp_path, capsys):
    assert fit(tmp_path) == 0 and exported(tmp_path).header.score["pristine"] is None
    for k, row in enumerate(rows):
        row["reference"] = rows[k - k % 4]["path"]
    write_manifest(tmp_path, rows)
    assert fit(tmp_path, run="with") == 0
    with (tmp_path / "with" / "scores.csv").open() as file:
        predicted = [float(row["predicted"]) for row in csv.DictReader(file)]
    metric = exported(tmp_path, "with")
    median = (np.median(predicted[::4]) - metric.scale.low) * 100 / (metric.scale.high - metric.scale.low)
    assert metric.header.score["pristine"] == pytest.approx(median) and metric.scale.pristine == pytest.approx(median)
    assert f"Pristine images score {median:.0f} of 100" in capsys.readouterr().out


def test_the_backbone_does_not_change(rows, tmp_path):
    assert fit(tmp_path) == 0
    before = bundle.load_backbone(tmp_path / "a.safetensors").state_dict()
    after = exported(tmp_path).features.backbones[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_same_command_again_says_that_it_is_complete(rows, tmp_path, capsys):
    assert fit(tmp_path) == 0 and fit(tmp_path) == 0
    assert "This run is complete" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_weights_and_no_image_twice(rows, tmp_path):
    write_manifest(tmp_path, rows[:-1])  # 43 do not divide
    assert fit(tmp_path, "--data.batch_size=5", run="one") == 0
    command = [sys.executable, "-m", "csrtrain", "fit", "-c", "nr_linear", "--data.workers=0", "--data.batch_size=5"]
    command += [f"--data.manifest={tmp_path / 'm.csv'}", f"--model.backbone={tmp_path / 'a.safetensors'}"]
    command += [f"--trainer.default_root_dir={tmp_path / 'two'}", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = exported(tmp_path, "one"), exported(tmp_path, "two")
    torch.testing.assert_close(one.head.weight, two.head.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.domain.limits, two.domain.limits, rtol=1e-4, atol=1e-5)
    lines = (tmp_path / "two" / "scores.csv").read_text().splitlines()
    assert len(lines) == 44 and len(set(lines)) == 44


def test_several_bundles_stand_side_by_side(rows, tmp_path):
    save_bundle(tmp_path / "b.safetensors", seed=1, scales=[1.0], l2=False)
    names = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert fit(tmp_path, f"--model.backbone=[{', '.join(names)}]", "--model.learning_curve=true") == 0
    metric = exported(tmp_path)
    assert metric.features.contracts == (Contract(), Contract((1.0,), False))
    assert metric.head.in_features == 3 * metric.features.sizes[0]
    curve = (tmp_path / "run" / "learning_curve.csv").read_text().splitlines()
    assert curve[0] == "ratings,srcc,srcc_min,srcc_max,draws" and [r.split(",")[0] for r in curve[1:]] == ["20", "36"]


def test_five_crops(rows, tmp_path):
    assert fit(tmp_path, "--model.crops=32", "--model.scales=[1.0]") == 0
    assert exported(tmp_path).features.contracts == (Contract((1.0,), True, 32),)


def test_the_means_of_stages(rows, tmp_path):
    assert fit(tmp_path, "--model.stages=[1, 4]") == 0
    metric = exported(tmp_path)
    backbone = metric.features.backbones[0]
    assert metric.features.contracts == (Contract(stages=(1, 4)),)
    assert metric.head.in_features == 2 * sum(backbone.stage_channels[k] for k in (1, 4))
    x = decode.read(str(tmp_path / rows[0]["path"]))[None]
    torch.testing.assert_close(metric.heatmap(x).sum((1, 2)), metric.score(x), atol=1e-3, rtol=0)


def test_dmos_grey_images_and_a_declared_range(tmp_path):
    rows = write_images(tmp_path, channels=1)
    save_bundle(tmp_path / "a.safetensors", channels=1)
    for row in rows:
        row["dmos"] = 100 - 20 * row.pop("mos")
    write_manifest(tmp_path, rows)
    assert fit(tmp_path, "--data.rating_range=[0, 120]") == 0
    metric = exported(tmp_path)
    assert metric.header.score["ratings_direction"] == "lower is better" and metric.scale.high == 120
    noisy, clean = (max if worst else min for worst in (True, False))
    scores = [
        float(metric.score(decode.read(str(tmp_path / pick(rows, key=lambda row: row["dmos"])["path"]))[None]))
        for pick in (noisy, clean)
    ]
    assert scores[0] < scores[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [row.update(mos=3) for row in rows], "Expected different ratings in .*m.csv, got 3 for all"),
        (lambda rows: [row.update(group=0) for row in rows], "at least model.folds = 5 groups .* got 1"),
        (lambda rows: [row.update(split="test") for row in rows], "Expected rows of split train in .*m.csv"),
        (lambda rows: rows[3].update(mos="nan"), "line 5: mos is nan"),
        (lambda rows: rows[3].update(path="none.png"), "line 5: no file none.png"),
    ],
)
def test_bad_manifests(rows, tmp_path, capsys, change, message):
    change(rows)
    write_manifest(tmp_path, rows)
    assert fit(tmp_path) == 2
    found = capsys.readouterr().err
    assert __import__("re").search(message, found), found
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_broken_image_is_named(rows, tmp_path, capsys):
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:200])
    assert fit(tmp_path) == 2
    assert "7.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.folds=1", "model.folds >= 2, got 1"),
        ("--model.crops=8", "crops of 32 px or more"),
        ("--model.stages=[3, 9]", r"Expected stages in order from 0 to 4, got \[3, 9\]"),
        ("--data.rating_range=[5, 1]", "data.rating_range as .low, high., got .5.0, 1.0"),
        ("--data.rating_range=[3, 4]", "is outside of 3 to 4"),
        ("--data.batch_size=0", "data.batch_size >= 1"),
        ("--model.alphas=[1.0, 0.0]", r"Expected model.alphas above 0, got \[1.0, 0.0\]"),
        ("--model.alphas=[.nan]", r"Expected model.alphas above 0, got \[nan\]"),
    ],
)
def test_bad_options(rows, tmp_path, capsys, option, message):
    assert fit(tmp_path, option) == 2
    said = capsys.readouterr()
    assert __import__("re").search(message, said.err), said.err
    assert "features: step" not in said.out  # before the pass, which may take hours


def test_rows_of_one_file_are_never_parted(tmp_path, capsys):
    """Several ratings of an image, drawn at random: a leak would predict them."""
    save_bundle(tmp_path / "a.safetensors")
    rng = np.random.default_rng(0)
    rows = []
    for k in range(24):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        rows += [{"path": f"{k}.png", "mos": q} for q in rng.normal(size=1).repeat(3) + rng.normal(0, 0.01, 3)]
    write_manifest(tmp_path, rows)
    assert fit(tmp_path) == 0
    assert "of 24 groups" in capsys.readouterr().out
    assert exported(tmp_path).header.results["held_out/srcc"] < 0.8  # 0.96 when they are parted


def test_copies_of_a_file_are_never_parted(rows, tmp_path, capsys):
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    write_manifest(tmp_path, [*rows, {**rows[0], "path": "copy.png", "group": 99, "split": "test"}])
    assert fit(tmp_path) == 0
    assert "1 groups of test are in train too" in capsys.readouterr().out


def test_a_learning_curve_of_a_test_split_that_is_all_in_train(rows, tmp_path, capsys):
    write_manifest(tmp_path, [*rows[:36], *({**row, "group": 0, "split": "test"} for row in rows[36:])])
    assert fit(tmp_path, "--model.learning_curve=true") == 0
    said = capsys.readouterr().out
    assert "1 groups of test are in train too" in said and "on 0 images" not in said
    curve = (tmp_path / "run" / "learning_curve.csv").read_text().splitlines()
    assert len(curve) == 3 and all(-1 <= float(line.split(",")[1]) <= 1 for line in curve[1:])


def test_one_test_image_whose_group_is_in_train_is_said(rows, tmp_path, capsys):
    write_manifest(tmp_path, [*rows[:36], {**rows[36], "group": 0}])
    assert fit(tmp_path) == 0
    assert "1 groups of test are in train too" in capsys.readouterr().out


def test_double_precision(rows, tmp_path):
    assert fit(tmp_path, "--trainer.precision=64-true") == 0 and fit(tmp_path, run="single") == 0
    double, single = exported(tmp_path), exported(tmp_path, "single")
    image = decode.read(str(tmp_path / "40.png"))[None]
    torch.testing.assert_close(double.assess(image).score.float(), single.assess(image).score, atol=1e-2, rtol=1e-3)


def test_a_complete_run_refuses_other_ratings_and_other_weights(rows, tmp_path, capsys):
    assert fit(tmp_path) == 0
    write_manifest(tmp_path, [{**row, "mos": 6 - row["mos"]} for row in rows])
    assert fit(tmp_path) == 2
    assert "Expected the ratings in" in capsys.readouterr().err
    write_manifest(tmp_path, rows)
    assert fit(tmp_path) == 0
    save_bundle(tmp_path / "a.safetensors", seed=3)
    assert fit(tmp_path) == 2
    assert "Expected the backbone that the run was fitted to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_epochs=3", "Expected trainer.max_epochs 1"),
        ("--trainer.max_steps=0", "Expected trainer.max_epochs 1"),
        ("--trainer.limit_train_batches=2", "Expected every image once, got 2 of 44"),
        ("--trainer.fast_dev_run=true", "Expected every image once, got 1 of 44"),
        ("--model.scales=[0.001]", "Expected scales from 1/16 to 4"),
    ],
)
def test_a_pass_is_one_whole_pass(rows, tmp_path, capsys, option, message):
    assert fit(tmp_path, option) == 2
    assert message in capsys.readouterr().err


def test_the_summary_says_when_alpha_is_at_an_end_of_the_grid(rows, tmp_path, capsys):
    assert fit(tmp_path, "--model.alphas=[1e-30,1e+30]") == 0
    assert "of model.alphas: try others beyond it" in capsys.readouterr().out
    assert one_pass.chosen_alpha(0.1, (0.01, 0.1, 1.0)) == "alpha 0.1" == one_pass.chosen_alpha(0.1, (0.1,))
    assert "alpha 1, the largest of" in one_pass.chosen_alpha(1.0, (0.01, 0.1, 1.0))
    assert "alpha 0.01, the smallest of" in one_pass.chosen_alpha(0.01, (0.01, 0.1, 1.0))


def test_all_broken_images_are_named_or_left_out(rows, tmp_path, capsys):
    for name in ("7.png", "9.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    assert fit(tmp_path) == 2
    found = capsys.readouterr().err
    assert "got 2" in found and "7.png" in found and "9.png" in found
    assert fit(tmp_path, "--data.max_broken=2", "--data.workers=1") == 0
    said = capsys.readouterr().out
    assert "Left out 2 broken images" in said and "34 ratings" in said


def test_an_untrained_backbone_is_called_so(rows, tmp_path, capsys):
    assert fit(tmp_path, "--model.backbone=test_resnet") == 0
    assert "The backbone test_resnet is untrained" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_verbs_point_to_score(rows, tmp_path, capsys, verb):
    assert fit(tmp_path) == 0
    arguments = [verb, "-c", "nr_linear", f"--data.manifest={tmp_path / 'm.csv'}", "--trainer.accelerator=cpu"]
    arguments += [f"--model.backbone={tmp_path / 'a.safetensors'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main(arguments) == 2
    found = capsys.readouterr().err
    assert "csrtrain score" in found and len(found.strip().splitlines()) == 1


def test_preview_has_nothing_to_show(rows, tmp_path, capsys):
    options = [f"--data.manifest={tmp_path / 'm.csv'}", "-o", str(tmp_path / "v.png")]
    assert main(["preview", "-c", "nr_linear", *options]) == 2
    assert "Expected a config of pretraining" in capsys.readouterr().err
