import copy

import lpips
import pytest
import torch
from torch import nn

from csrtrain.models.backbone import Backbone
from csrtrain.models.full_reference import FullReferenceMetric


@pytest.fixture(scope="module")
def metric():
    torch.manual_seed(0)
    return FullReferenceMetric(Backbone("test_resnet"))


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, 3, 72, 64, generator=generator)
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def literal(metric, x, y):
    """Place by place of every stage."""
    total = 0.0
    for stage, weight in zip(metric.stages, metric.weights.values(), strict=True):
        f, g = (metric.backbone.feature_maps(image[None])[stage][0].double() for image in (x, y))
        at = 0.0
        for row in range(f.shape[1]):
            for column in range(f.shape[2]):
                u, v = f[:, row, column], g[:, row, column]
                u, v = u / u.norm().clamp(min=1e-12), v / v.norm().clamp(min=1e-12)
                at += (weight * (u - v) ** 2).sum()
        total += at / f[0].numel()
    return total


def test_distance_equals_a_literal_one(metric, pairs):
    weighted = FullReferenceMetric(metric.backbone, stages=[0, 2])
    for weight in weighted.weights.values():
        weight.copy_(torch.rand(len(weight)))
    for m in (metric, weighted):
        expected = torch.stack([literal(m, x, y) for x, y in zip(*pairs, strict=True)])
        torch.testing.assert_close(m.distance(*pairs).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scales", [(0.5,), (1, 0.5), (0.5, 2, 1)])
def test_several_scales_are_distances_of_resized_images_added_up(metric, pairs, scales):
    several = FullReferenceMetric(metric.backbone, [1, 3], scales)
    several.set_weights(torch.rand(len(several.all_weights), generator=torch.Generator().manual_seed(0)))
    expected, parts = 0, several.all_weights.chunk(len(scales))
    for scale, weights in zip(scales, parts, strict=True):
        one = FullReferenceMetric(metric.backbone, [1, 3])
        one.set_weights(weights)
        size = [round(scale * side) for side in pairs[0].shape[2:]]
        x, y = (nn.functional.interpolate(image, size, mode="bilinear", antialias=True) for image in pairs)
        expected = expected + one.distance(x, y)
    torch.testing.assert_close(several.distance(*pairs), expected)
    torch.testing.assert_close(several.distance(pairs[0], several.reference(pairs[1])), expected)
    assert several.distance_map(*pairs).shape == (4, 72, 64)
    x, y = torch.rand(2, 1, 3, 64, 128, generator=torch.Generator().manual_seed(2))  # multiples of every stride
    torch.testing.assert_close(several.distance_map(x, y).mean((1, 2)), several.distance(x, y))
    found = several.channel_differences(torch.cat(pairs), [0, 1, 2, 3], [4, 5, 6, 7])
    torch.testing.assert_close(found @ several.all_weights, expected, rtol=1e-5, atol=1e-7)
    assert bool((several.distance(pairs[0], pairs[0]) == 0).all())


def test_half_scale_has_a_gradient_of_its_own(metric, pairs):
    x = pairs[0].clone().requires_grad_()
    half = FullReferenceMetric(metric.backbone, scales=[0.5])
    (gradient,) = torch.autograd.grad(half.distance(x, pairs[1]).sum(), x)
    assert gradient.abs().max() > 1e-7
    step = 1e-2 * gradient.sign()
    assert bool((half.distance(pairs[0] - step, pairs[1]) < half.distance(*pairs)).all())


class Trunk(nn.Module):
    """The trunk of the lpips package as a backbone: [0,1] instead of [-1,1]."""

    channels = 3

    def __init__(self, model):
        super().__init__()
        self.model, self.stage_channels = model, model.chns

    def feature_maps(self, images):
        return list(self.model.net(self.model.scaling_layer(2 * images - 1)))


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_distance_equals_lpips_with_its_trunk_and_weights(net, pairs):
    """Its trunk at random, which needs no download, and the linear weights that it ships."""
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    ours = FullReferenceMetric(Trunk(theirs))
    for weight, layer in zip(ours.weights.values(), theirs.lins, strict=True):
        weight.copy_(layer.model[-1].weight.flatten())
    x, y = pairs
    with torch.no_grad():
        expected = theirs(x, y, normalize=True)[:, 0, 0, 0]
        assert expected.min() > 1e-3
        torch.testing.assert_close(ours.distance(x, y), expected, rtol=1e-5, atol=1e-6)
        spatial = lpips.LPIPS(net=net, pnet_rand=True, verbose=False, spatial=True).eval()
        spatial.load_state_dict(theirs.state_dict())
        expected = spatial(x, y, normalize=True)[:, 0]
        torch.testing.assert_close(ours.distance_map(x, y), expected, rtol=1e-5, atol=1e-6)


def test_identical_images_have_distance_0_and_a_finite_gradient(metric, pairs):
    x, y = pairs[0].clone(), pairs[1].clone()
    x[1], y[2] = y[1], 0
    x[3] = y[3] = 0
    x.requires_grad_()
    distance = metric.distance(x, y)
    assert distance[1] == 0 and distance[3] == 0 and distance[0] > 0 and distance[2] > 0
    distance.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[1].any() and not x.grad[3].any() and x.grad[0].any()


def test_gradient_equals_that_of_lpips(pairs):
    """Which adds its epsilon behind the root."""
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    ours = FullReferenceMetric(Trunk(theirs))
    for weight, layer in zip(ours.weights.values(), theirs.lins, strict=True):
        weight.copy_(layer.model[-1].weight.flatten())
    gradients = []
    for distance in (ours.distance, lambda x, y: theirs(x, y, normalize=True)):
        x = pairs[0].clone().requires_grad_()
        gradients += torch.autograd.grad(distance(x, pairs[1]).sum(), x)
    assert gradients[1].abs().max() > 1e-6
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def test_small_feature_vectors_are_compared_by_direction(metric, pairs):
    """An epsilon that weighs as much as they do would shorten them."""

    class Faint(nn.Module):
        channels, stage_channels = 3, metric.backbone.stage_channels[:1]

        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def feature_maps(self, images):
            return [self.scale * metric.backbone.feature_maps(images)[0]]

    faint, plain = (FullReferenceMetric(Faint(scale)).distance(*pairs) for scale in (1e-3, 1.0))
    torch.testing.assert_close(faint, plain, rtol=1e-2, atol=0)


def test_an_overshoot_of_a_quarter_is_accepted(metric, pairs):
    x, y = pairs[0].clone(), pairs[1]
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 1.24, -0.24
    assert torch.isfinite(metric.distance(x, y)).all()
    for value in (1.26, -0.26):
        x[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=r"Expected images in \[0,1\]"):
            metric.distance(x, y)


def test_weights_belong_to_their_stages(metric):
    one, other = FullReferenceMetric(metric.backbone, [0]), FullReferenceMetric(metric.backbone, [1])
    with pytest.raises(RuntimeError, match=r"weights\.1"):
        other.load_state_dict(one.state_dict())
    half = FullReferenceMetric(metric.backbone, [0], [0.5])  # nor can a csrtrain without scales take them
    with pytest.raises(RuntimeError, match=r"weights\.0_0"):
        half.load_state_dict(one.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scales", [[1], [1, 0.5]])
def test_other_types_of_numbers(metric, pairs, dtype, scales):
    metric = FullReferenceMetric(metric.backbone, scales=scales)
    x, y = (image.to(dtype) for image in pairs)
    if dtype == torch.float64:
        with pytest.raises(ValueError, match="convert float64"):
            metric.distance(x, y)
    else:
        distance = copy.deepcopy(metric).to(dtype).distance(x, y)
        torch.testing.assert_close(distance, metric.distance(*pairs), rtol=0.1, atol=0)


@pytest.mark.parametrize("scales", [[1], [1, 0.5]])
def test_can_be_exported(metric, pairs, scales):
    metric = FullReferenceMetric(metric.backbone, scales=scales)

    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.metric = metric

        def forward(self, x, y):
            return self.metric.distance(x, y)

    exported = torch.export.export(Distance(), pairs).module()
    torch.testing.assert_close(exported(*pairs), metric.distance(*pairs), rtol=1e-4, atol=1e-6)


def test_symmetric_and_a_function_of_the_pair_alone(metric, pairs):
    x, y = pairs
    torch.testing.assert_close(metric.distance(x, y), metric.distance(y, x))
    torch.testing.assert_close(metric.distance(x[2:3], y[2:3])[0], metric.distance(x, y)[2])


def test_a_kept_reference_meets_many(metric, pairs):
    x, y = pairs
    torch.testing.assert_close(metric.distance(x, metric.reference(y)), metric.distance(x, y))
    many = torch.cat([x, y[:1]])
    kept = metric.distance(many, metric.reference(y[:1]))
    torch.testing.assert_close(kept, metric.distance(many, y[:1].expand(5, -1, -1, -1).contiguous()))
    assert kept[4] == 0


def test_safe_under_autocast(metric, pairs):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = metric.distance(*pairs)
        assert metric.distance(pairs[0], pairs[0]).eq(0).all()
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, metric.distance(*pairs), rtol=0.05, atol=0)


def test_a_reference_of_another_backbone_is_refused(metric, pairs):
    x, y = pairs
    other = FullReferenceMetric(Backbone("test_resnet"))
    with pytest.raises(ValueError, match="Expected a reference of this metric's backbone, got another's"):
        metric.distance(x, other.reference(y))


@pytest.mark.parametrize(("stages", "scales"), [([0], [1]), (None, [0.5]), (None, [1, 0.5])])
def test_a_reference_of_other_stages_or_scales_is_refused(metric, pairs, stages, scales):
    other = FullReferenceMetric(metric.backbone, stages, scales)
    with pytest.raises(ValueError, match=r"Expected a reference of stages .* and scales \[1.0\], got"):
        metric.distance(pairs[0], other.reference(pairs[1]))


def test_a_reference_of_another_precision_is_refused(metric, pairs):
    kept = metric.reference(pairs[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="a reference made under autocast"):
            metric.distance(pairs[0], kept)
        kept = metric.reference(pairs[1])
    with pytest.raises(ValueError, match="a reference made without autocast"):
        metric.distance(pairs[0], kept)


def test_the_backbone_is_frozen_and_the_weights_take_no_gradient(metric):
    metric.train()
    assert not any(parameter.requires_grad for parameter in metric.parameters()) and not metric.backbone.training


def test_no_host_read(metric, pairs, no_host_reads):
    with no_host_reads():
        metric.distance(*pairs)


@pytest.mark.gpu
def test_other_values_give_nan_on_a_gpu(metric, pairs):
    x, y = (z.cuda() for z in pairs)
    x[1] *= 255
    distance = metric.cuda().distance(x, y)
    assert distance[1].isnan() and torch.isfinite(distance[[0, 2, 3]]).all()
    metric.cpu()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (255 * x, y), r"images in \[0,1\], got .* to 25"),
        (lambda x, y: (x, 2 * y - 1), r"references in \[0,1\], got -"),
        (lambda x, y: (x * torch.nan, y), "got nan to nan"),
        (lambda x, y: (x[:, :1], y), r"images \(B,3,H,W\), float in \[0,1\], got \(4, 1, 72, 64\)"),
        (lambda x, y: (x[0], y[0]), r"got \(3, 72, 64\)"),
        (lambda x, y: ((255 * x).to(torch.uint8), y), "uint8"),
        (lambda x, y: (x, y[:, :, 1:]), r"references of the images' shape \(4, 3, 72, 64\), got \(4, 3, 71, 64\)"),
        (lambda x, y: (x, y[:3]), "Give pairs"),
    ],
)
def test_wrong_pairs_are_refused(metric, pairs, change, message):
    with pytest.raises(ValueError, match=message):
        metric.distance(*change(*pairs))


@pytest.mark.parametrize("stages", [[], [9], [-1], [2, 1], [1, 1]])
def test_wrong_stages(stages):
    with pytest.raises(ValueError, match="Expected stages in order from 0 to 4, got"):
        FullReferenceMetric(Backbone("test_resnet"), stages)


@pytest.mark.parametrize("scales", [[], [1, 1], [0.01], [5], [float("nan")], [1 / k for k in range(1, 17)] + [2]])
def test_wrong_scales(scales):
    with pytest.raises(ValueError, match="Expected scales from 1/16 to 4, each once, at most 16, got"):
        FullReferenceMetric(Backbone("test_resnet"), scales=scales)


def test_images_of_no_pixel_at_a_scale_are_refused(metric):
    half = FullReferenceMetric(metric.backbone, scales=[1, 0.5])
    x, y = torch.rand(2, 1, 3, 1, 40)
    with pytest.raises(ValueError, match="Expected images of at least 2 px a side at scale 0.5, got 1x40"):
        half.distance(x, y)


def test_distances_are_channel_differences_times_weights(metric, pairs):
    weighted = FullReferenceMetric(metric.backbone, stages=[0, 2])
    sizes = [len(weight) for weight in weighted.weights.values()]
    weighted.set_weights(torch.rand(sum(sizes), generator=torch.Generator().manual_seed(0)))
    images = torch.cat([*pairs])
    found = weighted.channel_differences(images, [0, 1, 3, 2, 5], [4, 5, 7, 2, 1])
    assert found.shape == (5, sum(sizes)) and found.dtype == torch.float32 and bool((found >= 0).all())
    expected = weighted.distance(images[[0, 1, 3, 2, 5]], images[[4, 5, 7, 2, 1]])
    torch.testing.assert_close(found @ weighted.all_weights, expected, rtol=1e-5, atol=1e-7)
    assert bool((found[3] == 0).all())  # an image and itself
    torch.testing.assert_close(found[1], found[4])  # no direction
    bytes_ = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(
        weighted.channel_differences(bytes_, [0], [4]), weighted.channel_differences(bytes_.float() / 255, [0], [4])
    )


def test_equal_images_at_two_places_differ_in_nothing(metric, pairs):
    images = torch.cat([pairs[0], pairs[0]])
    assert bool((metric.channel_differences(images, [0, 3], [4, 7]) == 0).all())


@pytest.mark.parametrize("wrong", [torch.ones(3), -1.0, torch.nan])
def test_weights_below_zero_are_refused(metric, wrong):
    weights = torch.ones(len(metric.all_weights))
    if isinstance(wrong, float):
        weights[5] = wrong
    with pytest.raises(ValueError, match="finite weights of at least 0, got"):
        metric.set_weights(weights if isinstance(wrong, float) else wrong)
