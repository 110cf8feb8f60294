"""Loggers that go on where the run goes on: CSV always, Weights & Biases by config."""

import csv
import os
import socket
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only


class CsvLogger(Logger):
    """`metrics.csv` in the run directory, one row per step, appended to when the run is resumed.

    Lightning's own CSVLogger deletes the earlier rows on resume. Rows that a resumed run would write again are dropped
    at its start.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self.path = Path(run_dir, "metrics.csv")
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run directory's config.yaml holds them."""

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Drop the rows that a run with `step` optimiser steps behind it writes again; Lightning counts them from 0."""
        if not self.path.exists():
            return
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row.get("step", "").isdigit() and int(row["step"]) < step]
            self._columns = list(reader.fieldnames or [])
        self._rewrite(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        new = [name for name in row if name not in self._columns]
        if new:
            rows: list[dict[str, str]] = []
            if self._columns:
                with self.path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)


def _wandb_reachable() -> bool:
    """Whether there is a key, and the server answers within two seconds."""
    import wandb

    url = urlsplit(str(wandb.setup().settings.base_url))
    try:
        if not wandb.login(prompt=False):
            return False
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=2):
            return True
    except (OSError, wandb.Error):
        return False


class Wandb(WandbLogger):
    """Weights & Biases: offline without a key or network, and the same wandb run when a run is resumed.

    Args:
        project: wandb project.
        run_dir: the run directory; it keeps the id of the wandb run. The command line fills it in.
        name: shown in the dashboard; by default the name of the run directory.
        entity: team or user.
        offline: True, False, or None to find out.
    """

    def __init__(
        self,
        project: str = "csrtrain",
        run_dir: str = ".",
        name: str | None = None,
        entity: str | None = None,
        offline: bool | None = None,
    ) -> None:
        mode = os.environ.get("WANDB_MODE")
        if offline is None:
            offline = mode in ("offline", "dryrun") or (mode not in ("online", "disabled") and not _wandb_reachable())
        if offline:
            rank_zero_info(f"wandb is offline; send the run later with: wandb sync {run_dir}/wandb/offline-run-*")
        super().__init__(
            project=project,
            name=name or Path(run_dir).resolve().name,
            save_dir=run_dir,
            version=_run_id(Path(run_dir, "wandb_id")),
            offline=offline,
            entity=entity,
            mode="offline" if offline else mode,
        )


def _run_id(path: Path) -> str:
    """The id that the run directory keeps, made at the first start."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(uuid.uuid4().hex[:8])
        temporary.replace(path)
    return path.read_text().strip()
