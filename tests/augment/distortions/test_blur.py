import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from csrtrain.augment import compiled
from csrtrain.augment.distortions import blur

SEEDS = torch.arange(5) * 7919 + 3
SIGMA = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0])
MOTION_KERNELS = blur.motion_kernels(torch.tensor([1.0, 2, 4, 6, 10]), torch.arange(5) * 0.7, 5)


def images(n, channels, height, width):
    return torch.rand((n, channels, height, width), generator=torch.Generator().manual_seed(n * height + width))


def scipy_gaussian(x, sigma):
    reach = math.ceil(2 * sigma)
    return scipy.ndimage.gaussian_filter(x, (0, sigma, sigma), mode="nearest", radius=(0, reach, reach))


def scipy_convolve(x, kernel):
    return np.stack([scipy.ndimage.convolve(channel, kernel, mode="nearest") for channel in x])


def supersampled_disk(r, radius, per_pixel=200):
    """The share of sub-pixels whose centre lies in the circle."""
    side = 2 * radius + 1
    at = (np.arange(side * per_pixel) + 0.5) / per_pixel - side / 2
    inside = (at[:, None] ** 2 + at**2 <= r * r).astype(float)
    area = inside.reshape(side, per_pixel, side, per_pixel).mean((1, 3))
    return area / area.sum()


def literal_motion(length, angle, radius):
    """Pixel by pixel: the distance to the nearest point of the segment, rows counted downwards."""
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    end = (length - 1) / 2 * np.array([math.cos(angle), math.sin(angle)])
    for row in range(-radius, radius + 1):
        for column in range(-radius, radius + 1):
            pixel = np.array([column, -row])
            along = np.clip(pixel @ end / max(end @ end, 1e-12), -1, 1)
            kernel[row + radius, column + radius] = max(0, 1 - np.linalg.norm(pixel - along * end))
    return kernel / kernel.sum()


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 60, 83), (1, 48, 48)])
@pytest.mark.parametrize("sigma", [SIGMA, torch.tensor([0.3, 0.7, 1.3, 3.1, 4.4])])
def test_gaussian_is_scipys(channels, height, width, sigma):
    x = images(5, channels, height, width)
    blurred = blur.gaussian_blur(x, sigma, SEEDS)
    for k in range(5):
        torch.testing.assert_close(
            blurred[k], torch.from_numpy(scipy_gaussian(x[k].numpy(), sigma[k].item())), atol=2e-6, rtol=0
        )


@pytest.mark.parametrize("sigma", [0.4, 0.9, 2.0, 3.3, 5.0])
def test_what_is_compiled_for_a_gaussian_is_scipys_too(sigma, monkeypatch):
    """As it stands, with the padding and the number of taps that it is compiled for."""
    kernel, calls = blur._separable, []
    monkeypatch.setattr(kernel, "_compiled", lambda *arguments: calls.append(1) or kernel.function(*arguments))
    x = images(2, 3, 60, 83)
    with compiled.compiling(True):
        blurred = blur.gaussian_blur(x, torch.tensor([sigma, sigma]), SEEDS[:2])
    assert kernel.failure is None and len(calls) == 2
    for k in range(2):
        torch.testing.assert_close(blurred[k], torch.from_numpy(scipy_gaussian(x[k].numpy(), sigma)), atol=2e-6, rtol=0)


def test_kernels_that_are_kept_are_those_of_their_strength_and_size():
    x = images(2, 1, 60, 83)
    for strength in (2.0, 4.0, 2.0):
        disk = blur.disk_kernels(torch.tensor([strength]), 8)[0].double().numpy()
        for radius in (10, 40):
            smooth = blur.smooth(x, torch.full((2,), strength), radius)
            expected = scipy_gaussian(x[1].numpy(), strength)
            torch.testing.assert_close(smooth[1], torch.from_numpy(expected), atol=2e-6, rtol=0)
        blurred = blur.disk_blur(x, torch.full((2,), strength), SEEDS[:2])
        np.testing.assert_allclose(blurred[1], scipy_convolve(x[1].double().numpy(), disk), atol=2e-6)


def test_wide_gaussian_is_scipys_even_where_the_kernel_is_wider_than_the_image():
    x, sigma = images(4, 2, 48, 61) * 3 - 1, torch.tensor([25.0, 20.0, 12.0, 0.1])
    smooth = blur.smooth(x, sigma, 50)
    for k in range(4):
        reference = scipy_gaussian(x[k].double().numpy(), sigma[k].item())
        torch.testing.assert_close(smooth[k], torch.from_numpy(reference).float(), atol=3e-6, rtol=0)


def test_both_forms_of_the_gaussian_agree():
    x = images(5, 3, 70, 64)
    shifted, transformed = blur.smooth(x, SIGMA, 10), blur.smooth(x, SIGMA, 11)
    torch.testing.assert_close(shifted, transformed, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kernels", [blur.disk_kernels(torch.tensor([1.0, 2, 4, 6, 8]), 8), MOTION_KERNELS])
def test_all_forms_of_a_convolution_agree(kernels):
    x, radius = images(5, 3, 70, 64), kernels.shape[1] // 2
    responses = torch.fft.rfft2(kernels, s=blur._transform_size(x, radius))
    for other in (
        blur._multiply(x, responses, radius, 5),
        blur._multiply(x, responses, radius, 1),
        blur._convolve_batch(x, kernels),
    ):
        torch.testing.assert_close(blur._convolve_each(x, kernels), other, atol=2e-6, rtol=0)


def test_gaussian_is_truncated_like_imgaussfilt():
    taps = (blur.gaussian_kernels(SIGMA, 10) > 0).sum(1)
    assert taps.tolist() == [3, 3, 5, 9, 21]


@pytest.mark.parametrize("radius", [1.0, 2.0, 2.6, 4.0, 6.0, 7.3, 8.0])
def test_disk_kernel_is_the_area_under_the_circle(radius):
    kernel = blur.disk_kernels(torch.tensor([radius]), 8)[0]
    reference = supersampled_disk(radius, 8)
    assert np.abs(kernel.numpy() - reference).sum() < 2e-4


def test_disk_kernel_of_radius_one_in_closed_form():
    """The pixel beside the centre: integral of sqrt(1 - x^2) over [-1/2, 1/2], less the half of the central pixel."""
    beside = 2 * (0.5 * (0.5 * math.sqrt(0.75) + math.asin(0.5))) - 0.5
    corner = (math.pi - 1 - 4 * beside) / 4
    expected = torch.tensor([[corner, beside, corner], [beside, 1, beside], [corner, beside, corner]]) / math.pi
    torch.testing.assert_close(blur.disk_kernels(torch.tensor([1.0]), 1)[0], expected, atol=1e-6, rtol=0)


def test_disk_blur_is_a_convolution_with_replicated_borders():
    x, radius = images(5, 3, 52, 67), torch.tensor([1.0, 2.0, 4.0, 6.5, 8.0])
    blurred = blur.disk_blur(x, radius, SEEDS)
    for k in range(5):
        reference = scipy_convolve(x[k].double().numpy(), supersampled_disk(radius[k].item(), 8))
        torch.testing.assert_close(blurred[k], torch.from_numpy(reference).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [1.0, 2.0, 4.0, 5.5, 6.0, 10.0])
def test_motion_kernel_is_the_literal_one(length):
    angles = [0.0, 0.4, math.pi / 4, math.pi / 2, 2.0, 3.1]
    kernels = blur.motion_kernels(torch.full((6,), length), torch.tensor(angles), 5)
    for kernel, angle in zip(kernels, angles, strict=True):
        np.testing.assert_allclose(kernel.numpy(), literal_motion(length, angle, 5), atol=2e-6)


def test_motion_kernels_as_matlabs_manual_shows_them():
    even, odd = blur.motion_kernels(torch.tensor([4.0, 9.0]), torch.zeros(2), 5)
    torch.testing.assert_close(even[5], torch.tensor([0, 0, 0, 1, 2, 2, 2, 1, 0, 0, 0]) / 8)
    torch.testing.assert_close(odd[5], torch.tensor([0.0] + [1 / 9] * 9 + [0.0]))
    assert even.sum() == even[5].sum() and odd.sum() == odd[5].sum()


def test_motion_blur_is_a_convolution_in_a_direction_of_the_seed():
    x, length = images(5, 3, 52, 67), torch.tensor([1.0, 2.0, 4.0, 6.0, 10.0])
    blurred, angles = blur.motion_blur(x, length, SEEDS), math.pi * blur.uniforms(SEEDS, 1)[:, 0]
    for k in range(5):
        kernel = literal_motion(length[k].item(), angles[k].item(), 5)
        reference = torch.from_numpy(scipy_convolve(x[k].numpy(), kernel))
        torch.testing.assert_close(blurred[k], reference, atol=3e-6, rtol=0)


def test_motion_follows_its_angle_counter_clockwise():
    kernel = blur.motion_kernels(torch.tensor([8.0]), torch.tensor([math.pi / 4]), 5)[0]
    assert kernel[3, 7] > 0.05 and kernel[7, 3] > 0.05  # up and right, down and left
    assert kernel[3, 3] == 0 and kernel[7, 7] == 0


def test_directions_are_uniform_over_the_half_circle():
    angles = math.pi * blur.uniforms(torch.arange(20000), 1)[:, 0]
    counts = torch.histc(angles, 10, 0, math.pi)
    assert ((counts - 2000).abs() < 5 * math.sqrt(2000)).all()


@pytest.mark.parametrize(
    "kernels",
    [
        lambda u: blur.gaussian_kernels(5 * u, 10),
        lambda u: blur.gaussian_kernels(25 * u, 50),
        lambda u: blur.disk_kernels(8 * u, 8),
        lambda u: blur.motion_kernels(1 + 9 * u, math.pi * u.flip(0) * 2, 5),
    ],
)
def test_kernels_are_not_negative_sum_to_one_and_reach_the_declared_radius(kernels):
    drawn = kernels(torch.linspace(0, 1, 500))
    drawn = drawn.flatten(1)
    assert torch.isfinite(drawn).all() and drawn.min() >= 0
    torch.testing.assert_close(drawn.sum(1), torch.ones(500), atol=2e-6, rtol=0)
    torch.testing.assert_close(drawn, drawn.flip(1), atol=1e-7, rtol=0)  # point symmetric: nothing is shifted


def test_declared_radii_hold_the_whole_kernel():
    disk = blur.disk_kernels(torch.tensor([8.0]), 10)[0]
    assert disk[1].sum() == 0 and disk[2].sum() > 0
    motion = blur.motion_kernels(torch.full((64,), 10.0), torch.linspace(0, math.pi, 64), 6)
    assert motion[:, 0].abs().max() == 0 and motion[:, :, 0].abs().max() == 0


def test_constant_images_stay_and_small_values_are_identities():
    flat = torch.full((1, 3, 50, 58), 0.7)
    x, one = images(1, 3, 50, 58), torch.ones(1)
    for distort, large, identity in (
        (blur.gaussian_blur, 5.0, 0.1),
        (blur.disk_blur, 8.0, 0.5),
        (blur.motion_blur, 10.0, 1.0),
    ):
        torch.testing.assert_close(distort(flat, large * one, SEEDS[:1]), flat, atol=2e-6, rtol=0)
        torch.testing.assert_close(distort(x, identity * one, SEEDS[:1]), x, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("least", "fast"), [(48, 48), (49, 50), (61, 64), (234, 240), (242, 250), (244, 250), (1, 2)])
def test_transform_sizes_are_even_products_of_two_three_and_five(least, fast):
    assert blur._fast_size(least) == fast
