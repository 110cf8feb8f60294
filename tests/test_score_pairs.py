import re
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks import scoring
from csrtrain import bundle, headers, score
from csrtrain.cli import main
from csrtrain.data import decode
from csrtrain.models import features
from csrtrain.models.backbone import Backbone
from csrtrain.models.difference import DifferenceMetric
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

SIZES = ((64, 80), (70, 66))


@pytest.fixture
def folder(tmp_path):
    """Ten images of two sizes in images/, and each without noise in references/."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "references").mkdir()
    for k in range(10):
        pristine = rng.integers(0, 256, (*SIZES[k % 2], 3))
        noisy = np.clip(pristine + rng.normal(0, 5 + 10 * k, pristine.shape), 0, 255)
        Image.fromarray(pristine.astype(np.uint8)).save(tmp_path / "references" / f"{k}.png")
        Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / "images" / f"{k}.png")
    return tmp_path


@pytest.fixture
def metric():
    torch.manual_seed(0)
    return FullReferenceMetric(Backbone("test_resnet"))


def pairs_of(folder):
    return [(str(folder / "images" / f"{k}.png"), str(folder / "references" / f"{k}.png")) for k in range(10)]


def image(path):
    return decode.read(str(path))[None].float() / 255


def expected(metric, pairs):
    return [metric.distance(image(x), image(y)).item() for x, y in pairs]


@pytest.mark.parametrize("workers", [0, 2])
def test_distances_in_the_order_of_the_pairs(folder, metric, workers):
    pairs = pairs_of(folder)
    table = score.score_pairs(metric, pairs, batch_size=4, workers=workers)
    assert list(table.columns) == ["path", "reference", "distance", "empty_slice", "error"]
    assert list(zip(table["path"], table["reference"], strict=True)) == pairs
    np.testing.assert_allclose(table["distance"], expected(metric, pairs), atol=1e-5)
    assert (table["error"] == "").all()


def test_an_interruption_keeps_the_distances_so_far(folder, metric, monkeypatch):
    pairs, calls, compare = pairs_of(folder), [], score._compare

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compare(*arguments)

    monkeypatch.setattr(score, "_compare", stopped)
    with pytest.raises(score.Interrupted) as stop:
        score.score_pairs(metric, pairs, batch_size=1)
    table = stop.value.table
    np.testing.assert_allclose(table["distance"][:3], expected(metric, pairs[:3]), atol=1e-5)
    assert table["empty_slice"].isna().tolist() == [False] * 3 + [True] * 7
    assert table["distance"][3:].isna().all() and (table["error"] == [""] * 3 + [score.INTERRUPTED] * 7).all()


def test_distances_of_representations(folder):
    torch.manual_seed(0)
    metric = DifferenceMetric(FrozenFeatures([Backbone("test_resnet")], [Contract()])).eval()
    metric.weight.data.uniform_()
    pairs = pairs_of(folder)
    np.testing.assert_allclose(score.score_pairs(metric, pairs)["distance"], expected(metric, pairs), atol=1e-4)
    with pytest.raises(ValueError, match="Expected a distance of feature maps for heat-maps"):
        score.score_pairs(metric, pairs, heatmaps=folder / "maps")


def test_a_reference_shared_by_pairs_in_a_row_goes_through_the_network_once(folder, metric, monkeypatch):
    """Runs that end in the middle of a batch, of two sizes, and one broken image among them."""
    (folder / "images" / "bad.png").write_bytes(b"no image")
    of = {0: [0, 2, 4, 6, 8, "bad"], 1: [1, 3, 5], 2: [0, 2], 4: [4], 3: [9, 7]}
    pairs = [
        (str(folder / "images" / f"{k}.png"), str(folder / "references" / f"{reference}.png"))
        for reference, images in of.items()
        for k in images
    ]
    seen = []
    whole = Backbone.feature_maps

    def counting(self, images):
        seen.append(len(images))
        return whole(self, images)

    sound = [pair for pair in pairs if "bad" not in pair[0]]
    uncached = expected(metric, sound)
    monkeypatch.setattr(Backbone, "feature_maps", counting)
    for batch_size in (1, 4):
        seen.clear()
        table = score.score_pairs(metric, pairs, batch_size=batch_size)
        assert sum(seen) == len(sound) + len(of)
        np.testing.assert_allclose(table["distance"].dropna(), uncached, atol=1e-5)
    assert table["distance"][0:1].item() > 0 and table["error"].astype(bool).sum() == 1


def test_an_image_has_distance_0_to_itself(folder, metric):
    address = str(folder / "images" / "1.png")
    table = score.score_pairs(metric, [(address, address)] * 2 + pairs_of(folder)[:1])
    assert table["distance"][:2].tolist() == [0, 0] and table["distance"][2] > 0


def test_an_8_bit_image_and_a_deeper_reference(folder, metric):
    deep = folder / "deep.png"
    Image.fromarray(np.asarray(Image.open(folder / "references" / "0.png").convert("L")).astype(np.uint16) * 257).save(
        deep
    )
    Image.open(folder / "references" / "0.png").convert("L").save(folder / "grey.png")
    table = score.score_pairs(metric, [(str(folder / "grey.png"), str(deep))])
    assert table["error"].tolist() == [""] and table["distance"][0] == pytest.approx(0, abs=1e-6)


def test_large_images_are_compared_tile_by_tile(folder, metric, monkeypatch):
    """Here a tile is 32 px: 64 x 80 makes 2 x 3 of them."""
    monkeypatch.setattr(features, "TILE", 32)
    pairs = pairs_of(folder)[:1] * 2
    x, y = (image(path) for path in pairs[0])
    tiles = [(slice(a, a + 32), slice(*b)) for a in (0, 32) for b in ((0, 27), (27, 53), (53, 80))]
    parts = [(metric.distance(x[:, :, r, c], y[:, :, r, c]).item(), (c.stop - c.start) / (2 * 80)) for r, c in tiles]
    table = score.score_pairs(metric, pairs, heatmaps=folder / "maps")
    assert table["distance"].tolist() == pytest.approx([sum(d * share for d, share in parts)] * 2, abs=1e-5)
    local = np.load(folder / "maps" / "0.png.npy")
    r, c = tiles[4]
    np.testing.assert_allclose(local[r, c], metric.distance_map(x[:, :, r, c], y[:, :, r, c])[0], atol=1e-5)


def test_one_pair_that_fails_does_not_cost_the_others(folder, metric, monkeypatch):
    whole = FullReferenceMetric.distance

    def failing(self, x, y):
        if len(x) > 1 or torch.equal(x, image(folder / "images" / "2.png")):
            raise RuntimeError("out of memory")
        return whole(self, x, y)

    pairs = pairs_of(folder)
    wanted = expected(metric, pairs)
    monkeypatch.setattr(FullReferenceMetric, "distance", failing)
    table = score.score_pairs(metric, pairs)
    assert table["distance"].isna().tolist() == [k == 2 for k in range(10)]
    np.testing.assert_allclose(table["distance"].dropna(), wanted[:2] + wanted[3:], atol=1e-5)
    assert table["error"][2] == f"{pairs[2][0]} against {pairs[2][1]}: out of memory"


def test_a_distance_that_is_no_number_is_an_error_and_the_caller_keeps_his_metric(folder, metric):
    before = {name: value.data_ptr() for name, value in metric.state_dict().items()}
    metric.weights["0"].fill_(torch.nan)
    table = score.score_pairs(metric, pairs_of(folder)[:2])
    assert table["distance"].isna().all() and "finite distance" in table["error"][0]
    assert {name: value.data_ptr() for name, value in metric.state_dict().items()} == before


def test_bf16_is_near(folder, metric):
    pairs = pairs_of(folder)
    exact, near = score.score_pairs(metric, pairs), score.score_pairs(metric, pairs, bf16=True)
    assert 0 < (exact["distance"] - near["distance"]).abs().max() < 0.02


# csrtrain score --reference


@pytest.fixture
def distance(folder, metric):
    """d.safetensors, of feature maps."""
    described = bundle.described_distance(metric, "header", {}, {})
    bundle.save(folder / "d.safetensors", metric, headers.DistanceHeader(**described))
    return metric


def run(folder, *arguments, output="s.csv"):
    words = [str(folder / "d.safetensors"), *map(str, arguments), "-o", str(folder / output), "--workers", "0"]
    return main(["score", *words])


def test_a_folder_against_a_folder(folder, distance, capsys):
    """By relative path, or by the name but for the extension."""
    for k in (0, 3):
        path = folder / "references" / f"{k}.png"
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    (folder / "images" / "sub").mkdir()
    (folder / "images" / "5.png").rename(folder / "images" / "sub" / "5.png")
    assert run(folder, folder / "images", "--reference", folder / "references") == 0
    said = capsys.readouterr().out
    assert "10 images compared with their references, median distance" in said and "lower is closer" in said
    table = pd.read_csv(folder / "s.csv")
    assert [Path(x).stem for x in table["path"]] == [Path(y).stem for y in table["reference"]]
    pairs = list(zip(table["path"], table["reference"], strict=True))
    np.testing.assert_allclose(table["distance"], expected(distance, pairs), atol=1e-5)
    assert not (folder / "s.volumes.csv").exists()


def test_one_reference_of_all(folder, distance, capsys):
    even = [folder / "images" / f"{k}.png" for k in (0, 2, 1)]
    Image.new("RGB", (80, 64)).save(folder / "references" / "0.png")  # no slice, so none that is empty
    assert run(folder, *even, "--reference", folder / "references" / "0.png") == 1
    table = pd.read_csv(folder / "s.csv")
    assert table["distance"].isna().tolist() == [False, False, True]
    assert table["empty_slice"].tolist()[:2] == [False, False]
    size = "Expected images of one size, got 66 x 70 px and a reference of 80 x 64 px"
    assert f"1.png against {folder / 'references' / '0.png'}: {size}" in capsys.readouterr().err


def test_pairs_of_a_csv_file(folder, distance, capsys):
    rows = ["images/2.png,references/0.png", "images/1.png,references/none.png", "images/4.png,", ",references/0.png"]
    (folder / "pairs.csv").write_text("\n".join(["path,reference", *rows]))
    assert run(folder, folder / "pairs.csv") == 1
    table = pd.read_csv(folder / "s.csv", keep_default_na=False)
    pair = (str(folder / "images" / "2.png"), str(folder / "references" / "0.png"))
    assert float(table["distance"][0]) == pytest.approx(expected(distance, [pair])[0], abs=1e-5)
    assert (table["distance"][1:] == "").all()
    assert "none.png: Expected a file, got nothing at this path" in table["error"][1]
    assert "Expected a path in each cell of 'reference', got none in line 4" in table["error"][2]
    assert "Expected a path in each cell of 'path', got none in line 5" in table["error"][3]
    assert capsys.readouterr().err.count("not scored: ") == 3


def test_no_image_has_a_reference(folder, distance, capsys):
    (folder / "others").mkdir()
    (folder / "references" / "0.png").rename(folder / "others" / "other.png")
    assert run(folder, folder / "images", "--reference", folder / "others", output="s.parquet") == 1
    table = pd.read_parquet(folder / "s.parquet")
    assert len(table) == 10 and table["distance"].isna().all() and table["error"].str.contains("none of its name").all()
    assert "0 images compared with their references; 0 identical." in capsys.readouterr().out


def test_broken_pairs_are_listed_and_cost_no_other(tmp_path, distance, capsys):
    broken = scoring.write_pairs(tmp_path / "many", 40, 6)
    assert run(tmp_path, tmp_path / "many" / "images", "--reference", tmp_path / "many" / "references") == 1
    table = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    wrong = table[table["error"] != ""]
    assert len(table) == 40 and {Path(path).stem for path in wrong["path"]} == broken and len(broken) == 6
    assert (wrong["distance"] == "").all() and (table["distance"][table["error"] == ""] != "").all()
    reasons = ("decoded", "one size", "finite", "channels", "got none of its name", "text disguised as .png")
    for reason, (path, error) in zip(reasons, zip(wrong["path"], wrong["error"], strict=True), strict=True):
        assert reason in error and Path(path).name in error
    said = capsys.readouterr().err
    assert all(name in said for name in broken)


def test_volumes_meet_their_references_slice_by_slice(folder, capsys):
    torch.manual_seed(0)
    metric = FullReferenceMetric(Backbone("test_resnet", channels=1))
    described = bundle.described_distance(metric, "header", {}, {})
    bundle.save(folder / "d.safetensors", metric, headers.DistanceHeader(**described))
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    (folder / "originals").mkdir()
    for name, slices in (("a", 5), ("b", 4)):
        volume = rng.integers(0, 1000, (40, 50, 5))
        volume[..., 4] = 500  # air: only noise is there, and only in what is compared
        noisy = volume + rng.integers(0, 400, volume.shape) * np.arange(5)
        for where, values in (("originals", volume), ("scans", noisy[..., :slices])):
            nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), folder / where / f"{name}.nii.gz")
    assert run(folder, folder / "scans", "--reference", folder / "originals") == 1
    table, volumes = pd.read_csv(folder / "s.csv"), pd.read_csv(folder / "s.volumes.csv")
    assert table["reference"][:5].tolist() == [f"{folder / 'originals' / 'a.nii.gz'}#{k}" for k in range(5)]
    assert (
        table["distance"][5:].isna().all()
        and table["empty_slice"][5:].isna().all()
        and table["error"][5:].str.contains("Expected 4 frames").all()
    )
    found = table["distance"][:5]
    names = ["path", "reference", "slices", "air", "mean", "percentile_90", "worst_slice"]
    assert volumes.columns.tolist() == names
    assert found[4] > 0 and table["empty_slice"][:5].tolist() == [False] * 4 + [True]
    found = found.drop(4)
    (row,) = volumes.itertuples()
    assert row.mean == pytest.approx(found.mean(), abs=1e-5) and row.slices == 4 and row.air == 1
    assert row.percentile_90 == pytest.approx(np.percentile(found, 90), abs=1e-5) and row.worst_slice == found.idxmax()
    assert "1 volumes" in capsys.readouterr().out


def test_heat_maps_of_distances(folder, distance):
    """Their mean is the distance where the sides are multiples of the strides, 32 px, and near it elsewhere."""
    rng = np.random.default_rng(1)
    for where in ("images", "references"):
        Image.fromarray(rng.integers(0, 256, (96, 64, 3), dtype=np.uint8)).save(folder / where / "whole.png")
    maps = folder / "maps"
    assert run(folder, folder / "images", "--reference", folder / "references", "--heatmap", maps) == 0
    table = pd.read_csv(folder / "s.csv")
    assert len(list(maps.iterdir())) == 22
    for path, reference, value in zip(table["path"], table["reference"], table["distance"], strict=True):
        local = np.load(maps / f"{Path(path).name}.npy")
        assert local.dtype == np.float32 and Image.open(maps / f"{Path(path).name}.png").size == local.shape[::-1]
        np.testing.assert_allclose(local, distance.distance_map(image(path), image(reference))[0], atol=1e-5)
        assert local.mean() == pytest.approx(value, rel=1e-5 if "whole" in path else 0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images"], "Expected references for the images of images, got none. Add --reference"),
        (["images", "--reference", "none"], "Expected an image or a folder of references, got nothing at none"),
        (["images", "--reference", "pairs.csv"], "Expected an image or a folder of references, got the list"),
        (["pairs.csv", "--reference", "references"], "Expected references from one place"),
        (["pairs.csv", "--column", "file"], "Expected a column 'file'"),
        (["images", "--reference", "empty"], "Expected a folder of references, got empty without an image"),
        (["images", "--reference", "double"], "Expected one reference of .*1.png in double, got 2: .*1.bmp, .*1.png"),
        (["images", "--reference", "references", "--heatmap", "references/maps"], "outside of references"),
        (["images", "--reference", "references", "--heatmap", "pairs.csv"], "for heat-maps, got the file pairs.csv"),
    ],
)
def test_wrong_use(folder, distance, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    for name in ("1.png", "1.bmp"):
        (folder / "double" / name[2:]).mkdir(parents=True)
        Image.open(folder / "references" / "1.png").save(folder / "double" / name[2:] / name)
    (folder / "pairs.csv").write_text("path,reference\nimages/2.png,references/0.png\n")
    assert main(["score", "d.safetensors", *arguments, "-o", "s.csv", "--workers", "0"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (folder / "s.csv").exists() and not (folder / "references" / "maps").exists()


def test_bundles_of_other_kinds(folder, distance, capsys):
    backbone = Backbone("test_resnet")
    features = FrozenFeatures([backbone], [Contract()])
    bundle.save(folder / "b.safetensors", backbone, bundle.header_for(backbone))
    nr = NoReferenceMetric(features, RatingScale(1, 5)).eval()
    bundle.save(folder / "m.safetensors", nr, headers.MetricHeader(**bundle.described_metric(nr, "header", {}, {})))
    difference = DifferenceMetric(features)
    described = bundle.described_distance(difference, "header", {}, {}, "mos")
    bundle.save(folder / "r.safetensors", difference, headers.DistanceHeader(**described))
    rest = [str(folder / "images"), "--reference", str(folder / "references"), "-o", str(folder / "s.csv")]
    for name, extra, message in (
        ("b", [], r"got a backbone in .*csrtrain export \S*b.safetensors -o DISTANCE --distance"),
        ("m", [], "Expected a full-reference distance for --reference, got a no-reference metric.*--distance"),
        ("r", ["--heatmap", str(folder / "maps")], "Expected a distance of feature maps for heat-maps"),
    ):
        assert main(["score", str(folder / f"{name}.safetensors"), *rest, *extra]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (folder / "s.csv").exists() and not (folder / "maps").exists()
