"""Checkpoints that survive a kill at any moment: written whole, verified, read without running code."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from csrtrain.bundle import write_atomically
from csrtrain.models.weights import read_torch


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to files: digest first, then the checkpoint, each by an atomic rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        write_atomically(_digest_path(path), hashlib.sha256(content).hexdigest().encode())
        write_atomically(path, content)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return read_torch(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
        _digest_path(Path(path)).unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    try:
        expected = _digest_path(path).read_text()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == expected
    except OSError:
        return False


def newest(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run whose digest agrees; damaged ones are passed over with a warning."""
    for path in sorted(Path(run_dir, "checkpoints").glob("step-*.ckpt"), reverse=True):
        if _is_whole(path):
            return path
        rank_zero_warn(f"Passing over the damaged checkpoint {path}.")
    return None


class RunCheckpoint(Checkpoint):
    """Save at the end of every epoch, every n optimiser steps within it, and when the run is told to stop.

    Checkpoints are only taken right after an optimiser step, where no gradient is pending, and never of a run that has
    left the finite numbers: it is stopped instead.

    Args:
        every_n_steps: optimiser steps between checkpoints within an epoch; None saves at epoch ends alone.
        keep: newest checkpoints that stay; at least 2, so that a damaged one has a predecessor. -1 keeps all.
    """

    def __init__(self, every_n_steps: int | None = 200, keep: int = 2) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"Expected every_n_steps >= 1, got {every_n_steps}. Correct the config.")
        if keep != -1 and keep < 2:
            raise ValueError(f"Expected keep >= 2 (or -1 for all), got {keep}. Correct the config.")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        self._remove_leftovers(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if due or trainer.is_last_batch or trainer.should_stop or step == trainer.max_steps:
            self._require_finite(trainer, pl_module, outputs["loss"])
            self._save(trainer, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the last epoch's measurements into the last checkpoint, which was written before they were known."""
        described: dict[str, Any] = {}
        pl_module.on_save_checkpoint(described)  # on all ranks: metrics may be gathered
        path = newest(trainer.default_root_dir) if trainer.is_global_zero else None
        if path is not None:
            AtomicCheckpointIO().save_checkpoint({**read_torch(path), **described}, path)

    @staticmethod
    def _require_finite(trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """All ranks agree: one that sees a loss or a weight that is not finite stops all of them."""
        values = [loss.detach().float(), *(p.detach().float().sum() for p in pl_module.parameters())]
        finite = torch.stack(values).isfinite().all().float()
        if dist.is_initialized():
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not bool(finite):
            raise ValueError(
                f"Expected a finite loss and finite weights, got others at step {trainer.global_step}: training has "
                "diverged. Nothing was saved since. Lower model.learning_rate and begin anew with --fresh."
            )

    def _save(self, trainer: Trainer, step: int) -> None:
        directory = Path(trainer.default_root_dir, "checkpoints")
        trainer.save_checkpoint(directory / f"step-{step:09d}.ckpt")
        if trainer.is_global_zero and self.keep != -1:
            for path in sorted(directory.glob("step-*.ckpt"))[: -self.keep]:
                path.unlink(missing_ok=True)
                _digest_path(path).unlink(missing_ok=True)

    @staticmethod
    def _remove_leftovers(trainer: Trainer) -> None:
        """Remove what a killed save left behind."""
        if trainer.is_global_zero:
            for path in Path(trainer.default_root_dir, "checkpoints").glob(".*.tmp"):
                path.unlink(missing_ok=True)
