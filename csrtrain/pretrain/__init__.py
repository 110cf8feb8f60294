"""Pretraining without labels: one LightningModule per method."""

from csrtrain.pretrain.contrique import CONTRIQUE
from csrtrain.pretrain.moco import MoCo
from csrtrain.pretrain.simclr import SimCLR

__all__ = ["CONTRIQUE", "MoCo", "SimCLR"]
