"""What is watched while a backbone is pretrained, and what is said about it."""

import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from csrtrain.batches import LabelledBatch
from csrtrain.distributed import world_size
from csrtrain.files import write_atomically
from csrtrain.metrics.representation import RepresentationStatistics, knn_accuracy, knn_srcc
from csrtrain.runs import directory, environment
from csrtrain.runs.loggers import Wandb

COLLAPSED_STD = 0.1  # embedding standard deviation, 1 = spread evenly over the sphere; our choice
COLLAPSED_RANK = 2.0  # effective rank of the projections; our choice


def describe_collapse(statistics: dict[str, float]) -> str | None:
    """A sentence when the projections have collapsed, None when they have not."""
    std, rank = statistics["embedding_std"], statistics["effective_rank"]
    if not (math.isfinite(std) and math.isfinite(rank)):
        return "The projections are not finite: training has diverged. Lower model.learning_rate."
    if std < COLLAPSED_STD:
        return (
            f"The representation has collapsed: all images get nearly the same projection (embedding std {std:.3f}; "
            "1 = spread evenly, 0 = all the same). Lower model.learning_rate, or use a larger data.batch_size."
        )
    if rank < COLLAPSED_RANK:
        return (
            f"The representation has collapsed to about one direction (effective rank {rank:.1f}). Lower "
            "model.learning_rate, or check with csrtrain preview that the views differ."
        )
    return None


class KeepConfig(Callback):
    """Keep the resolved config and `environment.json`, see `csrtrain.runs.environment`, once training really starts.

    Not before, so that a mistyped path does not bind the run to itself.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.config = config

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory.keep_config(self.run_dir, self.config)
        described = environment.describe(trainer)
        environment.keep(self.run_dir, described)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.log_hyperparams({**self.config, "environment": described, "images": data.describe()})


class RepresentationMonitor(Callback):
    """Learning rate; per epoch mean loss, embedding standard deviation, effective rank, alignment and uniformity.

    The values are of this start's part of the epoch when a run is resumed within it.

    With a run directory it holds `spectrum.csv` too, a row per epoch: `step` as in `metrics.csv`, then `share_1` to
    `share_d`, the singular values of the projections of both views, largest first, as shares of their sum. The
    effective rank is exp of their entropy; a share near 1 is a collapse. Rows that a resumed run writes again are
    dropped at its start.

    Args:
        run_dir: the run directory; without, there is no file.
    """

    def __init__(self, run_dir: str | None = None) -> None:
        self.spectrum = None if run_dir is None else Path(run_dir, "spectrum.csv")
        self.loss: Tensor | None = None
        self.batches = 0
        self.statistics: RepresentationStatistics | None = None
        self.last: dict[str, float] = {}

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.spectrum is not None and self.spectrum.exists():
            text = self.spectrum.read_text(errors="replace")  # a node that fails may leave what is no text
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            rows = [line for line in lines[1:] if line.partition(",")[0].isdigit()]
            kept = [row for row in rows if int(row.partition(",")[0]) < trainer.global_step]
            write_atomically(self.spectrum, "".join([*lines[:1], *kept]).encode())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        pl_module.log("train/learning_rate", trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "projections" not in outputs:
            return
        z0, z1 = outputs["projections"]
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # Lightning has divided it by them
        self.loss = loss + (0 if self.loss is None else self.loss)
        self.batches += 1
        if self.statistics is None:
            self.statistics = RepresentationStatistics(z0.shape[1]).to(pl_module.device)
        self.statistics.update(z0, z1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.statistics is None:
            return
        self.last = {name: float(value) for name, value in self.statistics.compute().items()}
        shares = [float(f"{share:.6g}") for share in self.statistics.singular_shares.tolist()]
        self._keep_spectrum(trainer, shares)
        if self.loss is not None:
            pl_module.log("train/epoch_loss", self.loss / self.batches, sync_dist=True)
        self.statistics.reset()
        self.loss, self.batches = None, 0
        pl_module.log_dict({f"train/{name}": value for name, value in self.last.items()})
        if sentence := describe_collapse(self.last):
            rank_zero_warn(sentence)

    @rank_zero_only
    def _keep_spectrum(self, trainer: Trainer, shares: list[float]) -> None:
        step = trainer.global_step - 1  # Lightning counts the epoch's row of metrics.csv so
        if self.spectrum is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            is_new = not self.spectrum.exists() or not self.spectrum.stat().st_size
            with self.spectrum.open("a", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                if is_new:
                    rows.writerow(["step", *(f"share_{i + 1}" for i in range(len(shares)))])
                rows.writerow([step, *shares])
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.log_spectrum(shares, step)


class LabelProbe(Callback):
    """kNN on the frozen representation of labelled images: accuracy for classes, SRCC for ratings.

    The first value, at step 0, is that of the untrained backbone. Rows of one group never judge each other.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.name = ""
        self._rows: list[tuple[Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first = state_dict["first"]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: LabelledBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._rows.append((batch.indices.cpu(), outputs.float().cpu()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        labels = trainer.datamodule.labels  # type: ignore[attr-defined]
        if labels is None:
            return
        gathered: list[Any] = [self._rows] * world_size()
        if world_size() > 1:
            dist.all_gather_object(gathered, self._rows)  # a rank may have no row
        self._rows = []
        pairs = [pair for rows in gathered for pair in rows]
        indices = torch.cat([i for i, _ in pairs]).numpy()
        h = torch.cat([h for _, h in pairs]).numpy()
        kept = np.unique(indices, return_index=True)[1]  # each image once, whatever the sampler did
        indices, h = indices[kept], h[kept]
        judge = knn_accuracy if labels.is_class else knn_srcc
        self.name = "val/knn_accuracy" if labels.is_class else "val/knn_srcc"
        value = float(judge(h, labels.values[indices], labels.groups[indices]))
        self.last = value
        if trainer.sanity_checking:
            self.first = value
            for logger in trainer.loggers:
                logger.log_metrics({self.name: value}, step=0)
        else:
            pl_module.log(self.name, value, prog_bar=True, rank_zero_only=True)


class Narrator(Callback):
    """Says in words what came out: a line per epoch where there is no progress bar, a summary at the end."""

    def __init__(self, run_dir: str, lines: bool) -> None:
        self.run_dir = run_dir
        self.lines = lines
        self._start = 0.0

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        print(
            f"{len(data.sources)} images in {data.title}, {trainer.num_training_batches} batches of {data.batch_size} "
            f"per epoch; {trainer.global_step} of {trainer.estimated_stepping_batches} steps done.",
            flush=True,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.lines:
            metrics = ", ".join(
                f"{name.split('/')[-1]} {float(value):.4g}" for name, value in trainer.callback_metrics.items()
            )
            rank_zero_only(print)(f"step {trainer.global_step}: {metrics}", flush=True)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(self.summary(trainer, pl_module))

    def summary(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """A paragraph: what was trained, how it went, what to do next."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitor = next(c for c in callbacks if isinstance(c, RepresentationMonitor))
        probe = next(c for c in callbacks if isinstance(c, LabelProbe))
        backbone: Any = pl_module.backbone
        minutes = (time.monotonic() - self._start) / 60
        loss = trainer.callback_metrics.get("train/epoch_loss")
        lines = [
            "",
            f"{type(pl_module).__name__} trained {backbone.name} on {len(data.sources)} images: "
            f"{trainer.global_step} steps of {data.batch_size} images, {minutes:.1f} minutes in this start"
            + (f", mean loss of the last epoch {float(loss):.3f}." if loss is not None else "."),
        ]
        if last := monitor.last:
            verdict = describe_collapse(last) or "The representation has not collapsed."
            lines.append(
                f"{verdict} Embedding std {last['embedding_std']:.2f} (1 = spread evenly, 0 = all the same), effective "
                f"rank {last['effective_rank']:.0f}, alignment {last['alignment']:.2f} (0 = views agree), uniformity "
                f"{last['uniformity']:.2f} (lower = more even)."
            )
        if probe.first is not None and probe.last is not None:
            lines.append(f"{probe.name}: {probe.first:.3f} untrained, {probe.last:.3f} now.")
        if data.broken:
            lines.append(f"{len(data.broken)} broken files were replaced; csrtrain check-data lists them.")
        if data.padded:
            lines.append(
                f"{len(data.padded)} images were smaller than data.load_size, {data.load_size} px, and were continued "
                "by their reflection."
            )
        if data.is_smoke_run:
            lines.append(
                "This was a smoke run on a few sample images: the backbone is no usable metric. Train on your own with "
                "--data.root DIR."
            )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            lines.append("A trial by trainer.fast_dev_run: nothing was kept.")
        else:
            lines.append(f"Keep the backbone: csrtrain export {self.run_dir} -o backbone.safetensors")
        return "\n".join(lines)
