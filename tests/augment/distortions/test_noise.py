import numpy as np
import pytest
import scipy.signal
import scipy.stats
import skimage.color
import torch

from csrtrain.augment.distortions import noise

SEEDS = torch.arange(4) * 7919 + 3
SIDE = 400


def grey(value, channels=1):
    return torch.full((4, channels, SIDE, SIDE), value)


def assert_normal(values, variance):
    """Mean 0, this variance, normal, and no correlation between neighbours; values (H,W)."""
    n = values.size
    assert abs(values.mean()) < 4.5 * (variance / n) ** 0.5
    assert abs(values.var() / variance - 1) < 4.5 * (2 / n) ** 0.5
    assert scipy.stats.kstest(values.ravel() / variance**0.5, "norm").pvalue > 1e-3
    for a, b in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(np.mean(a * b)) / variance < 4.5 / n**0.5


def test_white_noise_has_its_variance_in_every_channel():
    variances = torch.tensor([0.001, 0.002, 0.005, 0.01])
    added = (noise.white_noise(grey(0.5, 3), variances, SEEDS) - 0.5).double().numpy()
    for image, variance in zip(added, variances.tolist(), strict=True):
        for channel in image:
            assert_normal(channel, variance)
        assert abs(np.corrcoef(image.reshape(3, -1))[np.triu_indices(3, 1)]).max() < 4.5 / SIDE
    assert abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 4.5 / SIDE


def test_white_noise_ycbcr_has_its_variance_in_skimages_ycbcr():
    variances = torch.tensor([0.0001, 0.001, 0.002, 0.003])
    x = noise.white_noise_ycbcr(grey(0.5, 3), variances, SEEDS).permute(0, 2, 3, 1).double().numpy()
    for image, variance in zip(x, variances.tolist(), strict=True):
        # skimage's is of studio range: Y spans 219, Cb and Cr 224 of 255 steps.
        ycbcr = (skimage.color.rgb2ycbcr(image) - [16, 128, 128]) / [219, 224, 224]
        for k, middle in enumerate((0.5, 0, 0)):
            assert_normal(ycbcr[..., k] - middle, variance)


def test_impulse_noise_has_its_density():
    densities = torch.tensor([0.001, 0.005, 0.02, 0.3])
    x = noise.impulse_noise(grey(0.5, 3), densities, SEEDS)
    for image, density in zip(x, densities.tolist(), strict=True):
        n = image.numel()
        for value in (0.0, 1.0):
            count = int((image == value).sum())
            assert scipy.stats.binomtest(count, n, density / 2).pvalue > 1e-4
        assert int((image == 0.5).sum()) == n - int((image == 0).sum()) - int((image == 1).sum())


def test_impulse_noise_sets_places_as_independently_one_by_one_as_in_a_batch():
    x, density = grey(0.5), torch.tensor([0.3, 0.3, 1.0, 0.0])
    for form in (noise._set_each, noise._set_batch):
        hit = form(x, density, SEEDS) != 0.5
        assert hit[2].all() and not hit[3].any()
        a, b = hit[0, 0, :, :-1].flatten(), hit[0, 0, :, 1:].flatten()  # neighbours
        assert scipy.stats.binomtest(int((a & b).sum()), len(a), 0.09).pvalue > 1e-4
        rows = hit[0, 0].sum(1)
        assert scipy.stats.kstest(rows, scipy.stats.binom(SIDE, 0.3).cdf).statistic < 0.1


def test_impulse_noise_of_few_values_sets_every_place_alike():
    n, side, density = 4000, 32, 0.001
    seeds, densities = torch.arange(n), torch.full((n,), density)
    hit = noise.impulse_noise(torch.full((n, 1, side, side), 0.5), densities, seeds).flatten(1) != 0.5
    for place in (0, side**2 // 2, side**2 - 1):
        assert scipy.stats.binomtest(int(hit[:, place].sum()), n, density).pvalue > 1e-4
    assert scipy.stats.binomtest(int(hit.sum()), hit.numel(), density).pvalue > 1e-4


def test_multiplicative_noise_grows_with_the_signal():
    variances = torch.tensor([0.001, 0.005, 0.02, 0.05])
    for value in (0.2, 0.8):
        added = (noise.multiplicative_noise(grey(value), variances, SEEDS) - value).double().numpy()
        for image, variance in zip(added, variances.tolist(), strict=True):
            assert_normal(image[0], variance * value**2)


@pytest.mark.parametrize("variance", [0.01, 0.1])
def test_denoise_is_scipys_wiener_filter(variance):
    x = torch.rand((2, 1, 48, 60), generator=torch.Generator().manual_seed(1))
    variances = torch.full((2,), variance)
    noisy = noise.white_noise(x, variances, SEEDS[:2]).clamp(0, 1)
    denoised = noise.denoise(x, variances, SEEDS[:2])
    for k in range(2):
        expected = scipy.signal.wiener(noisy[k, 0].double().numpy(), 5, variance)[2:-2, 2:-2]  # its border is black
        np.testing.assert_allclose(denoised[k, 0, 2:-2, 2:-2], expected, atol=1e-5)


def test_denoise_removes_noise_where_nothing_is():
    left = noise.denoise(grey(0.5), torch.full((4,), 0.01), SEEDS)
    assert float(left.var()) < 0.01 / 4
