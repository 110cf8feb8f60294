"""Recognising an image from outside the domain that a metric was fitted in, from training images alone.

Two distances to the nearest training images are taken: of representations, and of some twenty statistics of the pixels.
The second is our addition: to a network that learned quality a chest X-ray is a slightly blurred photograph (see
benchmarks/results/domain.md), although it has no colour at all.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

NEIGHBORS = 5  # whose mean distance counts; our choice
MOST_ANCHORS = 1000
_HELD_OUT = 0.98  # of the held-out training images are within the limit
_OCTAVES = 4
_SIDE = 1024  # px: of larger images the centre is looked at
_FLOOR = 1e-3  # less than a grey level of 8 bits


def appearance(images: Tensor) -> Tensor:
    """(B,C,H,W) uint8, or float in [0,1] -> (B,P) float32 statistics of the pixels.

    Of the mean of the channels: mean, log of the deviation, and at four octaves log of the mean absolute differences
    to the right and down, and how heavy-tailed they are. Of other than one channel: log of the mean absolute
    difference of each to the first.
    """
    top, left = (max(0, (size - _SIDE) // 2) for size in images.shape[2:])
    x = images[:, :, top : top + _SIDE, left : left + _SIDE]
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    y = x.mean(1, keepdim=True)
    found = [y.mean((1, 2, 3)), _log(y.flatten(1).std(1, correction=0))]
    found += [_log((x[:, k] - x[:, 0]).abs().mean((1, 2))) for k in range(1, x.shape[1])]
    for _ in range(_OCTAVES):
        y = F.pad(y, (0, max(0, 2 - y.shape[3]), 0, max(0, 2 - y.shape[2])), mode="replicate")
        for d in (y[..., 1:] - y[..., :-1], y[..., 1:, :] - y[..., :-1, :]):
            d = d.flatten(1)
            found += [_log(d.abs().mean(1)), _log(d.square().mean(1).sqrt()) - _log(d.abs().mean(1))]
        y = F.avg_pool2d(y, 2)
    return torch.stack(found, 1)


def _log(x: Tensor) -> Tensor:
    return torch.log(x + _FLOOR)


def nearest(x: Tensor, anchors: Tensor) -> Tensor:
    """(B,F) and (M,F) -> (B,) mean Euclidean distance to the nearest five of M anchors."""
    distances = torch.cdist(x.float(), anchors, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(min(NEIGHBORS, len(anchors)), dim=1, largest=False).values.mean(1)


class Domain(nn.Module):
    """Training images, as far as it takes to recognise others.

    Args:
        anchors: how many training images are kept.
        features: width of their representations.
        channels: of the images.
    """

    representations: Tensor
    looks: Tensor
    center: Tensor
    spread: Tensor
    limits: Tensor

    def __init__(self, anchors: int, features: int, channels: int) -> None:
        super().__init__()
        statistics = 2 + (channels - 1) + 4 * _OCTAVES
        self.register_buffer("representations", torch.zeros(anchors, features))
        self.register_buffer("looks", torch.zeros(anchors, statistics))
        self.register_buffer("center", torch.zeros(statistics))
        self.register_buffer("spread", torch.ones(statistics))
        self.register_buffer("limits", torch.ones(3))  # of representations, of looks, of the larger share of both

    @torch.no_grad()
    def fit(self, h: Tensor, looks: Tensor, folds: NDArray[np.int64], seed: int = 0) -> None:
        """Keep some of the training images, and the distance that 98 % of them have from those of other folds.

        Args:
            h: (N,F) representations.
            looks: (N,P) from `appearance`.
            folds: (N,) of whole groups.
            seed: of the choice.
        """
        device = self.limits.device
        h, looks = h.to(device), looks.to(device)
        self.center, self.spread = looks.mean(0), looks.std(0).clamp(min=1e-6)
        looks = (looks - self.center) / self.spread
        chosen = np.sort(np.random.default_rng(seed).permutation(len(h))[:MOST_ANCHORS])
        self.representations, self.looks = h[chosen].contiguous(), looks[chosen].contiguous()
        distances = torch.zeros(len(h), 2, dtype=h.dtype, device=device)
        for fold in np.unique(folds):
            rows, others = (
                torch.from_numpy(folds == fold).to(device),
                torch.from_numpy(folds[chosen] != fold).to(device),
            )
            distances[rows, 0] = nearest(h[rows], self.representations[others])
            distances[rows, 1] = nearest(looks[rows], self.looks[others])
        # NaN where all that were kept are of the same fold: one group is nearly all.
        each = distances.nanquantile(_HELD_OUT, dim=0).clamp(min=1e-12)
        self.limits = torch.cat([each, (distances / each).amax(1).nanquantile(_HELD_OUT)[None]])

    def forward(self, h: Tensor, looks: Tensor) -> Tensor:
        """(B,F) and (B,P) -> (B,) distance, in units of the limit; 0 without training images."""
        if not len(self.looks):
            return h.new_zeros(len(h), dtype=torch.float32)
        of_representation = nearest(h, self.representations) / self.limits[0]
        of_looks = nearest((looks - self.center) / self.spread, self.looks) / self.limits[1]
        return torch.maximum(of_representation, of_looks) / self.limits[2]
