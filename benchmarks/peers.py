"""The 25 natural distortions image by image with NumPy, SciPy, scikit-image and Pillow: what ours is measured against.

Written as a user who knows these libraries would: float32, the faster of two functions that do the same, kernels made
once. Images are (H,W,3): float32 in [0,1], or uint8 where the peer is Pillow.
"""

import functools
import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from scipy import ndimage, signal
from scipy.interpolate import CubicSpline
from skimage import color, util

Pixels = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Random = np.random.Generator


def gaussian_blur(image: Pixels, sigma: float, random: Random) -> Pixels:
    radius = math.ceil(2 * sigma)
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", radius=(radius, radius, 0))


def lens_blur(image: Pixels, radius: float, random: Random) -> Pixels:
    return convolved(image, disk(radius))


@functools.cache
def disk(radius: float, parts: int = 20) -> Pixels:
    """The mean of `parts` x `parts` points per pixel: inside or outside."""
    reach = math.ceil(radius)
    points = (np.arange((2 * reach + 1) * parts) + 0.5) / parts - reach - 0.5
    inside = points**2 + points[:, None] ** 2 <= radius**2
    kernel = inside.reshape(2 * reach + 1, parts, 2 * reach + 1, parts).sum((1, 3))
    return (kernel / kernel.sum()).astype(np.float32)


def motion_blur(image: Pixels, length: float, random: Random) -> Pixels:
    return convolved(image, line(length, random.uniform(0, math.pi)))


def line(length: float, angle: float) -> Pixels:
    """One less the distance to a segment, as in MATLAB's `fspecial`."""
    reach = math.ceil((length - 1) / 2)
    taps = np.arange(-reach, reach + 1)
    along = taps * math.cos(angle) - taps[:, None] * math.sin(angle)
    across = taps * math.sin(angle) + taps[:, None] * math.cos(angle)
    kernel = np.maximum(1 - np.hypot(np.maximum(abs(along) - (length - 1) / 2, 0), across), 0)
    return (kernel / kernel.sum()).astype(np.float32)


def convolved(image: Pixels, kernel: Pixels) -> Pixels:
    """Few taps are faster one by one, many by a transform, channel by channel."""
    if np.count_nonzero(kernel) <= 15:
        return ndimage.convolve(image, kernel[:, :, None], mode="nearest")
    reach = len(kernel) // 2
    channels = [np.pad(image[..., c], reach, mode="edge") for c in range(3)]
    return np.stack([signal.fftconvolve(channel, kernel, mode="valid") for channel in channels], 2)


def jitter(image: Pixels, sigma: float, random: Random) -> Pixels:
    height, width = image.shape[:2]
    for _ in range(5):
        image = moved(image, sigma * random.standard_normal((2, height, width), dtype=np.float32))
    return image


def moved(image: Pixels, moves: Pixels) -> Pixels:
    """Every pixel from the place that is `moves` (2,H,W) rows and columns away."""
    places = np.indices(image.shape[:2], dtype=np.float32) + moves
    channels = [ndimage.map_coordinates(image[..., c], places, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, 2)


def non_eccentricity_patches(image: Pixels, count: float, random: Random) -> Pixels:
    last = np.array(image.shape[:2]) - 16
    sources = random.integers(0, last + 1, (int(count), 2))
    distance, angle = 16 * np.sqrt(random.random(int(count))), random.uniform(0, 2 * math.pi, int(count))
    moves = np.stack((distance * np.sin(angle), distance * np.cos(angle)), 1).astype(int)
    return copied(image, sources, np.clip(sources + moves, 0, last))


def copied(image: Pixels, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> Pixels:
    out = image.copy()
    for (top, left), (row, column) in zip(sources, targets, strict=True):
        out[row : row + 16, column : column + 16] = image[top : top + 16, left : left + 16]
    return out


def color_blocks(image: Pixels, count: float, random: Random) -> Pixels:
    places = random.integers(0, np.array(image.shape[:2]) - 31, (int(count), 2))
    return filled(image, places, random.random((int(count), 3), dtype=np.float32))


def filled(image: Pixels, places: NDArray[np.int64], colors: Pixels) -> Pixels:
    out = image.copy()
    for (row, column), fill in zip(places, colors, strict=True):
        out[row : row + 32, column : column + 32] = fill
    return out


def pixelate(image: Bytes, strength: float, random: Random) -> Bytes:
    height, width = image.shape[:2]
    scale = 0.95 - strength**0.6
    small = Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.NEAREST)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def color_diffusion(image: Pixels, factor: float, random: Random) -> Pixels:
    lab = color.rgb2lab(image)
    sigma = 1.5 * factor + 2
    reach = math.ceil(2 * sigma)
    lab[..., 1:] = ndimage.gaussian_filter(lab[..., 1:], (sigma, sigma, 0), mode="nearest", radius=(reach, reach, 0))
    lab[..., 1:] *= factor
    return color.lab2rgb(lab)


def color_shift(image: Pixels, shift: float, random: Random) -> Pixels:
    angle = random.uniform(0, 2 * math.pi)
    down, right = round(shift * math.sin(angle)), round(shift * math.cos(angle))
    height, width = image.shape[:2]
    rows, columns = np.clip(np.arange(height) - down, 0, height - 1), np.clip(np.arange(width) - right, 0, width - 1)
    moved = image[rows][:, columns, 1]
    gradient = np.hypot(*np.gradient(image @ np.float32([0.299, 0.587, 0.114])))
    low, high = np.percentile(gradient[::4, ::4], [5, 95])
    out = image.copy()
    out[..., 1] += np.clip((gradient - low) / (high - low), 0, 1) * (moved - image[..., 1])
    return out


def color_quantization(image: Bytes, colors: float, random: Random) -> Bytes:
    """The palette from 32 x 32 pixels, as ours."""
    picture = Image.fromarray(image)
    few = picture.resize((32, 32), Image.Resampling.NEAREST)
    palette = few.quantize(int(colors), Image.Quantize.MEDIANCUT)
    return np.asarray(picture.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB"))


def saturate_hsv(image: Bytes, factor: float, random: Random) -> Bytes:
    """Away from grey of the same value by Pillow's `blend`, which extrapolates: no conversion to HSV and back."""
    picture = Image.fromarray(image)
    red, green, blue = picture.split()
    value = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return np.asarray(Image.blend(Image.merge("RGB", (value, value, value)), picture, factor))


def saturate_lab(image: Pixels, factor: float, random: Random) -> Pixels:
    lab = color.rgb2lab(image)
    lab[..., 1:] *= factor
    return color.lab2rgb(lab)


def jpeg(image: Bytes, quality: float, random: Random) -> Bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def jpeg2000(image: Bytes, ratio: float, random: Random) -> Bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(
        file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=1
    )
    return np.asarray(Image.open(file))


def white_noise(image: Pixels, variance: float, random: Random) -> Pixels:
    return np.clip(image + math.sqrt(variance) * random.standard_normal(image.shape, dtype=np.float32), 0, 1)


def white_noise_ycbcr(image: Pixels, variance: float, random: Random) -> Pixels:
    noise = 255 * math.sqrt(variance) * random.standard_normal(image.shape, dtype=np.float32)
    return np.clip(color.ycbcr2rgb(color.rgb2ycbcr(image) + noise), 0, 1)


def impulse_noise(image: Pixels, density: float, random: Random) -> Pixels:
    return util.random_noise(image, "s&p", rng=random, amount=density)


def multiplicative_noise(image: Pixels, variance: float, random: Random) -> Pixels:
    noise = math.sqrt(variance) * random.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image + image * noise, 0, 1)


def denoise(image: Pixels, variance: float, random: Random) -> Pixels:
    noisy = white_noise(image, variance, random)
    mean = ndimage.uniform_filter(noisy, (5, 5, 0))
    spread = ndimage.uniform_filter(noisy * noisy, (5, 5, 0)) - mean * mean
    return mean + np.maximum(spread - variance, 0) / np.maximum(spread, variance) * (noisy - mean)


def bent(image: Pixels, middle: float) -> Pixels:
    def curve(y: Pixels) -> Pixels:
        return np.clip((2 - 4 * middle) * y * y + (4 * middle - 1) * y, 0, 1)

    lab = color.rgb2lab(image)
    lab[..., 0] = 100 * curve(lab[..., 0] / 100)
    return (2 * curve(image) + color.lab2rgb(lab)) / 3


def brighten(image: Pixels, amount: float, random: Random) -> Pixels:
    return bent(image, 0.5 + amount / 2)


def darken(image: Pixels, amount: float, random: Random) -> Pixels:
    return bent(image, 0.5 - amount / 2)


def mean_shift(image: Pixels, shift: float, random: Random) -> Pixels:
    return np.clip(image + np.float32(shift), 0, 1)


def quantize_levels(image: Bytes, levels: float, random: Random) -> Bytes:
    """By a table for each channel."""
    picture, tables = Image.fromarray(image), []
    for low, high in picture.getextrema():
        step = max(high - low, 1) / (levels - 1)
        values = low + step * np.round((np.arange(256) - low) / step)
        tables += np.clip(np.round(values), 0, 255).astype(np.uint8).tolist()
    return np.asarray(picture.point(tables))


def sharpen(image: Pixels, amount: float, random: Random) -> Pixels:
    lab = color.rgb2lab(image)
    light = lab[..., 0]
    lab[..., 0] = np.clip(
        light + amount * (light - ndimage.gaussian_filter(light, 3, mode="nearest", radius=6)), 0, 100
    )
    return color.lab2rgb(lab)


def change_contrast(image: Bytes, amount: float, random: Random) -> Bytes:
    """By a table, as Pillow's `point`."""
    curve = CubicSpline((0, 0.3, 0.5, 0.7, 1), (0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1))
    table = np.clip(np.round(255 * curve(np.arange(256) / 255)), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(image).point(list(table) * 3))


class Peer(NamedTuple):
    """function: (image, value, random) -> image; made_of: its libraries; floats: whether it takes float32."""

    function: Callable[..., NDArray[np.generic]]
    made_of: str
    floats: bool = True


PEERS = {
    "gaussian_blur": Peer(gaussian_blur, "SciPy"),
    "lens_blur": Peer(lens_blur, "SciPy"),
    "motion_blur": Peer(motion_blur, "SciPy"),
    "color_diffusion": Peer(color_diffusion, "scikit-image, SciPy"),
    "color_shift": Peer(color_shift, "NumPy"),
    "color_quantization": Peer(color_quantization, "Pillow", floats=False),
    "saturate_hsv": Peer(saturate_hsv, "Pillow", floats=False),
    "saturate_lab": Peer(saturate_lab, "scikit-image"),
    "jpeg2000": Peer(jpeg2000, "Pillow", floats=False),
    "jpeg": Peer(jpeg, "Pillow", floats=False),
    "white_noise": Peer(white_noise, "NumPy"),
    "white_noise_ycbcr": Peer(white_noise_ycbcr, "scikit-image"),
    "impulse_noise": Peer(impulse_noise, "scikit-image"),
    "multiplicative_noise": Peer(multiplicative_noise, "NumPy"),
    "denoise": Peer(denoise, "SciPy"),
    "brighten": Peer(brighten, "scikit-image"),
    "darken": Peer(darken, "scikit-image"),
    "mean_shift": Peer(mean_shift, "NumPy"),
    "jitter": Peer(jitter, "SciPy"),
    "non_eccentricity_patches": Peer(non_eccentricity_patches, "NumPy"),
    "pixelate": Peer(pixelate, "Pillow", floats=False),
    "quantize_levels": Peer(quantize_levels, "Pillow", floats=False),
    "color_blocks": Peer(color_blocks, "NumPy"),
    "sharpen": Peer(sharpen, "scikit-image, SciPy"),
    "change_contrast": Peer(change_contrast, "Pillow", floats=False),
}
"""The peer of every natural type: the fastest way that we found."""


def median_cut(image: Bytes, colors: float, random: Random) -> Bytes:
    palette = Image.fromarray(image).quantize(int(colors), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return np.asarray(palette.convert("RGB"))


def through_hsv(image: Pixels, factor: float, random: Random) -> Pixels:
    hsv = color.rgb2hsv(image)
    hsv[..., 1] *= factor
    return np.clip(color.hsv2rgb(hsv), 0, 1)


def rounded(image: Pixels, levels: float, random: Random) -> Pixels:
    low, high = image.min((0, 1)), image.max((0, 1))
    step = np.maximum(high - low, 1e-6) / (levels - 1)
    return np.round((image - low) / step) * step + low


DIRECT = {
    "color_quantization": Peer(median_cut, "Pillow", floats=False),
    "saturate_hsv": Peer(through_hsv, "scikit-image"),
    "quantize_levels": Peer(rounded, "NumPy"),
}
"""Where the plain call of a library's own function is slower than that."""
