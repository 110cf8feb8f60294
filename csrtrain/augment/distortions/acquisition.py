"""What X-ray, CT and ultrasound do to an image, and the reader's display. Values of all levels are ours."""

import math

import torch
from torch import Tensor

from csrtrain.augment.distortions.blur import gaussian_kernels, smooth
from csrtrain.augment.randoms import normal_scans, other_seeds, uniforms

_SPECKLE_SIGMA, _SPECKLE_RADIUS = 1.0, 2  # px: the size of a speckle
MOST_VIEWS = 128
_PER_PIXEL = 256  # entries of the table of the filter


def poisson_noise(x: Tensor, quanta: Tensor, seeds: Tensor) -> Tensor:
    """Quantum noise of a detector that counts: mean x, variance x / quanta, dark parts less noisy than bright ones.

    A count is drawn as (sqrt(m) + n / 2)^2 - 1/4 of its mean m, n standard normal: mean and, but for 1/8, variance of
    the Poisson distribution, whose root is nearly normal (Anscombe, Biometrika 1948). Near black it is an
    approximation, made because no generator of a GPU draws Poisson counts from a seed per sample.

    Args:
        x: (n,C,H,W) in [0,1].
        quanta: (n,) mean count at white.
        seeds: (n,) of the noise.
    """
    quanta = quanta[:, None, None, None]
    root = (x.clamp(min=0) * quanta).sqrt() + 0.5 * normal_scans(seeds, x)
    return root.square().sub_(0.25).div_(quanta)


def low_dose_noise(x: Tensor, sigma: Tensor, seeds: Tensor) -> Tensor:
    """Noise of a CT image: fine-grained, because filtered back-projection amplifies white noise of the projections.

    Its power rises with the frequency and falls again with the window: |f| times a Hann window squared, f up to half a
    cycle per pixel (Riederer et al., "The noise power spectrum in computed X-ray tomography", Phys. Med. Biol. 1978).
    The same everywhere in the image, where a real one is noisier behind bone.

    Args:
        x: (n,C,H,W) in [0,1].
        sigma: (n,) of the noise.
        seeds: (n,) of the noise.
    """
    height, width = x.shape[2:]
    f = torch.hypot(
        torch.fft.fftfreq(height, device=x.device)[:, None], torch.fft.rfftfreq(width, device=x.device)
    ).clamp(max=0.5)
    response = f.sqrt() * torch.cos(math.pi * f) ** 2  # of amplitudes; a Hann window is cos^2
    white: Tensor = torch.fft.rfft2(normal_scans(seeds, x))
    colored: Tensor = torch.fft.irfft2(white * response, s=(height, width))
    # The mean square over the whole plane, of which the last axis has only one half.
    twice = torch.full((f.shape[1],), 2.0, device=x.device)
    twice[0] = 1
    twice[-1] = 2 - (width % 2 == 0)
    power = (response.square() * twice).sum() / (height * width)
    return x + sigma[:, None, None, None] / power.sqrt() * colored


def sparse_view(x: Tensor, views: Tensor, seeds: Tensor) -> Tensor:
    """Filtered back-projection (Shepp-Logan) of few parallel projections: streaks from every edge.

    Projection, filter and back-projection of one view are a convolution with the filter's response along the view's
    direction, the same across it; so all of them are one convolution, made here by a transform. Outside of the image
    lies what is at its border on average. Source: Kak & Slaney, "Principles of computerized tomographic imaging", 1988,
    section 3.3.

    Args:
        x: (n,C,H,W) in [0,1].
        views: (n,) projections over half a turn, rounded, at most 128.
        seeds: (n,) of the first angle.
    """
    n, _, height, width = x.shape
    border = [x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]]
    outside = torch.cat(border, dim=2).mean(2)[:, :, None, None]  # (n,C,1,1)
    kernel = _view_kernels(views.round(), uniforms(seeds, 1), height, width)  # (n,2H,2W), offset 0 in the corner
    spectrum = torch.fft.rfft2(x - outside, s=(2 * height, 2 * width)) * torch.fft.rfft2(kernel)[:, None]
    projected: Tensor = torch.fft.irfft2(spectrum, s=(2 * height, 2 * width))
    return projected[:, :, :height, :width] + outside


def _view_kernels(views: Tensor, first: Tensor, height: int, width: int) -> Tensor:
    """(n,2H,2W): sum over the views of the filter's response at the offset's distance across them."""
    device = views.device
    down = torch.arange(height + 1, device=device, dtype=torch.float32)[:, None]
    right = torch.arange(-width, width, device=device, dtype=torch.float32)
    table = _shepp_logan(torch.arange(_PER_PIXEL * (height + width + 2), device=device) / _PER_PIXEL)
    # numpy: a host read of a host tensor is no synchronisation
    most = int(views.numpy().max()) if device.type == "cpu" else MOST_VIEWS
    half = torch.zeros((len(views), height + 1, 2 * width), device=device)
    for k in range(most):
        angle = math.pi * (k + first[:, 0]) / views
        across = right * angle.cos()[:, None, None] + down * angle.sin()[:, None, None]  # (n,H+1,2W)
        response = table[across.abs().mul_(_PER_PIXEL).round_().to(torch.int32)]
        half += response * (math.pi / views * (k < views))[:, None, None]
    # Columns -W..W-1 and rows 0..H; the other rows by point symmetry, column -c at place W - c, column W by -W.
    mirrored = half[:, 1:height].flip(1, 2).roll(1, 2)
    kernels: Tensor = torch.fft.ifftshift(torch.cat([half, mirrored], dim=1), dim=2)
    return kernels


def _shepp_logan(s: Tensor) -> Tensor:
    """Response of the filter |f| sinc(f), f up to half a cycle per pixel, at s >= 0 pixels."""
    s = s.double()
    sine, near = torch.sin(math.pi * s), (1 - 2 * s).abs() < 1e-9
    second = torch.where(near, 0.0, (1 - sine) / torch.where(near, 1.0, 1 - 2 * s))
    return (((1 + sine) / (1 + 2 * s) + second) / math.pi**2).float()


def speckle(x: Tensor, diffuse: Tensor, seeds: Tensor) -> Tensor:
    """Interference of many small scatterers (ultrasound): x times the length of 1 + diffuse * g, g complex normal.

    `diffuse` 0 is no speckle, far above 1 fully developed speckle (Rayleigh). g is smoothed over about a pixel and has
    variance 1; the length is divided by sqrt(1 + diffuse^2), so that the mean power stays. Source: Wagner et al.,
    "Statistics of speckle in ultrasound B-scans", IEEE Trans. Sonics Ultrason. 1983.

    Args:
        x: (n,C,H,W) in [0,1].
        diffuse: (n,) amplitude of the diffuse part beside the coherent one.
        seeds: (n,) of g.
    """
    sigma = torch.full_like(diffuse, _SPECKLE_SIGMA)
    # The sum of the squared weights of both directions is the square of one's: the variance that smoothing leaves.
    gain = 0.5**0.5 / gaussian_kernels(sigma[:1], _SPECKLE_RADIUS).square().sum()
    real, imaginary = (
        smooth(normal_scans(s, x), sigma, _SPECKLE_RADIUS) * gain for s in (seeds, other_seeds(seeds, 1))
    )
    diffuse = diffuse[:, None, None, None]
    return x * torch.hypot(1 + diffuse * real, diffuse * imaginary) / (1 + diffuse.square()).sqrt()


def window_shift(x: Tensor, lost: Tensor, seeds: Tensor) -> Tensor:
    """A display window that is too narrow and off centre: grey values beyond it are clipped, the others stretched.

    Args:
        x: (n,C,H,W) in [0,1].
        lost: (n,) share of the grey range that lies outside.
        seeds: (n,) of how the share is split between dark and bright, uniform.
    """
    lost = lost[:, None, None, None]
    return ((x - lost * uniforms(seeds, 1)[:, :, None, None]) / (1 - lost)).clamp(0, 1)


def through_plane_blur(x: Tensor, thickness: Tensor, seeds: Tensor) -> Tensor:
    """Thick slices seen from the side: down by the mean over each slice, up by linear interpolation, along the rows.

    Args:
        x: (n,C,H,W) in [0,1].
        thickness: (n,) of a slice, pixels, at least 1; 1 changes nothing.
        seeds: (n,), unused.
    """
    height = x.shape[2]
    pixel = torch.arange(height, device=x.device, dtype=torch.float32)
    thick = thickness[:, None, None]
    low = pixel[:, None] * thick  # upper edge of each slice, as many as pixels at most
    overlap = (torch.minimum(low + thick, pixel + 1) - torch.maximum(low, pixel)).clamp_(min=0)  # (n,slices,H)
    down = overlap / overlap.sum(2, keepdim=True).clamp(min=1e-6)
    last = (height / thick).ceil() - 1
    position = torch.minimum(((pixel[:, None] + 0.5) / thick - 0.5).clamp(min=0), last)  # (n,H,1), of slices
    up = (1 - (position - pixel).abs()).clamp_(min=0)  # (n,H,slices)
    return torch.matmul(torch.matmul(up, down)[:, None], x)
