"""Distortions that move or replace pixels: jitter, copied patches, pixelation, blocks of one colour.

Patches and blocks are painted one after the other, later over earlier. On a CPU they are painted in this order by
slices; on other devices, with no host read, each pixel finds the last patch that covers it and takes its value once.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from csrtrain.augment.randoms import normal_images, other_seeds, uniforms

JITTER_ITERATIONS = 5
MOST_PATCHES, PATCH_SIDE, PATCH_DISTANCE = 100, 16, 16
MOST_BLOCKS, BLOCK_SIDE = 10, 32


def jitter(x: Tensor, sigma: Tensor, seeds: Tensor) -> Tensor:
    """Random local warp: y(p) = x(p + sigma * e(p)) with e standard normal in rows and columns, five times over.

    Bilinear; beyond the border lies its nearest pixel. Every iteration draws a new e, independent for each pixel.
    Source: KADIS-700k type 19, sigma 0.05 0.1 0.2 0.5 1; five iterations as in ARNIQA. Normal moves counted in pixels
    are our choice.

    Args:
        x: (n,C,H,W) in [0,1].
        sigma: (n,) pixels, of one iteration.
        seeds: (n,) of the displacements.
    """
    n, _, height, width = x.shape
    scale = torch.stack((sigma * (2 / (width - 1)), sigma * (2 / (height - 1))), 1).repeat(1, width)[:, None, None]
    at_once = JITTER_ITERATIONS if x.device.type == "cpu" else 1  # elsewhere calls cost less, and memory for n more
    for k in range(0, JITTER_ITERATIONS, at_once):
        moves = normal_images(other_seeds(seeds, k + 1), at_once, height, 2 * width)
        grids = torch.addcmul(_places(height, width, x.device), moves, scale).view(n, at_once, height, width, 2)
        for grid in grids.unbind(1):
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return x


@functools.lru_cache(maxsize=4)
def _places(height: int, width: int, device: torch.device) -> Tensor:
    """(H,2W): column and row of each pixel, in turn along the last axis, which is long for speed."""
    down = torch.linspace(-1, 1, height, device=device)  # -1 and 1 are the centres of the first and the last pixel
    right = torch.linspace(-1, 1, width, device=device)
    return torch.stack(torch.meshgrid(right, down, indexing="xy"), 2).view(height, 2 * width)


def non_eccentricity_patches(x: Tensor, count: Tensor, seeds: Tensor) -> Tensor:
    """Patches of 16 x 16 pixels copied to a place near by, which eyes hardly see and pixel differences exaggerate.

    The place of a patch is uniform over the image, its move uniform over the disk of 16 pixels, shortened where the
    copy would leave the image. Patches are taken from x, not from one another.
    Source: KADIS-700k type 20 (TID2013's non-eccentricity pattern noise), 20 40 60 80 100 patches, side and radius 16
    as in ARNIQA; the distribution is our choice.

    Args:
        x: (n,C,H,W) in [0,1].
        count: (n,) patches, at most 100; rounded.
        seeds: (n,) of the places and moves.
    """
    tops, lefts, down, right = _patches(x, seeds)
    copy = _copy_each if x.device.type == "cpu" else _copy_batch
    return copy(x, count, tops, lefts, down, right)


def _patches(x: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row and column of each copy (n,100), and by how much it has moved down and to the right."""
    last_top, last_left = x.shape[2] - PATCH_SIDE, x.shape[3] - PATCH_SIDE
    top, left, distance, angle = uniforms(seeds, 4 * MOST_PATCHES).view(-1, MOST_PATCHES, 4).unbind(2)
    top, left = (top * (last_top + 1)).long(), (left * (last_left + 1)).long()
    distance, angle = PATCH_DISTANCE * distance.sqrt(), 2 * math.pi * angle
    new_top = (top + (distance * angle.sin()).trunc().long()).clamp(0, last_top)
    new_left = (left + (distance * angle.cos()).trunc().long()).clamp(0, last_left)
    return new_top, new_left, new_top - top, new_left - left


def _copy_batch(x: Tensor, count: Tensor, tops: Tensor, lefts: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """The first `count` of the patches (n,100) in one gather."""
    (height, width), last = x.shape[2:], _last_over(x, count, tops, lefts, PATCH_SIDE)
    moves = F.pad(down * width + right, (1, 0)).gather(1, last)  # 0 where there is no patch
    return _pick(x, torch.arange(height * width, device=x.device) - moves)


def _pick(x: Tensor, source: Tensor) -> Tensor:
    """Each pixel of all channels from the pixel that `source` (n,H*W) numbers."""
    return x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).view_as(x)


def _copy_each(x: Tensor, count: Tensor, tops: Tensor, lefts: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """The same, patch after patch; on the CPU."""
    out, corners = x.clone(), torch.stack((tops, lefts, tops - down, lefts - right), 2)
    # numpy: its slices cost less than torch's, and a host read of a host tensor is no synchronisation
    for copy, image, number, places in zip(out.numpy(), x.numpy(), count.round().numpy(), corners.numpy(), strict=True):
        for row, column, top, left in places[: int(number)].tolist():
            patch = image[:, top : top + PATCH_SIDE, left : left + PATCH_SIDE]
            copy[:, row : row + PATCH_SIDE, column : column + PATCH_SIDE] = patch
    return out


def _last_over(x: Tensor, count: Tensor, tops: Tensor, lefts: Tensor, side: int) -> Tensor:
    """(n,H*W) int64: 1 + the number of the last of the first `count` squares over each pixel; 0 where there is none."""
    (n, _, height, width), most = x.shape, tops.shape[1]
    offsets = torch.arange(side, device=x.device)
    offsets = (offsets[:, None] * width + offsets).flatten()
    pixels = (tops * width + lefts)[:, :, None] + offsets  # (n,most,side*side)
    numbers = torch.arange(1, most + 1, device=x.device)
    numbers = torch.where(numbers <= count.round()[:, None], numbers, 0)[:, :, None].expand_as(pixels)
    last = torch.zeros((n, height * width), dtype=torch.int64, device=x.device)
    return last.scatter_reduce(1, pixels.flatten(1), numbers.flatten(1), "amax")


def pixelate(x: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
    """Down to 0.95 - strength^0.6 of each side and up again, to the nearest pixel both times.

    Source: KADIS-700k type 21, strength 0.01 0.05 0.1 0.2 0.5, so 0.89 0.78 0.70 0.57 0.29 of the side; the formula as
    in ARNIQA. The nearest pixel is that of the nearest centre, in integers: equal on every device.

    Args:
        x: (n,C,H,W) in [0,1].
        strength: (n,), 0 to 0.9; 0 leaves 0.95 of the side, so it is not the identity.
        seeds: (n,), unused.
    """
    scale = 0.95 - strength**0.6
    rows, columns = _nearest_twice(x.shape[2], scale), _nearest_twice(x.shape[3], scale)
    return (_pick_each if x.device.type == "cpu" else _pick_batch)(x, rows, columns)


def _pick_batch(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x at `rows` (n,H) and `columns` (n,W), in one gather."""
    return _pick(x, (rows[:, :, None] * x.shape[3] + columns[:, None]).flatten(1))


def _pick_each(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same, sample by sample; on the CPU."""
    out = torch.empty_like(x)
    for target, image, row, column in zip(out.numpy(), x.numpy(), rows.numpy(), columns.numpy(), strict=True):
        image.take(row, 1).take(column, 2, out=target, mode="clip")  # "raise", the default, needs a buffer
    return out


def _nearest_twice(size: int, scale: Tensor) -> Tensor:
    """(n,size) int64: which of `size` pixels each becomes."""
    small = (size * scale).round().clamp(min=1).long()[:, None]
    pixel = torch.arange(size, device=scale.device)
    in_small = (2 * pixel + 1) * small // (2 * size)
    return (2 * in_small + 1) * size // (2 * small)


def color_blocks(x: Tensor, count: Tensor, seeds: Tensor) -> Tensor:
    """Opaque blocks of 32 x 32 pixels at random places, each of one random colour, uniform in every channel.

    Source: KADIS-700k type 23 (TID2013's local block-wise distortions), 2 4 6 8 10 blocks; side 32 as in ARNIQA.

    Args:
        x: (n,C,H,W) in [0,1].
        count: (n,) blocks, at most 10; rounded.
        seeds: (n,) of the places and colours.
    """
    fill = _fill_each if x.device.type == "cpu" else _fill_batch
    return fill(x, count, *_blocks(x, seeds))


def _blocks(x: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column (n,10) and colour (n,10,C) of each block."""
    channels, height, width = x.shape[1:]
    draws = uniforms(seeds, MOST_BLOCKS * (2 + channels)).view(-1, MOST_BLOCKS, 2 + channels)
    tops, lefts = draws[:, :, 0] * (height - BLOCK_SIDE + 1), draws[:, :, 1] * (width - BLOCK_SIDE + 1)
    return tops.long(), lefts.long(), draws[:, :, 2:]


def _fill_batch(x: Tensor, count: Tensor, tops: Tensor, lefts: Tensor, colors: Tensor) -> Tensor:
    """The first `count` of the blocks, each pixel once."""
    last = _last_over(x, count, tops, lefts, BLOCK_SIDE)[:, None]
    filled = colors.transpose(1, 2).gather(2, (last - 1).clamp(min=0).expand(-1, x.shape[1], -1))
    return torch.where(last > 0, filled, x.flatten(2)).view_as(x)


def _fill_each(x: Tensor, count: Tensor, tops: Tensor, lefts: Tensor, colors: Tensor) -> Tensor:
    """The same, block after block; on the CPU."""
    out, corners = x.clone(), torch.stack((tops, lefts), 2).numpy()
    for image, number, places, fills in zip(
        out.numpy(), count.round().numpy(), corners, colors.numpy()[..., None, None], strict=True
    ):
        for (top, left), fill in zip(places[: int(number)].tolist(), fills, strict=False):
            image[:, top : top + BLOCK_SIDE, left : left + BLOCK_SIDE] = fill
    return out
