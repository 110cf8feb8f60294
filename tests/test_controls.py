import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.metrics
import torch
from PIL import Image
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from csrtrain import controls
from csrtrain.data import decode, samples


@pytest.fixture(scope="module")
def photograph():
    return next(image for image in map(decode.read, samples.natural()) if len(image) == 3)[:, :240, :256]


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 4.0])
def test_the_shape_of_generalised_gaussian_samples_is_found(shape):
    x = torch.from_numpy(scipy.stats.gennorm.rvs(shape, scale=0.3, size=400_000, random_state=0))
    assert float(controls._shape(x.abs().mean() ** 2 / x.square().mean())) == pytest.approx(shape, rel=0.03)


def test_left_and_right_of_an_asymmetric_gaussian_are_found():
    rng = np.random.default_rng(0)
    left, right = 0.2, 0.5  # half-normal on either side, as many samples as the density has there
    sizes = (int(400_000 * left / (left + right)), int(400_000 * right / (left + right)))
    x = torch.from_numpy(
        np.concatenate([-left * abs(rng.normal(size=sizes[0])), right * abs(rng.normal(size=sizes[1]))])
    )
    shape, mean, left_variance, right_variance = (float(value) for value in controls._asymmetric(x))
    assert (shape, left_variance, right_variance) == pytest.approx((2, left**2, right**2), rel=0.03)
    # (beta_r - beta_l) Gamma(2/a) / Gamma(1/a) with a = 2, beta = sqrt(2) sigma
    assert mean == pytest.approx((right - left) * math.sqrt(2) / math.sqrt(math.pi), rel=0.03)


def test_local_normalisation_is_scipys(photograph):
    luma = photograph[0].double().numpy() / 255
    taps = np.exp(-0.5 * ((np.arange(7) - 3) / (7 / 6)) ** 2)
    taps /= taps.sum()

    def smooth(x):
        for axis in (0, 1):
            x = scipy.ndimage.correlate1d(x, taps, axis=axis, mode="nearest")
        return x

    mean = smooth(luma)
    expected = (luma - mean) / (np.sqrt(np.maximum(smooth(luma**2) - mean**2, 0)) + 1 / 255)
    np.testing.assert_allclose(controls._locally_normalised(torch.from_numpy(luma)), expected, atol=1e-8)


def test_features_tell_noise_and_blur_apart(photograph):
    plain = controls.brisque_features(photograph)
    assert plain.shape == (36,) and bool(torch.isfinite(plain).all())
    noise = photograph.float() / 255 + 0.1 * torch.randn(photograph.shape, generator=torch.Generator().manual_seed(0))
    noisy = controls.brisque_features(noise.clamp(0, 1))
    image = Image.fromarray(photograph.permute(1, 2, 0).numpy())
    blurred = scipy.ndimage.gaussian_filter(np.asarray(image), (3, 3, 0))
    blurry = controls.brisque_features(torch.from_numpy(blurred).permute(2, 0, 1))
    assert blurry[0] < plain[0] < noisy[0]  # heavier tails, and near to Gaussian


def test_a_mirror_image_has_the_same_statistics_but_for_the_diagonals(photograph):
    square = photograph[:, :, :240]  # halves to whole pixels
    a, b = controls.brisque_features(square), controls.brisque_features(square.flip(2))
    order = [*range(10), *range(14, 18), *range(10, 14)]
    order += [18 + k for k in order]
    torch.testing.assert_close(a, b[order], atol=1e-2, rtol=1e-2)


def test_bytes_and_floats_are_the_same_and_grey_is_its_luma(photograph):
    a = controls.brisque_features(photograph)
    torch.testing.assert_close(a, controls.brisque_features(photograph.double() / 255), atol=1e-6, rtol=1e-6)
    grey = photograph[:1]
    torch.testing.assert_close(
        controls.brisque_features(grey), controls.brisque_features(grey.expand(3, -1, -1)), atol=2e-3, rtol=2e-3
    )


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_image_has_finite_features(value):
    assert bool(torch.isfinite(controls.brisque_features(torch.full((3, 64, 64), value))).all())


@pytest.mark.parametrize("shape", [(3, 15, 64), (64, 64), (1, 3, 64, 64)])
def test_errors(shape):
    with pytest.raises(ValueError, match="Expected an image .C,H,W. of at least 16 px, got"):
        controls.brisque_features(torch.rand(shape))


def test_the_svr_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(60, 5)), np.arange(60) // 3
    ratings = np.tanh(features[:, 0]) / 2 + rng.normal(0, 0.1, 60)
    best, least = None, math.inf
    for c in (0.1, 1, 10):
        for gamma in (0.003, 0.01, 0.03, 0.1):
            model = make_pipeline(StandardScaler(), SVR(C=c, gamma=gamma, epsilon=0.02))
            scores = cross_val_score(model, features, ratings, groups=groups, cv=GroupKFold(4))
            if -scores.mean() < least:
                best, least = model, -scores.mean()
    expected = best.fit(features, ratings).predict(features[:7])
    np.testing.assert_allclose(controls.fit_svr(features, ratings, groups, 4)(features[:7]), expected)
    np.testing.assert_allclose(controls.fit_svr(features, ratings, groups, 4, most=60)(features[:7]), expected)
    fewer = controls.fit_svr(features, ratings, groups, 4, most=30)(features[:7])
    assert np.isfinite(fewer).all()


def test_share_of_high_frequencies():
    rows, columns = np.mgrid[:64, :96]
    low = torch.from_numpy(0.5 + 0.4 * np.sin(2 * np.pi * 0.1 * columns))[None]
    high = torch.from_numpy(0.5 + 0.4 * np.sin(2 * np.pi * (0.25 * columns + 0.25 * rows)))[None]
    assert controls.high_frequency_share(low) < 1e-3 and controls.high_frequency_share(high) > 0.999
    both = controls.high_frequency_share(low / 2 + high / 2)
    assert both == pytest.approx(0.5, abs=0.01)  # equal amplitudes have equal power
    assert controls.high_frequency_share(torch.full((3, 40, 40), 0.3)) == 0
    noise = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(0))
    outside = 1 - math.pi * 0.25**2  # of the square of frequencies
    assert controls.high_frequency_share(noise) == pytest.approx(outside, abs=0.02)


def test_blur_takes_high_frequencies(photograph):
    blurred = scipy.ndimage.gaussian_filter(photograph.numpy().astype(float) / 255, (0, 2, 2))
    assert controls.high_frequency_share(torch.from_numpy(blurred)) < controls.high_frequency_share(photograph) / 10


def test_differences_of_pixels(photograph):
    x = photograph.float() / 255
    y = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(max=1)
    mse = float(np.mean((x.numpy().astype(float) - y.numpy().astype(float)) ** 2))
    assert controls.pixel_l2(x, y) == pytest.approx(math.sqrt(mse), rel=1e-6)
    expected = skimage.metrics.peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1)
    assert controls.psnr(x, y) == pytest.approx(expected, rel=1e-6)
    assert controls.psnr(x, x) == 100 and controls.ssim(x, x) == pytest.approx(1)
    assert controls.ms_ssim(x, x) == pytest.approx(1, abs=1e-5)
    assert controls.ssim(x, y) == pytest.approx(controls.ssim(y, x)) and 0 < controls.ssim(x, y) < 1
    assert 0 < controls.ms_ssim(x, y) < 1 and math.isnan(controls.ms_ssim(x[:, :175], y[:, :175]))
    with pytest.raises(ValueError, match="at least 11 px, got"):
        controls.ssim(x[:, :8], y[:, :8])
