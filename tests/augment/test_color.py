import kornia
import numpy as np
import pytest
import skimage.color
import torch
import torchvision.transforms.v2.functional as TF

from csrtrain.augment import color


def jitter(x, *factors):
    """One set of factors for all samples."""
    return color.jitter(x, torch.tensor([factors] * len(x), dtype=torch.float32), compiled=False)


@pytest.fixture
def images(noise_images):
    return noise_images(4, 3, 48, 40).float() / 255


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.031, 0.1, 0.5])
def test_hue_equals_torchvision(images, turns):
    assert (jitter(images, 1, 1, 1, turns, 0) - TF.adjust_hue(images, turns)).abs().max() < 1e-5


@pytest.mark.parametrize("turns", [-0.1, 0.07])
def test_hue_equals_kornia(images, turns):
    expected = kornia.enhance.adjust_hue(images, turns * 2 * np.pi)
    assert (jitter(images, 1, 1, 1, turns, 0) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
def test_brightness_equals_torchvision(images, factor):
    assert (jitter(images, factor, 1, 1, 0, 0) - TF.adjust_brightness(images, factor)).abs().max() < 1e-6


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
def test_contrast_and_saturation_equal_kornia(images, factor):
    expected = kornia.enhance.adjust_contrast_with_mean_subtraction(images, factor)
    assert (jitter(images, 1, factor, 1, 0, 0) - expected).abs().max() < 1e-5
    expected = kornia.enhance.adjust_saturation_with_gray_subtraction(images, factor)
    assert (jitter(images, 1, 1, factor, 0, 0) - expected).abs().max() < 1e-5


def test_contrast_and_saturation_near_torchvision(images):
    # torchvision weighs red by 0.2989 instead of 0.299.
    assert (jitter(images, 1, 1.4, 1, 0, 0) - TF.adjust_contrast(images, 1.4)).abs().max() < 1e-4
    assert (jitter(images, 1, 1, 0.6, 0, 0) - TF.adjust_saturation(images, 0.6)).abs().max() < 1e-4


def test_greyscale_equals_kornia(images):
    expected = kornia.color.rgb_to_grayscale(images).expand(-1, 3, -1, -1)
    assert (jitter(images, 1, 1, 1, 0, 1) - expected).abs().max() < 1e-6


def test_all_steps_equal_kornia_with_the_same_parameters(images):
    factors = torch.tensor([[1.3, 0.7, 1.4, 0.1], [0.6, 1.4, 0.6, -0.1], [1.4, 1.4, 1.0, 0.03], [1.0, 1.0, 1.0, 0.0]])
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    peer = kornia.augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0, order=(0, 1, 2, 3))
    parameters = peer.forward_parameters(images.shape)
    expected = peer(images, params=parameters | {name: factors[:, k] for k, name in enumerate(names)})
    result = color.jitter(images, torch.cat([factors, torch.zeros(4, 1)], dim=1), compiled=False)
    assert (result - expected).abs().max() < 1e-5


def test_order_is_brightness_contrast_saturation_hue(images):
    expected = TF.adjust_brightness(images, 1.4)
    expected = kornia.enhance.adjust_contrast_with_mean_subtraction(expected, 1.3)
    expected = kornia.enhance.adjust_saturation_with_gray_subtraction(expected, 0.7)
    expected = TF.adjust_hue(expected, 0.08)
    assert (jitter(images, 1.4, 1.3, 0.7, 0.08, 0) - expected).abs().max() < 1e-5


def test_identity_and_range(images):
    assert (jitter(images, 1, 1, 1, 0, 0) - images).abs().max() < 1e-6
    strong = jitter(images, 1.8, 1.8, 1.8, 0.5, 0)
    assert strong.min() >= -1e-6 and strong.max() <= 1 + 1e-6


def test_hue_keeps_value_and_grey(images):
    turned = jitter(images, 1, 1, 1, 0.3, 0)
    assert (turned.amax(1) - images.amax(1)).abs().max() < 1e-6
    assert (turned.amin(1) - images.amin(1)).abs().max() < 1e-6
    assert (turned[:, :, :12] - images[:, :, :12]).abs().max() < 1e-6


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_have_brightness_and_contrast_only(noise_images, channels):
    x = noise_images(2, channels, 16, 16).float() / 255
    bright = (1.2 * x).clamp(0, 1)
    mean = bright.mean((1, 2, 3), keepdim=True)
    expected = (1.3 * bright - 0.3 * mean).clamp(0, 1)
    assert (jitter(x, 1.2, 1.3, 0.2, 0.3, 1) - expected).abs().max() < 1e-6


def test_one_channel_contrast_equals_torchvision(noise_images):
    x = noise_images(2, 1, 16, 16).float() / 255
    assert (jitter(x, 1, 1.3, 1, 0, 0) - TF.adjust_contrast(x, 1.3)).abs().max() < 1e-6


def test_stain_equals_skimage(images):
    scale, shift = [1.1, 0.93, 1.05], [0.004, -0.003, 0.002]
    factors = torch.tensor([[1.0, *scale, *shift]] * 4)
    result = color.stain(images, factors, compiled=False)
    for x, y in zip(images, result, strict=True):
        hed = skimage.color.rgb2hed(x.permute(1, 2, 0).double().numpy())
        expected = skimage.color.hed2rgb(hed * scale + shift)
        assert np.abs(y.permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_stain_leaves_the_others_untouched(images):
    factors = torch.tensor([[1.0, 1.1, 1.1, 1.1, 0, 0, 0], [0.0, 1.1, 1.1, 1.1, 0, 0, 0]])
    result = color.stain(images[:2], factors, compiled=False)
    assert torch.equal(result[1], images[1])
    assert not torch.allclose(result[0], images[0], atol=1e-3)
