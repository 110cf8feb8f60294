"""The run directory: one job at a time, the same config, resumed by the same command."""

import errno
import fcntl
import os
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

import yaml

from csrtrain.config_files import flatten, read_run_config
from csrtrain.files import write_atomically

# Seconds that a requeued job waits for the end of its predecessor. An NFSv4 server keeps the locks of a node that has
# gone for its lease, 90 s as a rule.
_WAIT = 120.0

# Keys that cannot change the result of a run, by prefix.
_FREE = (
    "ckpt_path",
    "model.init_args.compile",
    "data.init_args.workers",
    "data.init_args.max_broken",
    "data.init_args.labels",
    "data.init_args.image_column",
    "data.init_args.label_column",
    "data.init_args.group_column",
    "data.init_args.cache_dir",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.limit_val_batches",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.profiler",
    "trainer.barebones",
    "weights_only",
)
_KEEPERS = ("csrtrain.runs.checkpoints.RunCheckpoint", "csrtrain.runs.nonfinite.StopOnNonFinite")


class RunRefused(ValueError):
    """The run directory does not allow this start; the message says why and what to do."""


def lock(run_dir: Path, wait: float = _WAIT) -> TextIO:
    """Take the run directory for this process until it ends.

    Args:
        run_dir: the run directory.
        wait: seconds for which a requeued SLURM job waits for its predecessor, of the same job id, that is just dying.

    Raises:
        RunRefused: another live process holds it, or it cannot be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("a+")
    except OSError as error:
        raise RunRefused(
            f"Expected a run directory that can be written to, got {run_dir} ({error.strerror}). Name another with "
            "--trainer.default_root_dir."
        ) from None
    job = os.environ.get("SLURM_JOB_ID")
    deadline = time.monotonic() + wait
    while not _take(file):
        file.seek(0)
        owner = file.read().strip() or "another process"
        if job is None or not owner.endswith(f" of SLURM job {job}") or time.monotonic() > deadline:
            file.close()
            raise RunRefused(
                f"Expected a free run directory, got {run_dir}, in use by {owner}. Wait for it, or name another with "
                "--trainer.default_root_dir."
            )
        time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()}" + (f" of SLURM job {job}" if job else ""))
    file.flush()
    return file


def _take(file: TextIO) -> bool:
    try:
        # Not flock: a loader process inherits that one, and would hold it after its parent was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        warnings.warn(
            f"The file system of {file.name} has no locks. See to it that no second job uses the run.", stacklevel=3
        )
    return True


def set_aside(run_dir: Path) -> Path:
    """Move an old run, whose lock is held, out of the way (`--fresh`): RUN -> RUN.old-1, RUN.old-2, ..."""
    number = 1
    while (target := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
        number += 1
    run_dir.rename(target)
    return target


def _without_keepers(config: dict[str, Any]) -> dict[str, Any]:
    """Without callbacks that decide what is kept, and whether to go on; what a step computes is not theirs."""
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    kept = [c for c in callbacks if not (isinstance(c, dict) and c.get("class_path") in _KEEPERS)]
    return {**config, "trainer": {**trainer, "callbacks": kept}}


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `key: old -> new` for the keys that can change the result."""
    file = Path("config.yaml")
    flat_old, flat_new = flatten(_without_keepers(old), file), flatten(_without_keepers(new), file)
    keys = sorted(flat_old.keys() | flat_new.keys())
    return [
        f"  {key}: {flat_old.get(key)} -> {flat_new.get(key)}"
        for key in keys
        if flat_old.get(key) != flat_new.get(key)
        and not any(key == free or key.startswith(free + ".") for free in _FREE)
    ]


def check_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Refuse a config that would change the result of the run that was begun.

    Raises:
        RunRefused: with the difference.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    try:
        begun = read_run_config(path)
    except ValueError as error:
        raise RunRefused(
            f"{error} A copy is in config.resume-*.yaml, if the run was resumed; or begin anew with --fresh."
        ) from None
    if lines := difference(begun, config):
        raise RunRefused(
            f"Expected the config that the run in {run_dir} began with, got changes:\n" + "\n".join(lines) + "\n"
            "Undo them, begin anew with --fresh, or name another directory with --trainer.default_root_dir."
        )


def keep_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Write the resolved config: config.yaml at the first start, config.resume-TIME.yaml at each later one."""
    path = run_dir / "config.yaml"
    if path.exists():
        path = run_dir / f"config.resume-{time.strftime('%Y%m%dT%H%M%S')}.yaml"
    write_atomically(path, yaml.safe_dump(config, sort_keys=False).encode())
