"""Colour spaces of whole batches, and the random ones of CONTRIQUE's views.

HSV is kornia's. Lab is ours: a formula for `torch.compile`, and library calls that are on a CPU several times faster
than the formula uncompiled, whose `torch.where` has no vector code there.
"""

import math
from collections.abc import Callable

import kornia
import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray
from torch import Tensor

from csrtrain.augment import geometry
from csrtrain.augment.color import luma
from csrtrain.augment.compiled import Kernel, per_image

GREY, LAB, HSV, MEAN_SUBTRACTED, UNCHANGED = range(5)
SPACES_OF_COLOR = (GREY, LAB, HSV, MEAN_SUBTRACTED, UNCHANGED)
SPACES_OF_GREY = (MEAN_SUBTRACTED, UNCHANGED)  # of a single channel: the others change nothing

# Full range BT.601, as in JPEG and Pillow, without the offset of 0.5 on Cb and Cr.
YCBCR_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
RGB_FROM_YCBCR = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
_SRGB_KNEE, _LINEAR_KNEE = 0.04045, 0.0031308
_BRIGHTEST = 4.0  # linear light
_GAIN = 1.055**2.4  # (x + 0.055)^2.4 is so many times linear light
_LAB_KNEE, _LAB_SLOPE = 6 / 29, 3 * (6 / 29) ** 2
# Linear sRGB to XYZ over that of the white (IEC 61966-2-1; D65, 2 degrees).
_WHITE_XYZ_FROM_RGB = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
_RGB_FROM_WHITE_XYZ = tuple(map(tuple, np.linalg.inv(_WHITE_XYZ_FROM_RGB).tolist()))
_LAB_FROM_F = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_F_FROM_LAB = ((1 / 116, 1 / 500, 0.0), (1 / 116, 0.0, 0.0), (1 / 116, 0.0, -1 / 200))
_MS_RADIUS, _MS_SIGMA = 3, 7 / 6
_MS_FLOOR = 1e-3  # of a range of 1: what is flatter than that is not blown up to full contrast


def rgb_to_lab(x: Tensor) -> Tensor:
    """(n,3,H,W) sRGB in [0,1] -> CIELAB, white D65: L in [0,100], a and b about -100 to 100.

    IEC 61966-2-1 and CIE 15.
    """
    return per_image(_to_lab, x)


def lab_to_rgb(x: Tensor) -> Tensor:
    """The inverse, not clamped: what lies outside of sRGB leaves [0,1]. Z below 0 counts as 0.

    Compiled, linear light above 4 (1.8 in sRGB) counts as 4.
    """
    return per_image(_from_lab, x)


def lab_of(x: Tensor) -> Tensor:
    """`rgb_to_lab` for kernels, of (...,3,H,W)."""
    linear = [torch.where(c > _SRGB_KNEE, _TO_LINEAR(c), c / 12.92) for c in x.unbind(-3)]
    f_x, f_y, f_z = (
        torch.where(v > _LAB_KNEE**3, _CUBE_ROOT(_fourth_root(v)), v / _LAB_SLOPE + 4 / 29)
        for v in _rows(_WHITE_XYZ_FROM_RGB, linear)
    )
    return torch.stack([116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)], dim=-3)


def rgb_of(x: Tensor) -> Tensor:
    """`lab_to_rgb` for kernels; linear light above 4 (1.8 in sRGB) counts as 4."""
    lightness, a, b = x.unbind(-3)
    f_y = (lightness + 16) / 116
    xyz = [
        torch.where(f > _LAB_KNEE, f * f * f, (f - 4 / 29) * _LAB_SLOPE)
        for f in (f_y + a / 500, f_y, (f_y - b / 200).clamp(min=0))
    ]
    linear = _rows(_RGB_FROM_WHITE_XYZ, xyz)
    return torch.stack([torch.where(v > _LINEAR_KNEE, _TO_SRGB(_fourth_root(v)), 12.92 * v) for v in linear], dim=-3)


class _Power:
    """A power as a polynomial on [low, high], clamped to it: vectors of log and exp take three times as long."""

    def __init__(self, power: Callable[[NDArray[np.float64]], NDArray[np.float64]], low: float, high: float) -> None:
        self.low, self.high = low, high
        series = Chebyshev.interpolate(power, _DEGREE, domain=[low, high])  # to 4e-7
        # About the middle, in half widths: there no coefficient is large, as float32 needs.
        self.coefficients: list[float] = Chebyshev(series.coef).convert(kind=Polynomial).coef.tolist()

    def __call__(self, x: Tensor) -> Tensor:
        u = (x.clamp(self.low, self.high) - (self.high + self.low) / 2) * (2 / (self.high - self.low))
        y = u * self.coefficients[-1] + self.coefficients[-2]
        for coefficient in self.coefficients[-3::-1]:
            y = y * u + coefficient
        return y


def _fourth_root(x: Tensor) -> Tensor:
    return x.clamp(min=0).sqrt().sqrt()


_DEGREE = 12
_TO_LINEAR = _Power(lambda x: ((x + 0.055) / 1.055) ** 2.4, _SRGB_KNEE, 1)
_CUBE_ROOT = _Power(lambda root: root ** (4 / 3), _LAB_KNEE**0.75, 1.001)  # of the fourth root, far from 0's cusp
_TO_SRGB = _Power(lambda root: 1.055 * root ** (5 / 3) - 0.055, _LINEAR_KNEE**0.25, _BRIGHTEST**0.25)


def _rows(matrix: tuple[tuple[float, float, float], ...], of: list[Tensor]) -> list[Tensor]:
    return [row[0] * of[0] + row[1] * of[1] + row[2] * of[2] for row in matrix]


def lab_by_calls(x: Tensor) -> Tensor:
    """`lab_of` by library calls: both branches of each curve on clamped values, added; factors are in the matrices.

    Results go to memory in use, because that of a new tensor costs more than the arithmetic.
    """
    low, high = x.clamp(max=_SRGB_KNEE), x.clamp(min=_SRGB_KNEE)
    high = _power(high.add_(0.055), 2.4).sub_((_SRGB_KNEE + 0.055) ** 2.4).add_(low, alpha=_GAIN / 12.92)
    xyz = _product(high, _WHITE_XYZ_FROM_RGB, 1 / _GAIN, out=low)
    torch.clamp(xyz, min=_LAB_KNEE**3, out=high)
    f = _power(high, 1 / 3).add_(xyz.clamp_(max=_LAB_KNEE**3), alpha=1 / _LAB_SLOPE)  # by KNEE^3 / SLOPE too large
    lab = _product(f, _LAB_FROM_F, out=xyz)
    lab.select(-3, 0).sub_(16 + 116 * _LAB_KNEE**3 / _LAB_SLOPE)
    return lab


def rgb_by_calls(x: Tensor) -> Tensor:
    """`rgb_of` in the same way, for light of any brightness."""
    f = _product(x, _F_FROM_LAB).add_(16 / 116)
    f.select(-3, 2).clamp_(min=0)
    high = f.clamp(min=_LAB_KNEE)
    xyz = high.pow_(3).sub_(_LAB_SLOPE * _LAB_KNEE).add_(f.clamp_(max=_LAB_KNEE), alpha=_LAB_SLOPE)
    linear = _product(xyz, _RGB_FROM_WHITE_XYZ, _GAIN, out=f)
    torch.clamp(linear, min=_GAIN * _LINEAR_KNEE, out=high)
    rgb = _power(high, 1 / 2.4).sub_(0.055 + 12.92 * _LINEAR_KNEE)
    return rgb.add_(linear.clamp_(max=_GAIN * _LINEAR_KNEE), alpha=12.92 / _GAIN)


_to_lab = Kernel(lab_of, uncompiled=lab_by_calls)
_from_lab = Kernel(rgb_of, uncompiled=rgb_by_calls)


def _power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent of positive x, in place, to 1e-6 of the value; on a CPU four times as fast as `Tensor.pow`."""
    if x.device.type == "cpu":  # with AVX-512, where this was measured, torch's exp2 took up to five times as long
        values = x.numpy()
        np.log2(values, out=values)
        np.exp2(np.multiply(values, np.float32(exponent), out=values), out=values)
        return x
    return x.log2_().mul_(exponent).exp2_()


def rgb_to_ycbcr(x: Tensor) -> Tensor:
    """(n,3,H,W) in [0,1] -> Y in [0,1], Cb and Cr in [-0.5,0.5]."""
    return _product(x, YCBCR_FROM_RGB)


def ycbcr_to_rgb(x: Tensor) -> Tensor:
    """The inverse, not clamped."""
    return _product(x, RGB_FROM_YCBCR)


def _product(
    x: Tensor, matrix: tuple[tuple[float, float, float], ...], gain: float = 1, out: Tensor | None = None
) -> Tensor:
    """`gain` times a 3x3 matrix times the pixels of (...,3,H,W)."""
    target = None if out is None else out.flatten(-2)
    return torch.matmul(gain * torch.tensor(matrix, device=x.device), x.flatten(-2), out=target).view_as(x)


def _grey(x: Tensor) -> Tensor:
    return luma(x).expand_as(x)


def _lab(x: Tensor) -> Tensor:
    """Scaled as 8-bit Lab is: L / 100, (a + 128) / 255, (b + 128) / 255."""
    lab = rgb_to_lab(x)
    return torch.cat([lab[:, :1] / 100, (lab[:, 1:] + 128) / 255], dim=1).clamp_(0, 1)


def _hsv(x: Tensor) -> Tensor:
    hsv = kornia.color.rgb_to_hsv(x)
    return torch.cat([hsv[:, :1] / (2 * math.pi), hsv[:, 1:]], dim=1).clamp_(0, 1)


def _mean_subtracted(x: Tensor) -> Tensor:
    """Difference to a Gaussian mean of 7 taps, stretched to [0,1] per image and channel."""
    sigma = torch.full((len(x),), _MS_SIGMA, device=x.device)
    x = x - geometry.blur(x, sigma, _MS_RADIUS, compiled=False)
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low + _MS_FLOOR)


_MAKE = {GREY: _grey, LAB: _lab, HSV: _hsv, MEAN_SUBTRACTED: _mean_subtracted}


def to_color_space(x: Tensor, choice: Tensor) -> Tensor:
    """Every image in its own colour space, scaled to [0,1].

    CONTRIQUE (arXiv 2110.13266, section III-C): greyscale, CIELAB, HSV, mean-subtracted, or RGB as it is. Not rounded
    to 8 bits as in the released code (our choice). On a CPU each space is made for those that chose it, elsewhere for
    all, because the number of rows is not known there.

    Args:
        x: (n,C,H,W) in [0,1]; C = 3, or 1 with the spaces of `SPACES_OF_GREY` only.
        choice: (n,) int64 on the device of x, of `SPACES_OF_COLOR`.

    Returns:
        (n,C,H,W) float32 in [0,1].
    """
    if x.device.type == "cpu":
        out, chosen = x.clone(), choice.numpy()  # numpy: a host read of a host tensor is no synchronisation
        for space, make in _MAKE.items():
            rows = torch.from_numpy((chosen == space).nonzero()[0])
            if len(rows):
                out.index_copy_(0, rows, make(x.index_select(0, rows)))
        return out
    out = x
    for space in SPACES_OF_COLOR if x.shape[1] == 3 else SPACES_OF_GREY:
        if space != UNCHANGED:
            out = torch.where(choice[:, None, None, None] == space, _MAKE[space](x), out)
    return out
