import math

import numpy as np
import pytest
import scipy.stats
import torch

from csrtrain.augment import randoms


def mix(x):
    """lowbias32 in 32-bit arithmetic."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def uniform_literally(counter, seed):
    counter, low, high = counter.astype(np.uint32), np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
    word = mix(mix(mix(counter ^ low) ^ high) + counter)
    return ((word >> np.uint32(9)).astype(np.float64) + 0.5) / 2**23


def test_noise_equals_the_hash_in_32_bit_arithmetic():
    seeds = [0, 1, 2**63 - 1, 0x123456789ABCDEF]
    real, imaginary = randoms.normal_pair(torch.tensor(seeds), 2, 5, 7)
    pixel = np.arange(2 * 5 * 7)
    for k, seed in enumerate(seeds):
        radius = np.sqrt(-2 * np.log(uniform_literally(2 * pixel, seed)))
        angle = 2 * math.pi * uniform_literally(2 * pixel + 1, seed)
        assert np.allclose(real[k].flatten().numpy(), radius * np.cos(angle), atol=1e-5)
        assert np.allclose(imaginary[k].flatten().numpy(), radius * np.sin(angle), atol=1e-5)


def test_noise_is_normal_and_independent():
    seeds = torch.arange(64) * 7919 + 5
    for image in randoms.normal_pair(seeds, 1, 64, 64):
        values = image.flatten().double().numpy()
        assert scipy.stats.kstest(values, "norm").pvalue > 0.01
        assert abs(values.mean()) < 4 / math.sqrt(values.size)
        for shifted in (image.roll(1, 0), image.roll(1, 2), image.roll(1, 3), image.roll(2, 3)):  # sample, row, column
            assert abs(np.corrcoef(values, shifted.flatten().numpy())[0, 1]) < 4 / math.sqrt(values.size)
    real, imaginary = randoms.normal_pair(seeds, 1, 64, 64)
    assert abs(np.corrcoef(real.flatten(), imaginary.flatten())[0, 1]) < 4 / math.sqrt(real.numel())


def test_noise_of_a_seed_does_not_depend_on_the_batch():
    alone = randoms.normal_pair(torch.tensor([77]), 1, 9, 9)[0]
    among = randoms.normal_pair(torch.tensor([5, 77, 6]), 1, 9, 9)[0]
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])


IMAGES = {"normal": randoms.normal_images, "uniform": randoms.uniform_images}


def counted(name, seeds, *shape):
    """The form of other devices than the CPU."""
    if name == "normal":
        return randoms.normal_pair(seeds, *shape)[0]
    pixel = torch.arange(math.prod(shape)).view(1, *shape)
    low, high = (seeds & 0xFFFFFFFF)[:, None, None, None], (seeds >> 32)[:, None, None, None]
    return randoms._uniform(pixel, low, high)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("form", ["cpu", "counted"])
def test_images_follow_their_distribution(name, form):
    seeds = torch.arange(64) * 7919 + 5
    images = IMAGES[name](seeds, 2, 32, 32) if form == "cpu" else counted(name, seeds, 2, 32, 32)
    assert images.dtype == torch.float32 and images.shape == (64, 2, 32, 32)
    values = images.flatten().double().numpy()
    assert scipy.stats.kstest(values, "norm" if name == "normal" else "uniform").pvalue > 0.01
    for shifted in (images.roll(1, 0), images.roll(1, 1), images.roll(1, 2), images.roll(1, 3)):
        assert abs(np.corrcoef(values, shifted.flatten().numpy())[0, 1]) < 4 / math.sqrt(values.size)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_a_seed_does_not_depend_on_the_batch(name):
    alone = IMAGES[name](torch.tensor([77]), 1, 9, 9)
    among = IMAGES[name](torch.tensor([5, 77, 6]), 1, 9, 9)
    assert torch.equal(alone[0], among[1]) and not torch.equal(among[0], among[1])


def test_uniforms_are_uniform_and_independent_of_the_images():
    seeds = torch.arange(5000) * 31 + 1
    u = randoms.uniforms(seeds, 4)
    assert u.shape == (5000, 4) and torch.equal(u[:, :2], randoms.uniforms(seeds, 2))
    assert scipy.stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    columns = np.concatenate([u.numpy(), counted("uniform", seeds, 1, 1, 4).flatten(1).numpy()], axis=1)
    off_diagonal = np.corrcoef(columns.T) - np.eye(8)
    assert np.abs(off_diagonal).max() < 4.5 / math.sqrt(5000)


def test_uniforms_are_below_1():
    largest = torch.tensor([3156235])  # the first seed whose word is all ones: a place beyond the image, were it 1
    assert randoms.uniforms(largest, 1).item() == 1 - 2**-24


def test_other_seeds_differ_and_stay_in_range():
    seeds = torch.tensor([0, 1, 2**63 - 1])
    others = [randoms.other_seeds(seeds, k) for k in range(1, 5)]
    together = torch.cat([seeds, *others])
    assert len(set(together.tolist())) == 15 and len({seed & 0xFFFFFFFF for seed in together.tolist()}) == 15
    assert together.min() >= 0


def test_equal_channels_of_three_get_the_same_noise_and_no_others():
    x = torch.rand((3, 3, 8, 9), generator=torch.Generator().manual_seed(0))
    x[1] = x[1, :1]
    seeds = torch.arange(3)
    expected = randoms.normal_images(seeds, 3, 8, 9)
    expected[1] = expected[1, :1].clone()
    assert torch.equal(randoms.normal_scans(seeds, x), expected)
    several = x[1:2, :1].expand(-1, 4, -1, -1)  # four measurements, equal or not
    assert torch.equal(randoms.normal_scans(seeds[:1], several), randoms.normal_images(seeds[:1], 4, 8, 9))
