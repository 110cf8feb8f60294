import numpy as np
import pytest
import scipy.stats
import torch

from csrtrain.augment import intensity, randoms

IDENTITY = (1.0, 0.0, 1.0, 0.0, 1.0)


def chain(x, factors, *, field=None, seed=1, noise="none", colored=False):
    n = len(x)
    field = torch.zeros(n, 1, 1, 1) if field is None else field
    factors = torch.tensor([factors] * n, dtype=torch.float32)
    return intensity.chain(x, factors, field, torch.full((n,), seed), noise, colored, compiled=False)


def test_rician_equals_the_magnitude_of_a_complex_signal():
    x = torch.linspace(0, 0.8, 64).view(1, 1, 8, 8)
    real, imaginary = randoms.normal_pair(torch.tensor([1]), 1, 8, 8)
    expected = torch.complex(x + 0.05 * real, 0.05 * imaginary).abs()
    assert torch.allclose(chain(x, (1, 0.05, 1, 0, 1), noise="rician"), expected, atol=1e-6)


def test_rician_background_is_rayleigh():
    background = chain(torch.zeros(1, 1, 200, 200), (1, 0.05, 1, 0, 1), noise="rician").flatten().numpy()
    assert scipy.stats.kstest(background, scipy.stats.rayleigh(scale=0.05).cdf).pvalue > 0.01


def test_speckle_multiplies_and_gaussian_adds():
    x = torch.full((1, 1, 8, 8), 0.5)
    normal = randoms.normal_pair(torch.tensor([1]), 1, 8, 8)[0]
    assert torch.allclose(chain(x, (1, 0.05, 1, 0, 1), noise="speckle"), 0.5 + 0.025 * normal, atol=1e-6)
    assert torch.allclose(chain(x, (1, 0.05, 1, 0, 1), noise="gaussian"), 0.5 + 0.05 * normal, atol=1e-6)


def test_noise_of_a_scanner_is_the_same_in_all_channels():
    x = torch.full((1, 3, 16, 16), 0.5)
    grey = chain(x, (1, 0.05, 1, 0, 1), noise="gaussian", colored=False)
    colored = chain(x, (1, 0.05, 1, 0, 1), noise="gaussian", colored=True)
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert not torch.equal(colored[:, 0], colored[:, 2])


@pytest.mark.parametrize("noise", ["none", "gaussian", "rician", "speckle"])
def test_identity(noise_images, noise):
    x = noise_images(2, 1, 16, 16).float() / 255
    assert torch.allclose(chain(x, IDENTITY, noise=noise), x, atol=1e-6)


def test_gain_window_and_gamma_literally(noise_images):
    x = noise_images(2, 1, 16, 16).float() / 255
    gained = (1.2 * x).clamp(0, 1)
    assert torch.allclose(chain(x, (1.2, 0, 1, 0, 1)), gained, atol=1e-6)
    # A window of width 0.8 around 0.55: 0.15 becomes black, 0.95 white.
    windowed = ((x - 0.15) / 0.8).clamp(0, 1)
    assert torch.allclose(chain(x, (1, 0, 0.8, 0.05, 1)), windowed, atol=1e-6)
    assert torch.allclose(chain(x, (1, 0, 1, 0, 1.3)), x**1.3, atol=1e-6)


def test_field_is_the_legendre_series():
    coefficients = np.random.default_rng(0).normal(size=(2, 4, 4)) * 0.1
    rows, columns = (2 * np.arange(12) + 1) / 12 - 1, (2 * np.arange(9) + 1) / 9 - 1
    grid = np.meshgrid(rows, columns, indexing="ij")
    result = intensity.log_field(torch.tensor(coefficients, dtype=torch.float32), 12, 9)
    for k in range(2):
        assert np.allclose(result[k, 0], np.polynomial.legendre.legval2d(*grid, coefficients[k]), atol=1e-5)


def test_field_multiplies_and_keeps_the_geometric_mean():
    coefficients = torch.zeros(1, 4, 4)
    coefficients[0, 1, 0], coefficients[0, 0, 2] = 0.3, -0.2
    field = intensity.log_field(coefficients, 200, 200)
    assert field.mean().abs() < 1e-4
    x = torch.full((1, 1, 200, 200), 0.4)
    assert torch.allclose(chain(x, IDENTITY, field=field), 0.4 * field.exp(), atol=1e-6)
