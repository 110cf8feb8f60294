import pytest
import torch
import torch.nn.functional as F

from csrtrain.models import features
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures


@pytest.fixture(scope="module")
def images():
    return torch.rand((2, 3, 70, 90), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone("test_resnet").eval()


def literal(backbone, images):
    with torch.no_grad():
        half = F.interpolate(images, (35, 45), mode="bilinear", antialias=True)
        h = [backbone.representation(x) for x in (images, half)]
    return torch.cat([v / v.norm(dim=1, keepdim=True) for v in h], dim=1)


def test_two_scales_side_by_side_each_of_length_one(backbone, images):
    model = FrozenFeatures([backbone], [Contract()])
    expected = literal(backbone, images)
    torch.testing.assert_close(model(images), expected, atol=1e-6, rtol=1e-5)
    assert model.sizes == [backbone.representation_dim] * 2 and model.channels == 3
    eight = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(model(eight), model(eight.float() / 255))


def test_several_backbones_and_contracts(backbone, images):
    other = Backbone("test_convnext").eval()
    model = FrozenFeatures([other, backbone], [Contract((1.0,), False), Contract()])
    h = model(images)
    torch.testing.assert_close(h[:, : other.representation_dim], other.representation(images), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(h[:, other.representation_dim :], literal(backbone, images), atol=1e-6, rtol=1e-5)
    assert model.sizes == [other.representation_dim, *[backbone.representation_dim] * 2]


def test_large_images_go_in_tiles_weighted_by_area(backbone, images, monkeypatch):
    monkeypatch.setattr(features, "TILE", 48)
    model = FrozenFeatures([backbone], [Contract((1.0,), False)])
    tiles = [(35, 45)] * 4  # 70 x 90 in tiles of at most 48
    seen = [tile.shape[2:] for tile in features._tiles(images)]
    assert [tuple(shape) for shape in seen] == tiles
    parts = [backbone.representation(tile) for tile in features._tiles(images)]
    torch.testing.assert_close(model(images), torch.stack(parts).mean(0), atol=1e-6, rtol=1e-5)
    uneven = [tile.shape[2] * tile.shape[3] for tile in features._tiles(torch.zeros(1, 3, 101, 97))]
    assert sum(uneven) == 101 * 97 and max(uneven) <= 48 * 48
    assert [t.shape for t in features._tiles(torch.zeros(1, 3, 48, 48))] == [(1, 3, 48, 48)]


@pytest.mark.parametrize("height, width", [(5, 200), (1, 1), (1, 40), (33, 17)])
def test_small_images_are_continued(backbone, height, width):
    h = FrozenFeatures([backbone], [Contract()])(torch.rand(1, 3, height, width))
    assert h.shape == (1, 2 * backbone.representation_dim) and bool(torch.isfinite(h).all())


def test_backbones_are_frozen_for_good():
    backbone = Backbone("test_resnet")
    model = FrozenFeatures([backbone], [Contract()]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.rand(4, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_errors(backbone, images):
    with pytest.raises(ValueError, match="Expected a contract for each backbone, got 1 and 2"):
        FrozenFeatures([backbone], [Contract(), Contract()])
    with pytest.raises(ValueError, match=r"Expected backbones of the same channels, got \[1, 3\]"):
        FrozenFeatures([backbone, Backbone("test_resnet", channels=1)], [Contract(), Contract()])
    with pytest.raises(ValueError, match="Expected images .B,3,H,W., got .2, 1, 70, 90."):
        FrozenFeatures([backbone], [Contract()])(images[:, :1])
