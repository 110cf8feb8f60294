"""Checkpoints that survive a kill at any moment: written whole, verified, read without running code."""

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from csrtrain.files import write_atomically
from csrtrain.models.weights import read_torch
from csrtrain.runs.agreement import gathered, raise_on_all
from csrtrain.runs.nonfinite import StopOnNonFinite

_PARTS = ("state_dict", "epoch", "global_step", "loops", "pytorch-lightning_version")


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


class CheckpointError(OSError):
    """A checkpoint could not be written; the message says why, and the earlier ones are as they were."""


def read_run(path: Path) -> dict[str, Any]:
    """A checkpoint that a run can go on from.

    Raises:
        ValueError: the file is missing or damaged, or of another program.
    """
    content = read_torch(path)
    if missing := [name for name in _PARTS if name not in content]:
        raise ValueError(
            f"Expected a checkpoint of csrtrain fit, got {path} without {', '.join(missing)}. Name another, or begin "
            "anew with --fresh."
        )
    return content


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to files: digest first, then the checkpoint, each by an atomic rename.

    While a checkpoint is replaced, its digest file holds the digests of both, so that it is whole at every moment.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it, or raise a CheckpointError and leave everything as it was."""
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        old = _digests(path)[:1] if path.exists() else []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(_digest_path(path), "\n".join([digest, *old]).encode())
            write_atomically(path, content)
        except OSError as error:
            if not path.exists():
                with contextlib.suppress(OSError):
                    _digest_path(path).unlink(missing_ok=True)
            raise CheckpointError(
                f"Expected to write a checkpoint of {len(content) / 1e6:.1f} MB to {path}, got {error.strerror}. "
                "Earlier checkpoints are whole. Make room or allow to write there; the same command goes on from the "
                "newest."
            ) from None

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return read_torch(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
        _digest_path(Path(path)).unlink(missing_ok=True)


def _digests(path: Path) -> list[str]:
    try:
        return _digest_path(path).read_text().split()
    except (OSError, UnicodeDecodeError):
        return []


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() in _digests(path)
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
    left the finite numbers: see `csrtrain.runs.nonfinite`.

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
        self.saved_step = -1  # that the newest checkpoint of this start holds
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        self._remove_leftovers(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the epoch that is under way.

        Lightning (2.6) leaves out the one that begins at a resume from an epoch's last step; a checkpoint with that
        count resumes in the wrong epoch, and the run trains too many steps.
        """
        progress: Any = trainer.fit_loop.epoch_progress
        for counted in (progress.total, progress.current):
            counted.ready = counted.started = counted.processed + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if due or trainer.is_last_batch or trainer.should_stop or step == trainer.max_steps:
            self.save_now(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the last epoch's measurements into the last checkpoint, which was written before they were known."""
        described: dict[str, Any] = {}
        pl_module.on_save_checkpoint(described)  # on all ranks: metrics may be gathered
        path = newest(trainer.default_root_dir) if trainer.is_global_zero else None
        refused: CheckpointError | None = None
        if path is not None:
            try:
                AtomicCheckpointIO().save_checkpoint({**read_torch(path), **described}, path)
            except CheckpointError as error:
                refused = error
        self._raise_on_all(refused)

    def save_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save this step, on all ranks, right after an optimiser step.

        Raises:
            CheckpointError: on all ranks, when the first one cannot write.
            ValueError: the run has left the finite numbers.
        """
        step = trainer.global_step
        if step == self.saved_step:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopOnNonFinite):
                callback.settle(trainer, pl_module)
        directory = Path(trainer.default_root_dir, "checkpoints")
        refused: CheckpointError | None = None
        try:
            trainer.save_checkpoint(directory / f"step-{step:09d}.ckpt")
        except CheckpointError as error:  # on the first rank, which alone writes
            refused = error
            trainer.strategy.barrier()  # the others wait in the one at the end of save_checkpoint
        self._raise_on_all(refused)
        self.saved_step = step
        if trainer.is_global_zero and self.keep != -1:
            for path in sorted(directory.glob("step-*.ckpt"))[: -self.keep]:
                path.unlink(missing_ok=True)
                _digest_path(path).unlink(missing_ok=True)

    @staticmethod
    def _raise_on_all(refused: CheckpointError | None) -> None:
        for error in gathered(refused):
            if error is not None:
                raise_on_all(error)

    @staticmethod
    def _remove_leftovers(trainer: Trainer) -> None:
        """Remove what a killed save left behind."""
        if trainer.is_global_zero:
            for path in Path(trainer.default_root_dir, "checkpoints").glob(".*.tmp"):
                path.unlink(missing_ok=True)
