import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch

import csrtrain
from benchmarks import harness
from csrtrain import bundle, headers
from csrtrain.models.backbone import Backbone
from csrtrain.models.difference import DifferenceMetric
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

TRAINING = {
    "method": "SimCLR",
    "config": "medical_simclr",
    "data": {"digest": "00ff", "images": 7},
    "seed": 3,
    "steps": 9,
}


@pytest.fixture(scope="module", params=["test_resnet", "test_convnext", "test_vit"])
def backbone(request):
    torch.manual_seed(0)
    made = Backbone(request.param, 2, mean=[0.1, 0.2], std=[0.3, 0.4])
    made.train()(torch.rand(4, 2, 64, 64))  # batch-norm statistics that are not the initial ones
    return made.eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Backbone("test_resnet", 1)


@pytest.fixture
def saved(small, tmp_path):
    path = tmp_path / "small.safetensors"
    bundle.save(path, small, bundle.header_for(small))
    return path


def test_round_trip_is_exact(backbone, tmp_path):
    header = bundle.header_for(
        backbone, window=[40.0, 400.0], training=TRAINING, versions={"torch": "2"}, results={"train/loss": 1.5}
    )
    path = tmp_path / "backbone.safetensors"
    bundle.save(path, backbone, header)
    assert headers.read_header(path) == header
    loaded = csrtrain.load(path)
    assert loaded.header == header and not loaded.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = torch.rand(2, 2, 64, 80)
    with torch.no_grad():
        assert torch.equal(loaded.representation(images), backbone.representation(images))
        for ours, theirs in zip(loaded.feature_maps(images), backbone.feature_maps(images), strict=True):
            assert torch.equal(ours, theirs)


def test_header_says_what_the_design_asks(backbone):
    header = bundle.header_for(backbone, training=TRAINING)
    assert header.kind == "backbone" and header.format == 1
    assert header.input == {
        "channels": 2,
        "range": [0.0, 1.0],
        "mean": backbone.arguments()["mean"],
        "std": backbone.arguments()["std"],
        "window": "header",
    }
    assert header.features == {
        "representation_dim": backbone.representation_dim,
        "stages": backbone.stage_channels,
        "scales": [1.0],
        "l2": False,
    }
    assert json.loads(json.dumps(asdict(header))) == asdict(header)


def test_same_content_same_bytes(backbone, tmp_path):
    header = bundle.header_for(backbone, training=TRAINING)
    bundle.save(tmp_path / "a.safetensors", backbone, header)
    bundle.save(tmp_path / "b.safetensors", backbone, replace(header, training=dict(reversed(TRAINING.items()))))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_channels_last_and_results_that_are_not_finite(small, tmp_path):
    small.to(memory_format=torch.channels_last)
    header = bundle.header_for(small, results={"good": 0.5, "bad": float("inf"), "worse": float("nan")})
    assert header.results == {"good": 0.5}
    bundle.save(tmp_path / "x.safetensors", small, header)
    assert torch.equal(bundle.load(tmp_path / "x.safetensors").network.conv1[0].weight, small.network.conv1[0].weight)


def test_a_failed_save_leaves_the_old_file(small, saved):
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="Expected plain, finite data in a bundle's header"):
        bundle.save(saved, small, replace(bundle.header_for(small), training={"loss": float("nan")}))
    with pytest.raises(ValueError, match="Expected plain, finite data in a bundle's header"):
        bundle.save(saved, small, replace(bundle.header_for(small), training={"x": torch.zeros(1)}))
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_save_refuses_other_names_and_headers(small, tmp_path):
    with pytest.raises(ValueError, match="ends in .safetensors for a bundle, got .*x.pt"):
        bundle.save(tmp_path / "x.pt", small, bundle.header_for(small))
    with pytest.raises(ValueError, match="Expected the header of this backbone, got one of .*test_vit"):
        bundle.save(tmp_path / "x.safetensors", small, bundle.header_for(Backbone("test_vit")))


# A bundle as backbone and as weights


def test_backbone_from_a_bundle(small, saved):
    for made in (Backbone(str(saved), 1), Backbone("test_resnet", 1, weights=str(saved))):
        assert made.arguments() == small.arguments()
        for name, value in small.state_dict().items():
            assert torch.equal(made.state_dict()[name], value)


def test_backbone_from_a_bundle_with_other_channels(tmp_path):
    colour = Backbone("test_resnet", 3, mean=[0.1, 0.2, 0.3], std=[0.4] * 3)
    bundle.save(tmp_path / "colour.safetensors", colour, bundle.header_for(colour))
    grey = Backbone(str(tmp_path / "colour.safetensors"), 1)
    assert grey.arguments()["mean"] == pytest.approx([0.2]) and grey.arguments()["std"] == pytest.approx([0.4])
    torch.testing.assert_close(grey.network.conv1[0].weight, colour.network.conv1[0].weight.sum(1, keepdim=True))
    bundle.save(tmp_path / "grey.safetensors", grey, bundle.header_for(grey))
    again = Backbone(str(tmp_path / "grey.safetensors"), 3)
    torch.testing.assert_close(again.network.conv1[0].weight.sum(1, keepdim=True), grey.network.conv1[0].weight)


def test_backbone_and_bundle_must_agree(saved, tmp_path):
    with pytest.raises(ValueError, match="Expected weights of test_vit, got a bundle of test_resnet in .*small"):
        Backbone("test_vit", 1, weights=str(saved))
    with pytest.raises(ValueError, match="Expected weights none beside the bundle .*small.safetensors, got imagenet"):
        Backbone(str(saved), 1, weights="imagenet")
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, plain)
    with pytest.raises(ValueError, match="Expected a csrtrain bundle as backbone, got plain weights in .*plain"):
        Backbone(str(plain))


# Hostile and damaged files


def rewrite(path, **changes):
    """The bundle with parts of its header changed."""
    header = json.loads(safetensors.safe_open(path, "pt").metadata()["csrtrain"])
    header.update(changes)
    safetensors.torch.save_file(safetensors.torch.load(path.read_bytes()), path, {"csrtrain": json.dumps(header)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "Expected bundle format 1 in .*small.safetensors, got 2"),
        ({"kind": "distance"}, "kind backbone, no_reference, full_reference in .*small.safetensors, got 'distance'"),
        ({"surprise": 1}, "Expected the header fields .* in .*small.safetensors, got .*surprise"),
        ({"training": []}, "Expected a mapping training in the header of .*small.safetensors"),
        ({"backbone": "os.system"}, "Expected a mapping backbone in the header of .*small.safetensors"),
        ({"input": {"channels": 3}}, "Expected the same channels for input and backbone in .*small.safetensors"),
    ],
)
def test_changed_headers(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=message):
        bundle.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_target_": "os.system"}, "Expected backbone arguments name, channels, mean, std in .*small"),
        ({"name": "hf-hub:a/b"}, "Expected the name of a timm model"),
        ({"name": "/etc/other.safetensors"}, "Expected the name of a timm model"),
        ({"name": 3}, "Expected a name and a number of channels in .*small"),
        ({"channels": 10**12}, "Expected mean and std as 1000000000000 numbers in .*small"),
        ({"mean": ["0.5"]}, "Expected mean and std as 1 numbers in .*small"),
    ],
)
def test_changed_backbone_arguments(small, saved, changes, message):
    rewrite(saved, backbone={**small.arguments(), **changes})
    with pytest.raises(ValueError, match=message):
        bundle.load(saved)


def test_header_and_weights_disagree(small, saved):
    arguments = {**small.arguments(), "mean": [0.25]}
    contract = {**bundle.header_for(small).input, "mean": [0.25]}
    rewrite(saved, backbone=arguments, input=contract)
    with pytest.raises(ValueError, match="Expected mean and std of the header among the weights of .*small"):
        bundle.load(saved)
    rewrite(saved, backbone={**small.arguments(), "name": "test_vit"}, input=bundle.header_for(small).input)
    with pytest.raises(ValueError, match="Expected weights of test_vit in .*small.safetensors, got others"):
        bundle.load(saved)


def test_wrong_shapes_and_foreign_tensors(small, saved):
    tensors = safetensors.torch.load(saved.read_bytes())
    metadata = safetensors.safe_open(saved, "pt").metadata()
    shape = {**tensors, "backbone.network.conv1.0.weight": torch.zeros(1, 1, 3, 3)}
    safetensors.torch.save_file(shape, saved, metadata)
    with pytest.raises(ValueError, match="Expected weights of test_resnet in .*small.safetensors, got others: .*size"):
        bundle.load(saved)
    safetensors.torch.save_file({**tensors, "payload": torch.zeros(3)}, saved, metadata)
    with pytest.raises(ValueError, match="got others: .*Unexpected key.*payload"):
        bundle.load(saved)


@pytest.mark.parametrize("sixteenth", range(16))
def test_truncated(saved, sixteenth):
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) * sixteenth // 16])
    with pytest.raises(ValueError, match=r"Expected a .*safetensors file.* got .*small.safetensors.*Use another copy"):
        bundle.load(saved)


class Malicious:
    def __reduce__(self):
        return print, ("code of a pickle ran",)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_posing_as_a_bundle(tmp_path, write, capsys):
    path = tmp_path / "evil.safetensors"
    with path.open("wb") as file:
        write({"backbone": Malicious()}, file)
    with pytest.raises(ValueError, match="Expected a safetensors file, got a pickle or zip file in .*evil.safetensors"):
        bundle.load(path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**63 + 5),
        struct.pack("<Q", bundle.weights.MAX_HEADER_BYTES + 1) + bytes(bundle.weights.MAX_HEADER_BYTES + 1),
        struct.pack("<Q", 16) + b"not json at all!",
        struct.pack("<Q", 2) + b"{}garbage",
        torch.randint(0, 256, (4096,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy().tobytes(),
    ],
)
def test_garbage(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected a .*safetensors file.* got .*garbage.safetensors"):
        bundle.load(path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '"' + "x" * 100_000])
def test_header_text_that_is_no_header(saved, text):
    safetensors.torch.save_file(safetensors.torch.load(saved.read_bytes()), saved, {"csrtrain": text})
    with pytest.raises(ValueError, match=r"Expected (a JSON header|bundle format 1) in .*small.safetensors"):
        bundle.load(saved)


def test_missing_folder_and_foreign(tmp_path):
    with pytest.raises(ValueError, match="Expected a file, got No such file or directory for .*none.safetensors"):
        bundle.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="Expected a file, got Is a directory for"):
        bundle.load(tmp_path)
    safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="got a safetensors file without its header in .*plain.safetensors"):
        bundle.load(tmp_path / "plain.safetensors")


# Export


@pytest.fixture
def checkpoint(small, tmp_path):
    state = {f"backbone.{name}": value for name, value in small.state_dict().items()}
    state.update({f"key_{name}": value + 1 for name, value in list(state.items())})
    state["head.weight"] = torch.zeros(2)
    content = {
        "state_dict": state,
        "global_step": 9,
        "csrtrain": {
            **{key: TRAINING[key] for key in ("method", "seed", "steps")},
            "backbone": small.arguments(),
            "data": {"digest": "00ff", "images": 7, "window": [40.0, 400.0]},
            "versions": {"torch": "2"},
            "results": {"train/loss": 1.25, "train/rate": float("nan")},
        },
    }
    path = tmp_path / "step.ckpt"
    torch.save(content, path)
    return path


def test_export(small, checkpoint, tmp_path):
    output = tmp_path / "new" / "exported.safetensors"
    header = bundle.export_checkpoint(checkpoint, output)
    loaded = csrtrain.load(output)
    assert loaded.header == header
    assert header.input["window"] == [40.0, 400.0] and header.results == {"train/loss": 1.25}
    assert header.training["method"] == "SimCLR" and header.training["data"]["digest"] == "00ff"
    for name, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_export_refuses_what_is_not_ours(checkpoint, tmp_path):
    output = tmp_path / "out.safetensors"
    content = torch.load(checkpoint, weights_only=True)
    with pytest.raises(ValueError, match="Expected weights, got a checkpoint of a csrtrain run in .*step.ckpt"):
        Backbone("test_resnet", 1, weights=str(checkpoint))
    torch.save({**content, "csrtrain": {**content["csrtrain"], "backbone": {"name": "test_vit"}}}, checkpoint)
    with pytest.raises(ValueError, match="Expected backbone arguments name, channels, mean, std in .*step.ckpt"):
        bundle.export_checkpoint(checkpoint, output)
    torch.save({"state_dict": content["state_dict"]}, checkpoint)
    with pytest.raises(ValueError, match="Expected a checkpoint of csrtrain fit, got one without its description"):
        bundle.export_checkpoint(checkpoint, output)
    torch.save({**content, "callbacks": Malicious()}, checkpoint)
    with pytest.raises(ValueError, match="step.ckpt, got a pickle that asks for .*print and could run code"):
        bundle.export_checkpoint(checkpoint, output)
    with pytest.raises(ValueError, match="Expected a file, got none at .*none.ckpt"):
        bundle.export_checkpoint(tmp_path / "none.ckpt", output)
    torch.save([1, 2], checkpoint)
    with pytest.raises(ValueError, match="Expected a dict in .*step.ckpt, got a list"):
        bundle.export_checkpoint(checkpoint, output)
    assert not output.exists()


@pytest.mark.parametrize("sixteenth", range(16))
def test_export_of_a_truncated_checkpoint(checkpoint, tmp_path, sixteenth):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) * sixteenth // 16])
    with pytest.raises(ValueError, match=r"step.ckpt, got a damaged or foreign file"):
        bundle.export_checkpoint(checkpoint, tmp_path / "out.safetensors")


# The package


def test_imports_are_cheap():
    """`import csrtrain` does not import torch, and loading a bundle needs no Lightning."""
    code = (
        "import sys, csrtrain; print(csrtrain.__version__, 'torch' in sys.modules, 'numpy' in sys.modules);"
        "csrtrain.load; print([m for m in ('lightning', 'lightly', 'kornia') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{csrtrain.__version__} False False", "[]"]


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'csrtrain' has no attribute 'lod'"):
        csrtrain.lod  # noqa: B018


# Distances


@pytest.fixture(params=["maps", "representations"])
def distance(request, small):
    torch.manual_seed(1)
    if request.param == "maps":
        made = FullReferenceMetric(small, [0, 2], [1, 0.5])
        for weight in made.weights.values():
            weight.data.uniform_()
    else:
        made = DifferenceMetric(FrozenFeatures([small], [Contract()]))
        made.weight.data.uniform_(-1, 1)
    return made.eval()


def save_distance(metric, path):
    described = bundle.described_distance(metric, [40.0, 400.0], {"method": "test"}, {"2afc": 0.7}, "mos")
    bundle.save(path, metric, headers.DistanceHeader(**described))


def test_distance_round_trip_is_exact(distance, tmp_path):
    save_distance(distance, tmp_path / "d.safetensors")
    loaded = csrtrain.load(tmp_path / "d.safetensors")
    assert loaded.header.kind == "full_reference" and loaded.header.distance["fitted_to"] == "mos"
    assert loaded.header.input["window"] == [40.0, 400.0] and not loaded.training
    x, y = torch.rand(2, 3, 1, 64, 64)
    assert torch.equal(loaded.distance(x, y), distance.distance(x, y)) and bool((loaded.distance(x, x) == 0).all())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_damaged_distance_is_refused(distance, tmp_path):
    path = tmp_path / "d.safetensors"
    name = next(name for name in distance.state_dict() if name.startswith("weight"))
    distance.get_parameter(name).data[0] = torch.nan
    save_distance(distance, path)
    with pytest.raises(ValueError, match=f"header of a distance in .*d.safetensors, got others: not finite: .*{name}"):
        csrtrain.load(path)
    distance.get_parameter(name).data[0] = 0
    save_distance(distance, path)
    for change in ({"features": [{}]}, {"distance": {"of": "pixels"}}, {"backbones": []}):
        rewrite(path, **change)
        with pytest.raises(ValueError, match="Expected the weights and header of a distance in .*d.safetensors"):
            csrtrain.load(path)
        save_distance(distance, path)


def test_a_distance_of_a_backbone_needs_no_ratings(small, saved, tmp_path):
    header = bundle.export_distance(saved, tmp_path / "d.safetensors", [1, 2], [1, 0.5])
    assert header.distance["fitted_to"] == "ones" and header.features == [
        {"stages": [1, 2], "scales": [1.0, 0.5], "half_scale_filter": "bilinear_aa"}
    ]
    x, y = torch.rand(2, 3, 1, 64, 64)
    expected = FullReferenceMetric(small, [1, 2], [1, 0.5]).distance(x, y)
    torch.testing.assert_close(bundle.load_distance(tmp_path / "d.safetensors").distance(x, y), expected)
    with pytest.raises(ValueError, match="Expected the bundle of a full-reference distance, .*--distance"):
        bundle.load_distance(saved)
    with pytest.raises(ValueError, match="Expected stages in order"):
        bundle.export_distance(saved, tmp_path / "d.safetensors", [9])


def test_distances_of_before_have_one_scale(small, tmp_path):
    path = tmp_path / "d.safetensors"
    save_distance(FullReferenceMetric(small), path)
    rewrite(path, features=[{"stages": [0, 1, 2, 3, 4]}])
    assert bundle.load_distance(path).scales == (1.0,)


@pytest.mark.parametrize("scales", [[1e9], ["1"], [1.0] * 17, [1.0, 1.0], [], None])
def test_scales_that_cannot_be_computed(small, tmp_path, scales):
    path = tmp_path / "d.safetensors"
    save_distance(FullReferenceMetric(small), path)
    rewrite(path, features=[{"stages": [0, 1, 2, 3, 4], "scales": scales}])
    with pytest.raises(ValueError, match="Expected the weights and header of a distance in .*d.safetensors.*scales"):
        csrtrain.load(path)


# Headers that lie


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format":1,"format":1}', "damaged text .a name twice in a mapping"),
        ('{"format":1,"a":NaN}', "damaged text .the number NaN"),
        ('{"format":1,"a":1e400}', "damaged text .the number 1e400"),
        ('{"format":1,"a":' + "9" * 400 + "}", "damaged text .an integer beyond 64 bits"),
        ('{"format":1,"a":' + "[" * 40 + "]" * 40 + "}", "damaged text .nesting deeper than 32"),
        ('{"format":1,"a":[' + "1," * 100_000 + "1]}", "damaged text .more than 100000 parts"),
    ],
)
def test_json_that_readers_would_not_agree_on(saved, text, words):
    safetensors.torch.save_file(safetensors.torch.load(saved.read_bytes()), saved, {"csrtrain": text})
    with pytest.raises(ValueError, match=f"Expected a JSON header in .*small.safetensors, got {words}"):
        bundle.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "vit_7b_patch16_dinov3"},
            "Expected weights of vit_7b_patch16_dinov3 in .*small.*got others: Missing",
        ),
        ({"name": "hf-hub:a/b"}, "small.safetensors: Expected the name of a timm model"),
        ({"name": "x" * 10**6}, r"small.safetensors: .* got 1000000 characters, x{200}\.\.\.\."),
        ({"channels": True}, "Expected a name and a number of channels in .*small.*True"),
        ({"channels": 0, "mean": [], "std": []}, "Expected a name and a number of channels in .*small.* and 0"),
        ({"std": [0.0]}, "Expected std above 0 in .*small.*0.0"),
        ({"channels": 9000, "mean": [0.5] * 9000, "std": [0.5] * 9000}, "weights of test_resnet in .*Other size"),
    ],
)
def test_a_small_file_that_claims_a_large_network_takes_no_memory(small, saved, changes, message):
    arguments = {**small.arguments(), **changes}
    contract = {**bundle.header_for(small).input, **{k: arguments[k] for k in ("channels", "mean", "std")}}
    rewrite(saved, backbone=arguments, input=contract)
    assert harness.peak_memory(lambda: refused(saved, message)) < 100 * 2**20


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        bundle.load(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": {"scales": [1e9], "l2": False}}, r"scales .* got \[1000000000.0\]"),
        ({"features": {"scales": [1.0] * 17, "l2": False}}, "scales"),
        ({"features": {"scales": [1.0], "l2": 1}}, "l2 1"),
        ({"features": {}}, "scales"),
    ],
)
def test_a_use_that_cannot_be_computed(saved, changes, words):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=f"Expected the input and feature contract in the header of .*small.*{words}"):
        bundle.load(saved)


def test_a_window_that_is_none(small, saved):
    rewrite(saved, input={**bundle.header_for(small).input, "window": [1, "x"]})
    with pytest.raises(ValueError, match="Expected the input and feature contract in .*small.*window"):
        bundle.load(saved)


def test_weights_that_are_not_finite_or_no_floats(small, saved):
    tensors = safetensors.torch.load(saved.read_bytes())
    metadata = safetensors.safe_open(saved, "pt").metadata()
    name = "backbone.network.conv1.0.weight"
    for value, words in (
        (torch.full_like(tensors[name], torch.nan), "not finite"),
        (tensors[name].long(), "Other size or type of conv1.0.weight .*int64"),
        (tensors[name].to(torch.complex64), "Other size or type of conv1.0.weight .*complex64"),
    ):
        safetensors.torch.save_file({**tensors, name: value}, saved, metadata)
        with pytest.raises(ValueError, match=f"Expected weights of test_resnet in .*small.*got others: .*{words}"):
            bundle.load(saved)
    safetensors.torch.save_file({**tensors, name: tensors[name].half()}, saved, metadata)
    assert bundle.load(saved).network.conv1[0].weight.dtype == torch.float32


def test_stages_of_a_metric(small, saved):
    made = NoReferenceMetric(FrozenFeatures([small], [Contract(stages=(1, 2))]), RatingScale(0, 1), 0).eval()
    header = headers.MetricHeader(**bundle.described_metric(made, "header", {}, {}))
    bundle.save(saved, made, header)
    assert bundle.load(saved).features.contracts == (Contract(stages=(1, 2)),)
    tensors = {name: value.contiguous() for name, value in made.state_dict().items()}
    for wrong in ([1], [], [True, 2], "12", [1, 99], {"1": 2}):
        header.features[0]["stages"] = wrong
        safetensors.torch.save_file(tensors, saved, bundle.weights.metadata(asdict(header)))
        with pytest.raises(ValueError, match="header of a metric in .*small.safetensors, got others: "):
            bundle.load(saved)


def test_a_metric_of_before_stages_loads(small, saved):
    made = NoReferenceMetric(FrozenFeatures([small], [Contract()]), RatingScale(0, 1), 0).eval()
    header = headers.MetricHeader(**bundle.described_metric(made, "header", {}, {}))
    del header.features[0]["stages"]
    bundle.save(saved, made, header)
    assert bundle.load(saved).features.contracts == (Contract(),)


def test_training_images_that_take_no_room_in_the_file(small, saved):
    rater = NoReferenceMetric(FrozenFeatures([small], [Contract()]), RatingScale(0, 1), 0)
    header = headers.MetricHeader(**bundle.described_metric(rater, "header", {}, {}))
    tensors = {name: value.contiguous() for name, value in rater.state_dict().items()}
    tensors["domain.looks"] = torch.zeros(10**12, 0)
    header.domain["anchors"] = 10**12
    safetensors.torch.save_file(tensors, saved, bundle.weights.metadata(asdict(header)))
    with pytest.raises(
        ValueError, match="header of a metric in .*small.safetensors, got others: other training images"
    ):
        bundle.load(saved)


def test_pipes_and_addresses_are_no_bundles(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="got a device, pipe or socket for .*pipe.safetensors"):
        bundle.load(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="Nothing is fetched from a network"):
        bundle.load("https://127.0.0.1:9/x.safetensors")
    with pytest.raises(ValueError, match="embedded null byte"):
        bundle.load("a\0b.safetensors")


# Checkpoints that lie


def test_checkpoints_that_would_fill_the_memory(checkpoint, tmp_path):
    output = tmp_path / "out.safetensors"
    content = torch.load(checkpoint, weights_only=True)
    shared: list = [1]
    for _ in range(30):
        shared = [shared, shared]
    wide = {**content["state_dict"], "backbone.network.conv1.0.weight": torch.zeros(1).expand(10**12)}
    for changed, words in (
        ({"x": bytearray(10)}, "got a bytearray, which may claim any length"),
        ({"state_dict": wide}, "Expected plain tensors with all their numbers in .*step.ckpt, got another as .*conv1"),
        ({"csrtrain": {**content["csrtrain"], "data": {"window": shared}}}, "step.ckpt, got more than 100000 parts"),
    ):
        torch.save({**content, **changed}, checkpoint)
        with pytest.raises(ValueError, match=words):
            bundle.export_checkpoint(checkpoint, output)
    torch.save(content, checkpoint)
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(2**28) if name.endswith("data/0") else old.read(name))
    with pytest.raises(
        ValueError, match=r"whose parts are not compressed, in .*packed.ckpt, got 2\d{8} bytes packed in"
    ):
        bundle.export_checkpoint(packed, output)
    for start in (checkpoint.read_bytes(), b"\x80"):
        packed.write_bytes(start)
        os.truncate(packed, 2**36)  # takes no room on the disk, and a minute to read
        with pytest.raises(ValueError, match="packed.ckpt, got a damaged or foreign file"):
            bundle.export_checkpoint(packed, output)
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(ValueError, match="a device, pipe or socket for .*pipe.ckpt"):
        bundle.export_checkpoint(tmp_path / "pipe.ckpt", output)
    assert not output.exists()


def test_names_of_tensors_are_no_paths(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["backbone.network.../../owned"] = torch.zeros(1)
    content["hyper_parameters"] = {"_instantiator": "os.system", "x": 1}  # Lightning's own readers import it
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="Expected weights of test_resnet in .*step.ckpt, got others: Unexpected key"):
        bundle.export_checkpoint(checkpoint, tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["small.safetensors", "step.ckpt"] or os.listdir(tmp_path) == ["step.ckpt"]
