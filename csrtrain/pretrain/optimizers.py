"""The optimiser and learning-rate schedule of the pretraining methods."""

import math
from typing import Any, Literal

import torch
from lightly.models.utils import get_weight_decay_parameters
from lightly.utils.lars import LARS
from lightly.utils.scheduler import cosine_warmup_schedule
from torch import nn

OptimizerName = Literal["sgd", "lars", "adamw"]


def build(
    modules: list[nn.Module],
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    warmup_fraction: float,
    total_steps: float,
) -> dict[str, Any]:
    """Optimiser and schedule as Lightning takes them: linear warm-up, then cosine to zero, per optimiser step.

    Biases and normalisation layers are not decayed, and LARS does not adapt them (SimCLR, arXiv 2002.05709, B.6).

    Args:
        modules: what is trained.
        name: `sgd` and `lars` with momentum 0.9, or `adamw`.
        learning_rate: peak value; no scaling with the batch size is applied.
        weight_decay: for weights, not for biases and norms.
        warmup_fraction: share of the steps in which the rate rises, in [0, 1).
        total_steps: optimiser steps of the whole run.
    """
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"Expected model.warmup_fraction in [0, 1), got {warmup_fraction}. Correct the config.")
    if not math.isfinite(total_steps) or total_steps < 1:
        raise ValueError(
            f"Expected a number of steps for the schedule, got {total_steps}. Set trainer.max_epochs or max_steps."
        )
    if name == "lars" and weight_decay == 0:
        raise ValueError("Expected model.weight_decay > 0 with lars, got 0: LARS adapts decayed weights only. Set it.")
    steps = int(total_steps)
    decayed, plain = get_weight_decay_parameters(modules)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in decayed if p.requires_grad], "weight_decay": weight_decay},
        {"params": [p for p in plain if p.requires_grad], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if name == "lars":
        optimizer = LARS(groups, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    elif name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(groups, lr=learning_rate)

    def factor(step: int) -> float:  # a function, so that a resumed run may have more steps than its checkpoint knew
        return float(cosine_warmup_schedule(min(step, steps), steps, 1.0, 0.0, int(warmup_fraction * steps), 0.0))

    schedule = _Schedule(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Schedule(torch.optim.lr_scheduler.LambdaLR):
    """The rate of a resumed run is that of its own length: a checkpoint of a finished run brings 0."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning loads the optimiser's state, with the rate in it, before."""
        super().load_state_dict(state_dict)
        self._last_lr = [
            base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
