"""Preference of people for one of two images, from their distances to the reference: the loss of LPIPS."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 0.1  # of the ratios, as in the released code


class Ranker(nn.Module):
    """Two distances -> the logit of the share of people who choose p1.

    A network of two hidden layers of 32 on d0, d1, d0 - d1, d0 / (d1 + 0.1) and d1 / (d0 + 0.1), trained with the
    distance and then discarded: LPIPS (Zhang et al., CVPR 2018, section 3.2 and appendix B).
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, d0: Tensor, d1: Tensor) -> Tensor:
        """(B,), (B,) -> (B,)."""
        inputs = torch.stack([d0, d1, d0 - d1, d0 / (d1 + _EPSILON), d1 / (d0 + _EPSILON)], dim=1)
        logit: Tensor = self.layers(inputs)[:, 0]
        return logit


def preference_loss(logit: Tensor, judge: Tensor) -> Tensor:
    """Binary cross-entropy, float32, between a `Ranker`'s answer (B,) and the share of people who chose p1 (B,).

    Raises:
        ValueError: shapes differ.
    """
    if logit.shape != judge.shape:
        raise ValueError(f"Expected a share per answer, got {tuple(judge.shape)} for {tuple(logit.shape)}. Give both.")
    return F.binary_cross_entropy_with_logits(logit.float(), judge.float())
