import os
import re
import signal

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from csrtrain import bundle, headers, score
from csrtrain.cli import main
from csrtrain.heatmaps import file_names
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for k in range(6):
        shape = (64, 80, 3) if k % 2 else (70, 66, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "images" / f"{k}.png")
    torch.manual_seed(0)
    for name, channels, window in (
        ("a", 3, "header"),
        ("b", 3, "header"),
        ("grey", 1, "header"),
        ("w", 3, [40.0, 80.0]),
    ):
        backbone = Backbone("test_resnet", channels=channels)
        bundle.save(tmp_path / f"{name}.safetensors", backbone, bundle.header_for(backbone, window=window))
    return tmp_path


def test_features_of_a_folder(folder, capsys):
    out = folder / "f.npz"
    assert (
        main(["features", str(folder / "a.safetensors"), str(folder / "images"), "-o", str(out), "--workers", "0"]) == 0
    )
    assert "6 images" in capsys.readouterr().out
    stored = np.load(out)
    assert [path[-5:] for path in stored["paths"]] == [f"{k}.png" for k in range(6)]
    backbone = bundle.load(folder / "a.safetensors")
    model = FrozenFeatures([backbone], [Contract()])
    for path, row in zip(stored["paths"], stored["features"], strict=True):
        image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
        np.testing.assert_allclose(row, model(image)[0].detach(), atol=1e-5)
    assert stored["sizes"].tolist() == [backbone.representation_dim] * 2


def test_several_bundles_scales_and_lengths(folder):
    out = folder / "f.npz"
    bundles = [str(folder / f"{name}.safetensors") for name in "ab"]
    arguments = ["features", *bundles, str(folder / "images"), "-o", str(out), "--scales", "1", "--no-l2"]
    assert main([*arguments, "--workers", "0"]) == 0
    stored = np.load(out)["features"]
    first = score.extract(score.load_features(bundles[:1], (1.0,), False), [str(folder / "images" / "3.png")])
    np.testing.assert_allclose(stored[3, : stored.shape[1] // 2], first.features[0], atol=1e-5)
    assert abs(np.linalg.norm(first.features[0]) - 1) > 1e-3


def test_means_of_stages(folder, capsys):
    out, arguments = folder / "f.npz", ["features", str(folder / "a.safetensors"), str(folder / "images")]
    assert main([*arguments, "-o", str(out), "--workers", "0", "--stages", "0", "3"]) == 0
    channels = bundle.load(folder / "a.safetensors").stage_channels
    assert np.load(out)["sizes"].tolist() == [channels[0], channels[3]] * 2
    before = out.read_bytes()
    assert main([*arguments, "-o", str(out), "--workers", "0", "--stages", "9"]) == 2
    assert "Expected stages in order from 0 to 4, got [9]" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_broken_images_are_listed_and_nothing_else_is_lost(folder, capsys):
    (folder / "images" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = folder / "f.npz"
    assert (
        main(["features", str(folder / "a.safetensors"), str(folder / "images"), "-o", str(out), "--workers", "1"]) == 1
    )
    assert "2.png" in capsys.readouterr().err
    stored = np.load(out)
    assert len(stored["paths"]) == len(stored["features"]) == 5 and bool(np.isfinite(stored["features"]).all())


def test_a_volume_counts_by_slices_and_a_manifest_by_rows(folder):
    volume = np.random.default_rng(0).integers(0, 1000, (40, 44, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "v.nii")
    out, grey = folder / "f.npz", str(folder / "grey.safetensors")
    assert main(["features", grey, str(folder / "v.nii"), "-o", str(out), "--workers", "0"]) == 0
    assert np.load(out)["paths"].tolist() == [f"{folder / 'v.nii'}#{k}" for k in range(3)]
    assert main(["features", grey, f"{folder / 'v.nii'}#1", "-o", str(out), "--workers", "0"]) == 0
    assert np.load(out)["paths"].tolist() == [f"{folder / 'v.nii'}#1"]
    (folder / "m.csv").write_text("path,mos\nimages/3.png,1\nimages/0.png,2\n")
    assert main(["features", grey, str(folder / "m.csv"), "-o", str(out), "--workers", "0"]) == 0
    assert [path[-5:] for path in np.load(out)["paths"]] == ["3.png", "0.png"]


def test_bf16_is_near(folder):
    model = score.load_features([folder / "a.safetensors"])
    addresses = [str(folder / "images" / f"{k}.png") for k in range(6)]
    exact, near = score.extract(model, addresses), score.extract(model, addresses, bf16=True)
    assert 0 < np.abs(exact.features - near.features).max() < 0.02


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["a.safetensors", "images", "-o", "f.npy"], "Expected a name that ends in .npz, got"),
        (["a.safetensors", "images", "-o", "none/f.npz"], "Expected a file in a folder that can be written to"),
        (["a.safetensors", "images", "-o", "f.npz", "--workers", "-1"], "Expected --batch-size >= 1, --workers >= 0"),
        (["a.safetensors", "grey.safetensors", "images", "-o", "f.npz"], "Expected backbones of the same channels"),
        (["a.safetensors", "w.safetensors", "images", "-o", "f.npz"], "Expected bundles of one intensity window"),
        (["images/1.png", "images", "-o", "f.npz"], "safetensors"),
        (["a.safetensors", "nowhere", "-o", "f.npz"], "nowhere"),
    ],
)
def test_wrong_use(folder, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["features", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(folder.glob("f.np*"))


def save_metric(path, channels=3, window="header"):
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", channels=channels)
    metric = NoReferenceMetric(FrozenFeatures([backbone], [Contract()]), RatingScale(1, 5), anchors=2).eval()
    metric.domain.limits.fill_(100)
    bundle.save(path, metric, headers.MetricHeader(**bundle.described_metric(metric, window, {}, {})))
    return metric


@pytest.fixture
def metric(folder):
    return save_metric(folder / "m.safetensors")


def run_score(folder, *paths, output="s.csv", extra=()):
    arguments = ["score", str(folder / "m.safetensors"), *map(str, paths), "-o", str(folder / output)]
    return main([*arguments, "--workers", "0", *extra])


def test_scores_of_a_folder(folder, metric, capsys):
    assert run_score(folder, folder / "images") == 0
    assert "6 images scored" in capsys.readouterr().out
    table = pd.read_csv(folder / "s.csv")
    columns = ["path", "score", "rating", "out_of_range", "distance", "out_of_domain", "empty_slice", "error"]
    assert list(table.columns) == columns and len(table) == 6
    for path, score_, rating in zip(table["path"], table["score"], table["rating"], strict=True):
        image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
        assert score_ == pytest.approx(metric.score(image).item(), abs=1e-3)
        assert rating == pytest.approx(1 + score_ / 25, abs=1e-4)
    assert not table["out_of_domain"].any() and table["error"].isna().all()
    assert run_score(folder, folder / "images", output="s.parquet") == 0
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "s.parquet")[["path"]], table[["path"]])


def test_broken_images_are_rows_with_a_reason(folder, metric, capsys):
    (folder / "images" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run_score(folder, folder / "images") == 1
    assert re.search("not scored: .*2.png", capsys.readouterr().err)
    table = pd.read_csv(folder / "s.csv")
    assert table["score"].isna().tolist() == [k == 2 for k in range(6)]
    assert table["empty_slice"].isna().tolist() == [k == 2 for k in range(6)]
    assert "2.png" in table["error"][2]


def interrupted(method, after, run):
    """Exit code of `run()`, which gets Ctrl-C at the call of a method after so many."""
    calls = []
    owner, name = method
    original = getattr(owner, name)

    def called(*arguments, **more):
        calls.append(1)
        if len(calls) > after:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **more)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, called)
            return run()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interruption_keeps_the_scores_so_far_and_an_earlier_table(folder, metric, capsys):
    assert run_score(folder, folder / "images") == 0
    whole = (folder / "s.csv").read_bytes()
    stop = (NoReferenceMetric, "assess")
    assert interrupted(stop, 4, lambda: run_score(folder, folder / "images", extra=("--batch-size", "1"))) == 130
    assert capsys.readouterr().err == "interrupted: 2 of 6 rows were not reached, see their column error\n"
    assert (folder / "s.csv").read_bytes() == whole
    table, expected = pd.read_csv(folder / "s.partial.csv"), pd.read_csv(folder / "s.csv")
    done = table["score"].notna()
    assert done.sum() == 4 and (table["error"][~done] == score.INTERRUPTED).all()
    np.testing.assert_allclose(table["score"][done], expected["score"][done], rtol=1e-5)
    assert interrupted(stop, 0, lambda: run_score(folder, folder / "images")) == 130
    assert pd.read_csv(folder / "s.partial.csv")["score"].notna().sum() == 4  # nothing done replaces nothing
    assert run_score(folder, folder / "s.partial.csv") == 2
    assert "Expected another file than what is scored" in capsys.readouterr().err
    assert run_score(folder, folder / "images") == 0 and not (folder / "s.partial.csv").exists()


def test_all_broken(folder, metric):
    (folder / "bad.png").write_bytes(b"no image")
    assert run_score(folder, folder / "bad.png") == 1
    assert len(pd.read_csv(folder / "s.csv")) == 1


def test_volumes_get_a_row_per_slice_and_a_table_of_their_own(folder, capsys):
    metric = save_metric(folder / "m.safetensors", channels=1)
    volume = np.random.default_rng(0).integers(0, 1000, (40, 50, 7)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "v.nii.gz")
    assert run_score(folder, folder / "v.nii.gz", folder / "images" / "0.png") == 0
    assert "1 volumes" in capsys.readouterr().out
    slices, volumes = pd.read_csv(folder / "s.csv"), pd.read_csv(folder / "s.volumes.csv")
    scores = slices["score"][:7]
    assert len(slices) == 8 and len(volumes) == 1 and metric.features.channels == 1
    assert volumes["mean"][0] == pytest.approx(scores.mean(), abs=1e-4)
    assert volumes["percentile_10"][0] == pytest.approx(np.percentile(scores, 10), abs=1e-4)
    assert volumes["worst_slice"][0] == scores.argmin() and volumes["slices"][0] == 7
    assert not slices["empty_slice"].any() and volumes["air"][0] == 0


def test_air_at_the_ends_does_not_count_for_a_volume(folder):
    save_metric(folder / "m.safetensors", channels=1)
    volume = np.random.default_rng(0).integers(0, 1000, (40, 50, 8)).astype(np.int16)
    volume[..., [0, 3, 6, 7]] = 3  # the one between others is a fault
    air = np.zeros_like(volume)
    air[0, 0] = 1000  # one voxel of each slice: nothing else is there to count
    for name, voxels in (("v", volume), ("air", air)):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii")
    Image.new("L", (64, 64)).save(folder / "black.png")
    assert run_score(folder, folder / "v.nii", folder / "air.nii", folder / "black.png") == 0
    slices, volumes = pd.read_csv(folder / "s.csv"), pd.read_csv(folder / "s.volumes.csv")
    assert np.flatnonzero(slices["empty_slice"]).tolist() == [0, 3, 6, 7, *range(8, 16)]
    assert volumes["slices"].tolist() == [5, 8] and volumes["air"].tolist() == [3, 0]
    for row, counted in zip(volumes.itertuples(), (slices["score"][1:6], slices["score"][8:16]), strict=True):
        assert row.mean == pytest.approx(counted.mean(), abs=1e-4)
        assert row.percentile_10 == pytest.approx(np.percentile(counted, 10), abs=1e-4)
    assert volumes["worst_slice"][0] == slices["score"][1:6].idxmin()


def test_heat_maps_sum_to_the_scores(folder, metric):
    (folder / "images" / "sub").mkdir()
    (folder / "images" / "0.png").rename(folder / "images" / "sub" / "1.png")
    assert run_score(folder, folder / "images", extra=("--heatmap", str(folder / "maps"))) == 0
    table = pd.read_csv(folder / "s.csv")
    names = sorted(path.name for path in (folder / "maps").glob("*.npy"))
    assert names == ["1.png.npy", "2.png.npy", "3.png.npy", "4.png.npy", "5.png.npy", "sub_1.png.npy"]
    for path, value in zip(table["path"], table["score"], strict=True):
        name = path.removeprefix(f"{folder}/images/").replace("/", "_")
        assert np.load(folder / "maps" / f"{name}.npy").sum() == pytest.approx(value, abs=1e-3)
        assert Image.open(folder / "maps" / f"{name}.png").size == Image.open(path).size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a.safetensors", "images", "-o", "s.csv"],
            "Expected the bundle of a no-reference metric or a distance, got a backbone",
        ),
        (["m.safetensors", "images", "-o", "s.xls"], "ends in .csv or .parquet"),
        (["m.safetensors", "images", "-o", "none/s.csv"], "Expected a file in a folder that can be written to"),
        (["none.safetensors", "images", "-o", "s.csv"], "none.safetensors"),
        (["m.safetensors", "none", "-o", "s.csv"], "none"),
    ],
)
def test_wrong_use_of_score(folder, metric, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    assert main(["score", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "s.csv").exists()


@pytest.mark.parametrize("name", ["s.csv", "s.volumes.csv"])
def test_the_list_of_images_is_not_written_over(folder, metric, monkeypatch, capsys, name):
    monkeypatch.chdir(folder)
    (folder / name).write_text("path,mos\nimages/0.png,1\n")
    assert main(["score", "m.safetensors", f"./{name}", "-o", "s.csv", "--workers", "0"]) == 2
    assert f"Expected another file than what is scored for -o, got ./{name} for both" in capsys.readouterr().err
    assert (folder / name).read_text() == "path,mos\nimages/0.png,1\n"


@pytest.mark.parametrize("name", ["s.csv", "s.volumes.csv", "s.partial.csv"])
def test_a_folder_in_the_place_of_a_table_is_refused_before_the_work(folder, metric, monkeypatch, capsys, name):
    monkeypatch.setattr("csrtrain.score.score_images", None)
    (folder / name).mkdir()
    assert run_score(folder, folder / "images") == 2
    assert f"Expected a file in a folder that can be written to, got {folder / name}" in capsys.readouterr().err


def test_features_that_cannot_be_written_are_not_made(folder, monkeypatch, capsys):
    monkeypatch.setattr("csrtrain.cli.os.access", lambda path, mode: False)
    assert main(["features", str(folder / "a.safetensors"), str(folder / "images"), "-o", str(folder / "f.npz")]) == 2
    assert "Expected a file in a folder that can be written to" in capsys.readouterr().err


def test_a_metric_is_no_backbone(folder, metric, capsys):
    path = str(folder / "m.safetensors")
    assert main(["features", path, str(folder / "images"), "-o", str(folder / "f.npz")]) == 2
    assert "Expected the bundle of a backbone, got one of kind no_reference" in capsys.readouterr().err


def test_a_metric_bundle_is_checked(folder, metric):
    with pytest.raises(ValueError, match="header of a metric in .*x.safetensors, got others"):
        described = bundle.described_metric(metric, "header", {}, {})
        described["features"][0]["scales"] = [1.0]
        bundle.save(folder / "x.safetensors", metric, headers.MetricHeader(**described))
        bundle.load(folder / "x.safetensors")
    for key in ("score", "features", "backbones"):
        described = bundle.described_metric(metric, "header", {}, {})
        described[key] = type(described[key])()
        bundle.save(folder / "x.safetensors", metric, headers.MetricHeader(**described))
        with pytest.raises(ValueError, match="Expected"):
            bundle.load(folder / "x.safetensors")


def test_names_of_heat_maps_differ():
    paths = ["/x/a b.png", "/x/a_b.png", "/x/sub/1.png", "/x/sub_1.png", "/x/" + "n" * 300 + ".png", "/x/A_b.png"]
    names = file_names(paths)
    assert len({name.lower() for name in names}) == len(paths) and max(map(len, names)) < 220
    assert names[0] == "a_b.png" and names[1] == "a_b.png-2"


def test_maps_sum_to_the_score_in_bf16_too(folder, metric):
    assert run_score(folder, folder / "images", extra=("--heatmap", str(folder / "maps"), "--bf16")) == 0
    table = pd.read_csv(folder / "s.csv")
    maps = sorted((folder / "maps").glob("*.npy"))
    for path, value in zip(maps, table["score"], strict=True):
        assert np.load(path).sum() == pytest.approx(value, abs=1e-4)


def test_maps_are_not_written_among_the_images(folder, metric, capsys):
    assert run_score(folder, folder / "images", extra=("--heatmap", str(folder / "images" / "maps"))) == 2
    assert "outside of" in capsys.readouterr().err
    assert not (folder / "images" / "maps").exists()


def test_a_folder_that_maps_cannot_go_into_is_refused_before_the_work(folder, metric, capsys):
    (folder / "file").write_text("")
    assert run_score(folder, folder / "images", extra=("--heatmap", str(folder / "file" / "maps"))) == 2
    said = capsys.readouterr().err
    assert "Expected a folder that can be written to" in said and "file/maps" in said
    assert len(said.strip().splitlines()) == 1 and not (folder / "s.csv").exists()


def test_one_image_that_fails_does_not_cost_the_others(folder, metric, monkeypatch):
    whole = NoReferenceMetric.assess

    def failing(self, images):
        if images.shape[2] == 70 and (len(images) > 1 or int(images[0, 0, 0, 0]) == first):
            raise RuntimeError("out of memory")
        return whole(self, images)

    first = int(np.asarray(Image.open(folder / "images" / "2.png"))[0, 0, 0])
    monkeypatch.setattr(NoReferenceMetric, "assess", failing)
    assert run_score(folder, folder / "images") == 1
    table = pd.read_csv(folder / "s.csv")
    assert table["score"].isna().tolist() == [k == 2 for k in range(6)]
    assert "2.png: out of memory" in table["error"][2]


def test_a_score_that_is_no_number_is_an_error(folder, metric):
    metric.head.bias.data.fill_(float("nan"))
    table = score.score_images(metric, [str(folder / "images" / "0.png")])
    assert table["score"].isna().all() and "finite score" in table["error"][0]


def test_the_metric_of_the_caller_stays_as_it_is(folder, metric):
    before = {name: value.data_ptr() for name, value in metric.state_dict().items()}
    score.score_images(metric, [str(folder / "images" / "0.png")])
    assert {name: value.data_ptr() for name, value in metric.state_dict().items()} == before


@pytest.mark.parametrize(
    ("options", "message"), [(("--device", "gpu"), "Expected a device"), (("--batch-size", "0"), "--batch-size")]
)
def test_wrong_options_of_score(folder, metric, capsys, options, message):
    assert run_score(folder, folder / "images", extra=options) == 2
    assert message in capsys.readouterr().err


def test_a_name_with_a_hash_is_no_volume(folder, metric):
    (folder / "s.volumes.csv").write_text("old")
    (folder / "images" / "0.png").rename(folder / "images" / "a#1.png")
    assert run_score(folder, folder / "images") == 0
    assert not (folder / "s.volumes.csv").exists()


@pytest.mark.parametrize(
    "images", [torch.full((1, 3, 64, 64), 7.0), -torch.ones(1, 3, 64, 64), torch.full((1, 3, 64, 64), torch.nan)]
)
def test_values_beyond_0_to_1_are_refused(metric, images):
    for method in (metric.score, metric.assess):
        with pytest.raises(ValueError, match=r"Expected values in \[0,1\], got"):
            method(images)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("score", {"ratings_direction": "Higher is better"}),
        ("score", {"ratings_range": ["a", "b"]}),
        ("input", {"window": "abc"}),
        ("input", {"channels": 1}),
        ("domain", {"anchors": 7}),
    ],
)
def test_a_tampered_header_is_refused(folder, metric, key, change):
    described = bundle.described_metric(metric, "header", {}, {})
    described[key] = {**described[key], **change}
    bundle.save(folder / "x.safetensors", metric, headers.MetricHeader(**described))
    with pytest.raises(ValueError, match="x.safetensors"):
        bundle.load(folder / "x.safetensors")


def test_names_that_are_no_utf8_are_listed_readably(folder, metric, capsys):
    (folder / "images" / "0.png").rename(os.fsdecode(os.fsencode(folder / "images") + b"/\xff.png"))
    (folder / "images" / "self.png").symlink_to("self.png")
    assert run_score(folder, folder / "images") == 1
    assert "self.png" in capsys.readouterr().err
    assert "images/\\xff.png" in (folder / "s.csv").read_text()
