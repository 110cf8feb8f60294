"""CONTRIQUE: patches of images with the same distortion and level attract each other, those of others repel.

Madhusudana et al., "Image quality assessment using contrastive learning", IEEE TIP 2022, arXiv 2110.13266.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor

from csrtrain import distributed, draws
from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.compiled import COMPILED_FROM
from csrtrain.augment.distort import rows_for
from csrtrain.augment.settings import SETTINGS, Modality
from csrtrain.augment.two_scales import TwoScaleViews
from csrtrain.batches import ImageBatch, LabelledBatch, ViewBatch
from csrtrain.losses.chunked import check_temperature
from csrtrain.losses.distortion_contrast import distortion_contrast
from csrtrain.models.backbone import Backbone
from csrtrain.models.heads import simclr_head
from csrtrain.pretrain import optimizers
from csrtrain.pretrain.header import bundle_header

PATCHES = 2  # per side: the feature map is pooled to 2 x 2 vectors
SCALES = [1.0, 0.5]


class CONTRIQUE(LightningModule):
    """CONTRIQUE with any timm backbone, on synthetic distortions, authentic images, or both.

    A synthetic image is distorted by a random class of the bank, which is its class, or the class pristine where that
    changes nothing: a saturation on a photograph in black and white. An authentic image
    (`data.authentic`) is left as it is and is a class of its own. Two views, full and half scale, each in a random
    colour space; four patches of each view's feature map are projected and contrasted.

    Args:
        backbone: timm name or bundle path.
        channels: of the images; linked to `data.channels`.
        modality: which distortions; linked to `data.modality`.
        distortions: names of the types to use, of all modalities; by default those of the modality.
        jpeg2000: with JPEG2000 where the types have it: 10 ms of a CPU core for one of 224 px, 50 ms at 512 px, in the
            loader's workers. Off, because too few workers let the GPU wait; without it the paper's 125 classes are 120.
        weights: `none`, a path, or `imagenet` (from a local cache).
        size: side of the views, at least 16 pixels; `data.load_size` is to be twice as much, with `data.crop: native`.
        color_spaces: views in random colour spaces, as in the paper; with one channel: grey or mean-subtracted.
        hidden_dim: width of the projection head; by default that of the representation, as in the paper.
        projection_dim: dimension of the projection.
        temperature: of the softmax.
        max_distortions: most distortions of one image in a row; above 1 goes beyond the paper.
        images_per_class: so many synthetic images in a row of a batch get the same distortion and level, each its own
            noise; at most half of `data.batch_size`. With fewer images in a batch than classes, 1 leaves an anchor
            hardly any positive but the patches of its own image, which teach what the image shows; above 1 goes beyond
            the paper, whose batches are larger.
        continuous_level: values between the five levels too, classed by the nearest; beyond the paper.
        legacy_gradient_scale: divide the gradient by the number of devices, as the released code does by mistake.
        optimizer, learning_rate, weight_decay, warmup_fraction: see `csrtrain.pretrain.optimizers.build`.
        compile: the stages of the backbone by `torch.compile`; needs a C++ compiler, on a GPU Triton. Checkpoints are
            the same with and without it, results differ by rounding. Distortions are compiled from `size` 128 on a CPU
            in any case, as views are.
    """

    def __init__(
        self,
        backbone: str,
        channels: int = 3,
        modality: Modality = "natural",
        distortions: list[str] | None = None,
        jpeg2000: bool = False,
        weights: str = "none",
        size: int = 256,
        color_spaces: bool = True,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        max_distortions: int = 1,
        images_per_class: int = 1,
        continuous_level: bool = False,
        legacy_gradient_scale: bool = False,
        optimizer: optimizers.OptimizerName = "sgd",
        learning_rate: float = 0.6,
        weight_decay: float = 1e-4,
        warmup_fraction: float = 0.1,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        rows = rows_for(modality, channels, distortions, jpeg2000)
        bank = DistortionBank(rows, in_worker=True, compiled=size >= COMPILED_FROM)
        flip = SETTINGS[modality].flip_columns.chance
        if images_per_class < 1:
            raise ValueError(f"Expected model.images_per_class >= 1, got {images_per_class}. Correct the config.")
        self.views = TwoScaleViews(
            bank, size, channels, color_spaces, flip, max_distortions, continuous_level, images_per_class
        )
        self.backbone = Backbone(backbone, channels=channels, weights=weights)
        width = self.backbone.representation_dim
        # The same layers, with batch-norm.
        self.head = simclr_head(width, width if hidden_dim is None else hidden_dim, projection_dim)
        self.to(memory_format=torch.channels_last)
        if compile:
            self.backbone.compile_stages()
        self.temperature = temperature
        self.legacy_gradient_scale = legacy_gradient_scale
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction

    def setup(self, stage: str) -> None:
        """Refuse resized images and batches of one class; hand what needs a CPU codec to the loader."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.crop != "native":
            raise ValueError(
                f"Expected data.crop native for CONTRIQUE, got {data.crop}: a resize changes the quality that "
                f"is learned. Set it, and data.load_size to {2 * self.views.size}."
            )
        per_class = self.views.per_class
        if data.batch_size < 2 * per_class:
            raise ValueError(
                f"Expected data.batch_size >= {2 * per_class}, twice model.images_per_class, got {data.batch_size}: a "
                "batch needs two classes that repel each other. Change one of them."
            )
        if data.root is None and len(data.sources) < 2:
            raise ValueError(
                "Expected at least 2 images in data.authentic without data.root, got 1: each is a class, and a batch "
                "needs two classes that repel each other. Add images, or name data.root."
            )
        self.views.authentic_parts = data.authentic_parts
        if self.views.bank.left_out:
            data.transform = partial(
                self.views.bank.in_worker,
                continuous=self.views.continuous,
                per_class=per_class,
                authentic_parts=data.authentic_parts,
            )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw distortions and views on the host, to travel with the batch."""
        if not isinstance(batch, ImageBatch):
            return batch
        height, width = batch.images.shape[-2:]
        drawn = self.views.draw(batch.seed, batch.epoch, batch.positions, batch.authentic, height, width)
        return batch._replace(drawn=drawn)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Distort and make the views on the device, outside autocast."""
        if not isinstance(batch, ImageBatch):
            return batch
        full, half = self.views(batch.images, batch.drawn)
        synthetic = self.views.bank.class_ids(batch.drawn.distortions, batch.grey)
        classes = np.where(batch.authentic, -1 - batch.indices, synthetic)  # (B,)
        on_device = torch.from_numpy(classes).to(full.device, non_blocking=True)
        return ViewBatch(full, half, batch.indices, batch.seed, batch.epoch, batch.number, on_device)

    def on_train_batch_start(self, batch: ViewBatch, batch_idx: int) -> None:
        draws.reseed(batch.seed, batch.epoch, batch.number, distributed.rank())

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any]:
        x = torch.cat([batch.view0, batch.view1]).contiguous(memory_format=torch.channels_last)  # (2B,C,S,S)
        patches = self.backbone.patch_representations(x, PATCHES)  # (2B,4,D)
        h = F.normalize(patches.flatten(0, 1), dim=1)  # (8B,D)
        z = self.head(h)  # (8B,d)
        assert batch.classes is not None
        class_ids = batch.classes.repeat(2).repeat_interleave(PATCHES**2)  # (8B,)
        loss = distortion_contrast(z, class_ids, self.temperature, legacy_gradient_scale=self.legacy_gradient_scale)
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        z0, z1 = z.detach().chunk(2)
        return {"loss": loss, "projections": (z0, z1)}

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Representations of full and half scale, each L2-normalised, side by side: (B,2D)."""
        half = F.interpolate(batch.images, scale_factor=0.5, mode="bilinear", antialias=True)
        both = [F.normalize(self.backbone.representation(x), dim=1) for x in (batch.images, half)]
        return torch.cat(both, dim=1)

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
        contract = {"scales": SCALES, "half_scale_filter": "bilinear_aa", "l2": True}
        checkpoint["csrtrain"] = {**bundle_header(self, self.backbone), "features": contract}
