"""What goes to Weights & Biases besides curves: grids of views and distortions, and word that a run is complete."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from csrtrain import grids
from csrtrain.runs.loggers import Wandb

VIEWS, DISTORTIONS = "images/views", "images/distortions"


class Publisher(Callback):
    """Serves the `Wandb` loggers of a training; without one it does nothing.

    At each start, only for a logger with `images`, the first images of the data with their views, and for CONTRIQUE the
    first image with every distortion that is learned.
    """

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        wanted = [logger for logger in trainer.loggers if isinstance(logger, Wandb) and logger.images]
        if not wanted or not hasattr(data, "first_batch"):
            return
        rows, titles = grids.views(pl_module, data)
        pictures = {VIEWS: grids.pixels(grids.draw(rows, titles))}
        bank = getattr(pl_module.views, "bank", None)
        if bank is not None:
            pictures[DISTORTIONS] = grids.pixels(grids.draw(*grids.distortions(data.first_batch(1, 0).images[0], bank)))
        for logger in wanted:
            for name, picture in pictures.items():
                logger.log_image(name, [picture], trainer.global_step)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.is_complete = 0 <= steps <= trainer.global_step or 0 <= epochs <= data.epoch
