"""What every result stands beside: classical features of quality that need no training."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_TAPS, _SIGMA = 7, 7 / 6  # of the local mean and deviation
_OFFSET = 1 / 255
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
    x = image.to(torch.float64) / (255 if image.dtype == torch.uint8 else 1)
    if x.ndim != 3 or min(x.shape[1:]) < 16:
        raise ValueError(f"Expected an image (C,H,W) of at least 16 px, got {tuple(image.shape)}. Leave it out.")
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    luma = torch.tensordot(weights, x, 1) if len(x) == 3 else x.mean(0)
    half = F.interpolate(luma[None, None], scale_factor=0.5, mode="bicubic", antialias=True)[0, 0]
    return torch.cat([_statistics(scale) for scale in (luma, half)])


def _statistics(luma: Tensor) -> Tensor:
    """(18,) of one scale."""
    normalised = _locally_normalised(luma)
    shape = _shape(normalised.abs().mean() ** 2 / normalised.square().mean())
    features = [shape, normalised.square().mean()]
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        features += _asymmetric(normalised * torch.roll(normalised, (down, right), (0, 1)))
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in features])


def _locally_normalised(luma: Tensor) -> Tensor:
    taps = torch.arange(_TAPS, dtype=torch.float64) - _TAPS // 2
    kernel = torch.exp(-0.5 * (taps / _SIGMA) ** 2)
    kernel = kernel / kernel.sum()

    def smooth(x: Tensor) -> Tensor:
        padded = F.pad(x[None, None], (_TAPS // 2,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0]

    mean = smooth(luma)
    deviation = (smooth(luma * luma) - mean * mean).clamp(min=0).sqrt()
    return (luma - mean) / (deviation + _OFFSET)


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
