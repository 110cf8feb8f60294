import copy
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from csrtrain.models.backbone import Backbone, freeze

TESTED = ["resnet18", "resnet50", "convnext_tiny", "vit_small_patch16_224"]
# timm's own small models of the same families, for what does not depend on size.
SMALL = ["test_resnet", "test_convnext", "test_vit"]


@pytest.fixture(scope="module", params=TESTED)
def pair(request, tmp_path_factory):
    """timm's own model with its classifier, and the file of its state dict."""
    torch.manual_seed(0)
    reference = timm.create_model(request.param).eval()
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_file(reference.state_dict(), path)
    return request.param, reference, path


def test_representation_equals_timm(pair):
    name, reference, path = pair
    backbone = Backbone(name, 3, str(path)).eval()
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(reference.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = reference.forward_features((images - mean) / std)
        expected = reference.forward_head(features, pre_logits=True)
        h = backbone(images)
    assert h.shape == (2, backbone.representation_dim)
    assert torch.equal(h, expected)


@pytest.mark.parametrize("name", [*SMALL, "swin_tiny_patch4_window7_224"])
def test_patch_representations_are_those_of_the_parts(name):
    torch.manual_seed(0)
    backbone = Backbone(name, 1).eval()
    size = 224 if "swin" in name else 192
    images = torch.rand(2, 1, size, size)
    with torch.no_grad():
        whole, parts = backbone.patch_representations(images, 1), backbone.patch_representations(images, 2)
        last = backbone.network.forward_features(backbone._normalised(images))
        h = backbone.representation(images)
    assert whole.shape == (2, 1, backbone.representation_dim) and parts.shape == (2, 4, backbone.representation_dim)
    if name == "test_vit":  # its representation is the class token's
        tokens = last[:, backbone.network.num_prefix_tokens :].unflatten(1, (12, 12))  # (2,12,12,D)
        assert torch.allclose(whole[:, 0], tokens.mean((1, 2)), atol=1e-5)
        assert torch.allclose(parts[:, 1], tokens[:, :6, 6:].mean((1, 2)), atol=1e-5)
    else:
        assert torch.allclose(whole[:, 0], h, atol=1e-5)
    if name == "test_resnet":
        side = last.shape[-1] // 2
        assert torch.allclose(parts[:, 2], last[:, :, -side:, :side].mean((2, 3)), atol=1e-5)
        assert torch.allclose(parts.mean(1), h, atol=1e-5)


def test_feature_maps_equal_the_layers(pair):
    name, reference, path = pair
    backbone = Backbone(name, 3, str(path), mean=[0.0] * 3, std=[1.0] * 3).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        maps = backbone.feature_maps(images)
        if name.startswith("vit"):
            tokens = reference.norm(maps[-1].flatten(2).transpose(1, 2))
            assert torch.equal(tokens, reference.forward_features(images)[:, 1:])
        else:
            extractor = timm.create_model(name, features_only=True).eval()
            extractor.load_state_dict(
                {
                    k.replace("stem.", "stem_").replace("stages.", "stages_"): v
                    for k, v in reference.state_dict().items()
                }
                if name.startswith("convnext")
                else reference.state_dict(),
                strict=False,
            )
            for ours, theirs in zip(maps, extractor(images), strict=True):
                assert torch.equal(ours, theirs)
    assert [m.shape[1] for m in maps] == backbone.stage_channels


def test_one_channel_is_grey_rgb(pair):
    name, _, path = pair
    grey = torch.rand(2, 1, 64, 64)
    one = Backbone(name, 1, str(path), mean=[0.4], std=[0.2]).eval()
    three = Backbone(name, 3, str(path), mean=[0.4] * 3, std=[0.2] * 3).eval()
    with torch.no_grad():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TESTED)
def test_every_parameter_takes_a_gradient(name):
    """DDP needs it: no classifier, no unused norm."""
    backbone = Backbone(name, channels=1)
    backbone(torch.rand(2, 1, 64, 64)).square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", [*SMALL, "mobilenetv3_small_050"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_shapes(name, channels):
    backbone = Backbone(name, channels).eval()
    images = torch.rand(2, channels, 100, 132)
    with torch.no_grad():
        h, maps = backbone.representation(images), backbone.feature_maps(images)
    assert h.shape == (2, backbone.representation_dim)
    assert [m.shape[:2] for m in maps] == [(2, c) for c in backbone.stage_channels]
    heights = [m.shape[2] for m in maps]
    assert heights == sorted(heights, reverse=True)
    assert backbone.has_batch_norm == (name in ("test_resnet", "mobilenetv3_small_050"))


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_gives_the_same(name):
    backbone = Backbone(name).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)
        backbone.to(memory_format=torch.channels_last)
        h = backbone(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(h, expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_computed_twice_or_for_nothing():
    backbone = Backbone("test_convnext").eval()
    calls = []
    for name in ("stem", "stages.3", "head.norm"):
        backbone.network.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    images = torch.rand(1, 3, 64, 64)
    backbone.representation(images)
    assert calls == ["stem", "stages.3", "head.norm"]
    calls.clear()
    backbone.feature_maps(images)
    assert calls == ["stem", "stages.3"]


def test_compiles_without_graph_breaks():
    backbone = Backbone("test_resnet").eval()
    images = torch.rand(2, 3, 64, 64)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), backbone(images), atol=1e-5, rtol=1e-5)


def test_arguments_rebuild_it():
    backbone = Backbone("test_vit", 2, mean=[0.1, 0.2], std=[0.3, 0.4]).eval()
    arguments = json.loads(json.dumps(backbone.arguments()))
    other = Backbone(**arguments).eval()
    other.load_state_dict(backbone.state_dict(), strict=True)
    assert other.arguments() == backbone.arguments()
    images = torch.rand(1, 2, 96, 64)
    assert torch.equal(other(images), backbone(images))


def test_normalisation():
    assert Backbone("test_resnet", 2).arguments()["mean"] == [0.5, 0.5]
    backbone = Backbone("test_resnet", 1, mean=[0.25], std=[0.5])
    shifted = Backbone("test_resnet", 1, mean=[0.0], std=[1.0])
    shifted.network.load_state_dict(backbone.network.state_dict())
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(backbone.eval()(images), shifted.eval()((images - 0.25) / 0.5))


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, [0.449]), (3, [0.485, 0.456, 0.406]), (4, [0.485, 0.456, 0.406, 0.485])]
)
def test_normalisation_follows_the_weights(channels, mean, tmp_path):
    path = tmp_path / "plain.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    declared = Backbone("resnet10t", channels, str(path)).arguments()["mean"]
    assert declared == pytest.approx(mean)


# Freezing


class Parent(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.representation_dim, 1)

    def forward(self, images):
        return self.head(self.backbone(images))


def test_frozen_statistics_and_weights_do_not_move():
    parent = Parent(freeze(Backbone("test_resnet"))).train()
    assert parent.head.training and not any(m.training for m in parent.backbone.modules())
    before = copy.deepcopy(parent.backbone.state_dict())
    optimizer = torch.optim.SGD((p for p in parent.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):
        parent(torch.rand(4, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        parent.train()
    assert all(torch.equal(before[name], value) for name, value in parent.backbone.state_dict().items())


def test_unfrozen_statistics_move():
    parent = Parent(Backbone("test_resnet")).train()
    before = copy.deepcopy(parent.backbone.state_dict())
    parent(torch.rand(4, 3, 64, 64))
    moved = [name for name, value in parent.backbone.state_dict().items() if not torch.equal(before[name], value)]
    assert any("running_mean" in name for name in moved)


def test_frozen_records_no_graph_but_passes_gradients_to_images():
    backbone = freeze(Backbone("test_resnet"))
    images = torch.rand(1, 3, 64, 64)
    assert not backbone(images).requires_grad
    images.requires_grad_()
    backbone(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.parameters())


def test_a_copy_of_a_frozen_backbone_is_frozen():
    duplicate = copy.deepcopy(freeze(Backbone("test_resnet"))).train()
    assert not duplicate.training and not any(p.requires_grad for p in duplicate.parameters())


# Weights from files


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_torch_state_dict(wrap, tmp_path):
    reference = timm.create_model("test_resnet")
    torch.save(wrap(reference.state_dict()), tmp_path / "weights.pth")
    backbone = Backbone("test_resnet", weights=str(tmp_path / "weights.pth"))
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name])


def test_imagenet_from_the_cache_of_huggingface_hub(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    reference = timm.create_model("test_resnet")
    save_file(reference.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = Backbone("test_resnet", weights="imagenet")
    assert torch.equal(backbone.network.conv1[0].weight, reference.conv1[0].weight)
    assert backbone.arguments()["mean"] == pytest.approx(reference.pretrained_cfg["mean"])


@pytest.fixture
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "torch"))
    yield tmp_path
    torch.hub.set_dir(before)


def test_imagenet_from_the_cache_of_torch(empty_caches):
    reference = timm.create_model("resnet10t")
    folder = empty_caches / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(reference.state_dict(), folder / timm.get_pretrained_cfg("resnet10t").url.split("/")[-1])
    backbone = Backbone("resnet10t", weights="imagenet")
    assert torch.equal(backbone.network.layer1[0].conv1.weight, reference.layer1[0].conv1.weight)


def test_imagenet_without_a_cache_says_how_to_get_it(empty_caches):
    with pytest.raises(ValueError, match=r"resnet18 in the local cache, got none.*timm.create_model\('resnet18', pre"):
        Backbone("resnet18", weights="imagenet")
    with pytest.raises(ValueError, match="Expected a timm model with pretrained weights, got nf_resnet26"):
        Backbone("nf_resnet26", weights="imagenet")


# Errors


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("vit_small", "vit_small_patch16_224"),
        ("resnet81", "resnet18"),
        ("resnet18.no_such_tag", "resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k", "Expected the name of a timm model"),
        ("local-dir:/tmp", "Expected the name of a timm model"),
        ("xyzzy", r"timm.list_models\(\) lists"),
    ],
)
def test_unknown_names(name, close):
    with pytest.raises(ValueError, match=close):
        Backbone(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "Expected channels >= 1, got 0"),
        ({"mean": [0.5]}, "Expected mean with 3 values, one per channel"),
        ({"std": [0.1, 0.2, 0.0]}, "Expected std above 0"),
        ({"weights": "missing.safetensors"}, "Expected a file, got No such file or directory for missing.safetensors"),
        ({"weights": "missing.pth"}, "Expected a file, got none at missing.pth"),
        ({"weights": "imagnet"}, "Expected weights in a .safetensors, .pth"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Backbone("test_resnet", **arguments)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_another_architecture(suffix, tmp_path):
    path = tmp_path / f"other{suffix}"
    state = timm.create_model("test_vit").state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    with pytest.raises(ValueError, match=rf"Expected weights that fit test_resnet with 1 channels.*other{suffix}"):
        Backbone("test_resnet", 1, str(path))


def test_incomplete_weights(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    del state["layer4.0.conv1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="Missing key.*layer4.0.conv1.weight"):
        Backbone("test_resnet", weights=str(tmp_path / "part.safetensors"))


class Malicious:
    def __reduce__(self):
        return print, ("code of a pickle ran",)


def test_a_pickle_is_not_run(tmp_path, capsys):
    torch.save({"weight": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth, got a pickle that asks for .*print and could run code"):
        Backbone("test_resnet", weights=str(tmp_path / "evil.pth"))
    assert "ran" not in capsys.readouterr().out


def test_no_state_dict(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match=r"Expected a state dict .*numbers.pth, got \['epoch'\]"):
        Backbone("test_resnet", weights=str(tmp_path / "numbers.pth"))


@pytest.mark.parametrize(
    "images", [torch.rand(2, 1, 64, 64), torch.rand(3, 64, 64), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)]
)
def test_wrong_images(images):
    backbone = Backbone("test_resnet")
    for call in (backbone, backbone.feature_maps):
        with pytest.raises(ValueError, match=r"Expected images \(B,3,H,W\), float in \[0,1\], got"):
            call(images)
