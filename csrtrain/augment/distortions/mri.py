"""Magnetic resonance: what happens to the signal, its spatial frequencies (k-space), or the field of the coils.

An image is the magnitude of the inverse Fourier transform of k-space; rows are taken as the lines that are acquired one
after the other (the phase-encoding direction is vertical). Values of all levels are ours.
"""

import math

import torch
from torch import Tensor

from csrtrain.augment.intensity import FIELD_DEGREE, log_field
from csrtrain.augment.randoms import normal_scans, other_seeds, uniforms

_CENTER = 0.08  # share of the lines around frequency 0 that an undersampled scan keeps
_LEAST_CYCLES, _MOST_CYCLES = 3.0, 12.0  # of breathing during a scan
_LEAST_RADIUS, _MOST_RADIUS = 0.05, 0.4  # of a spike, cycles per pixel


def rician_noise(x: Tensor, sigma: Tensor, seeds: Tensor) -> Tensor:
    """Magnitude of a complex signal with Gaussian noise in both parts: sqrt((x + sigma n1)^2 + (sigma n2)^2).

    Biased upwards where the signal is weak, Rayleigh in air. Source: Gudbjartsson & Patz, MRM 1995, equation 1.

    Args:
        x: (n,C,H,W) in [0,1].
        sigma: (n,) of the noise in either part.
        seeds: (n,) of the noise.
    """
    sigma = sigma[:, None, None, None]
    real = torch.addcmul(x, sigma, normal_scans(seeds, x))
    return torch.hypot(real, sigma * normal_scans(other_seeds(seeds, 1), x))


def bias_field(x: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
    """Uneven gain of the receive coils (or of any illumination): x times exp(strength * f), f smooth from -1 to 1.

    f is a random polynomial of total degree 3 or less in row and column, a usual model of the field (Van Leemput et
    al., IEEE TMI 1999), scaled so that largest and smallest value lie 2 apart.

    Args:
        x: (n,C,H,W) in [0,1].
        strength: (n,) half the range of the field's logarithm.
        seeds: (n,) of the polynomial.
    """
    k = torch.arange(FIELD_DEGREE + 1, device=x.device)
    degree = k[:, None] + k
    used = (degree >= 1) & (degree <= FIELD_DEGREE)
    coefficients = (2 * uniforms(seeds, used.numel()) - 1).view(-1, *used.shape) * used
    field = log_field(coefficients, *x.shape[2:])  # (n,1,H,W)
    low, high = field.amin((2, 3), keepdim=True), field.amax((2, 3), keepdim=True)
    return x * (strength[:, None, None, None] * (2 * (field - low) / (high - low) - 1)).exp()


def gibbs_ringing(x: Tensor, kept: Tensor, seeds: Tensor) -> Tensor:
    """Truncated k-space, filled with zeros: ringing beside edges, and blur, in rows and columns.

    Args:
        x: (n,C,H,W) in [0,1].
        kept: (n,) share of the frequencies that is kept, from 0 outwards; 1 changes nothing.
        seeds: (n,), unused.
    """
    rows, columns = _frequencies(x.shape[2], x), torch.fft.rfftfreq(x.shape[3], device=x.device)
    most = kept[:, None] / 2 + 1e-6  # more than the rounding of a frequency
    mask = (rows.abs() <= most)[:, :, None] & (columns <= most)[:, None]  # (n,H,W/2+1)
    # Kept symmetrically: the inverse is real. Its magnitude is taken as of any scan.
    truncated: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * mask[:, None], s=x.shape[2:])
    return truncated.abs()


def kspace_spike(x: Tensor, amplitude: Tensor, seeds: Tensor) -> Tensor:
    """One broken sample of k-space: a wave over the whole image ("herringbone").

    Adding a spike to k-space is adding a complex wave to the image, whose magnitude is taken. Its frequency is a random
    point of the grid, 0.05 to 0.4 cycles per pixel from the centre, its phase uniform.

    Args:
        x: (n,C,H,W) in [0,1].
        amplitude: (n,) of the wave.
        seeds: (n,) of frequency and phase.
    """
    height, width = x.shape[2:]
    u = uniforms(seeds, 3)
    radius, angle = _LEAST_RADIUS + (_MOST_RADIUS - _LEAST_RADIUS) * u[:, 0], 2 * math.pi * u[:, 1]
    down, right = (radius * angle.sin() * height).round(), (radius * angle.cos() * width).round()
    row = torch.arange(height, device=x.device) / height
    column = torch.arange(width, device=x.device) / width
    turns = (down[:, None] * row)[:, :, None] + (right[:, None] * column)[:, None] + u[:, 2, None, None]
    wave = 2 * math.pi * turns[:, None]  # (n,1,H,W)
    amplitude = amplitude[:, None, None, None]
    return torch.hypot(x + amplitude * wave.cos(), amplitude * wave.sin())


def motion_ghosting(x: Tensor, amplitude: Tensor, seeds: Tensor) -> Tensor:
    """Periodic motion (breathing) during the scan: ghosts and blur along the phase-encoding direction.

    A shift by d rows while line k is acquired multiplies it by exp(-2 pi i k d / H). The lines are acquired in order,
    and d = amplitude * sin(2 pi (cycles * time + phase)), with 3 to 12 cycles per scan and a uniform phase.

    Args:
        x: (n,C,H,W) in [0,1].
        amplitude: (n,) of the motion, pixels.
        seeds: (n,) of cycles and phase.
    """
    u = uniforms(seeds, 2)
    cycles = _LEAST_CYCLES + (_MOST_CYCLES - _LEAST_CYCLES) * u[:, :1]
    k = _frequencies(x.shape[2], x)  # cycles per row, -0.5 to 0.5: in order of acquisition, so it is the time too
    shift = amplitude[:, None] * torch.sin(2 * math.pi * (cycles * k + u[:, 1:]))  # (n,H)
    turns = -2 * math.pi * k * shift
    return _weight_lines(x, torch.polar(torch.ones_like(turns), turns))


def undersampling(x: Tensor, acceleration: Tensor, seeds: Tensor) -> Tensor:
    """Lines of k-space left out and filled with zeros: overlapping copies along the phase-encoding direction.

    One of `acceleration` lines is kept, evenly, from a random first one, and all of the central 8 %.

    Args:
        x: (n,C,H,W) in [0,1].
        acceleration: (n,) at least 1, any real number; 1 changes nothing.
        seeds: (n,) of the first line.
    """
    k = _frequencies(x.shape[2], x)
    line = torch.arange(x.shape[2], device=x.device) + acceleration[:, None] * uniforms(seeds, 1)  # (n,H)
    kept = torch.floor((line + 1) / acceleration[:, None]) > torch.floor(line / acceleration[:, None])
    kept = torch.fft.ifftshift(kept, dim=1) | (k.abs() <= _CENTER / 2)
    return _weight_lines(x, kept)


def _frequencies(size: int, x: Tensor) -> Tensor:
    """(size,) cycles per pixel in the order of the transform."""
    frequencies: Tensor = torch.fft.fftfreq(size, device=x.device)
    return frequencies


def _weight_lines(x: Tensor, weights: Tensor) -> Tensor:
    """Magnitude after each line of k-space is multiplied by its weight (n,H), real or complex."""
    scanned: Tensor = torch.fft.ifft(torch.fft.fft(x, dim=2) * weights[:, None, :, None], dim=2)
    return scanned.abs()
