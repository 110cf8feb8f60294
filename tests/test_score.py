import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain import bundle, score
from csrtrain.cli import main
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures


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
        (["a.safetensors", "images", "-o", "none/f.npz"], "Expected a folder that exists for"),
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
