import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from csrtrain.augment import geometry

# top, left, height, width
BOXES = [(0, 0, 96, 80), (3, 5, 60, 50), (10, 20, 11, 13), (95, 79, 1, 1), (0, 7, 96, 73), (40, 0, 31, 80)]


def crops(boxes, flip_columns=0, flip_rows=0, transpose=0):
    return torch.tensor([[*box, flip_columns, flip_rows, transpose] for box in boxes], dtype=torch.float32)


def torchvision_crops(images, boxes, size):
    return torch.stack(
        [
            TF.resized_crop(x, *box, [size, size], interpolation=TF.InterpolationMode.BILINEAR, antialias=True)
            for x, box in zip(images, boxes, strict=True)
        ]
    )


@pytest.mark.parametrize("crop", [geometry.crop_each, geometry.crop_batch])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [17, 32, 112])
def test_crop_equals_torchvision(noise_images, crop, channels, size):
    images = noise_images(len(BOXES), channels, 96, 80)
    expected = torchvision_crops(images.float() / 255, BOXES, size)
    difference = crop(images, crops(BOXES), size) - expected
    assert difference.abs().max() < 1e-3 / 255


@pytest.mark.parametrize("crop", [geometry.crop_each, geometry.crop_batch])
def test_crop_at_full_size_equals_torchvision(noise_images, crop):
    boxes = [(31, 17, 401, 467), (0, 0, 512, 512), (100, 3, 150, 140), (500, 500, 12, 12)]
    images = noise_images(len(boxes), 3, 512, 512)
    difference = crop(images, crops(boxes), 224) - torchvision_crops(images.float() / 255, boxes, 224)
    assert difference.abs().max() < 1e-3 / 255


@pytest.mark.parametrize("crop", [geometry.crop_each, geometry.crop_batch])
@pytest.mark.parametrize("turns", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
def test_flips_and_transpose_follow_the_crop(noise_images, crop, turns):
    images = noise_images(len(BOXES), 3, 96, 80)
    expected = torchvision_crops(images.float() / 255, BOXES, 40)
    if turns[0]:
        expected = TF.horizontal_flip(expected)
    if turns[1]:
        expected = TF.vertical_flip(expected)
    if turns[2]:
        expected = expected.transpose(2, 3)
    assert (crop(images, crops(BOXES, *turns), 40) - expected).abs().max() < 1e-3 / 255


def test_crop_takes_float_and_uint8_alike(noise_images):
    images = noise_images(len(BOXES), 2, 96, 80)
    for crop in (geometry.crop_each, geometry.crop_batch):
        assert torch.equal(crop(images, crops(BOXES), 24), crop(images.float() / 255, crops(BOXES), 24))


def convolve_literally(image, sigma, radius):
    """One (H,W) image, float64."""
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    padded = np.pad(image, radius, mode="reflect")
    rows = np.stack([np.convolve(row, taps, mode="valid") for row in padded])
    return np.stack([np.convolve(column, taps, mode="valid") for column in rows.T]).T


@pytest.mark.parametrize("convolve", [geometry._convolve_fused, geometry._convolve_grouped])
@pytest.mark.parametrize(("size", "radius"), [(64, 11), (24, 1), (12, 11)])
def test_blur_equals_torchvision(noise_images, convolve, size, radius):
    images = noise_images(3, 3, size, size).float() / 255
    sigma = torch.tensor([0.1, 0.8, 2.0])
    padded, kernels = geometry._pad(images, sigma, radius)
    result = convolve(padded, kernels)
    for x, y, s in zip(images, result, sigma.tolist(), strict=True):
        assert (y - TF.gaussian_blur(x, 2 * radius + 1, s)).abs().max() < 1e-5
    assert torch.equal(
        geometry.blur(images, sigma, radius, compiled=False)[1], geometry.blur(images, sigma, radius, compiled=False)[1]
    )
    literal = convolve_literally(images[2, 1].double().numpy(), 2.0, radius)
    assert np.abs(result[2, 1].numpy() - literal).max() < 1e-5


def test_blur_radius_is_a_tenth_of_the_image():
    assert [geometry.blur_radius(size) for size in (8, 32, 224, 448)] == [1, 1, 11, 22]
