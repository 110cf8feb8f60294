import math

import numpy as np
import pytest
import scipy.stats
import torch

from csrtrain.augment.distortions import mri

SEEDS = torch.arange(4) * 7919 + 3


def images(n, channels, height, width):
    return torch.rand((n, channels, height, width), generator=torch.Generator().manual_seed(n * height + width))


@pytest.mark.parametrize("signal", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("sigma", [0.02, 0.12])
def test_rician_noise_has_scipys_distribution(signal, sigma):
    x = torch.full((1, 1, 300, 300), signal)
    noisy = mri.rician_noise(x, torch.tensor([sigma]), SEEDS[:1]).flatten().double().numpy()
    rice = scipy.stats.rice(signal / sigma, scale=sigma)
    assert abs(noisy.mean() - rice.mean()) < 4.5 * rice.std() / 300
    assert abs(noisy.std() / rice.std() - 1) < 0.015
    assert scipy.stats.kstest(noisy[::9], rice.cdf).pvalue > 1e-3


@pytest.mark.parametrize("height, width", [(48, 60), (45, 51)])
@pytest.mark.parametrize("kept", [0.16, 0.36, 0.5, 0.7])
def test_gibbs_ringing_is_zero_filled_k_space(height, width, kept):
    x = images(1, 2, height, width)
    k_space = np.fft.fftshift(np.fft.fft2(x[0].double().numpy()), axes=(1, 2))
    for axis, size in ((1, height), (2, width)):
        frequency = np.arange(size) - size // 2
        outside = np.abs(frequency) > kept * size / 2 + 1e-4
        k_space = np.moveaxis(k_space, axis, 0)
        k_space[outside] = 0
        k_space = np.moveaxis(k_space, 0, axis)
    # Of an even side the line -size/2 has no partner; at these shares it is left out.
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(k_space, axes=(1, 2))))
    ringing = mri.gibbs_ringing(x, torch.tensor([kept]), SEEDS[:1])
    torch.testing.assert_close(ringing[0], torch.from_numpy(expected).float(), atol=1e-5, rtol=0)


def test_gibbs_ringing_overshoots_by_nine_per_cent_beside_an_edge():
    """The Wilbraham-Gibbs constant: 8.95 % of the step, however many frequencies are kept."""
    x = torch.full((1, 1, 16, 512), 0.2)
    x[..., 128:384] = 0.7
    ringing = mri.gibbs_ringing(x, torch.tensor([0.25]), SEEDS[:1])
    assert abs(float(ringing.max()) - (0.7 + 0.0895 * 0.5)) < 0.005


def test_bias_field_is_smooth_and_has_the_range_of_its_name():
    strength = torch.tensor([0.1, 0.2, 0.5, 0.8])
    field = mri.bias_field(torch.ones(4, 2, 64, 80), strength, SEEDS).log()
    torch.testing.assert_close(field.amax((1, 2, 3)), strength)
    torch.testing.assert_close(field.amin((1, 2, 3)), -strength)
    assert torch.equal(field[:, 0], field[:, 1])
    design = np.polynomial.legendre.legvander2d(
        *(a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 80), indexing="ij")), [3, 3]
    )
    for one in field[:, 0].double().numpy():
        residual = one.ravel() - design @ np.linalg.lstsq(design, one.ravel(), rcond=None)[0]
        assert np.abs(residual).max() < 1e-5
    assert (field[0, 0] / 0.1 - field[1, 0] / 0.2).abs().max() > 0.1


def test_kspace_spike_is_one_sample_of_k_space():
    x, amplitude = images(4, 1, 48, 60), torch.tensor([0.05, 0.1, 0.2, 0.3])
    spiked = mri.kspace_spike(x, amplitude, SEEDS)
    # Where the image is far above the wave, its magnitude is x + a cos to first order: look at a bright image.
    bright = mri.kspace_spike(torch.full_like(x, 1e3), amplitude, SEEDS)[:, 0].double().numpy() - 1e3
    for k in range(4):
        power = np.abs(np.fft.fft2(bright[k])) / bright[k].size
        rows, columns = np.nonzero(power > 0.1 * power.max())
        assert len(rows) == 2 and (rows.sum() % 48, columns.sum() % 60) == (0, 0)  # a frequency and its opposite
        assert abs(power.max() - float(amplitude[k]) / 2) < 2e-3
        radius = math.hypot(*(min(i, n - i) / n for i, n in ((rows[0], 48), (columns[0], 60))))
        assert 0.03 < radius < 0.42
        literal = np.fft.fft2(x[k, 0].double().numpy())
        waves = []
        for i, j in zip(rows, columns, strict=True):  # which of the two it is, the magnitude tells
            phase = np.angle(np.fft.fft2(bright[k])[i, j])
            spike = literal.copy()
            spike[i, j] += float(amplitude[k]) * bright[k].size * np.exp(1j * phase)
            waves.append(np.abs(np.fft.ifft2(spike) - spiked[k, 0].numpy()).max())
            waves[-1] = np.abs(np.abs(np.fft.ifft2(spike)) - spiked[k, 0].numpy()).max()
        assert min(waves) < 2e-3


def test_motion_ghosting_shifts_line_after_line():
    x, amplitude = images(4, 2, 48, 30), torch.tensor([0.5, 2.0, 6.0, 0.0])
    moved = mri.motion_ghosting(x, amplitude, SEEDS)
    u = mri.uniforms(SEEDS, 2).double().numpy()
    for k in range(3):
        k_space = np.fft.fft(x[k].double().numpy(), axis=1)
        for line, frequency in enumerate(np.fft.fftfreq(48)):
            time = frequency  # lines in order, from -0.5 to 0.5
            shift = float(amplitude[k]) * math.sin(2 * math.pi * ((3 + 9 * u[k, 0]) * time + u[k, 1]))
            k_space[:, line] *= np.exp(-2j * math.pi * frequency * shift)
        expected = np.abs(np.fft.ifft(k_space, axis=1))
        torch.testing.assert_close(moved[k], torch.from_numpy(expected).float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(moved[3], x[3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("acceleration", [1.0, 1.5, 2.0, 3.0, 5.0])
def test_undersampling_keeps_one_of_so_many_lines(acceleration):
    # An impulse has the same amplitude in all lines: those of the result are 1 or 0.
    x = torch.zeros(4, 1, 200, 4)
    x[:, :, 0] = 1
    kept = _kept_lines(x, acceleration)
    center = np.abs(np.fft.fftfreq(200)) <= 0.04
    assert kept[:, center].all()
    share = kept[:, ~center].mean()
    assert abs(share - 1 / acceleration) < 0.02
    assert acceleration == 1 or not np.array_equal(kept[0], kept[3])  # another first line


def _kept_lines(x, acceleration):
    seen = []
    original = mri._weight_lines
    try:
        mri._weight_lines = lambda x, weights: seen.append(weights) or original(x, weights)
        mri.undersampling(x, torch.full((len(x),), acceleration), SEEDS)
    finally:
        mri._weight_lines = original
    return seen[0].numpy().astype(bool)


def test_undersampling_by_two_makes_a_copy_half_an_image_away():
    x = torch.zeros(1, 1, 128, 32)
    x[:, :, 20:36, 8:24] = 1
    aliased = mri.undersampling(x, torch.tensor([2.0]), SEEDS[:1])[0, 0]
    high = aliased - x[0, 0].mean()  # the centre of k-space is kept whole, so only fine detail is copied
    assert float(high[84:100, 8:24].abs().max()) > 0.15
    torch.testing.assert_close(mri.undersampling(x, torch.ones(1), SEEDS[:1]), x, atol=1e-5, rtol=0)
