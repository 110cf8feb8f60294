"""MoCo v2: a query attracts the key of the same image from a slowly moving copy, and repels a queue of older keys.

He et al., "Momentum contrast for unsupervised visual representation learning", arXiv 1911.05722 (algorithm 1);
Chen et al., "Improved baselines with momentum contrastive learning", arXiv 2003.04297.
"""

import copy
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csrtrain import distributed, draws
from csrtrain.augment.views import Modality, ViewPipeline, Views
from csrtrain.batches import ImageBatch, LabelledBatch, ViewBatch
from csrtrain.losses.chunked import check_temperature
from csrtrain.losses.info_nce import info_nce
from csrtrain.models.backbone import Backbone
from csrtrain.models.heads import moco_head
from csrtrain.models.momentum import Queue, update_momentum
from csrtrain.pretrain import optimizers
from csrtrain.pretrain.header import bundle_header


class MoCo(LightningModule):
    """MoCo v2 with any timm backbone.

    Batch-norm leak: when query and key of an image share batch statistics, the statistics tell which key belongs to
    which query, and the task is solved without learning (arXiv 1911.05722, section 3.3). The global batch is cut into
    `batch_norm_groups` parts that are normalised separately, and the keys are shuffled over the whole batch first. On
    8 devices with 8 groups this is the paper's shuffling; one device makes the same groups one after another (our
    choice), so the result does not depend on the number of devices. Backbones without batch-norm need neither.

    Args:
        backbone, channels, modality, weights, size, views: as in `csrtrain.pretrain.simclr.SimCLR`.
        hidden_dim: width of the projection head; by default that of the representation.
        projection_dim: dimension of the projection.
        temperature: of the softmax (0.2 in MoCo v2, 0.07 in MoCo v1).
        momentum: of the key network, per optimiser step (0.999).
        queue_size: negatives; the batch size need not divide it.
        batch_norm_groups: parts of the global batch with batch statistics of their own; a multiple of the devices.
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
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue_size: int = 65536,
        batch_norm_groups: int = 8,
        optimizer: optimizers.OptimizerName = "sgd",
        learning_rate: float = 0.03,
        weight_decay: float = 1e-4,
        warmup_fraction: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if not 0 <= momentum < 1:
            raise ValueError(f"Expected model.momentum in [0, 1), got {momentum}. Correct the config.")
        self.views: ViewPipeline = Views(modality, size, channels) if views is None else cast(ViewPipeline, views)
        self.backbone = Backbone(backbone, channels=channels, weights=weights)
        width = self.backbone.representation_dim
        self.head = moco_head(width, width if hidden_dim is None else hidden_dim, projection_dim)
        self.to(memory_format=torch.channels_last)
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        if compile:
            self.backbone.compile_stages()
            self.key_backbone.compile_stages()
        self.queue = Queue(queue_size, projection_dim)
        # Equal on all ranks by construction: DDP need not broadcast it in every step.
        ddp: Any = DistributedDataParallel
        ddp._set_params_and_buffers_to_ignore_for_model(self, ["queue.rows"])
        self.temperature = temperature
        self.momentum = momentum
        self.batch_norm_groups = batch_norm_groups
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction

    def setup(self, stage: str) -> None:
        """Refuse SyncBN, before Lightning converts the layers, and groups that do not fit the batch."""
        if stage != "fit":
            return
        if getattr(self.trainer.strategy, "_layer_sync", None) or any(
            isinstance(module, nn.SyncBatchNorm) for module in self.modules()
        ):
            raise ValueError(
                "Expected plain batch-norm for MoCo, got SyncBatchNorm: it shares statistics between queries and keys "
                "and lets the network cheat. Set trainer.sync_batchnorm to false."
            )
        batch_size, ranks = self.trainer.datamodule.batch_size, distributed.world_size()  # type: ignore[attr-defined]
        groups = self.batch_norm_groups
        if self.backbone.has_batch_norm and (groups % ranks or batch_size % groups or batch_size // groups < 2):
            raise ValueError(
                f"Expected model.batch_norm_groups to be a multiple of the {ranks} devices with at least 2 of the "
                f"{batch_size} images (data.batch_size) in each, got {groups}. Change one of them."
            )

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
        query = self._project(self.backbone, self.head, batch.view0)  # (B,d)
        with torch.no_grad():
            key = self._shuffled_keys(batch)  # (B,d)
        loss = info_nce(query, key, self.queue.rows, self.temperature)
        self.queue.enqueue(key)
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return {"loss": loss, "projections": (query.detach(), key)}

    def _project(self, backbone: Backbone, head: nn.Module, images: Tensor) -> Tensor:
        """(B,C,S,S) -> (B,d), each batch-norm group of this rank on its own."""
        images = images.contiguous(memory_format=torch.channels_last)
        if not backbone.has_batch_norm:
            z: Tensor = head(backbone.representation(images))
            return z
        groups = images.chunk(self.batch_norm_groups // distributed.world_size())
        return torch.cat([head(backbone.representation(group)) for group in groups])

    def _shuffled_keys(self, batch: ViewBatch) -> Tensor:
        """Keys of this rank's images, each computed among a random part of the global batch: (B,d)."""
        if not self.backbone.has_batch_norm:
            return self._project(self.key_backbone, self.key_head, batch.view1)
        images = distributed.gather(batch.view1)  # (world_size * B,C,S,S)
        order = self._order(batch, len(images))
        local = slice(distributed.rank() * len(batch.view1), (distributed.rank() + 1) * len(batch.view1))
        keys = distributed.gather(self._project(self.key_backbone, self.key_head, images[order[local]]))
        return keys[torch.argsort(order)[local]]

    def _order(self, batch: ViewBatch, n: int) -> Tensor:
        """The same permutation of the global batch on every rank."""
        positions = np.array([batch.number], dtype=np.int64)
        keys = draws.uniform(batch.seed, batch.epoch, positions, draws.PERMUTATION_STREAM, n)[0]
        return torch.from_numpy(np.argsort(keys, kind="stable")).to(self.device, non_blocking=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the key network; with accumulated gradients it moves once per optimiser step."""
        super().optimizer_step(*args, **kwargs)
        update_momentum(self.backbone, self.key_backbone, self.momentum)
        update_momentum(self.head, self.key_head, self.momentum)

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
