"""What test_elastic.py changes in each rank: float64, no batch-norm, a record of every step, a stop at one of them."""

import hashlib
import json
import os
import signal
from typing import Any

import torch
from torch import nn

from csrtrain.pretrain import MoCo, SimCLR


def prepare(argument: str) -> None:
    """`FILE,STEP`: append a line per step to FILE.RANK; the last rank gets SIGTERM in STEP (0 for never)."""
    path, stop = argument.rsplit(",", 1)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    for method in (SimCLR, MoCo):
        _change(method, f"{path}.{rank}", int(stop) if rank == ranks - 1 else 0)


def _change(method: Any, path: str, stop: int) -> None:
    setup, before, after = method.setup, method.on_before_batch_transfer, method.on_after_batch_transfer
    step = method.training_step
    drawn: list[Any] = []

    def changed(self: Any, stage: str) -> None:
        setup(self, stage)
        if method is SimCLR:  # the usual head has batch-norm
            self.head = nn.Sequential(nn.Linear(self.backbone.representation_dim, 32), nn.ReLU(), nn.Linear(32, 16))
        self.double()

    def on_before_batch_transfer(self: Any, batch: Any, dataloader_idx: int) -> Any:
        height, width = batch.images.shape[-2:]
        drawn.clear()
        for position in batch.positions:  # one by one: the parameters of a batch hold lists of rows, too
            one = self.views.draw(batch.seed, batch.epoch, position[None], height, width)
            drawn.append(hashlib.sha256(b"".join(one[key].numpy().tobytes() for key in sorted(one))).hexdigest())
        return before(self, batch, dataloader_idx)

    def on_after_batch_transfer(self: Any, batch: Any, dataloader_idx: int) -> Any:
        batch = after(self, batch, dataloader_idx)
        return batch._replace(view0=batch.view0.double(), view1=batch.view1.double())

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        out = step(self, batch, batch_idx)
        line: dict[str, Any] = {"step": self.trainer.global_step + 1, "loss": float(out["loss"])}
        line["views"] = torch.stack([batch.view0, batch.view1], 1).flatten(1).square().mean(1).tolist()
        with open(path, "a") as file:
            file.write(json.dumps({**line, "images": batch.indices.tolist(), "drawn": drawn}) + "\n")
        if self.trainer.global_step + 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return out

    method.setup = changed
    method.on_before_batch_transfer, method.on_after_batch_transfer = on_before_batch_transfer, on_after_batch_transfer
    method.training_step = training_step
