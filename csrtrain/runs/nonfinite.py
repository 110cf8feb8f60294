"""A run that leaves the finite numbers is stopped before anything of it is saved, or skips such a step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from csrtrain.runs.agreement import Agreement, gathered, raise_on_all

_LISTED = 50  # files of a batch that are named, at most


class StopOnNonFinite(Callback):
    """Stop, or within a budget skip, an optimiser step whose loss or gradient is not finite on any rank.

    The ranks agree before the step. On the CPU the flag is read at once, and the step is not made. On a GPU it masks
    the gradient on the device and is read two steps later, so that no step waits for it; a checkpoint in between
    waits. With `skip` it is read at once there too, which costs the GPU the head start of the host.

    A skipped step leaves weights, optimiser, momentum encoder, queue and batch-norm statistics as they were; the stream
    of samples and the learning rate go on. Under 16-mixed, infinite gradients are the gradient scaler's business, which
    skips them itself: only the loss counts.

    Args:
        skip: steps of the whole run that may be skipped.
    """

    def __init__(self, skip: int = 0) -> None:
        if skip < 0:
            raise ValueError(f"Expected skip >= 0, got {skip}. Correct the config.")
        self.skip = skip
        self.skipped = 0
        self._agreement = Agreement()
        self._bad: Tensor | None = None  # of the micro-batches since the last step
        self._indices: list[int] = []  # of their images
        self._before: _Snapshot | None = None
        self._undo = False

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.skip and self._before is None:
            self._before = _Snapshot(pl_module)
        self._indices += batch.indices.tolist()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        bad = ~torch.isfinite(loss.detach())
        self._bad = bad if self._bad is None else self._bad | bad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Agree whether this step is to be made."""
        assert self._bad is not None
        bad = self._bad
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            bad = bad | ~torch.isfinite(torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf))
        flag = self._agreement.vote(bad.to(torch.int32), (trainer.global_step + 1, self._indices))
        self._judge(trainer, all_of_them=self.skip > 0)
        if self._agreement.is_open:
            for gradient in gradients:
                gradient.masked_fill_(flag.bool(), 0.0)
        if self._undo:
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone, and so is its state
        self._bad, self._indices = None, []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bad is not None:  # gradients are pending
            if self.skip and bool(self._bad):
                outputs.pop("projections", None)  # nothing to measure
            return
        if self._undo:
            assert self._before is not None
            self._before.restore()
            outputs.pop("projections", None)
        self._before, self._undo = None, False
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a checkpoint is written: wait for what is not yet known, and look at the weights too.

        Raises:
            ValueError: the run has left the finite numbers.
        """
        self._judge(trainer, all_of_them=True)
        weights = [p.detach() for p in pl_module.parameters() if p.is_floating_point()]
        if not bool(torch.isfinite(torch.nn.utils.get_total_norm(weights, norm_type=torch.inf))):
            raise_on_all(
                ValueError(
                    f"Expected finite weights, got others after step {trainer.global_step}: training has diverged. "
                    "Nothing of it was saved. Lower model.learning_rate and begin anew with --fresh."
                )
            )

    def _judge(self, trainer: Trainer, all_of_them: bool = False) -> None:
        for verdict, (step, indices) in self._agreement.verdicts(all_of_them):
            if not verdict:
                continue
            names = _names(trainer, indices)
            if self.skipped < self.skip:
                self.skipped += 1
                self._undo = True
                rank_zero_warn(
                    f"Skipped step {step} ({self.skipped} of at most {self.skip}): its loss or gradient is not finite. "
                    f"Its images:\n{names}"
                )
                continue
            after = f" after {self.skipped} skipped steps" if self.skip else ""
            raise_on_all(
                ValueError(
                    f"Expected a finite loss and finite gradients, got others in step {step}{after}. Nothing was saved "
                    "since. Lower model.learning_rate and begin anew with --fresh, mend an image if one is at fault, "
                    "or let the callback csrtrain.runs.nonfinite.StopOnNonFinite skip some steps. Images of the "
                    f"step:\n{names}"
                )
            )


def _names(trainer: Trainer, indices: list[int]) -> str:
    """The files of a step on all ranks, a line each."""
    sources = trainer.datamodule.sources  # type: ignore[attr-defined]
    found = sorted({sources[i] for of_rank in gathered(indices) for i in of_rank})
    return "\n".join([*found[:_LISTED], *([f"... and {len(found) - _LISTED} more"] if len(found) > _LISTED else [])])


class _Snapshot:
    """What a step changes beside the trained weights and their optimiser: statistics, momentum encoder, queue."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = [*module.buffers(), *(p for p in module.parameters() if not p.requires_grad)]
        self._values = [tensor.detach().clone() for tensor in self._tensors]
        has_more = [m for m in module.modules() if type(m).get_extra_state is not nn.Module.get_extra_state]
        self._states = [(m, m.get_extra_state()) for m in has_more]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)
        for module, state in self._states:
            module.set_extra_state(state)
