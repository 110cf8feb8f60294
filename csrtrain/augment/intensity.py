"""What an imaging chain does to intensities in [0,1]: exposure, uneven field, noise, display window, gamma."""

from typing import Literal

import torch
from torch import Tensor

from csrtrain.augment import randoms
from csrtrain.augment.compiled import Kernel

NoiseKind = Literal["none", "gaussian", "rician", "speckle"]

FIELD_DEGREE = 3


def log_field(coefficients: Tensor, height: int, width: int) -> Tensor:
    """Smooth log-gain: sum over i, j of c_ij P_i(row) P_j(column), P the Legendre polynomials on [-1,1].

    Every product but the constant has mean 0 over the image, so the field's geometric mean is 1.

    Args:
        coefficients: (n,4,4), zero where i + j is 0 or above the wanted degree.

    Returns:
        (n,1,height,width).
    """
    rows, columns = _legendre(height, coefficients), _legendre(width, coefficients)  # (4,H), (4,W)
    return (rows.T @ coefficients @ columns)[:, None]


def _legendre(n: int, like: Tensor) -> Tensor:
    t = (2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1) / n - 1
    return torch.stack([torch.ones_like(t), t, (3 * t**2 - 1) / 2, (5 * t**3 - 3 * t) / 2])


def _chain(x: Tensor, factors: Tensor, field: Tensor, seeds: Tensor, noise: NoiseKind, colored: bool) -> Tensor:
    factors = factors[:, :, None, None, None]
    gain, sigma, width, level, gamma = factors.unbind(1)  # (n,1,1,1) each
    x = x * (gain * field.exp())
    if noise != "none":
        real, imaginary = randoms.normal_pair(seeds, x.shape[1] if colored else 1, x.shape[2], x.shape[3])
        if noise == "rician":
            x = torch.where(sigma > 0, torch.sqrt((x + sigma * real) ** 2 + (sigma * imaginary) ** 2), x)
        else:
            x = x + sigma * real * (x if noise == "speckle" else 1)
    x = ((x.clamp(0, 1) - 0.5 - level) / width + 0.5).clamp(0, 1)
    return torch.where(gamma == 1, x, x**gamma)


chain = Kernel(_chain)
"""Gain and field, noise, window, gamma, in the order of an imaging chain, clamped to [0,1].

x (n,C,H,W); factors (n,5) = (gain, sigma of the noise, width and level shift of the window as parts of the present
window, gamma), identity (1, 0, 1, 0, 1); field (n,1,H,W) or (n,1,1,1), log-gain; seeds (n,) int64.
rician: magnitude of a complex signal with normal noise in both parts (Gudbjartsson & Patz, MRM 1995, equation 1);
speckle: x (1 + sigma n); gaussian: x + sigma n. `colored`: noise of its own in each channel.
"""
