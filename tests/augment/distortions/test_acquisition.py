import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
import skimage.transform
import torch

from csrtrain.augment.distortions import acquisition

SEEDS = torch.arange(4) * 7919 + 3


def images(n, channels, height, width):
    return torch.rand((n, channels, height, width), generator=torch.Generator().manual_seed(n * height + width))


@pytest.mark.parametrize("signal", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("quanta", [40.0, 300.0, 3000.0])
def test_poisson_noise_has_scipys_moments(signal, quanta):
    x = torch.full((1, 1, 500, 500), signal)
    counts = acquisition.poisson_noise(x, torch.tensor([quanta]), SEEDS[:1]).flatten().double().numpy() * quanta
    poisson = scipy.stats.poisson(signal * quanta)
    assert abs(counts.mean() - poisson.mean()) < 4.5 * poisson.std() / 500
    assert abs(counts.var() / (poisson.var() + 0.125) - 1) < 0.02
    # Three quarters of the skewness 1 / sqrt(mean): the third moment of (sqrt(m) + n / 2)^2.
    assert abs(scipy.stats.skew(counts) - 1.5 / (signal * quanta) ** 0.5) < 0.03 + 0.1 * (signal * quanta) ** -0.5


def test_poisson_noise_of_black_is_less_than_a_count():
    counts = 40 * acquisition.poisson_noise(torch.zeros(1, 1, 100, 100), torch.tensor([40.0]), SEEDS[:1])
    assert counts.std() < 0.4 and abs(counts.mean()) < 0.02


def test_low_dose_noise_has_the_spectrum_of_back_projection():
    height, width = 200, 151
    x, sigma = torch.full((4, 1, height, width), 0.5), torch.tensor([0.01, 0.04, 0.12, 0.2])
    noise = (acquisition.low_dose_noise(x, sigma, SEEDS) - x)[:, 0].double().numpy()
    assert np.allclose(noise.std((1, 2)), sigma, rtol=0.03) and np.abs(noise.mean((1, 2))).max() < 1e-4
    power = (np.abs(np.fft.fft2(noise / sigma.numpy()[:, None, None])) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    expected = f * np.cos(np.pi * f) ** 4
    bands = [(f >= low) & (f < low + 0.05) for low in np.arange(0.0, 0.45, 0.05)]
    measured = np.array([power[band].mean() for band in bands])
    theory = np.array([expected[band].mean() for band in bands])
    assert np.allclose(measured / measured.sum(), theory / theory.sum(), rtol=0.15, atol=2e-3)


@pytest.fixture(scope="module")
def phantom():
    return skimage.transform.resize(skimage.data.shepp_logan_phantom(), (128, 128), anti_aliasing=True)


def skimage_reconstruction(phantom, views, first):
    # skimage turns the image, not the rays.
    angles = -np.degrees(np.pi * (np.arange(views) + first) / views)
    return skimage.transform.iradon(skimage.transform.radon(phantom, angles), angles, filter_name="shepp-logan")


@pytest.mark.parametrize("views", [12, 16, 24])
def test_sparse_view_makes_the_streaks_of_skimage(phantom, views):
    """Streaks: the difference to a reconstruction from many views. skimage interpolates twice, so ours are smoothed."""
    first = float(acquisition.uniforms(SEEDS[:1], 1))
    expected = skimage_reconstruction(phantom, views, first) - skimage_reconstruction(phantom, 400, first)
    x = torch.from_numpy(phantom).float()[None, None]
    ours = acquisition.sparse_view(x, torch.tensor([float(views)]), SEEDS[:1])[0, 0].numpy()
    streaks = scipy.ndimage.gaussian_filter(ours - phantom, 0.5)
    rows = np.arange(128) - 64
    inside = np.hypot(rows[:, None], rows) < 60  # skimage knows nothing outside of the circle
    assert np.corrcoef(streaks[inside], expected[inside])[0, 1] > 0.95
    assert 0.85 < streaks[inside].std() / expected[inside].std() < 1.2
    assert abs(ours[inside].mean() - phantom[inside].mean()) < 0.002


def test_sparse_view_of_many_views_is_the_image():
    x = torch.nn.functional.interpolate(images(1, 1, 8, 10), size=(64, 80), mode="bicubic").clamp(0, 1)
    error = [
        float((acquisition.sparse_view(x, torch.tensor([v]), SEEDS[:1]) - x)[..., 8:-8, 8:-8].std())
        for v in (8.0, 32.0, 128.0)
    ]
    assert error[0] > error[1] > error[2] and error[2] < 0.02


@pytest.mark.parametrize("height, width", [(5, 7), (6, 4)])
def test_view_kernels_are_the_sum_over_the_views(height, width):
    views, first = torch.tensor([3.0, 5.0]), torch.tensor([[0.2], [0.7]])
    kernels = acquisition._view_kernels(views, first, height, width)
    for k in range(2):
        for row in range(1 - height, height):
            for column in range(1 - width, width):
                expected = 0.0
                for view in range(int(views[k])):
                    angle = np.pi * (view + float(first[k])) / float(views[k])
                    s = abs(column * np.cos(angle) + row * np.sin(angle))
                    response = (2 - 4 * s * np.sin(np.pi * s)) / (np.pi**2 * (1 - 4 * s * s))
                    expected += np.pi / float(views[k]) * response
                assert abs(float(kernels[k, row, column]) - expected) < 5e-3


def test_speckle_has_the_distribution_of_rice():
    """One pixel of a smooth field each, 3 px apart: the length of 1 + diffuse * g, over sqrt(1 + diffuse^2)."""
    for diffuse in (0.2, 1.2, 50.0):
        x = torch.ones(4, 1, 300, 300)
        y = (
            acquisition.speckle(x, torch.full((4,), diffuse), SEEDS)[:, :, 10:-10:6, 10:-10:6]
            .flatten()
            .double()
            .numpy()
        )
        scale = diffuse / np.sqrt(2) / np.sqrt(1 + diffuse**2)
        rice = scipy.stats.rice(np.sqrt(2) / diffuse, scale=scale)
        assert abs(y.mean() / rice.mean() - 1) < 0.02 and abs(y.std() / rice.std() - 1) < 0.05
        assert scipy.stats.kstest(y, rice.cdf).pvalue > 1e-3


def test_speckle_is_multiplicative_and_correlated():
    x = images(4, 1, 64, 64)
    diffuse = torch.full((4,), 0.7)
    gain = acquisition.speckle(torch.ones_like(x), diffuse, SEEDS)
    torch.testing.assert_close(acquisition.speckle(x, diffuse, SEEDS), x * gain)
    g = gain - gain.mean()
    neighbours = float((g[..., 1:] * g[..., :-1]).mean() / g.square().mean())
    assert 0.5 < neighbours < 0.95
    assert torch.equal(acquisition.speckle(x, torch.zeros(4), SEEDS), x)


def test_window_shift_stretches_what_is_left():
    x = torch.linspace(0, 1, 1001).expand(4, 1, 3, 1001).contiguous()
    lost = torch.tensor([0.1, 0.3, 0.6, 0.0])
    y = acquisition.window_shift(x, lost, SEEDS)
    dark = lost * acquisition.uniforms(SEEDS, 1)[:, 0]
    for k in range(4):
        expected = np.clip((x[k].numpy() - float(dark[k])) / (1 - float(lost[k])), 0, 1)
        assert np.abs(y[k].numpy() - expected).max() < 1e-5
        clipped = float(((y[k, 0, 0] == 0) | (y[k, 0, 0] == 1)).float().mean())
        assert abs(clipped - float(lost[k])) < 0.01
    assert torch.equal(y[3], x[3])


def literal_thick_slices(x, thickness):
    """Row by row: means over slices, read off by linear interpolation between their centres."""
    height = len(x)
    fine = np.repeat(x, 100, axis=0)  # 100 sub-rows per row
    edges = np.arange(0, height, thickness)
    means = [fine[round(100 * e) : round(100 * min(e + thickness, height))].mean(0) for e in edges]
    centers = (np.arange(len(edges)) + 0.5) * thickness
    at = np.arange(height) + 0.5
    return np.stack([np.interp(at, centers, column) for column in np.stack(means, 1)], axis=1)


@pytest.mark.parametrize("thickness", [1.0, 1.5, 2.0, 3.0, 4.5, 7.0])
def test_through_plane_blur_is_literal(thickness):
    x = images(2, 1, 63, 20)
    y = acquisition.through_plane_blur(x, torch.full((2,), thickness), SEEDS[:2])
    for k in range(2):
        expected = literal_thick_slices(x[k, 0].double().numpy(), thickness)
        torch.testing.assert_close(y[k, 0], torch.from_numpy(expected).float(), atol=1e-4, rtol=0)
