import math

import numpy as np
import pytest
import scipy.cluster.vq
import scipy.ndimage
import skimage.color
import torch
from PIL import Image

from csrtrain.augment import compiled
from csrtrain.augment.distortions import color
from csrtrain.augment.randoms import uniforms
from csrtrain.data import decode, samples

SEEDS = torch.arange(4) * 7919 + 3


@pytest.fixture(scope="module")
def photographs():
    """(4,3,90,120) crops of real photographs."""
    images = [decode.read(address) for address in samples.natural()]
    crops = [image[:, 40:130, 60:180] for image in images if len(image) == 3]
    return torch.stack([crop for crop in crops if crop.shape[1:] == (90, 120)][:4]).float() / 255


def lab(image):
    """(3,H,W) -> skimage's (3,H,W)."""
    return skimage.color.rgb2lab(image.permute(1, 2, 0).double().numpy()).transpose(2, 0, 1)


def to_rgb(values):
    """skimage's, clipped: (3,H,W)."""
    with np.errstate(all="ignore"):
        return skimage.color.lab2rgb(values.transpose(1, 2, 0)).transpose(2, 0, 1)


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
@pytest.mark.parametrize("factor", [1.0, 2.0, 6.0])
def test_saturate_lab_is_skimages(photographs, factor):
    y = color.saturate_lab(photographs, torch.full((4,), factor), SEEDS).clamp(0, 1)
    for image, result in zip(photographs, y, strict=True):
        values = lab(image)
        values[1:] *= factor
        z = (values[0] + 16) / 116 - values[2] / 200
        valid = np.broadcast_to(z > 0.01, (3, *z.shape))  # skimage cuts colours off whose Z is negative
        assert np.abs(result.numpy() - to_rgb(values))[valid].max() < 5e-3


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_color_diffusion_is_scipys_blur_of_a_and_b(photographs):
    x = photographs[:1]
    y = color.color_diffusion(x, torch.tensor([3.0]), SEEDS[:1]).clamp(0, 1)[0].numpy()
    values = lab(x[0])
    sigma = 1.5 * 3 + 2
    values[1:] = 3 * scipy.ndimage.gaussian_filter(values[1:], (0, sigma, sigma), mode="nearest", radius=(0, 13, 13))
    z = (values[0] + 16) / 116 - values[2] / 200
    valid = np.broadcast_to(z > 0.01, y.shape)
    assert np.abs(y - to_rgb(values))[valid].max() < 5e-3


@pytest.mark.parametrize("factor", [0.4, 0.1, 0.0, 1.0])
def test_saturate_hsv_multiplies_skimages_saturation(photographs, factor):
    y = color.saturate_hsv(photographs, torch.full((4,), factor), SEEDS)
    for image, result in zip(photographs, y, strict=True):
        values = skimage.color.rgb2hsv(image.permute(1, 2, 0).double().numpy())
        values[..., 1] *= factor
        np.testing.assert_allclose(result.permute(1, 2, 0), skimage.color.hsv2rgb(values), atol=1e-5)


def test_saturate_hsv_below_0_turns_the_hue_by_half(photographs):
    y = color.saturate_hsv(photographs[:1], torch.tensor([-0.4]), SEEDS[:1])[0]
    before, after = (
        skimage.color.rgb2hsv(x.permute(1, 2, 0).double().clamp(0, 1).numpy()) for x in (photographs[0], y)
    )
    colored = (before[..., 1] > 0.2) & (y.amax(0).numpy() < 1)
    turned = (after[..., 0] - before[..., 0])[colored] % 1
    assert colored.any() and np.abs(turned - 0.5).max() < 1e-3


def test_color_shift_moves_green_where_there_are_edges(photographs):
    x, shift = photographs, torch.tensor([1.0, 3.0, 6.0, 12.0])
    y = color.color_shift(x, shift, SEEDS)
    assert torch.equal(y[:, 0], x[:, 0]) and torch.equal(y[:, 2], x[:, 2])
    angles = 2 * math.pi * uniforms(SEEDS, 1)[:, 0].double().numpy()
    for k in range(4):
        image = x[k].double().numpy()
        down, right = round(float(shift[k]) * math.sin(angles[k])), round(float(shift[k]) * math.cos(angles[k]))
        moved = scipy.ndimage.shift(image[1], (down, right), order=0, mode="nearest")
        gradient = np.hypot(*np.gradient(np.tensordot([0.299, 0.587, 0.114], image, 1)))
        low, high = np.quantile(gradient[::4, ::4], [0.05, 0.95], method="nearest")
        weight = np.clip((gradient - low) / (high - low), 0, 1)
        np.testing.assert_allclose(y[k, 1], image[1] + weight * (moved - image[1]), atol=2e-3)


@pytest.mark.parametrize("colors", [8, 64])
def test_color_quantization_loses_less_than_pillows_median_cut(photographs, colors):
    y = color.color_quantization(photographs, torch.full((4,), float(colors)), SEEDS)
    for image, result in zip(photographs, y, strict=True):
        pixels, quantized = (x.flatten(1).T.double().numpy() for x in (image, result))
        palette = np.unique(quantized.round(6), axis=0)
        assert len(palette) <= colors
        # Each pixel has the nearest colour of the palette.
        nearest, _ = scipy.cluster.vq.vq(pixels, palette)
        np.testing.assert_allclose(
            ((pixels - quantized) ** 2).sum(1), ((pixels - palette[nearest]) ** 2).sum(1), atol=1e-5
        )
        bytes_ = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        median_cut = bytes_.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
        theirs = np.mean((np.asarray(median_cut).reshape(-1, 3) / 255 - pixels) ** 2)
        assert np.mean((pixels - quantized) ** 2) < theirs


@pytest.mark.parametrize("colors", [64, 17, 8, 1])
def test_what_is_compiled_for_the_nearest_colour_finds_it(photographs, colors, monkeypatch):
    """As it stands, in parts of 16 colours."""
    kernel, calls = color._nearer, []
    monkeypatch.setattr(kernel, "_compiled", lambda *arguments: calls.append(1) or kernel.function(*arguments))
    palette = torch.rand((1, 3, colors), generator=torch.Generator().manual_seed(colors))
    with compiled.compiling(True):
        found = color._nearest_of_one(photographs[0], palette).long()
    assert kernel.failure is None and len(calls) == math.ceil(colors / 16)
    pixels = photographs[0].flatten(1).T.double().numpy()
    nearest, distance = scipy.cluster.vq.vq(pixels, palette[0].T.double().numpy())
    theirs = np.linalg.norm(pixels - palette[0].T.double().numpy()[found], axis=1)
    np.testing.assert_allclose(theirs, distance, atol=1e-5)
    assert (found.numpy() == nearest).mean() > 0.999


@pytest.mark.parametrize("colors", [64, 17, 1])
def test_the_palette_is_the_same_one_by_one_and_in_a_batch(photographs, colors):
    samples = photographs[:, :, ::7, ::7].flatten(2)
    together, unused = color._k_means(samples, torch.full((4,), float(colors)), 64)
    for k in range(4):
        alone = color._k_means_of_one(samples[k : k + 1], colors)
        # The batch tells distances apart by 17 bits: a pixel between two colours may go to the other, and move both.
        moved = (alone[0] - together[k, :, :colors]).abs().amax(0)
        assert (moved > 1e-6).float().mean() <= 2 / 17 and moved.max() < 2e-3
        assert not unused[k, 0, :colors].any() and (unused[k, 0, colors:] > 0).all()


@pytest.mark.parametrize("down, right", [(0, 0), (3, -2), (-5, 4)])
def test_green_is_moved_alike_one_by_one_and_in_a_batch(photographs, down, right):
    by, along = torch.full((4,), down), torch.full((4,), right)
    expected = color._move_batch(photographs[:, 1], by, along)
    assert torch.equal(color._move_each(photographs[:, 1], by, along), expected)


def test_color_quantization_of_few_colours_changes_nothing():
    colors = torch.rand((4, 3), generator=torch.Generator().manual_seed(0))
    x = colors[torch.randint(4, (1, 40, 40), generator=torch.Generator().manual_seed(1))].permute(0, 3, 1, 2)
    torch.testing.assert_close(
        color.color_quantization(x.contiguous(), torch.tensor([16.0]), SEEDS[:1]), x, atol=1e-5, rtol=0
    )
