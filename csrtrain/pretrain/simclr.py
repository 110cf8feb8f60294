"""SimCLR: two views of an image attract each other, all other images of the batch repel.

Chen et al., "A simple framework for contrastive learning of visual representations", arXiv 2002.05709.
"""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from csrtrain import distributed, draws
from csrtrain.augment.views import Modality, ViewPipeline, Views
from csrtrain.batches import ImageBatch, LabelledBatch, ViewBatch
from csrtrain.losses.chunked import check_temperature
from csrtrain.losses.nt_xent import nt_xent
from csrtrain.models.backbone import Backbone
from csrtrain.models.heads import simclr_head
from csrtrain.pretrain import optimizers
from csrtrain.pretrain.header import bundle_header


class SimCLR(LightningModule):
    """SimCLR with any timm backbone.

    Args:
        backbone: timm name or bundle path.
        channels: of the images; linked to `data.channels`.
        modality: settings of the views; linked to `data.modality`.
        weights: `none`, a path, or `imagenet` (from a local cache).
        size: side of the views, pixels.
        views: another pair of `draw` and `forward`, for example `csrtrain.augment.foreign.KorniaViews`; by default
            those of the modality.
        hidden_dim: width of the projection head; by default that of the representation (arXiv 2002.05709, section 3).
        projection_dim: dimension of the projection.
        temperature: of the softmax, section 2.1 (0.1 for ImageNet, 0.5 for CIFAR-10).
        optimizer, learning_rate, weight_decay, warmup_fraction: see `csrtrain.pretrain.optimizers.build`.
        compile: the stages of the backbone by `torch.compile`; needs a C++ compiler, on a GPU Triton. Checkpoints are
            the same with and without it, results differ by rounding.
    """

    def __init__(
        self,
        backbone: str,
        channels: int = 3,
        modality: Modality = "natural",
        weights: str = "none",
        size: int = 224,
        views: nn.Module | None = None,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        optimizer: optimizers.OptimizerName = "lars",
        learning_rate: float = 1.2,
        weight_decay: float = 1e-6,
        warmup_fraction: float = 0.1,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.views: ViewPipeline = Views(modality, size, channels) if views is None else cast(ViewPipeline, views)
        self.backbone = Backbone(backbone, channels=channels, weights=weights)
        width = self.backbone.representation_dim
        self.head = simclr_head(width, width if hidden_dim is None else hidden_dim, projection_dim)
        self.to(memory_format=torch.channels_last)
        if compile:
            self.backbone.compile_stages()
        self.temperature = temperature
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw the parameters of both views on the host, to travel with the batch."""
        if not isinstance(batch, ImageBatch):
            return batch
        height, width = batch.images.shape[-2:]
        drawn = self.views.draw(batch.seed, batch.epoch, batch.positions, height, width)
        if self.device.type == "cuda":
            drawn = {name: values.pin_memory() for name, values in drawn.items()}
        return batch._replace(drawn=drawn)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the views on the device, outside autocast."""
        if not isinstance(batch, ImageBatch):
            return batch
        assert batch.drawn is not None
        view0, view1 = self.views(batch.images, batch.drawn)
        return ViewBatch(view0, view1, batch.indices, batch.seed, batch.epoch, batch.number)

    def on_train_batch_start(self, batch: ViewBatch, batch_idx: int) -> None:
        draws.reseed(batch.seed, batch.epoch, batch.number, distributed.rank())

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any]:
        x = torch.cat([batch.view0, batch.view1]).contiguous(memory_format=torch.channels_last)  # (2B,C,S,S)
        z0, z1 = self.head(self.backbone.representation(x)).chunk(2)  # (B,d) each
        loss = nt_xent(z0, z1, self.temperature)
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return {"loss": loss, "projections": (z0.detach(), z1.detach())}

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        return self.backbone.representation(batch.images)

    def configure_optimizers(self) -> Any:
        return optimizers.build(
            [self.backbone, self.head],
            self.optimizer,
            self.learning_rate,
            self.weight_decay,
            self.warmup_fraction,
            self.trainer.estimated_stepping_batches,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["csrtrain"] = bundle_header(self, self.backbone)
