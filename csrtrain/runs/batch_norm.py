"""Batch-norm across ranks (`trainer.sync_batchnorm`) for backbones of timm."""

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn


class SyncBatchNorms(TorchSyncBatchNorm):
    """Lightning's, by timm's conversion.

    PyTorch's own takes timm's layers of batch-norm and activation (MobileNet, EfficientNet, RegNet, ...) for plain
    ones, and leaves the activations out without a word.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """The same model, its batch-norm layers replaced; names of weights stay."""
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """As it is: in one process the layers do what plain ones do."""
        return model
