"""Loggers that go on where the run goes on: CSV always, Weights & Biases by config."""

import csv
import importlib
import io
import math
import os
import socket
import subprocess
import tempfile
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from csrtrain import bundle
from csrtrain.files import write_atomically
from csrtrain.runs import checkpoints
from csrtrain.runs import wandb_contents as contents


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
        with self.path.open(newline="", errors="replace") as file:  # a node that fails may leave what is no text
            reader = csv.DictReader(file)
            rows = [row for row in reader if row.get("step", "").isdigit() and int(row["step"]) < step]
            columns = list(reader.fieldnames or [])
        self._columns = columns if "step" in columns else []
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
        whole = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            os.truncate(self.path, whole)  # no half of a row
            raise self._refused(error) from None

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, text.getvalue().encode())
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> OSError:
        return OSError(
            f"Expected to write a row to {self.path}, got {error.strerror}. The rows before are whole. Make room or "
            "allow to write there; the same command goes on."
        )


class Wandb(WandbLogger):
    """Weights & Biases: one wandb run however often the run is resumed, offline without a key or a network.

    Every point is logged once, against `trainer/global_step`. What a killed start had not yet written is taken from
    `metrics.csv` and `spectrum.csv` at the next one, and what a resumed run computes again is not logged again. A fault
    of wandb never stops a training: it is told, and the points follow at the next start.

    Nothing that names a person or a machine is stored, see docs/wandb.md: paths of the config are left out, printed
    text and file names are not captured. Images and weights are, when `images` and `bundle` say so.

    Args:
        project: wandb project.
        run_dir: the run directory; it keeps the id of the wandb run. The command line fills it in.
        name: shown in the dashboard; by default the name of the run directory.
        entity: team or user.
        offline: True, False, or None to find out.
        images: log a grid of the first images and their views, and for CONTRIQUE one of its distortions, at each start.
        bundle: log the bundle of the last checkpoint as an artifact when the run is complete.

    Raises:
        ValueError: wandb is not installed or cannot be imported.
    """

    def __init__(
        self,
        project: str = "csrtrain",
        run_dir: str = ".",
        name: str | None = None,
        entity: str | None = None,
        offline: bool | None = None,
        images: bool = False,
        bundle: bool = False,
    ) -> None:
        require("wandb", "csrtrain.runs.loggers.Wandb", "wandb")
        super().__init__(project=project, name=name or Path(run_dir).resolve().name, save_dir=run_dir, entity=entity)
        self.run_dir = Path(run_dir)
        self.images = images
        self.bundle = bundle
        self.is_complete = False
        self._wanted = offline
        self._failed = False
        self._data_dir = ""
        self._resumed_at = 0
        self._held: dict[int, set[str]] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, begun when it is first asked for."""
        if self._experiment is None:
            self._attempt(self._begin)
        if self._experiment is None:
            import wandb

            self._experiment = wandb.init(mode="disabled")
        return self._experiment

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Say that the run has `step` optimiser steps behind it, before the first point is logged."""
        self._resumed_at = step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        _ = self.experiment  # begins it, and learns what is held
        if new := contents.new_values(metrics, self._held.get(-1 if step is None else step, set())):
            self._attempt(lambda: super(Wandb, self).log_metrics(new, step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """The config, with `<path>` for every path."""
        hidden = contents.without_paths(vars(params) if isinstance(params, Namespace) else params)
        self._attempt(lambda: super(Wandb, self).log_hyperparams(hidden))

    @rank_zero_only
    def log_spectrum(self, shares: list[float], step: int) -> None:
        """A bar per singular value of the projections, largest first, as a histogram of the epoch."""
        _ = self.experiment
        if contents.SPECTRUM not in self._held.get(step, set()) and all(map(math.isfinite, shares)):
            self._attempt(lambda: self.experiment.log(_spectrum_point(shares, step)))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End this start's part of the wandb run; when the run is complete, with the scatter plot and the bundle."""
        if self._experiment is None:
            return
        if status == "success" and self.is_complete:
            self._attempt(self._log_scatter)
            if self.bundle:
                self._attempt(self._log_bundle)
        run, self._experiment, self._failed = self._experiment, None, False
        self._attempt(lambda: run.finish(exit_code=0 if status == "success" else 1))
        if os.environ.get("WANDB_DATA_DIR") == self._data_dir:
            del os.environ["WANDB_DATA_DIR"]

    def _begin(self) -> None:
        import wandb

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # messages of errors may hold names of files
        if "WANDB_DATA_DIR" not in os.environ:  # what waits to be sent lies in the run directory, not in the home
            os.environ["WANDB_DATA_DIR"] = self._data_dir = str(self.run_dir.resolve() / "wandb")
        mode = os.environ.get("WANDB_MODE")
        offline = self._wanted
        if offline is None:
            offline = mode in ("offline", "dryrun") or (mode not in ("online", "disabled") and not _wandb_reachable())
        self._id = _run_id(self.run_dir / "wandb_id")
        self._wandb_init.pop("anonymous", None)  # wandb warns of it
        self._wandb_init |= {"id": self._id, "settings": wandb.Settings(**contents.SETTINGS)}
        files = contents.files_of(self.run_dir, self._id)  # of earlier starts
        if not offline:
            self._wandb_init["mode"] = mode
            try:
                run: Any = super().experiment
            except (wandb.Error, OSError) as error:
                rank_zero_warn(f"wandb could not begin ({type(error).__name__}); this start is kept offline.")
                offline = True
        if offline:
            rank_zero_info(f"wandb is offline; send the run later with: wandb sync {self.run_dir}/wandb")
            self._offline = True
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        try:
            held = contents.held(files, None if offline else run.summary.get(contents.STEP, -1))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            rank_zero_warn(f"What wandb holds of this run is not known, points may come twice or be missing: {error}")
            return
        self._held = {step: names for step, names in held.items() if step >= self._resumed_at}
        for point in self._missing(held):
            run.log(point)

    def _missing(self, held: dict[int, set[str]]) -> list[dict[str, Any]]:
        """What earlier starts measured and wandb does not hold, in order."""
        found = [
            (step, _spectrum_point(shares, step))
            for step, shares in contents.spectra(self.run_dir).items()
            if contents.SPECTRUM not in held.get(step, set()) and all(map(math.isfinite, shares))
        ]
        for step, values in contents.logged(self.run_dir):
            if new := contents.new_values(values, held.get(step, set())):
                found.append((step, {**new, contents.STEP: step}))
        return [point for step, point in sorted(found, key=lambda pair: pair[0]) if step < self._resumed_at]

    def _log_scatter(self) -> None:
        import wandb

        if (found := contents.scatter(self.run_dir)) is not None:
            table = wandb.Table(columns=["split", found.x, found.y], data=[list(row) for row in found.rows])
            title = f"{found.y} beside {found.x}"
            self.experiment.log({"scatter": wandb.plot.scatter(table, found.x, found.y, title=title)})

    def _log_bundle(self) -> None:
        import wandb

        if (checkpoint := checkpoints.newest(self.run_dir)) is not None:
            with tempfile.TemporaryDirectory(prefix=".bundle-", dir=self.run_dir) as folder:
                path = Path(folder, "bundle.safetensors")
                header = bundle.export_checkpoint(checkpoint, path)
                artifact = wandb.Artifact(f"bundle-{self._id}", type="model", metadata={"results": header.results})
                artifact.add_file(str(path))
                self.experiment.log_artifact(artifact)

    def _attempt(self, work: Callable[[], object]) -> None:
        """Whatever wandb raises is told once; then nothing more is logged in this start."""
        if self._failed:
            return
        try:
            work()
        except Exception as error:
            self._failed = True
            rank_zero_warn(
                f"wandb failed ({type(error).__name__}: {error}). Training goes on without it; metrics.csv has "
                "everything, and the next start logs what is missing."
            )


def require(package: str, used_by: str, install: str) -> None:
    """Import an optional package; `install` is what pip takes.

    Raises:
        ValueError: it is not installed, or its import fails.
    """
    try:
        importlib.import_module(package)
    except Exception as error:
        raise ValueError(
            f"Expected the package {package} for {used_by}, got {type(error).__name__}: {error}. Leave the logger out, "
            f"or install it: pip install '{install}'."
        ) from error


def _spectrum_point(shares: list[float], step: int) -> dict[str, Any]:
    import wandb

    heights, edges = contents.histogram(shares)
    return {contents.SPECTRUM: wandb.Histogram(np_histogram=(np.array(heights), np.array(edges))), contents.STEP: step}


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


def _run_id(path: Path) -> str:
    """The id that the run directory keeps, made at the first start."""
    known = path.read_text().strip() if path.exists() else ""
    if not known:
        known = uuid.uuid4().hex[:8]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, known.encode())
    return known
