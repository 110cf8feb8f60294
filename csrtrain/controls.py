"""What every result stands beside: classical features and differences that need no training of a network."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

Array = NDArray[np.float64]

_TAPS, _SIGMA = 7, 7 / 6  # of the local mean and deviation
_OFFSET = 1 / 255
_STRENGTHS = {"svr__C": [0.1, 1, 10], "svr__gamma": [0.003, 0.01, 0.03, 0.1]}
_SHAPES = torch.arange(200, 10001, dtype=torch.float64) / 1000  # of the generalised Gaussians


def brisque_features(image: Tensor) -> Tensor:
    """The 36 natural scene statistics of BRISQUE: (C,H,W) uint8, or float in [0,1] -> (36,) float64.

    Mittal, Moorthy & Bovik, "No-reference image quality assessment in the spatial domain", IEEE TIP 2012, table I: at
    full and half scale, shape and variance of the generalised Gaussian of the locally normalised luma (section III-A),
    then shape, mean, left and right variance of the asymmetric one of its products with four neighbours.

    Values are in [0,1] and the offset of the deviation is 1/255 accordingly; the half scale is bicubic, antialiased.

    Raises:
        ValueError: a side is below 16 pixels.
    """
    if image.ndim != 3 or min(image.shape[1:]) < 16:
        raise ValueError(f"Expected an image (C,H,W) of at least 16 px, got {tuple(image.shape)}. Leave it out.")
    full = _luma(image)
    half = F.interpolate(full[None, None], scale_factor=0.5, mode="bicubic", antialias=True)[0, 0]
    return torch.cat([_statistics(scale) for scale in (full, half)])


def fit_svr(
    features: Array, ratings: Array, groups: NDArray[np.int64], folds: int = 5, most: int | None = None
) -> Callable[[Array], Array]:
    """A support vector regression with an RBF kernel, as BRISQUE is used (section III-B there).

    Args:
        features: (N,F), which are brought to mean 0 and deviation 1.
        ratings: (N,) with a range of about 1.
        groups: (N,); C and gamma are chosen by folds of whole groups.
        folds: at most the number of groups.
        most: rows, drawn at random, that C and gamma are chosen on; by default all. The time grows with their square.

    Returns:
        A function from (M,F) to (M,) ratings.
    """
    chosen = np.arange(len(ratings))
    if most is not None and len(chosen) > most:
        drawn = np.sort(np.random.default_rng(0).permutation(len(ratings))[:most])
        chosen = drawn if len(np.unique(groups[drawn])) > 1 else chosen
    folds = min(folds, len(np.unique(groups[chosen])))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SVR(epsilon=0.02)), _STRENGTHS, cv=GroupKFold(folds), refit=most is None
    )
    search.fit(features[chosen], ratings[chosen], groups=groups[chosen])
    if most is None:
        fitted = search
    else:
        fitted = search.estimator.set_params(**search.best_params_).fit(features, ratings)
    return lambda rows: np.asarray(fitted.predict(rows))


def high_frequency_share(image: Tensor) -> float:
    """Share of the power of an image above half of the highest frequency, 0 to 1; ours.

    (C,H,W) uint8, or float in [0,1]. Of the luma (the mean where there are not three channels) less its mean under a
    Hann window; frequencies beyond 0.25 cycles per pixel, whatever their direction. 0 for an image of one value.
    """
    grey = _luma(image)
    window = torch.outer(*(torch.hann_window(n, periodic=False, dtype=torch.float64) for n in grey.shape))
    centred = (grey - (grey * window).sum() / window.sum().clamp(min=1e-12)) * window
    power = torch.fft.fft2(centred).abs().square()
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in grey.shape)
    high = torch.hypot(rows[:, None], columns) > 0.25
    total = float(power.sum())
    return float(power[high].sum()) / total if total > 1e-12 * grey.numel() else 0.0


def pixel_l2(x: Tensor, y: Tensor) -> float:
    """Root of the mean squared difference of images (C,H,W) float in [0,1]: 0 for identical ones, at most 1."""
    return float((x.double() - y.double()).square().mean().sqrt())


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio of images (C,H,W) float in [0,1], dB; at most 100 (ours: infinite when identical)."""
    return min(100.0, -20 * math.log10(max(pixel_l2(x, y), 1e-12)))


def ssim(x: Tensor, y: Tensor) -> float:
    """SSIM (Wang et al., IEEE TIP 2004) of the luma of images (C,H,W) float in [0,1], by scikit-image, as in the paper:
    Gaussian window of deviation 1.5. At most 1; ValueError for a side below 11 pixels."""
    if min(x.shape[1:]) < 11:
        raise ValueError(f"Expected images of at least 11 px, got {tuple(x.shape)}. Leave them out.")
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            _luma(x).numpy(),
            _luma(y).numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def ms_ssim(x: Tensor, y: Tensor) -> float:
    """MS-SSIM (Wang, Simoncelli & Bovik, Asilomar 2003) of the luma of images (C,H,W) float in [0,1], by torchmetrics;
    at most 1. NaN for a side below 176 pixels, which has no fifth scale."""
    if min(x.shape[1:]) < 176:
        return math.nan
    planes = [_luma(image).float()[None, None] for image in (x, y)]
    return float(multiscale_structural_similarity_index_measure(planes[0], planes[1], data_range=1.0))


def _luma(image: Tensor) -> Tensor:
    """(C,H,W) uint8, or float in [0,1] -> (H,W) float64 in [0,1]: BT.601 of three channels, else their mean."""
    x = image.to(torch.float64) / (255 if image.dtype == torch.uint8 else 1)
    if len(x) != 3:
        return x.mean(0)
    grey: Tensor = torch.tensordot(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), x, 1)
    return grey


def _statistics(scale: Tensor) -> Tensor:
    """(18,) of one scale."""
    normalised = _locally_normalised(scale)
    shape = _shape(normalised.abs().mean() ** 2 / normalised.square().mean())
    features = [shape, normalised.square().mean()]
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        features += _asymmetric(normalised * torch.roll(normalised, (down, right), (0, 1)))
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in features])


def _locally_normalised(x: Tensor) -> Tensor:
    taps = torch.arange(_TAPS, dtype=torch.float64) - _TAPS // 2
    kernel = torch.exp(-0.5 * (taps / _SIGMA) ** 2)
    kernel = kernel / kernel.sum()

    def smooth(values: Tensor) -> Tensor:
        padded = F.pad(values[None, None], (_TAPS // 2,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0]

    mean = smooth(x)
    deviation = (smooth(x * x) - mean * mean).clamp(min=0).sqrt()
    return (x - mean) / (deviation + _OFFSET)


def _ratio(shape: Tensor) -> Tensor:
    """Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)), which grows with the shape a."""
    return torch.exp(2 * torch.lgamma(2 / shape) - torch.lgamma(1 / shape) - torch.lgamma(3 / shape))


_RATIOS = _ratio(_SHAPES)


def _shape(ratio: Tensor) -> Tensor:
    """The shape whose ratio is nearest."""
    return _SHAPES[int((_RATIOS - ratio).abs().argmin())] if bool(torch.isfinite(ratio)) else _SHAPES[-1]


def _asymmetric(x: Tensor) -> list[Tensor]:
    """Shape, mean, left variance, right variance of the asymmetric generalised Gaussian (Lasmar et al., ICIP 2009)."""
    left, right = x[x < 0], x[x > 0]
    left_variance = left.square().mean() if len(left) else x.new_tensor(0.0)
    right_variance = right.square().mean() if len(right) else x.new_tensor(0.0)
    gamma = left_variance.sqrt() / right_variance.sqrt().clamp(min=1e-12)
    r = x.abs().mean() ** 2 / x.square().mean()
    shape = _shape(r * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2)
    a = float(shape)
    scale = math.exp(math.lgamma(2 / a) - 0.5 * (math.lgamma(1 / a) + math.lgamma(3 / a)))
    mean = (right_variance.sqrt() - left_variance.sqrt()) * scale
    return [shape, mean, left_variance, right_variance]
