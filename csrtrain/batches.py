"""What crosses the borders between packages: one NamedTuple per kind of batch."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Drawn = dict[str, Tensor]
"""Drawn parameters of two views; only the pipeline that drew them reads them."""


class ImageBatch(NamedTuple):
    """Images for pretraining, as the loader hands them over.

    images: (B,C,H,W) uint8, or float32 in [0,1] when the files are deeper than 8 bits.
    positions: (B,) int64, positions in the epoch's order; on the host, parameters are drawn from them.
    indices: (B,) int64, indices in the data set, to name files.
    seed, epoch, number: the run's seed, the epoch, the number of this batch in the epoch.
    authentic: (B,) bool, images as captured, that are not to be distorted.
    broken: (index, reason) of files that could not be read and were replaced.
    padded: indices of images that were too small and were continued by their reflection.
    grey: (B,) bool, images whose three channels are equal.
    drawn: parameters of the views, filled in by `on_before_batch_transfer`; what they are is up to the method.
    """

    images: Tensor
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]
    seed: int
    epoch: int
    number: int
    authentic: NDArray[np.bool_]
    broken: tuple[tuple[int, str], ...] = ()
    padded: tuple[int, ...] = ()
    grey: NDArray[np.bool_] | None = None
    drawn: Any = None


class ViewBatch(NamedTuple):
    """Two views of each image, on the device.

    view0, view1: (B,C,S,S) float32 in [0,1].
    indices, seed, epoch, number: as in `ImageBatch`.
    classes: (B,) int64, equal for images that are to attract each other; only where a method has classes.
    """

    view0: Tensor
    view1: Tensor
    indices: NDArray[np.int64]
    seed: int
    epoch: int
    number: int
    classes: Tensor | None = None


class LabelledBatch(NamedTuple):
    """Images of the labelled set, for the probe that runs beside pretraining.

    images: (B,C,H,W) uint8 or float32 in [0,1] from the loader, float32 in [0,1] on the device.
    indices: (B,) int64, rows of the labelled set.
    """

    images: Tensor
    indices: Tensor
