"""Fitting distances by the command line, on small scenes with more or less noise or blocks of another colour.

What people would say is made up by the tests (a proxy): noise matters, a shift of brightness does not.
"""

import csv
import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import nnls

import csrtrain
from csrtrain import bundle
from csrtrain.cli import main
from csrtrain.data import decode
from csrtrain.losses.ranking import Ranker, preference_loss
from csrtrain.models.backbone import Backbone
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.quality.full_reference import fit_to_choices


@pytest.fixture
def triplets(noise, write_table, tmp_path):
    rows = []
    for k in range(len(noise)):
        for v, w in itertools.permutations(range(noise.shape[1]), 2):
            judge = float(noise[k, w] < noise[k, v])
            split = "test" if k >= 9 else "train"
            rows.append(
                {"reference": f"{k}.png", "p0": f"{k}-{v}.png", "p1": f"{k}-{w}.png", "judge": judge, "split": split}
            )
    write_table(tmp_path / "t.csv", rows)
    return rows


def fit(folder, *extra, run="run"):
    arguments = ["fit", "-c", "fr_2afc", f"--data.triplets={folder / 't.csv'}", "--data.workers=0"]
    if not any("model.backbone" in option for option in extra):
        arguments.append(f"--model.backbone={folder / 'a.safetensors'}")
    return main([*arguments, f"--trainer.default_root_dir={folder / run}", "--trainer.accelerator=cpu", *extra])


def exported(folder, run="run"):
    assert main(["export", str(folder / run), "-o", str(folder / f"{run}.safetensors")]) == 0
    return csrtrain.load(folder / f"{run}.safetensors")


def image(path):
    return decode.read(str(path))[None].float() / 255


@pytest.fixture(scope="module")
def metric():
    torch.manual_seed(0)
    return FullReferenceMetric(Backbone("test_resnet"))


def made_up(metric, count=30):
    """Images, the pairs of triplets among them, judged at random."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(12, 3, 48, 40, generator=generator)
    rows = torch.stack([torch.randperm(12, generator=generator)[:3] for _ in range(count)])
    left = rows[:, :1].expand(-1, 2).reshape(-1).tolist()
    differences = metric.channel_differences(images, left, rows[:, 1:].reshape(-1).tolist())
    judge = torch.randint(0, 3, (count,), generator=generator).double() / 2
    return images, rows, differences, torch.arange(2 * count).reshape(count, 2), judge


def test_the_fit_is_that_of_images_going_through_the_backbone_at_every_step(metric):
    images, rows, differences, pairs, judge = made_up(metric)
    fitted = fit_to_choices(differences, pairs, judge, epochs=4, batch_size=7, learning_rate=0.01, seed=3)
    start = 0.3 / float(differences.sum(1).mean())
    learned = FullReferenceMetric(metric.backbone)
    learned.weights.requires_grad_(True)
    torch.manual_seed(3)
    ranker = Ranker()
    optimizer = torch.optim.Adam([*learned.weights.parameters(), *ranker.parameters()], betas=(0.5, 0.999))
    for rate in (0.01, 0.01, 0.01, 0.005):
        optimizer.param_groups[0]["lr"] = rate
        for chosen in torch.randperm(30).split(7):
            reference, p0, p1 = (images[rows[chosen, k]] for k in range(3))
            logit = ranker(start * learned.distance(p0, reference), start * learned.distance(p1, reference))
            optimizer.zero_grad()
            preference_loss(logit, judge[chosen].float()).backward()
            optimizer.step()
            with torch.no_grad():
                for weight in learned.weights.values():
                    weight.clamp_(min=0)
    moved = (fitted / start - 1).abs().max()
    assert moved > 0.1
    torch.testing.assert_close(fitted / start, learned.all_weights, rtol=0, atol=float(0.01 * moved))


def test_the_fit_does_not_depend_on_the_size_of_the_differences_and_leaves_the_generator(metric):
    _, _, differences, pairs, judge = made_up(metric)
    state = torch.get_rng_state()
    one = fit_to_choices(differences, pairs, judge)
    assert torch.equal(torch.get_rng_state(), state) and bool((one >= 0).all())
    torch.testing.assert_close(fit_to_choices(16 * differences, pairs, judge) * 16, one)
    with pytest.raises(ValueError, match="Expected images that differ, got none"):
        fit_to_choices(0 * differences, pairs, judge)


def test_twenty_thousand_triplets_are_enough_for_channels_a_thousand_times_smaller_than_others():
    generator = torch.Generator().manual_seed(4)
    sizes = torch.logspace(0, -3, 64)
    differences = torch.rand(600, 64, generator=generator) * sizes
    people = torch.where(torch.arange(64) % 2 == 1, 1 / sizes, 0.0)  # look at every second channel, alike
    seen = torch.randint(0, 400, (20_000, 2), generator=generator)
    fresh = torch.randint(400, 600, (5_000, 2), generator=generator)

    def chosen(weights, pairs):
        d0, d1 = (differences @ weights)[pairs].T
        return (d1 < d0).double()

    weights = fit_to_choices(differences, seen, chosen(people, seen))
    agreement = (chosen(weights, fresh) == chosen(people, fresh)).float().mean()
    all_alike = (chosen(torch.ones(64), fresh) == chosen(people, fresh)).float().mean()
    assert all_alike < 0.7 and agreement > 0.95


def test_the_weights_follow_what_people_chose(triplets, tmp_path, capsys):
    assert fit(tmp_path, "--model.learning_rate=0.02", "--model.epochs=100") == 0
    said = capsys.readouterr().out
    found = exported(tmp_path)
    assert found.header.distance["fitted_to"] == "2afc" and found.header.kind == "full_reference"
    results = found.header.results
    for name in ("held_out", "test"):
        assert results[f"{name}/two_afc"] > results[f"{name}/two_afc_uncalibrated"] + 0.1
        assert results[f"{name}/two_afc_most"] == 1
        assert f"2AFC {results[f'{name}/two_afc']:.3f}" in said
        assert f"with all weights 1 {results[f'{name}/two_afc_uncalibrated']:.3f}" in said
    gain = results["held_out/two_afc"] - results["held_out/two_afc_uncalibrated"]
    assert 0 <= results["held_out/two_afc_gain_low"] < gain < results["held_out/two_afc_gain_high"]
    assert "to 180 triplets of 9 groups" in said and "5 folds of train, by group" in said and "in train too" not in said
    with (tmp_path / "run" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["p1"].rpartition("/")[2] for row in rows] == [row["p1"] for row in triplets]
    plain = FullReferenceMetric(bundle.load_backbone(tmp_path / "a.safetensors"))
    for row, given in [(rows[k], triplets[k]) for k in (200, 239)]:
        reference = image(tmp_path / given["reference"])
        for k in "01":
            other = image(tmp_path / given[f"p{k}"])
            assert float(found.distance(other, reference)) == pytest.approx(float(row[f"d{k}"]), rel=1e-4)
            assert float(plain.distance(other, reference)) == pytest.approx(float(row[f"d{k}_uncalibrated"]), rel=1e-4)
    own = float(found.distance(image(tmp_path / triplets[0]["p0"]), image(tmp_path / triplets[0]["reference"])))
    assert own != pytest.approx(float(rows[0]["d0"]), rel=1e-4)  # train rows are without their fold
    before = bundle.load_backbone(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(value, found.backbone.state_dict()[name]) for name, value in before.items())


def test_half_scale_beside_full(triplets, tmp_path, capsys):
    assert fit(tmp_path, "--model.scales=[1.0,0.5]", "--model.stages=[0,2]", "--model.folds=0") == 0
    found = exported(tmp_path)
    assert found.scales == (1, 0.5) and found.stages == (0, 2) and len(found.all_weights) == 2 * (32 + 48)
    with (tmp_path / "run" / "scores.csv").open() as file:
        row = next(csv.DictReader(file))
    distance = found.distance(image(tmp_path / triplets[0]["p0"]), image(tmp_path / triplets[0]["reference"]))
    assert float(distance) == pytest.approx(float(row["d0"]), rel=1e-4)
    assert fit(tmp_path, "--model.scales=[1.0,0.5,0.5]", run="other") == 2
    assert "Expected scales from 1/16 to 4, each once, at most 16, got [1.0, 0.5, 0.5]" in capsys.readouterr().err
    assert fit(tmp_path, "--model.stages=[0,2]", "--model.folds=0") == 2  # the complete run is of other scales
    assert "model.init_args.scales: [1.0, 0.5] -> None" in capsys.readouterr().err


def test_a_complete_run_says_so_and_refuses_other_triplets_and_other_weights(
    triplets, save_bundle, write_table, tmp_path, capsys
):
    assert fit(tmp_path, "--model.folds=0") == 0 and fit(tmp_path, "--model.folds=0") == 0
    said = capsys.readouterr().out
    assert "This run is complete" in said and "folds of train" not in said
    write_table(tmp_path / "t.csv", [{**row, "judge": 1 - row["judge"]} for row in triplets])
    assert fit(tmp_path, "--model.folds=0") == 2
    assert "Expected the triplets in" in capsys.readouterr().err
    write_table(tmp_path / "t.csv", triplets)
    save_bundle(tmp_path / "a.safetensors", seed=3)
    assert fit(tmp_path, "--model.folds=0") == 2
    assert "Expected the backbone that the run was fitted to" in capsys.readouterr().err


def test_bf16_gives_nearly_the_same(triplets, tmp_path):
    """Rounding of 8 bits moves a distance by about 1 %: an answer changes only where two are nearly equal."""
    options = ["--model.folds=0", "--model.learning_rate=0.001"]  # few triplets: Adam's steps follow rounding errors
    assert fit(tmp_path, *options, run="a") == 0
    assert fit(tmp_path, *options, "--trainer.precision=bf16-mixed", run="b") == 0
    one, two = exported(tmp_path, "a"), exported(tmp_path, "b")
    torch.testing.assert_close(one.all_weights, two.all_weights, rtol=0, atol=float(0.05 * one.all_weights.max()))
    for name in ("test/two_afc", "test/two_afc_uncalibrated"):
        assert one.header.results[name] == pytest.approx(two.header.results[name], abs=0.05)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_weights_and_no_row_twice(triplets, write_table, tmp_path):
    write_table(tmp_path / "t.csv", triplets[:-1])
    options = ["--data.batch_size=6", "--model.folds=3"]
    assert fit(tmp_path, *options, run="one") == 0
    command = [sys.executable, "-m", "csrtrain", "fit", "-c", "fr_2afc", "--data.workers=0", *options]
    command += [f"--data.triplets={tmp_path / 't.csv'}", f"--model.backbone={tmp_path / 'a.safetensors'}"]
    command += [f"--trainer.default_root_dir={tmp_path / 'two'}", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = exported(tmp_path, "one"), exported(tmp_path, "two")
    torch.testing.assert_close(one.all_weights, two.all_weights, rtol=1e-3, atol=float(1e-4 * one.all_weights.max()))
    lines = (tmp_path / "two" / "scores.csv").read_text().splitlines()
    assert len(lines) == 240 and len(set(lines)) == 240


def test_broken_images_and_other_sizes_are_named_or_left_out(triplets, tmp_path, capsys):
    (tmp_path / "3-1.png").write_bytes((tmp_path / "3-1.png").read_bytes()[:100])
    Image.open(tmp_path / "4-0.png").resize((20, 20)).save(tmp_path / "4-0.png")
    assert fit(tmp_path, "--model.folds=0") == 2
    found = capsys.readouterr().err
    assert "Expected at most 0 broken images (data.max_broken), got 2" in found and "3-1.png" in found
    assert re.search(r"4.png \(48 x 40\) and .*4-0.png \(20 x 20\)", found), found
    assert fit(tmp_path, "--data.max_broken=2", "--model.folds=0") == 0
    said = capsys.readouterr().out
    assert "Left out the triplets of 2 broken images" in said and "to 164 triplets" in said  # 8 of 20 of each
    assert fit(tmp_path, "--data.max_broken=1", "--data.size=32", "--model.folds=0", run="resized") == 0
    assert exported(tmp_path, "resized").header.training["data"]["size"] == 32


def test_stages_and_an_untrained_backbone(triplets, tmp_path, capsys):
    assert fit(tmp_path, "--model.backbone=test_resnet", "--model.stages=[1,2]", "--model.folds=0") == 0
    assert "The backbone test_resnet is untrained" in capsys.readouterr().out
    assert exported(tmp_path).stages == (1, 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.folds=1", "folds 0 or >= 2, got"),
        ("--model.folds=10", "at least model.folds = 10 groups of train triplets in .*t.csv, got 9"),
        ("--model.learning_rate=0", "learning_rate > 0"),
        ("--model.stages=[9]", "Expected stages in order from 0"),
        ("--data.batch_size=1", "data.batch_size >= 2"),
        ("--trainer.max_epochs=3", "Expected trainer.max_epochs 1"),
        ("--trainer.fast_dev_run=true", "Expected every pair once, got"),
    ],
)
def test_bad_options(triplets, tmp_path, capsys, option, message):
    assert fit(tmp_path, option, "--data.batch_size=4" if "dev_run" in option else "--data.workers=0") == 2
    found = capsys.readouterr().err
    assert re.search(message, found), found
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_bad_triplets(triplets, write_table, tmp_path, capsys):
    triplets[2]["judge"] = 7
    write_table(tmp_path / "t.csv", triplets)
    assert fit(tmp_path) == 2
    assert "line 4: judge is 7, no share" in capsys.readouterr().err


def test_other_verbs_point_to_score(triplets, tmp_path, capsys):
    assert fit(tmp_path, "--model.folds=0") == 0
    arguments = ["validate", "-c", "fr_2afc", f"--data.triplets={tmp_path / 't.csv'}", "--trainer.accelerator=cpu"]
    arguments += [f"--model.backbone={tmp_path / 'a.safetensors'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main(arguments) == 2
    assert "csrtrain score" in capsys.readouterr().err


@pytest.fixture
def ratings(noise, write_table, tmp_path):
    rows = []
    for k, v in itertools.product(range(len(noise)), range(noise.shape[1])):
        split = "test" if k >= 9 else "train"
        rows.append({"path": f"{k}-{v}.png", "reference": f"{k}.png", "mos": 5 - noise[k, v] / 10, "split": split})
    write_table(tmp_path / "m.csv", rows)
    return rows


def fit_opinions(folder, *extra, run="run"):
    arguments = ["fit", "-c", "fr_mos", f"--data.manifest={folder / 'm.csv'}", "--data.workers=0"]
    arguments += [f"--model.backbone={folder / 'a.safetensors'}", "--trainer.accelerator=cpu"]
    return main([*arguments, f"--trainer.default_root_dir={folder / run}", *extra])


def test_opinions_are_fitted_by_least_squares_of_weights_that_are_not_negative(ratings, tmp_path, capsys):
    assert fit_opinions(tmp_path, "--data.rating_range=[1,5]") == 0
    said = capsys.readouterr().out
    found = exported(tmp_path)
    plain = FullReferenceMetric(bundle.load_backbone(tmp_path / "a.safetensors"))
    d = np.stack(
        [
            plain.channel_differences(
                torch.cat([image(tmp_path / row["reference"]), image(tmp_path / row["path"])]), [0], [1]
            )[0].numpy()
            for row in ratings
        ]
    ).astype(np.float64)
    loss = np.array([5 - row["mos"] for row in ratings])
    train, alpha = d[:45], found.header.results["alpha"]
    unit, sums = np.square(train).sum() / d.shape[1], train.sum(1)
    near = sums @ loss[:45] / (sums @ sums)
    strength = np.sqrt(alpha * unit) * np.eye(d.shape[1])
    expected, _ = nnls(np.vstack([train, strength]), np.concatenate([loss[:45], strength.sum(1) * near]))
    np.testing.assert_allclose(found.all_weights, expected, atol=1e-3 * expected.max())
    with (tmp_path / "run" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["distance"]) for row in rows][45:], d[45:] @ expected, rtol=2e-3)
    np.testing.assert_allclose([float(row["predicted"]) for row in rows][45:], 5 - d[45:] @ expected, rtol=2e-3)
    np.testing.assert_allclose([float(row["distance_uncalibrated"]) for row in rows], d.sum(1), rtol=1e-4)
    own = float(found.distance(image(tmp_path / "10-2.png"), image(tmp_path / "10.png")))
    assert own == pytest.approx(d[52] @ expected, rel=2e-3)
    results = found.header.results
    assert results["test/srcc"] > results["test/srcc_uncalibrated"] and results["held_out/srcc"] > 0.5
    assert results["test/rmse"] < results["test/rmse_uncalibrated"]
    assert results["held_out/srcc_low"] < results["held_out/srcc"] < results["held_out/srcc_high"]
    assert found.header.distance["fitted_to"] == "mos" and "45 ratings (mos, best 5) of 9 groups" in said
    assert f"SRCC {results['test/srcc']:.3f}" in said and "with all weights alike SRCC" in said


@pytest.mark.slow
def test_dmos_is_the_same_the_other_way_round(ratings, write_table, tmp_path):
    assert fit_opinions(tmp_path, "--data.rating_range=[1,5]", run="mos") == 0
    write_table(tmp_path / "m.csv", [{"dmos": 20 - 4 * row.pop("mos"), **row} for row in ratings])  # 0 to 16, 0 is best
    assert fit_opinions(tmp_path, "--data.rating_range=[0,16]", run="dmos") == 0
    mos, dmos = exported(tmp_path, "mos"), exported(tmp_path, "dmos")
    torch.testing.assert_close(4 * mos.all_weights, dmos.all_weights, rtol=1e-4, atol=1e-4)
    assert dmos.header.results["test/srcc"] == pytest.approx(mos.header.results["test/srcc"])


def test_a_complete_run_refuses_other_ratings(ratings, write_table, tmp_path, capsys):
    assert fit_opinions(tmp_path, "--trainer.precision=bf16-mixed") == 0
    assert fit_opinions(tmp_path, "--trainer.precision=bf16-mixed") == 0
    assert "This run is complete" in capsys.readouterr().out
    write_table(tmp_path / "m.csv", [{**row, "mos": 6 - row["mos"]} for row in ratings])
    assert fit_opinions(tmp_path, "--trainer.precision=bf16-mixed") == 2
    assert "Expected the ratings in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[3].update(reference=""), "line 5: no reference"),
        (lambda rows: [row.pop("reference") for row in rows], "Expected a column reference of undistorted images"),
        (lambda rows: [row.update(mos=3) for row in rows], "Expected different ratings in .*m.csv, got 3 for all"),
        (lambda rows: [row.update(reference="0.png") for row in rows], "at least model.folds = 5 groups .* got 1"),
        (lambda rows: rows[3].update(reference="none.png"), "line 5: no file none.png"),
        (lambda rows: rows[3].update(path="s.png"), r"one size, got .*0.png \(48 x 40\) and .*s.png \(20 x 30\)"),
    ],
)
def test_bad_manifests(ratings, write_table, tmp_path, capsys, change, message):
    Image.new("RGB", (20, 30)).save(tmp_path / "s.png")
    change(ratings)
    write_table(tmp_path / "m.csv", ratings)
    assert fit_opinions(tmp_path) == 2
    found = capsys.readouterr().err
    assert re.search(message, found), found
    assert not (tmp_path / "run" / "checkpoints").exists()
