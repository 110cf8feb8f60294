import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain import score
from csrtrain.data import decode
from csrtrain.models.backbone import Backbone
from csrtrain.models.difference import DifferenceMetric
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric

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
    assert list(table.columns) == ["path", "reference", "distance", "error"]
    assert list(zip(table["path"], table["reference"], strict=True)) == pairs
    np.testing.assert_allclose(table["distance"], expected(metric, pairs), atol=1e-5)
    assert (table["error"] == "").all()


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
    for batch_size in (1, 2, 3, 16):
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
