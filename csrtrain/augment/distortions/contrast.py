"""Brightness, contrast, sharpness and number of levels."""

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from csrtrain.augment.color_spaces import lab_by_calls, lab_of, lab_to_rgb, rgb_by_calls, rgb_of, rgb_to_lab
from csrtrain.augment.compiled import Kernel, per_image
from csrtrain.augment.distortions.blur import smooth

_SHARPEN_SIGMA, _SHARPEN_RADIUS = 3.0, 6  # px
_KNOTS = (0.0, 0.3, 0.5, 0.7, 1.0)
# A cubic spline through five points, not-a-knot: one cubic on [0,0.5] and one on [0.5,1], coefficients (4,2) from the
# cube down, about 0 and 0.5. It is linear in the points: a curve without change, and what an amount of 1 adds.
_CURVE = np.array(CubicSpline(_KNOTS, (0, 0.25, 0.5, 0.75, 1)).c)[:, [0, 2]].tolist()
_ADDED = np.array(CubicSpline(_KNOTS, (0, -0.25, 0, 0.25, 0)).c)[:, [0, 2]].tolist()


def brighten(x: Tensor, amount: Tensor, seeds: Tensor) -> Tensor:
    """Raise the middle tones: the parabola through (0,0), (0.5, 0.5 + amount / 2) and (1,1). KADIS-700k type 16.

    Two thirds of it act on red, green and blue, one third on L of Lab (ARNIQA, arXiv 2310.14918, and its code's facts);
    with other than three channels it acts on each.

    Args:
        x: (n,C,H,W) in [0,1].
        amount: (n,).
        seeds: (n,), unused.
    """
    return _bend(x, 0.5 + 0.5 * amount)


def darken(x: Tensor, amount: Tensor, seeds: Tensor) -> Tensor:
    """Lower the middle tones: as `brighten`, through (0.5, 0.5 - amount / 2). KADIS-700k type 17.

    Args:
        x: (n,C,H,W) in [0,1].
        amount: (n,).
        seeds: (n,), unused.
    """
    return _bend(x, 0.5 - 0.5 * amount)


def _bend(x: Tensor, middle: Tensor) -> Tensor:
    return per_image(_bend_colors if x.shape[1] == 3 else _bend_channels, x, middle[:, None, None, None])


def _parabola(y: Tensor, middle: Tensor) -> Tensor:
    return y.mul(2 - 4 * middle).add_(4 * middle - 1).mul_(y).clamp_(0, 1)


def _bent(x: Tensor, middle: Tensor) -> Tensor:
    lightness, a, b = lab_of(x).unbind(-3)
    lightness = 100 * _parabola(lightness / 100, middle.squeeze(-3))
    return (rgb_of(torch.stack([lightness, a, b], dim=-3)) + 2 * _parabola(x, middle)) / 3


def _bent_by_calls(x: Tensor, middle: Tensor) -> Tensor:
    lab = lab_by_calls(x)
    lab[..., :1, :, :] = 100 * _parabola(lab[..., :1, :, :] / 100, middle)
    return rgb_by_calls(lab).add_(_parabola(x, middle), alpha=2).mul_(1 / 3)


_bend_channels = Kernel(_parabola)
_bend_colors = Kernel(_bent, uncompiled=_bent_by_calls)


def mean_shift(x: Tensor, shift: Tensor, seeds: Tensor) -> Tensor:
    """Add a constant. KADIS-700k type 18.

    Args:
        x: (n,C,H,W) in [0,1].
        shift: (n,), signed; 0 changes nothing.
        seeds: (n,), unused.
    """
    return x + shift[:, None, None, None]


def quantize_levels(x: Tensor, levels: Tensor, seeds: Tensor) -> Tensor:
    """Round to equidistant levels between the smallest and the largest value of each channel.

    KADIS-700k type 22, which finds thresholds by Otsu's method; equidistant ones are our choice, as banding has them.

    Args:
        x: (n,C,H,W) in [0,1].
        levels: (n,) number of levels, rounded, at least 2.
        seeds: (n,), unused.
    """
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    steps = (levels.round() - 1)[:, None, None, None]
    step = (high - low).clamp(min=1e-6) / steps
    return per_image(_round, x, low, step)


def _rounded(x: Tensor, low: Tensor, step: Tensor) -> Tensor:
    return (x - low).div_(step).round_().mul_(step).add_(low)


_round = Kernel(_rounded)


def sharpen(x: Tensor, amount: Tensor, seeds: Tensor) -> Tensor:
    """Unsharp masking of L of Lab with a Gaussian of 3 px: L + amount * (L - smooth L). KADIS-700k type 24.

    `imsharpen` with a radius of 3. With other than three channels it acts on each.

    Args:
        x: (n,C,H,W) in [0,1].
        amount: (n,).
        seeds: (n,), unused.
    """
    amount, sigma = amount[:, None, None, None], torch.full_like(amount, _SHARPEN_SIGMA)
    if x.shape[1] != 3:
        return x + amount * (x - smooth(x, sigma, _SHARPEN_RADIUS))
    lab = rgb_to_lab(x)
    light = lab[:, :1].contiguous()
    lab[:, :1] = (light + amount * (light - smooth(light, sigma, _SHARPEN_RADIUS))).clamp_(0, 100)
    return lab_to_rgb(lab)


def change_contrast(x: Tensor, amount: Tensor, seeds: Tensor) -> Tensor:
    """A smooth curve through (0,0), (0.3, 0.25 - amount / 4), (0.5,0.5), (0.7, 0.75 + amount / 4), (1,1).

    KADIS-700k type 25. Positive amounts steepen it; -0.2, not 0, changes nothing.

    Args:
        x: (n,C,H,W) in [0,1].
        amount: (n,), signed.
        seeds: (n,), unused.
    """
    return per_image(_bend_halves, x, amount[:, None, None, None])


def _spline(x: Tensor, amount: Tensor) -> Tensor:
    # Each half on clamped values, and their sum: `torch.where` has no vector code on a CPU.
    (a3, a2, a1, a0), (b3, b2, b1, _) = (
        [_CURVE[k][half] + _ADDED[k][half] * amount for k in range(4)] for half in (0, 1)
    )
    low, high = x.clamp(max=0.5), x.clamp(min=0.5).sub_(0.5)
    low = low.mul(a3).add_(a2).mul_(low).add_(a1).mul_(low)
    return high.mul(b3).add_(b2).mul_(high).add_(b1).mul_(high).add_(low).add_(a0)


_bend_halves = Kernel(_spline)
