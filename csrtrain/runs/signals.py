"""How a run is told to stop, and how its processes end together.

SIGUSR1 asks to stop and, inside SLURM, to be queued again; SIGTERM asks to stop. A handler sets a flag and nothing
else. After each optimiser step the ranks agree (see `csrtrain.runs.agreement`), save one checkpoint together, and
leave. Lightning's own handlers save, broadcast and requeue inside the handler (its issues 20806, 21406); they are
switched off.
"""

import atexit
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from csrtrain.distributed import world_size
from csrtrain.runs.agreement import Agreement
from csrtrain.runs.checkpoints import RunCheckpoint

TERMINATED = 128 + signal.SIGTERM  # 143, what a shell says of a process that SIGTERM ended
_REQUEUE, _STOP = 1, 2  # as votes: of both the larger counts, and who sends SIGTERM requeues himself
_VOTES = {signal.SIGUSR1: _REQUEUE, signal.SIGTERM: _STOP}
IGNORED: dict[signal.Signals, Any] = {number: signal.SIG_IGN for number in _VOTES}
"""For `restore`: the signals change nothing any more."""
_PARENT = "CSRTRAIN_PARENT"  # the first rank tells the ranks that it starts who it is
_FAREWELL = 10.0  # seconds that such a rank waits for the first one to end


class Stopped(Exception):  # noqa: N818, no error
    """The run was told to stop, and is saved.

    Args:
        vote: of the signal that counts.
        step: that the newest checkpoint holds; 0 for none.
    """

    def __init__(self, vote: int, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.vote = vote
        self.step = step


def end_at_once() -> None:
    """Before there is anything to save, a signal ends this process with 143; behind another rank of srun with 2."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(2 if is_behind_another() else TERMINATED)

    _handle(end)


def is_behind_another() -> bool:
    """Whether srun started this rank and a first one.

    When one ends with an error, srun sends SIGTERM to the others, and its own exit code is the largest of all. That of
    the first rank has to win: by the 143 of another one a run that has failed would be queued again and again.
    """
    return os.environ.get("SLURM_PROCID", "0") != "0"


def handlers() -> dict[signal.Signals, Any]:
    """Those of the signals that stop a run, to restore them."""
    return {number: signal.getsignal(number) for number in _VOTES}


def restore(before: dict[signal.Signals, Any]) -> None:
    """What `handlers` gave."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Any) -> None:
    restore({number: handler for number in _VOTES})


class StopOnSignal(Callback):
    """Save and leave after a signal, on all ranks after the same optimiser step. It has to be the last but checkpoints.

    A head on a frozen backbone has nothing to save before its one pass is done, and is left after any batch; when the
    pass is done, it is let end. During a validation the run is left as soon as the newest checkpoint holds the present
    step; the value of that validation is lost.
    """

    def __init__(self) -> None:
        self.received = 0  # the largest vote so far; all that the handler touches
        self._agreement = Agreement()
        self._leaving = 0
        self._step = 0
        self._validation_batches = 0  # that every rank has

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From now on signals are only noted."""
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None  # per batch, and on a GPU the host would wait for it
        _handle(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = max(self.received, _VOTES[signal.Signals(number)])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped and pl_module.automatic_optimization:  # gradients are pending
            return
        self._vote(pl_module)
        if self._leaving and self._step > 0:
            for callback in _checkpoints(trainer):
                callback.save_now(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave here, when the measurements of the last step are written."""
        if self._leaving:
            raise Stopped(self._leaving, self._step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = torch.tensor(int(sum(_counts(trainer))), device=pl_module.device)
        if world_size() > 1:
            dist.all_reduce(batches, op=dist.ReduceOp.MIN)
        self._validation_batches = int(batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx >= self._validation_batches:  # not every rank has so many
            return
        self._vote(pl_module)
        saved = all(callback.saved_step == trainer.global_step for callback in _checkpoints(trainer))
        if self._leaving and (trainer.sanity_checking or saved):
            raise Stopped(self._leaving, self._step)

    def _vote(self, pl_module: LightningModule) -> None:
        self._agreement.vote(torch.full((), self.received, dtype=torch.int32, device=pl_module.device))
        for verdict, _ in self._agreement.verdicts():
            self._leaving = max(self._leaving, verdict)


def _checkpoints(trainer: Trainer) -> list[RunCheckpoint]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, RunCheckpoint)]


def _counts(trainer: Trainer) -> list[int | float]:
    return trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches


def leave(stopped: Stopped) -> None:
    """On the first rank: say it, and ask SLURM to queue the job again where that was the request.

    It is the last thing that a run does: SLURM ends its processes at once. Exit code 143 says that the run is not
    complete, whether or not it is queued again.
    """
    saved = f"after step {stopped.step}, which is saved" if stopped.step else "before the first step was saved"
    name = "SIGTERM" if stopped.vote == _STOP else "SIGUSR1"
    _say(f"Stopped by {name} {saved}. The same command goes on from there.")
    job = _slurm_job() if stopped.vote == _REQUEUE else None
    if job is None:
        return
    if shutil.which("scontrol") is None:
        _say(f"SLURM cannot be asked to queue job {job} again: there is no scontrol here. The job script has to do it.")
        return
    _say(f"Asking SLURM to queue job {job} again.")
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        _say(f"scontrol requeue {job} failed: {done.stderr.strip()}. Submit the job again.")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _slurm_job() -> str | None:
    """The job as scontrol knows it; of an array one task."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def announce_parent() -> None:
    """The first rank, before Lightning starts others by running the command again."""
    os.environ[_PARENT] = str(os.getpid())


def follow_parent() -> bool:
    """Whether Lightning started this rank; if so, it dies with the first rank, and outlasts it.

    When a child ends with an error, Lightning's observer kills the first rank within five seconds, its message and exit
    code with it. So a child that ends waits a little for the first rank, which sees the closed connection and ends by
    itself. Linux only; elsewhere orphans are left to the timeout of the process group.
    """
    if os.environ.get(_PARENT) != str(os.getppid()):
        return False
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            raise SystemExit(TERMINATED)

    def outlast() -> None:
        deadline = time.monotonic() + _FAREWELL
        while os.getppid() == parent and time.monotonic() < deadline:
            time.sleep(0.05)

    atexit.register(outlast)
    return True
