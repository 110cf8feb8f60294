import pytest
import torch
import torch.nn.functional as F

from csrtrain import bundle
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


def test_means_of_stages_each_of_length_one(backbone, images):
    model = FrozenFeatures([backbone], [Contract((1.0, 0.5), stages=(1, 3))])
    half = F.interpolate(images, (35, 45), mode="bilinear", antialias=True)
    expected = []
    for x in (images, half):
        maps = backbone.feature_maps(x)
        expected += [maps[k].flatten(2).mean(2) / maps[k].flatten(2).mean(2).norm(dim=1, keepdim=True) for k in (1, 3)]
    torch.testing.assert_close(model(images), torch.cat(expected, 1), atol=1e-6, rtol=1e-5)
    assert model.sizes == [backbone.stage_channels[k] for k in (1, 3)] * 2
    folded = model.folded()
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).dtype == torch.float32


def test_the_last_stage_of_a_resnet_is_its_representation(backbone, images):
    last = len(backbone.stage_channels) - 1
    one, other = (FrozenFeatures([backbone], [Contract(stages=stages)])(images) for stages in (None, (last,)))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stages", [(), (0, 5), (-1,), (1, 1), (2, 0)])
def test_stages_that_there_are_not(backbone, stages):
    with pytest.raises(ValueError, match=r"Expected stages in order from 0 to 4, got \["):
        FrozenFeatures([backbone], [Contract(stages=stages)])


def test_large_images_go_in_tiles_weighted_by_area(backbone, images, monkeypatch):
    monkeypatch.setattr(features, "TILE", 48)
    model = FrozenFeatures([backbone], [Contract((1.0,), False)])
    tiles = [images[:, :, top : top + 35, left : left + 45] for top in (0, 35) for left in (0, 45)]
    parts = [backbone.representation(tile) for tile in tiles]
    torch.testing.assert_close(model(images), torch.stack(parts).mean(0), atol=1e-6, rtol=1e-5)
    uneven = list(features._pieces(torch.zeros(1, 3, 101, 97), Contract(), 1.0))
    assert sum((p.bottom - p.top) * (p.right - p.left) for p in uneven) == 101 * 97
    assert max((p.bottom - p.top) * (p.right - p.left) for p in uneven) <= 48 * 48
    assert sum(p.share for p in uneven) == pytest.approx(1)
    assert len(list(features._pieces(torch.zeros(1, 3, 48, 48), Contract(), 1.0))) == 1


def test_five_crops_are_the_mean_of_their_representations(backbone, images):
    model = FrozenFeatures([backbone], [Contract((1.0, 0.5), True, 32)])
    parts = []
    for side in (32, 64):
        crops = [images[:, :, y : y + side, x : x + side] for y, x in _corners(70, 90, side)]
        if side == 64:
            crops = [F.interpolate(crop, (32, 32), mode="bilinear", antialias=True) for crop in crops]
        parts.append(torch.stack([F.normalize(backbone.representation(crop), dim=1) for crop in crops]).mean(0))
    torch.testing.assert_close(model(images), torch.cat(parts, 1), atol=1e-6, rtol=1e-5)
    assert model(images[:, :, :20, :]).isfinite().all()  # shorter than a crop


def _corners(height, width, side):
    h, w = height - side, width - side
    return [(h // 2, w // 2), (0, 0), (0, w), (h, 0), (h, w)]


@pytest.mark.parametrize(
    "contract",
    [
        Contract(),
        Contract((1.0, 0.5, 0.7), False),
        Contract((1.0, 0.5), True, 40),
        Contract((0.5,), False, 40),
        Contract(stages=(0, 2, 4)),
        Contract((0.5,), True, 40, (1, 3)),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 97, 130), (1, 3, 20, 150), (1, 3, 130, 129)])
def test_the_decomposition_sums_to_the_product(backbone, contract, shape, monkeypatch):
    monkeypatch.setattr(features, "TILE", 96)
    model = FrozenFeatures([backbone], [contract])
    generator = torch.Generator().manual_seed(1)
    x, w = torch.rand(shape, generator=generator), torch.randn(sum(model.sizes), generator=generator)
    h, found = model.decompose(x, w)
    torch.testing.assert_close(h, model(x), atol=1e-6, rtol=1e-5)
    assert found.shape == (shape[0], -(-shape[2] // 32), -(-shape[3] // 32))
    torch.testing.assert_close(found.sum((1, 2)), model(x) @ w, atol=1e-5, rtol=1e-5)


def test_the_decomposition_finds_the_place():
    class Bright(Backbone):  # a backbone whose one feature is brightness
        def __init__(self):
            super().__init__("test_resnet")
            self.network = torch.nn.AvgPool2d(32)

        representation_dim = 3

        def representation(self, images):
            return self.pooled_map(images).mean((2, 3))

        def pooled_map(self, images):
            return self.network(images)

    x = torch.zeros(1, 3, 128, 96)
    x[:, 0, 32:64, 64:96] = 1
    _, found = FrozenFeatures([Bright()], [Contract((1.0,), False)]).decompose(x, torch.tensor([12.0, 0, 0]))
    expected = torch.zeros(1, 4, 3)
    expected[0, 1, 2] = 1.0
    torch.testing.assert_close(found, expected)


def test_no_decomposition_without_a_mean_over_a_map(images):
    model = FrozenFeatures([Backbone("test_vit").eval()], [Contract()])
    with pytest.raises(ValueError, match="mean of its last feature map, as a ResNet's, got test_vit"):
        model.decompose(images, torch.zeros(sum(model.sizes)))


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


def test_the_contract_that_a_bundle_declares(backbone):
    assert Contract.declared_by(backbone) == Contract((1.0, 0.5), True, None)
    backbone.header = bundle.header_for(backbone, features={"scales": [1], "l2": False})
    assert Contract.declared_by(backbone) == Contract((1.0,), False, None)


def test_errors(backbone, images):
    with pytest.raises(ValueError, match="Expected a contract for each backbone, got 1 and 2"):
        FrozenFeatures([backbone], [Contract(), Contract()])
    with pytest.raises(ValueError, match=r"Expected backbones of the same channels, got \[1, 3\]"):
        FrozenFeatures([backbone, Backbone("test_resnet", channels=1)], [Contract(), Contract()])
    with pytest.raises(ValueError, match="Expected images .B,3,H,W., got .2, 1, 70, 90."):
        FrozenFeatures([backbone], [Contract()])(images[:, :1])


@pytest.mark.parametrize(
    "name", ["test_resnet", "resnet18", "resnet50d", "resnetv2_50", "efficientnet_b0", "test_convnext"]
)
def test_folded_features_are_equal(name):
    torch.manual_seed(0)
    backbone = Backbone(name)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    model, x = FrozenFeatures([backbone], [Contract((1.0,))]).eval(), torch.rand(1, 3, 64, 64)
    names = list(model.state_dict())
    folded = model.folded()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names
    left = sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert left <= {"resnet18": 0, "test_resnet": 1, "resnet50d": 1}.get(name, 999)  # 1: behind a stem of three layers
