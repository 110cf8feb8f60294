"""The verb as a user types it, on photographs that ship inside installed packages."""

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image, ImageFilter
from scipy import stats
from scipy.optimize import curve_fit

from csrtrain import bundle, controls, evaluate, headers, score
from csrtrain.cli import main
from csrtrain.data import decode, samples
from csrtrain.data.manifest import read_manifest
from csrtrain.data.splits import random_splits
from csrtrain.evaluate import judging, rated, report
from csrtrain.evaluate.aggregate import PARTS, aggregate, shift_and_speed
from csrtrain.evaluate.methods import Method, Reading, features_of
from csrtrain.metrics import bootstrap
from csrtrain.metrics.representation import group_folds
from csrtrain.models import ridge
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

SCENES, LEVELS = 8, (0, 1, 2)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer bootstrap samples, images of shift tolerance, strengths of the SVR (tests/test_controls.py), and dots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap.group_weights, "__defaults__", (40, 0))
        patch.setattr(bootstrap, "DRAWS", 40)
        patch.setattr(controls, "_STRENGTHS", {"svr__C": [1, 10], "svr__gamma": [0.03]})
        patch.setattr("csrtrain.evaluate.aggregate._TIMED", 4)
        patch.setattr("csrtrain.evaluate.plots._DPI", 50)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes, blurred and made noisy at three levels each, rated by their level; bundles of every kind."""
    folder = tmp_path_factory.mktemp("world")
    rng, rows = np.random.default_rng(0), []
    for scene, address in enumerate(samples.natural()[:SCENES]):
        pixels = decode.to_channels(decode.read(address), 3)[:, 40:104, 60:124].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"r{scene}.png")
        for level in LEVELS:
            blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.6 + level))
            noisy = np.clip(pixels + rng.normal(0, 6 + 12 * level, pixels.shape), 0, 255).astype(np.uint8)
            for kind, image in (("blur", blurred), ("noise", Image.fromarray(noisy))):
                name = f"{kind}_{scene}_{level}.png"
                image.save(folder / name)
                mos = 5 - 1.2 * level - 0.4 * (kind == "noise") + rng.normal(0, 0.2)
                split = "test" if scene % 4 == 0 else "train"
                rows.append([name, f"{mos:.3f}", f"r{scene}.png", split, kind, level, 0.3])
    write(folder / "rated.csv", ["path", "mos", "reference", "split", "type", "level", "std"], rows)
    torch.manual_seed(7)  # other weights than those of the untrained control
    backbone = Backbone("test_resnet")
    header = bundle.header_for(backbone, features={"scales": [1.0, 0.5], "l2": True})
    bundle.save(folder / "net.safetensors", backbone, header)
    metric = NoReferenceMetric(FrozenFeatures([backbone], [Contract()]), RatingScale(1, 5), anchors=2).eval()
    metric.domain.limits.fill_(100)
    training = {"data": {"digest": "another"}}
    described = bundle.described_metric(metric, "header", training, {})
    bundle.save(folder / "metric.safetensors", metric, headers.MetricHeader(**described))
    distance = FullReferenceMetric(backbone)
    described = bundle.described_distance(distance, "header", training, {})
    bundle.save(folder / "distance.safetensors", distance, headers.DistanceHeader(**described))
    return folder


def write(path, names, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def edited(world, name, change):
    """A manifest beside the first with rows changed in place."""
    rows = rows_of(world / "rated.csv")
    change(rows)
    write(world / name, list(rows[0]), [list(row.values()) for row in rows])
    return world / name


def run(world, out, *bundles, manifest="rated.csv", extra=()):
    names = [str(world / f"{name}.safetensors") for name in bundles]
    manifests = [manifest] if isinstance(manifest, str) else manifest
    flags = [flag for one in manifests for flag in ("--manifest", str(world / one))]
    return main(["evaluate", *names, *flags, "-o", str(out), "--workers", "0", *extra])


def judged(world, *bundles, manifest="rated.csv", protocol=None, with_controls=False):
    """The same without the command line and without plots."""
    names = [world / f"{name}.safetensors" for name in bundles]
    manifests = [manifest] if isinstance(manifest, str) else manifest
    return evaluate.evaluate(names, [str(world / one) for one in manifests], protocol, with_controls=with_controls)


@pytest.fixture(scope="module")
def native(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("native")
    assert run(world, out, "net", "metric") == 0
    return out


def test_what_is_written(native):
    names = {path.name for path in native.iterdir()}
    assert names == {
        *("results.json", "table.csv", "report.md", "correlations.png", "scatter.png", "types.png"),
        *("monotonicity.png", "outliers.png"),
    }
    results = json.loads((native / "results.json").read_text())
    assert results["protocol"] == "native" and results["seed"] == 0 and "torch" in results["versions"]
    table = pd.read_csv(native / "table.csv")
    assert table["method"].tolist()[:2] == ["net", "metric"] and len(table) == 4
    report = (native / "report.md").read_text()
    for words in ("PLCC logistic", "Beside the controls", "Aggregate (ours)", "cannot be known", "BRISQUE + SVR"):
        assert words in report
    for picture in native.glob("*.png"):
        assert min(Image.open(picture).size) > 100


def test_measures_equal_a_literal_computation(world, native):
    """A ridge head on the features of train, its alpha from folds of groups, then scipy."""
    (evaluation,) = json.loads((native / "results.json").read_text())["evaluations"]
    manifest = read_manifest(str(world / "rated.csv"))
    train = np.array(manifest.splits) == "train"
    module = bundle.load_backbone(world / "net.safetensors")
    h = score.extract(features_of(module), manifest.addresses).features.astype(np.float64)
    y = manifest.ratings
    fitted = ridge.fit(h[train], y[train], group_folds(manifest.groups[train], 5, 0))
    best = fitted.best(y[train])
    x, y = h[~train] @ fitted.weights[best] + fitted.biases[best], y[~train]
    found = evaluation["methods"]["net"]["measures"]
    assert found["srcc"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert found["krcc"]["value"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-9)
    assert found["plcc"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    np.testing.assert_allclose(evaluation["scatter"]["scores"]["net"], x, atol=1e-9)


def test_a_fitted_metric_is_judged_as_it_is(world, native):
    (evaluation,) = json.loads((native / "results.json").read_text())["evaluations"]
    manifest = read_manifest(str(world / "rated.csv"))
    test = np.array(manifest.splits) == "test"
    scores = score.score_images(bundle.load_metric(world / "metric.safetensors"), manifest.addresses)["score"]
    expected = stats.spearmanr(scores[test], manifest.ratings[test]).statistic
    method = evaluation["methods"]["metric"]
    assert method["head"] == "none" and method["alphas"] == []
    assert method["measures"]["srcc"]["value"] == pytest.approx(expected, abs=1e-9)


def test_a_second_call_gives_the_same_numbers_without_controls_too(world, native, tmp_path):
    evaluate.write(tmp_path, judged(world, "net", "metric"))
    (first,), (second,) = (json.loads((f / "results.json").read_text())["evaluations"] for f in (native, tmp_path))
    assert first["splits"] == second["splits"] and list(second["methods"]) == ["net", "metric"]
    for name, method in second["methods"].items():
        assert method.pop("versus") == {} and first["methods"][name].pop("versus")
        assert method == first["methods"][name] and len(method["measures"]) == 6
        assert second["scatter"]["scores"][name] == first["scatter"]["scores"][name]
        assert second["outliers"]["methods"][name] == first["outliers"]["methods"][name]


def test_random_splits_part_no_reference(world):
    (evaluation,) = judged(world, "net", protocol="splits")["evaluations"]
    assert list(evaluation["methods"]) == ["net"] and len(evaluation["splits"]) == 10
    srcc = evaluation["methods"]["net"]["measures"]["srcc"]
    assert len(srcc["per_split"]) == 10 and srcc["value"] == pytest.approx(np.median(srcc["per_split"]))
    manifest = read_manifest(str(world / "rated.csv"))
    for split in random_splits(manifest.groups):
        assert not set(manifest.groups[split.train]) & set(manifest.groups[split.test])
        assert sorted([*split.train, *split.test]) == list(range(len(manifest)))


def test_controls_of_a_fitted_metric_are_fitted_across(world):
    results = judged(world, "metric", with_controls=True)
    assert results["protocol"] == "whole" and any("an advantage" in note for note in results["notes"])
    (evaluation,) = results["evaluations"]
    assert set(evaluation["methods"]["metric"]["versus"]) == set(evaluation["methods"]) - {"metric"}
    assert len(next(m for n, m in evaluation["methods"].items() if n.startswith("untrained"))["alphas"]) == 5


def test_constant_features_say_nothing_across_folds():
    """Held-out means of ratings move against the rows held out; scores of no information must not follow them."""
    rng = np.random.default_rng(0)
    judged = rated.Rated(rng.normal(size=60), None, None, None, np.arange(60), np.arange(60), [""] * 60, None)
    method = Method("none", "control", "ridge", np.ones((60, 3)), {}, lambda x, y: np.ones(3))
    whole = rated.Split(np.empty(0, dtype=np.int64), np.arange(60))
    assert np.ptp(rated.predict(method, judged, [whole], 0).scores[0]) < 1e-12


def test_distances_beside_pixels_and_ssim(world):
    results = judged(world, "distance", with_controls=True)
    assert "distance: a distance with all weights 1, which no rating was used for." in results["notes"]
    (evaluation,) = results["evaluations"]
    names = ["distance", "untrained test_resnet (all stages)", "pixel L2", "PSNR", "SSIM"]
    assert list(evaluation["methods"]) == names and any("MS-SSIM is left out" in note for note in results["notes"])
    manifest = read_manifest(str(world / "rated.csv"))
    l2 = []
    for image, reference in zip(manifest.addresses, manifest.references, strict=True):
        difference = np.asarray(Image.open(image), float) - np.asarray(Image.open(reference), float)
        l2.append(np.sqrt(np.mean((difference / 255) ** 2)))
    expected = stats.spearmanr(-np.array(l2), manifest.ratings).statistic
    for name in ("pixel L2", "PSNR"):
        assert evaluation["methods"][name]["measures"]["srcc"]["value"] == pytest.approx(expected, abs=1e-9)

    def logistic(x, b1, b2, b3, b4):
        return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / np.abs(b4)))

    x, y = -np.array(l2), manifest.ratings
    b, _ = curve_fit(logistic, x, y, p0=[y.max(), y.min(), x.mean(), x.std()], maxfev=20000)
    error, found = np.abs(logistic(x, *b) - y), evaluation["methods"]["pixel L2"]["measures"]
    assert evaluation["methods"]["pixel L2"]["curves"][0]["logistic"]
    assert found["plcc_logistic"]["value"] == pytest.approx(stats.pearsonr(logistic(x, *b), y).statistic, abs=1e-5)
    assert found["rmse"]["value"] == pytest.approx(math.sqrt(np.mean(error**2)), abs=1e-5)
    assert found["outlier_ratio"]["value"] == pytest.approx(np.mean(error > 0.6)) and 0 < np.mean(error > 0.6) < 1
    order = evaluation["methods"]["pixel L2"]["level_order"]["value"]
    right = [
        l2[i] < l2[j]
        for i, a in enumerate(rows_of(world / "rated.csv"))
        for j, b in enumerate(rows_of(world / "rated.csv"))
        if a["reference"] == b["reference"] and a["type"] == b["type"] and a["level"] < b["level"]
    ]
    assert order == pytest.approx(np.mean(right)) and len(right) == SCENES * 2 * 3


def test_triplets(world, tmp_path):
    rng, rows = np.random.default_rng(1), []
    for scene in range(SCENES):
        for level in LEVELS:  # blur against noise, either first
            names = rng.permutation([f"blur_{scene}_{level}.png", f"noise_{scene}_{rng.integers(0, 3)}.png"]).tolist()
            rows.append([f"r{scene}.png", *names, float(rng.integers(0, 3)) / 2, ("even", "odd")[scene % 2]])
    write(world / "triplets.csv", ["reference", "p0", "p1", "judge", "subset"], rows)
    assert run(world, tmp_path, "distance", "net", manifest="triplets.csv") == 0
    (evaluation,) = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    metric = bundle.load_distance(world / "distance.safetensors")
    table = score.score_pairs(metric, [(str(world / r[k]), str(world / r[0])) for k in (1, 2) for r in rows])
    d0, d1 = np.split(table["distance"].to_numpy(), 2)
    literal = [(a < b) * (1 - r[3]) + (b < a) * r[3] + 0.5 * (a == b) for a, b, r in zip(d0, d1, rows, strict=True)]
    method = evaluation["methods"]["distance"]
    assert method["measures"]["two_afc"]["value"] == pytest.approx(np.mean(literal))
    odd = [row[4] == "odd" for row in rows]
    assert method["subsets"]["odd"]["value"] == pytest.approx(np.mean(np.array(literal)[odd]))
    assert (d0 < d1).any() and (d1 < d0).any() and set(method["versus"]) >= {"pixel L2", "SSIM"}
    assert evaluation["methods"]["net"]["measures"] == method["measures"]  # the same backbone, all weights 1
    assert (tmp_path / "two_afc.png").is_file()


def test_choices_at_another_size(world, tmp_path):
    rows = [[f"r{scene}.png", f"blur_{scene}_1.png", f"noise_{scene}_1.png", 1.0] for scene in range(SCENES)]
    write(world / "at_32.csv", ["reference", "p0", "p1", "judge"], rows)
    assert run(world, tmp_path / "small", "distance", manifest="at_32.csv", extra=("--size", "32")) == 0
    (evaluation,) = json.loads((tmp_path / "small" / "results.json").read_text())["evaluations"]
    for row in rows:  # the same images, made small beforehand
        for name in row[:3]:
            image = decode.to_channels(decode.read(str(world / name)), 3)
            small = tvf.resize(image, [32, 32], antialias=True).permute(1, 2, 0).numpy()
            Image.fromarray(small).save(world / f"small_{name}")
    write(
        world / "small.csv", ["reference", "p0", "p1", "judge"], [[f"small_{n}" for n in r[:3]] + r[3:] for r in rows]
    )
    assert run(world, tmp_path / "made", "distance", manifest="small.csv") == 0
    (beside,) = json.loads((tmp_path / "made" / "results.json").read_text())["evaluations"]
    for name in ("distance", "pixel L2", "SSIM"):
        assert evaluation["methods"][name]["measures"] == beside["methods"][name]["measures"]
    with pytest.raises(ValueError, match="no size for ratings, got 32"):
        evaluate.evaluate([world / "net.safetensors"], [str(world / "rated.csv")], size=32)


def test_a_refused_evaluation_leaves_no_folder(world, tmp_path):
    assert run(world, tmp_path / "none", "net", manifest="missing.csv") == 2
    assert not (tmp_path / "none").exists()


def test_seen_differences(world):
    rng, rows = np.random.default_rng(2), []
    for scene in range(SCENES):
        for kind in ("blur", "noise"):
            rows += [
                [f"r{scene}.png", f"{kind}_{scene}_{k}.png", round(rng.random() / (1 + k), 2), kind] for k in LEVELS
            ]
    write(world / "jnd.csv", ["p0", "p1", "same", "subset"], rows)
    (evaluation,) = judged(world, "distance", manifest="jnd.csv")["evaluations"]
    metric, found = bundle.load_distance(world / "distance.safetensors"), []
    for kind in ("blur", "noise"):
        of = [row for row in rows if row[3] == kind]
        distance = score.score_pairs(metric, [(str(world / r[1]), str(world / r[0])) for r in of])["distance"]
        points = sorted(zip(distance, [r[2] for r in of], strict=True))
        seen = np.cumsum([s for _, s in points])
        precision, recall = seen / np.arange(1, len(of) + 1), seen / seen[-1]
        best = [max(precision[k:]) for k in range(len(of))]
        found.append(sum(b * (r - before) for b, r, before in zip(best, recall, [0, *recall[:-1]], strict=True)))
    method = evaluation["methods"]["distance"]
    assert [method["subsets"][kind]["value"] for kind in ("blur", "noise")] == pytest.approx(found)
    assert method["measures"]["jnd"]["value"] == pytest.approx(np.mean(found))


def test_across_manifests(world, tmp_path, monkeypatch):
    monkeypatch.setattr("csrtrain.evaluate.protocols.SPLITS", 2)  # on the diagonal
    for name, scenes in (("first.csv", range(4)), ("second.csv", range(4, SCENES))):
        rows = [row for row in rows_of(world / "rated.csv") if int(row["path"].split("_")[1]) in scenes]
        for k, row in enumerate(rows):  # groups of one scene and type, so that there are enough
            row["reference"] = ""
            row["group"] = f"{row['path'].split('_')[1]}{row['type']}{k % 2}"
            for column in ("type", "level", "std"):  # whose tables and plots others look at
                row.pop(column)
        write(world / name, list(rows[0]), [list(row.values()) for row in rows])
    extra = ("--no-controls",)
    assert run(world, tmp_path, "net", "metric", manifest=["first.csv", "second.csv"], extra=extra) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    cells = [(one["train"], one["test"], one["test_images"]) for one in results["evaluations"]]
    whole = len(rows)
    assert cells[1:3] == [("first.csv", "second.csv", whole), ("second.csv", "first.csv", whole)] and len(cells) == 4
    assert (tmp_path / "cross.png").is_file() and len(pd.read_csv(tmp_path / "table.csv")) == 8
    manifests = [read_manifest(str(world / name)) for name in ("first.csv", "second.csv")]
    features = features_of(bundle.load_backbone(world / "net.safetensors"))
    a, b = (score.extract(features, m.addresses).features.astype(np.float64) for m in manifests)
    fitted = ridge.fit(a, manifests[0].ratings, group_folds(manifests[0].groups, 5, 0))
    predicted = b @ fitted.weights[fitted.best(manifests[0].ratings)]
    value = results["evaluations"][1]["methods"]["net"]["measures"]["srcc"]["value"]
    assert value == pytest.approx(stats.spearmanr(predicted, manifests[1].ratings).statistic, abs=1e-9)


def test_a_broken_image_costs_no_other(world, tmp_path, capsys):
    (world / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    manifest = edited(world, "broken.csv", lambda rows: rows[3].update(path="bad.png"))
    assert run(world, tmp_path, "net", manifest=manifest.name, extra=("--no-controls",)) == 1
    assert "line 5: " in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["line"] for one in results["broken"]] == [5] and "bad.png" in results["broken"][0]["reason"]
    (split,) = results["evaluations"][0]["splits"]
    assert (split["train"], split["test"]) == (36, 11)
    assert "bad.png" in (tmp_path / "report.md").read_text()


def test_a_split_without_a_sound_image_is_refused(world, tmp_path, capsys):
    def change(rows):
        for k, row in enumerate(rows):
            if row["split"] == "test":
                row["path"] = f"bad{k}.png"
                (world / row["path"]).write_bytes(b"\x89PNG\r\n\x1a\n")

    manifest = edited(world, "all_broken.csv", change)
    assert run(world, tmp_path, "net", manifest=manifest.name, extra=("--no-controls",)) == 2
    assert "got a split whose images are all broken" in capsys.readouterr().err


def leak(rows):
    rows[0]["split"] = "train"  # of a scene whose others are in test


def copied(rows):
    for row in rows:
        row["reference"] = ""
    rows[6]["path"] = "copy.png"


def twice(rows):
    rows[1]["path"] = rows[0]["path"]


def unrated_level(rows):
    rows[2]["level"] = "strong"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (leak, "share nothing, got the same group, reference or file in lines 2, 3, 4"),
        (copied, "the same file content in lines 2, 8"),
        (twice, "line 3 has the same image as line 2"),
        (unrated_level, "line 4: level is 'strong'"),
    ],
)
def test_planted_faults_are_refused_with_their_lines(world, tmp_path, capsys, change, message):
    (world / "copy.png").write_bytes((world / "blur_0_0.png").read_bytes())
    manifest = edited(world, "planted.csv", change)
    assert run(world, tmp_path, "net", manifest=manifest.name) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_image_in_two_manifests_is_refused(world, tmp_path, capsys):
    manifests = ["rated.csv", edited(world, "again.csv", lambda rows: rows.pop()).name]
    assert run(world, tmp_path, "net", manifest=manifests) == 2
    assert "lines 2 of rated.csv, 2 of again.csv" in capsys.readouterr().err


def test_a_copy_under_another_name_is_in_the_same_split(world, monkeypatch):
    monkeypatch.setattr("csrtrain.evaluate.protocols.SPLITS", 3)
    (world / "copy.png").write_bytes((world / "blur_0_0.png").read_bytes())

    def change(rows):
        for row in rows:
            row["group"] = row.pop("reference")
        rows[6]["path"], rows[6]["group"] = "copy.png", "another"

    manifest = edited(world, "copies.csv", change)
    results = judged(world, "net", manifest=manifest.name, protocol="splits")
    assert read_manifest(str(manifest)).groups.max() + 1 == SCENES + 1
    assert {split["test"] for split in results["evaluations"][0]["splits"]} <= {11, 12, 13}
    assert results["evaluations"][0]["test_groups"] <= SCENES


def test_levels_are_compared_within_a_scene_only(world):
    def change(rows):
        for row in rows:
            row["group"], row["reference"] = row["reference"], ""

    judged_by = [read_manifest(str(world / name)) for name in ("rated.csv", edited(world, "grouped.csv", change).name)]
    series = [rated.rated_of(manifest).series for manifest in judged_by]
    assert [len(set(one)) for one in series] == [SCENES * 2] * 2


def test_a_control_that_one_manifest_has_no_values_of(world, monkeypatch):
    """MS-SSIM, for which the images of one are too small, is left out of all, and the note says so."""
    monkeypatch.setattr("csrtrain.evaluate.protocols.SPLITS", 2)  # on the diagonal
    large = []
    for scene, address in enumerate(samples.natural()[:5]):
        image = Image.fromarray(decode.to_channels(decode.read(address), 3).permute(1, 2, 0).numpy()).resize((180, 180))
        image.save(world / f"l{scene}.png")
        image.filter(ImageFilter.GaussianBlur(scene)).save(world / f"lb{scene}.png")
        large.append([f"lb{scene}.png", 5 - scene, f"l{scene}.png"])
    write(world / "large.csv", ["path", "mos", "reference"], large)
    edited(world, "small.csv", lambda rows: rows.__delitem__(slice(30, None)))
    results = judged(world, "distance", manifest=["large.csv", "small.csv"], with_controls=True)
    names = [set(one["methods"]) for one in results["evaluations"]]
    assert math.isfinite(controls.ms_ssim(*(decode.read(str(world / name)) / 255 for name in ("lb1.png", "l1.png"))))
    assert len(names) == 4 and all(one == names[0] and "MS-SSIM" not in one for one in names)
    assert any("MS-SSIM is left out" in note for note in results["notes"])


def test_ratings_that_a_metric_was_fitted_to_are_refused(world, tmp_path, capsys):
    metric = bundle.load_metric(world / "metric.safetensors")
    training = {"data": {"digest": read_manifest(str(world / "rated.csv")).digest}}
    described = bundle.described_metric(metric, "header", training, {})
    bundle.save(world / "own.safetensors", metric, headers.MetricHeader(**described))
    assert run(world, tmp_path, "own") == 2
    assert "Expected ratings that own was not fitted to" in capsys.readouterr().err
    assert "was fitted to the rows of split train" in judged(world, "own", protocol="native")["notes"][0]


@pytest.mark.parametrize(
    ("bundles", "extra", "message"),
    [
        (["net"], ("--protocol", "whole"), "needs images to fit a head to"),
        (["net"], ("--protocol", "cross"), "Expected several manifests for cross"),
        (["net"], ("--protocol", "thirds"), "Expected a protocol of splits, native, whole, cross, got 'thirds'"),
        (["net", "net"], (), "Expected every bundle once"),
        (["net"], ("--workers", "-1"), "--workers >= 0"),
        (["net"], ("--device", "gpu"), "Expected a device"),
        (["none"], (), "none.safetensors"),
    ],
)
def test_wrong_use(world, tmp_path, capsys, bundles, extra, message):
    assert run(world, tmp_path, *bundles, extra=extra) == 2
    assert message in capsys.readouterr().err


def test_wrong_manifests(world, tmp_path, capsys):
    write(world / "plain.csv", ["path"], [["r0.png"]])
    assert run(world, tmp_path, "net", manifest="plain.csv") == 2
    assert "Expected a manifest" in capsys.readouterr().err
    assert run(world, tmp_path, "net", manifest="nowhere.csv") == 2
    assert "got nothing at" in capsys.readouterr().err
    (world / "folder.csv").mkdir()
    assert run(world, tmp_path, "net", manifest="folder.csv") == 2
    assert "got a folder at" in capsys.readouterr().err
    alike = edited(world, "alike.csv", lambda rows: [row.update(mos=3) for row in rows])
    assert run(world, tmp_path, "distance", manifest=alike.name) == 2
    assert "alike.csv, got mos 3 for all" in capsys.readouterr().err
    few = edited(world, "few.csv", lambda rows: [rows.pop() for _ in range(44)])
    assert run(world, tmp_path, "metric", manifest=few.name) == 2
    assert "got 4. Rate more images." in capsys.readouterr().err
    one = edited(world, "one.csv", lambda rows: [rows.pop() for _ in range(42)])
    assert run(world, tmp_path, "metric", manifest=one.name) == 2
    assert "or leave the controls out with --no-controls" in capsys.readouterr().err
    unreferenced = edited(world, "unreferenced.csv", lambda rows: rows[4].update(reference=""))
    assert run(world, tmp_path, "distance", manifest=unreferenced.name) == 2
    assert "Expected a reference for every image" in capsys.readouterr().err
    write(world / "choices.csv", ["reference", "p0", "p1", "judge"], [["r0.png", "r1.png", "r2.png", 3]])
    assert run(world, tmp_path, "distance", manifest="choices.csv") == 2
    assert "line 2: judge is 3, no share" in capsys.readouterr().err
    write(world / "both.csv", ["reference", "p0", "p1", "judge", "same"], [["r0.png", "r1.png", "r2.png", 1, 1]])
    assert run(world, tmp_path, "distance", manifest="both.csv") == 2
    assert "Expected one column of judgements in" in capsys.readouterr().err
    write(world / "unseen.csv", ["p0", "p1", "same"], [["r0.png", "r1.png", 0]])
    assert run(world, tmp_path, "distance", manifest="unseen.csv") == 2
    assert "difference somebody did not see" in capsys.readouterr().err
    (world / "copy.png").write_bytes((world / "r1.png").read_bytes())
    rows = [["r0.png", "r1.png", "r2.png", 1, "train"], ["r3.png", "copy.png", "r4.png", 1, "test"]]
    write(world / "leak.csv", ["reference", "p0", "p1", "judge", "split"], rows)
    assert run(world, tmp_path, "distance", manifest="leak.csv", extra=("--protocol", "native")) == 2
    assert "the same file content in lines 2, 3" in capsys.readouterr().err
    rows = [["r0.png", "r1.png", "r2.png", 1], ["r0.png", "r2.png", "r1.png", 0]]
    write(world / "choices.csv", ["reference", "p0", "p1", "judge"], rows)
    assert run(world, tmp_path, "distance", manifest="choices.csv") == 2
    assert "line 3 has the same triplet as line 2" in capsys.readouterr().err
    assert run(world, tmp_path, "metric", manifest="choices.csv") == 2
    assert "Expected distances or backbones for choices" in capsys.readouterr().err


def test_dmos_has_its_sign_turned(world):
    def turned(rows):
        del rows[12:]
        for row in rows:
            row["mos"] = str(-float(row["mos"]))

    edited(world, "few_mos.csv", lambda rows: rows.__delitem__(slice(12, None)))
    manifest = edited(world, "dmos.csv", turned)
    manifest.write_text(manifest.read_text().replace("path,mos", "path,dmos"))
    found = [judged(world, "metric", manifest=name)["evaluations"][0] for name in ("few_mos.csv", "dmos.csv")]
    values = [one["methods"]["metric"]["measures"]["srcc"]["value"] for one in found]
    assert values[0] == pytest.approx(values[1]) and abs(values[0]) > 0.01


def test_a_metric_that_goes_the_wrong_way_is_not_turned_round(world):
    manifest = read_manifest(str(world / "rated.csv"))
    judged_by, whole = rated.rated_of(manifest), rated.Split(np.empty(0, dtype=np.int64), np.arange(len(manifest)))
    method = Method("wrong", "distance", "none", -manifest.ratings[:, None], {}, lambda image, reference: np.zeros(1))
    weights = bootstrap.group_weights(judged_by.groups, 40)
    predicted = rated.predict(method, judged_by, [whole], seed=0)
    found = rated.agreement(predicted, judged_by, [whole], weights)
    assert found["plcc_logistic"].per_split == found["plcc"].per_split == [pytest.approx(-1)]
    np.testing.assert_array_equal(found["plcc_logistic"].draws, found["plcc"].draws)
    assert found["rmse"].per_split[0] == pytest.approx(manifest.ratings.std())


def test_a_difference_that_is_not_defined_is_left_out():
    undefined = {"difference": math.nan, "low": math.nan, "high": math.nan, "beats": False}
    lines = report._versus({"a": {"versus": {"b": {"srcc": undefined, "krcc": {**undefined, "difference": 0.5}}}}})
    assert lines[-2:] == ["| a | b | SRCC |  | no interval |", "| a | b | KRCC | +0.500 | no interval |"]


def test_the_aggregate_is_the_mean_of_ranks():
    values = {
        "a": dict.fromkeys(PARTS, 0.5),
        "b": dict.fromkeys(PARTS, 0.5) | {"srcc": 0.9, "images_per_second": 0.1},
        "c": dict.fromkeys(PARTS, 0.5) | {"srcc": 0.7, "level_order": math.nan},
    }
    found = aggregate(values)
    assert found["left_out"] == ["level_order"] and len(found["counted"]) == len(PARTS) - 1
    assert found["methods"]["b"]["ranks"]["srcc"] == 1 and found["methods"]["a"]["ranks"]["srcc"] == 3
    assert found["methods"]["a"]["ranks"]["images_per_second"] == 1.5  # equal values share their mean rank
    five_equal = 5 * 2
    assert found["methods"]["b"]["rank_mean"] == pytest.approx((1 + 3 + five_equal) / 7)


def test_a_type_that_says_nothing_is_not_passed_over(world):
    """Scores that are alike within one type have no worst SRCC, whichever type that is."""
    manifest = read_manifest(str(world / "rated.csv"))
    judged_by, whole = rated.rated_of(manifest), rated.Split(np.empty(0, dtype=np.int64), np.arange(len(manifest)))
    for alike in ("blur", "noise"):
        values = np.where(np.array(manifest.columns["type"]) == alike, 0.0, manifest.ratings)[:, None]
        method = Method("m", "distance", "none", values, {}, lambda x, y: np.array([float(x.mean())]))
        found = judging.judge([method], judged_by, [whole], Reading(), 0, True)
        assert math.isnan(found["aggregate"]["methods"]["m"]["parts"]["worst_type_srcc"])


def test_a_shift_moves_what_sees_places(world, monkeypatch):
    """A mean of pixels hardly notices one pixel; the value of one place in noise moves as far as images differ."""
    monkeypatch.setattr("csrtrain.evaluate.aggregate._TIMED", 32)
    manifest = read_manifest(str(world / "rated.csv"))
    rows = np.flatnonzero(np.array(manifest.columns["type"]) == "noise")
    found = []
    for respond in (
        lambda x, y: np.array([float(x.mean())]),
        lambda x, y: np.array([float((x[..., 20, 20] - x[..., 20, 22]).mean())]),
    ):
        method = Method("m", "control", "none", np.zeros((len(manifest), 1)), {}, respond)
        predicted = rated.Predicted([], [], [], lambda values: values[:, 0])
        found.append(shift_and_speed(method, predicted, rated.rated_of(manifest), rows, Reading()))
    assert found[0][0] > 0.95 and found[1][0] < 0.5 and found[0][1] > 0
