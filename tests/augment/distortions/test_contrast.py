import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import skimage.color
import torch

from csrtrain.augment.distortions import contrast

SEEDS = torch.arange(4)
AMOUNTS = torch.tensor([0.1, 0.4, 0.8, 1.1])


def images(n, channels, height, width):
    return torch.rand((n, channels, height, width), generator=torch.Generator().manual_seed(n * height + width))


def lab(image):
    """(3,H,W) -> skimage's (H,W,3)."""
    return skimage.color.rgb2lab(image.permute(1, 2, 0).double().numpy())


def from_lab(values):
    """Not clipped, other than skimage's."""
    xyz = skimage.color.lab2xyz(values)
    linear = xyz @ np.linalg.inv(skimage.color.colorconv.xyz_from_rgb).T
    small = linear <= 0.0031308
    rgb = np.where(small, 12.92 * linear, 1.055 * np.clip(linear, 0.0031308, None) ** (1 / 2.4) - 0.055)
    return torch.from_numpy(rgb).permute(2, 0, 1).float()


def parabola(middle):
    return np.polynomial.Polynomial(np.linalg.solve(np.vander([0, 0.5, 1], increasing=True), [0, middle, 1]))


@pytest.mark.parametrize("function, sign", [(contrast.brighten, 1), (contrast.darken, -1)])
def test_tone_curves_of_one_channel(function, sign):
    x = torch.linspace(0, 1, 101).expand(4, 1, 2, 101).contiguous()
    y = function(x, AMOUNTS, SEEDS)
    for k, amount in enumerate(AMOUNTS.tolist()):
        expected = np.clip(parabola(0.5 + sign * amount / 2)(x[k].double().numpy()), 0, 1)
        np.testing.assert_allclose(y[k], expected, atol=1e-5)


@pytest.mark.parametrize("function, sign", [(contrast.brighten, 1), (contrast.darken, -1)])
def test_tone_curves_of_colour_act_on_rgb_and_on_lightness(function, sign):
    x = images(4, 3, 20, 30)
    y = function(x, AMOUNTS, SEEDS)
    for k, amount in enumerate(AMOUNTS.tolist()):
        curve = parabola(0.5 + sign * amount / 2)
        values = lab(x[k])
        values[..., 0] = 100 * np.clip(curve(values[..., 0] / 100), 0, 1)
        expected = (2 * np.clip(curve(x[k].double().numpy()), 0, 1) + from_lab(values).double().numpy()) / 3
        inside = (expected > 0.02) & (expected < 0.98)  # below, the two differ in how the curve of sRGB goes on
        assert np.abs(y[k].numpy() - expected)[inside].max() < 2e-3


def test_mean_shift():
    x = images(4, 2, 8, 9)
    shifts = torch.tensor([0.15, 0.0, -0.08, -0.15])
    torch.testing.assert_close(contrast.mean_shift(x, shifts, SEEDS), x + shifts.view(4, 1, 1, 1))


@pytest.mark.parametrize("levels", [2, 7, 20, 48])
def test_quantize_levels_rounds_to_equidistant_levels(levels):
    x = 0.2 + 0.5 * images(2, 3, 40, 50)
    y = contrast.quantize_levels(x, torch.full((2,), float(levels)), SEEDS[:2])
    for image, quantized in zip(x.double().numpy(), y.double().numpy(), strict=True):
        for channel, result in zip(image, quantized, strict=True):
            places = np.linspace(channel.min(), channel.max(), levels)
            expected = places[np.abs(channel[..., None] - places).argmin(-1)]
            assert np.mean(np.abs(result - expected) > 1e-5) < 1e-3  # halves apart
            assert len(np.unique(result.round(5))) <= levels
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(contrast.quantize_levels(flat, torch.tensor([7.0]), SEEDS[:1]), flat)


def unsharp(channel, amount):
    return channel + amount * (channel - scipy.ndimage.gaussian_filter(channel, 3, mode="nearest", radius=6))


def test_sharpen_is_scipys_unsharp_mask():
    x, amounts = images(4, 1, 40, 50), torch.tensor([1.0, 2.0, 6.0, 12.0])
    y = contrast.sharpen(x, amounts, SEEDS)
    for k, amount in enumerate(amounts.tolist()):
        np.testing.assert_allclose(y[k, 0], unsharp(x[k, 0].double().numpy(), amount), atol=1e-4)


def test_sharpen_of_colour_acts_on_lightness():
    x, amounts = 0.3 + 0.4 * images(2, 3, 40, 50), torch.tensor([0.5, 1.0])
    y = contrast.sharpen(x, amounts, SEEDS[:2])
    for k, amount in enumerate(amounts.tolist()):
        values = lab(x[k])
        values[..., 0] = np.clip(unsharp(values[..., 0], amount), 0, 100)
        expected = from_lab(values).numpy()
        inside = (expected > 0.02) & (expected < 0.98)
        assert np.abs(y[k].numpy() - expected)[inside].max() < 2e-3


@pytest.mark.parametrize("amount", [0.3, 0.15, 0.0, -0.2, -0.4, -0.6])
def test_change_contrast_is_scipys_spline(amount):
    knots = ([0, 0.3, 0.5, 0.7, 1], [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1])
    x = torch.linspace(0, 1, 301).expand(1, 1, 2, 301).contiguous()
    y = contrast.change_contrast(x, torch.tensor([amount]), SEEDS[:1])
    np.testing.assert_allclose(y, scipy.interpolate.CubicSpline(*knots)(x.double().numpy()), atol=1e-5)
    if amount == -0.2:
        torch.testing.assert_close(y, x, atol=1e-6, rtol=0)
