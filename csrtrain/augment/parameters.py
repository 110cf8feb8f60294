"""Drawing the parameters of views: (seed, epoch, position, view) -> numbers, on the host, vectorised."""

import numpy as np
import torch
from numpy.typing import NDArray

from csrtrain import draws
from csrtrain.augment.settings import Crop, Op, Setting
from csrtrain.batches import Drawn

_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop
# What each random number of a view is for. A number keeps its place whatever the setting leaves out.
_AREA, _RATIO = slice(0, _ATTEMPTS), slice(_ATTEMPTS, 2 * _ATTEMPTS)
(
    _TOP,
    _LEFT,
    _FLIP_COLUMNS,
    _FLIP_ROWS,
    _TRANSPOSE,
    _GRAYSCALE,
    _BLUR,
    _SIGMA,
    _GAIN_CHANCE,
    _GAIN,
    _GAMMA_CHANCE,
    _GAMMA,
    _NOISE_CHANCE,
    _NOISE,
    _WINDOW_CHANCE,
    _WIDTH,
    _LEVEL,
    _FIELD_CHANCE,
    _JITTER_CHANCE,
    _STAIN_CHANCE,
) = range(20, 40)
_JITTER, _STAIN, _FIELD = slice(40, 44), slice(44, 50), slice(50, 66)
_NUMBERS = 66

Uniform = NDArray[np.float64]


def draw(setting: Setting, seed: int, epoch: int, positions: NDArray[np.int64], height: int, width: int) -> Drawn:
    """Parameters of both views of a batch.

    Args:
        setting: what varies.
        seed, epoch, positions: see `csrtrain.draws.uniform`; positions (B,).
        height, width: of the images, pixels.

    Returns:
        CPU tensors whose first two dimensions are view and sample: `crops` (2,B,7), `color` (2,B,5), `stain` (2,B,7),
        `sigma` (2,B), `chain` (2,B,5), `field` (2,B,4,4), `seeds` (2,B); and `blurred0`, `blurred1`, the rows of
        each view that are blurred, as a list so that the host knows its length.
    """
    views = [draws.uniform(seed, epoch, positions, stream, _NUMBERS) for stream in draws.VIEW_STREAMS]
    u = np.stack(views)  # (2,B,66)
    blurred = u[..., _BLUR] < setting.blur.chance
    drawn = {
        "crops": _float32(_crops(setting, u, height, width)),
        "sigma": _float32(_between(u[..., _SIGMA], setting.blur.low, setting.blur.high)),
        "blurred0": torch.from_numpy(np.flatnonzero(blurred[0])),
        "blurred1": torch.from_numpy(np.flatnonzero(blurred[1])),
    }
    if setting.jitter or setting.grayscale:
        drawn["color"] = _float32(_color(setting, u))
    if setting.stain:
        drawn["stain"] = _float32(_stain(setting, u))
    if setting.gain or setting.field or setting.noise or setting.window or setting.gamma:
        drawn["chain"] = _float32(_chain(setting, u))
    if setting.field:
        drawn["field"] = _float32(_field(setting, u))
    if setting.noise:
        seeds = [draws.sample_seeds(seed, epoch, positions, stream) for stream in draws.VIEW_STREAMS]
        drawn["seeds"] = torch.from_numpy(np.stack(seeds))
    return drawn


def _float32(values: Uniform) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _between(u: Uniform, low: float, high: float) -> Uniform:
    return low + (high - low) * u


def _chosen(u: Uniform, chance: float, values: Uniform, identity: float) -> Uniform:
    return np.where(u < chance, values, identity)


def _crops(setting: Setting, u: Uniform, height: int, width: int) -> Uniform:
    """(...,7): top, left, height, width, flip columns, flip rows, transpose."""
    flips = ((_FLIP_COLUMNS, setting.flip_columns), (_FLIP_ROWS, setting.flip_rows), (_TRANSPOSE, setting.transpose))
    turns = [u[..., column] < op.chance for column, op in flips]
    return np.stack([*_boxes(setting.crop, u, height, width), *turns], axis=-1).astype(np.float64)


def _boxes(crop: Crop, u: Uniform, height: int, width: int) -> tuple[Uniform, Uniform, Uniform, Uniform]:
    """torchvision's `RandomResizedCrop.get_params`: the first of ten attempts that fits, else the centre."""
    area = height * width * _between(u[..., _AREA], crop.smallest, 1.0)
    ratio = np.exp(_between(u[..., _RATIO], -np.log(crop.ratio), np.log(crop.ratio)))
    w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))  # (...,10)
    fits = (0 < w) & (w <= width) & (0 < h) & (h <= height)
    first = fits.argmax(-1)[..., None]
    w, h = np.take_along_axis(w, first, -1)[..., 0], np.take_along_axis(h, first, -1)[..., 0]
    top, left = np.floor(u[..., _TOP] * (height - h + 1)), np.floor(u[..., _LEFT] * (width - w + 1))
    whole_h = min(height, round(width * crop.ratio))
    whole_w = min(width, round(height * crop.ratio))
    none = ~fits.any(-1)
    return (
        np.where(none, (height - whole_h) // 2, top),
        np.where(none, (width - whole_w) // 2, left),
        np.where(none, whole_h, h),
        np.where(none, whole_w, w),
    )


def _color(setting: Setting, u: Uniform) -> Uniform:
    """(...,5): brightness, contrast, saturation, hue, greyscale; see `csrtrain.augment.color.jitter`."""
    columns = [np.ones(u.shape[:-1]) for _ in range(3)] + [np.zeros(u.shape[:-1]) for _ in range(2)]
    if jitter := setting.jitter:
        strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for k, (strength, identity) in enumerate(zip(strengths, (1.0, 1.0, 1.0, 0.0), strict=True)):
            values = _between(u[..., _JITTER][..., k], identity - strength, identity + strength)
            columns[k] = _chosen(u[..., _JITTER_CHANCE], jitter.chance, values, identity)
    if setting.grayscale:
        columns[4] = (u[..., _GRAYSCALE] < setting.grayscale.chance).astype(np.float64)
    return np.stack(columns, axis=-1)


def _stain(setting: Setting, u: Uniform) -> Uniform:
    """(...,7): chosen, three scales, three shifts; see `csrtrain.augment.color.stain`."""
    assert setting.stain is not None
    chosen = u[..., _STAIN_CHANCE, None] < setting.stain.chance
    scales = _between(u[..., _STAIN][..., :3], 1 - setting.stain.scale, 1 + setting.stain.scale)
    shifts = _between(u[..., _STAIN][..., 3:], -setting.stain.shift, setting.stain.shift)
    return np.concatenate([chosen, scales, shifts], axis=-1)


def _chain(setting: Setting, u: Uniform) -> Uniform:
    """(...,5): gain, sigma of the noise, width, level, gamma; see `csrtrain.augment.intensity.chain`."""
    one = np.ones(u.shape[:-1])
    gain, sigma, width, level, gamma = one, 0 * one, one, 0 * one, one
    if op := setting.gain:
        gain = _chosen(u[..., _GAIN_CHANCE], op.chance, _between(u[..., _GAIN], op.low, op.high), 1.0)
    if noise := setting.noise:
        sigma = _chosen(u[..., _NOISE_CHANCE], noise.chance, noise.sigma * u[..., _NOISE], 0.0)
    if window := setting.window:
        widths = _log_between(u[..., _WIDTH], Op(1.0, 1 / window.width, window.width, ""))
        levels = _between(u[..., _LEVEL], -window.level, window.level)
        width = _chosen(u[..., _WINDOW_CHANCE], window.chance, widths, 1.0)
        level = _chosen(u[..., _WINDOW_CHANCE], window.chance, levels, 0.0)
    if op := setting.gamma:
        gamma = _chosen(u[..., _GAMMA_CHANCE], op.chance, _log_between(u[..., _GAMMA], op), 1.0)
    return np.stack([gain, sigma, width, level, gamma], axis=-1)


def _log_between(u: Uniform, op: Op) -> Uniform:
    return np.exp(_between(u, np.log(op.low), np.log(op.high)))


def _field(setting: Setting, u: Uniform) -> Uniform:
    """(...,4,4): coefficients; see `csrtrain.augment.intensity.log_field`."""
    assert setting.field is not None
    degree = np.add.outer(np.arange(4), np.arange(4))
    wanted = (degree > 0) & (degree <= setting.field.degree)
    values = _between(u[..., _FIELD], -setting.field.strength, setting.field.strength)
    values = _chosen(u[..., _FIELD_CHANCE, None], setting.field.chance, values, 0.0)
    return np.where(wanted, values.reshape(*u.shape[:-1], 4, 4), 0.0)
