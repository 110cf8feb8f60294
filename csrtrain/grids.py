"""Grids of images to look at: the views that a method trains on, and the distortions of a bank."""

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.distort import LEVELS

_INCHES = 2.2  # per picture, at 100 dpi


def views(model: Any, data: Any, images: int = 6) -> tuple[list[list[Tensor]], list[str]]:
    """The first images of a data module as loaded and two views of each, in epochs 0 and 1: rows, and column titles.

    They are those that a training sees; nothing of its state is changed.

    Args:
        model: a method of `csrtrain.pretrain`, set up.
        data: a `csrtrain.data.unlabeled.UnlabeledData`, set up.
        images: rows.
    """
    columns, titles = [], []
    for epoch in range(2):  # loaded anew: the square is another one, and a worker may have distorted it
        batch = data.first_batch(images, epoch)
        drawn = model.transfer_batch_to_device(model.on_before_batch_transfer(batch, 0), model.device, 0)
        made = model.on_after_batch_transfer(drawn, 0)
        columns += [_unit(batch.images), made.view0.cpu(), made.view1.cpu()]
        titles += [f"epoch {epoch}, {what}" for what in ("loaded", "view 0", "view 1")]
    return [[column[row] for column in columns] for row in range(len(columns[0]))], titles


def distortions(image: Tensor, bank: DistortionBank) -> tuple[list[list[Tensor]], list[str], list[str]]:
    """Every type (rows) at every level (columns) on an image: rows, column titles, names beside the rows.

    Args:
        image: (C,H,W) uint8, or float32 in [0,1].
        bank: the types; those that need a CPU codec are shown too.
    """
    x = _unit(image)
    bank = DistortionBank(bank.rows)
    levels = np.arange(1, LEVELS + 1, dtype=np.float64)[:, None]
    rows, names = [], []
    for t, row in enumerate(bank.rows):
        drawn = bank.drawn(np.full((LEVELS, 1), t), levels, np.arange(LEVELS, dtype=np.int64)[:, None])
        rows.append([x, *bank(x.expand(LEVELS, -1, -1, -1), drawn)])
        values = ", ".join(f"{value:g}" for value in row.values)
        names.append(f"{row.name}\n{row.unit}:\n{values}")
    return rows, ["pristine", *(f"level {level}" for level in range(1, LEVELS + 1))], names


def draw(rows: list[list[Tensor]], titles: list[str], names: list[str] | None = None, title: str = "") -> Figure:
    """A grid of images (C,H,W) in [0,1], with titles above the columns and names beside the rows."""
    size = (_INCHES * len(titles) + (1.5 if names else 0), _INCHES * len(rows) + 0.6)
    figure = Figure(figsize=size)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for pictures, axes, name in zip(rows, grid, names or [""] * len(rows), strict=True):
        for picture, axis in zip(pictures, axes, strict=True):
            pixels = picture.permute(1, 2, 0).numpy()
            axis.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        axes[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    for axis, text in zip(grid[0], titles, strict=True):
        axis.set_title(text, fontsize=9)
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / size[1], va="top")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / size[1]))  # 0.3 inches for the title
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A drawn figure as (H,W,3), at 100 dpi."""
    figure.set_dpi(100)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
