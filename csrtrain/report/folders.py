"""What a run directory, or a folder of `csrtrain evaluate`, says of itself; files that are not there are no error."""

import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from csrtrain.config_files import flatten, read_run_config
from csrtrain.models.weights import read_torch
from csrtrain.runs import checkpoints

_MOST_BYTES = {".json": 2**26, ".csv": 2**27}
_START = re.compile(r"\w+\.resume-(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\S*\.(yaml|json)")

Array = NDArray[np.float64]


class Curve(NamedTuple):
    """What was logged of one measure: steps (N,) in their order and values (N,), not finite ones included."""

    steps: Array
    values: Array

    @property
    def finite(self) -> Array:
        return self.values[np.isfinite(self.values)]


class Later(NamedTuple):
    """Config or environment of a later start of a run, keys joined by dots, and when, as the file's name says."""

    when: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run directory holds; empty where it does not.

    name: as the user typed it, without the folders above that all runs need not be told apart.
    config: of the first start, keys joined by dots.
    tree: the same as the file has it.
    starts: the later ones. environments: of those whose environment was another.
    curves: by column of `metrics.csv`.
    header: of the newest whole checkpoint.
    steps, epochs: done. skipped: steps that were not made, see `csrtrain.runs.nonfinite`.
    begun, written: seconds since 1970 of the config and of the last row; 0 where there is none.
    notes: what could not be read.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tree: dict[str, Any]
    starts: list[Later]
    environments: list[Later]
    curves: dict[str, Curve]
    header: dict[str, Any]
    steps: int
    epochs: int
    skipped: int
    environment: dict[str, Any]
    spectrum: pd.DataFrame | None
    scores: pd.DataFrame | None
    learning_curve: pd.DataFrame | None
    begun: float
    written: float
    notes: list[str]

    @property
    def newest_config(self) -> dict[str, Any]:
        """Of the last start; more epochs may have been asked for."""
        return self.starts[-1].content if self.starts else self.config

    @property
    def method(self) -> str:
        """Class of the model."""
        named = str(self.config.get("model.class_path") or self.header.get("method") or "")
        return named.rpartition(".")[2] or str(_dict(self.header.get("training")).get("method") or "unknown method")

    @property
    def is_head(self) -> bool:
        """Whether something was fitted to ratings on frozen backbones."""
        return str(self.config.get("model.class_path")).startswith("csrtrain.quality.") or self.scores is not None

    @property
    def data(self) -> dict[str, Any]:
        """What the checkpoint says of the training data."""
        return _dict(self.header.get("data")) or _dict(_dict(self.header.get("training")).get("data"))


@dataclass(frozen=True)
class Evaluation:
    """What `csrtrain evaluate` wrote: its results."""

    name: str
    results: dict[str, Any]


def names(folders: list[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart.

    Raises:
        ValueError: a folder is there twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise ValueError(f"Expected different runs, got {folders[number]} twice. Name it once.")
    parts = [folder.parts[-1:] if folder.parts[-1:] != ("/",) else ("run",) for folder in resolved]
    for depth in range(2, max(len(folder.parts) for folder in resolved) + 1):
        same = [one for one in parts if parts.count(one) > 1]
        parts = [folder.parts[-depth:] if one in same else one for folder, one in zip(resolved, parts, strict=True)]
    return ["/".join(one) for one in parts]


def read(folder: Path, name: str) -> Run | Evaluation:
    """What a folder holds.

    Raises:
        ValueError: it is no folder, or none that csrtrain fit or evaluate wrote.
    """
    if not folder.is_dir():
        raise ValueError(f"Expected a run directory, got {folder}, which is no folder. Correct the path.")
    if any((folder / file).is_file() for file in ("config.yaml", "metrics.csv")):
        return _read_run(folder, name)
    if (folder / "results.json").is_file():
        results = _json(folder / "results.json")
        if isinstance(results.get("evaluations"), list) and all(isinstance(e, dict) for e in results["evaluations"]):
            return Evaluation(name, results)
    began = ": training never began in it" if (folder / ".lock").exists() else ""
    raise ValueError(
        f"Expected a run directory with config.yaml or metrics.csv, or a folder that csrtrain evaluate wrote, got "
        f"{folder} without them{began}. Name the folder that csrtrain fit printed."
    )


def _read_run(folder: Path, name: str) -> Run:
    tree = read_run_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    notes: list[str] = []
    curves = _curves(folder, notes)
    if not tree and "metrics.csv could not be read" in " ".join(notes):
        raise ValueError(
            f"Expected the metrics.csv of a run in {folder}, got another table without config.yaml. Name a run."
        )
    stored = _stored(folder, notes)
    config = flatten(tree, folder / "config.yaml")
    loader = str(config.get("data.class_path")).rpartition(".")[2]
    steps, epochs = _progress(curves)
    return Run(
        name,
        folder,
        config,
        tree,
        _later(folder, "config", notes),
        _later(folder, "environment", notes),
        curves,
        _dict(stored.get("csrtrain")),
        max(steps, _integer(stored.get("global_step"))),
        max(epochs, _integer(_dict(stored.get(loader)).get("epoch"))),
        _integer(_dict(_dict(stored.get("callbacks")).get("StopOnNonFinite")).get("skipped")),
        _optional_json(folder / "environment.json", notes),
        _optional_table(folder / "spectrum.csv", notes),
        _optional_table(folder / "scores.csv", notes),
        _optional_table(folder / "learning_curve.csv", notes),
        _time(folder / "config.yaml"),
        _time(folder / "metrics.csv"),
        notes,
    )


def _curves(folder: Path, notes: list[str]) -> dict[str, Curve]:
    """Columns of `metrics.csv`; a last line that is being written is left out."""
    path = folder / "metrics.csv"
    if not path.is_file():
        notes.append("metrics.csv is not there: nothing has been measured yet.")
        return {}
    frame = _optional_table(path, notes)
    if frame is None:
        return {}
    if "step" not in frame:
        notes.append("metrics.csv could not be read: it has no column step.")
        return {}
    steps = pd.to_numeric(frame["step"], errors="coerce").to_numpy(np.float64)
    curves = {}
    for column in frame.columns:
        if column in ("step", "epoch"):
            continue
        cells = frame[column]
        logged = (cells != "").to_numpy() & np.isfinite(steps)
        values = pd.to_numeric(cells[logged], errors="coerce").to_numpy(np.float64)
        words = cells[logged].str.lower().isin(["nan", "inf", "-inf", "+inf", "infinity", "-infinity"]).to_numpy()
        kept = np.isfinite(values) | words  # the rest is no number at all
        if kept.any():
            at, values = steps[logged][kept], values[kept]
            last = np.append(at[1:] != at[:-1], True)  # of a step that was logged twice the later
            curves[str(column)] = Curve(at[last], values[last])
    if "epoch" in frame:
        finished = [name for name in ("train/epoch_loss", "train/embedding_std") if name in frame]
        whole = (frame[finished] != "").any(axis=1) if finished else np.zeros(len(frame), dtype=bool)
        epochs = pd.to_numeric(frame["epoch"][whole], errors="coerce").to_numpy(np.float64)
        at = steps[np.asarray(whole)]
        good = np.isfinite(epochs) & np.isfinite(at)
        if good.any():
            curves["epoch"] = Curve(at[good], epochs[good])
    return curves


def _progress(curves: Mapping[str, Curve]) -> tuple[int, int]:
    """Steps and epochs done, as far as the rows tell; Lightning counts both from 0."""
    trained = [curve.steps[-1] for name, curve in curves.items() if name.startswith("train/") and len(curve.steps)]
    epochs = curves.get("epoch")
    return (
        _integer(max(trained)) + 1 if trained else 0,
        _integer(float(epochs.values.max())) + 1 if epochs is not None else 0,
    )


def _later(folder: Path, what: str, notes: list[str]) -> list[Later]:
    """Files of later starts, in their order."""
    found = []
    for path in sorted(folder.glob(f"{what}.resume-*")):
        if (time := _START.fullmatch(path.name)) and path.is_file():
            try:
                content = flatten(read_run_config(path) if path.suffix == ".yaml" else _json(path), path)
            except (ValueError, OSError):
                notes.append(f"The {what} of a later start could not be read.")
                content = {}
            year, month, day, hour, minute, second = time.groups()[:6]
            found.append(Later(f"{year}-{month}-{day} {hour}:{minute}:{second}", content))
    return found


def _stored(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Plain data of the newest whole checkpoint."""
    for _ in range(2):  # a run that goes on may remove it between finding and reading
        with warnings.catch_warnings(record=True) as damaged:
            warnings.simplefilter("always")
            path = checkpoints.newest(folder)
        try:
            stored = read_torch(path) if path is not None else {}
        except ValueError:
            continue
        if damaged:
            notes.append(f"{len(damaged)} of the checkpoints are damaged; csrtrain passes over them.")
        return {key: value for key, value in stored.items() if key not in ("state_dict", "optimizer_states")}
    notes.append("The newest checkpoint could not be read.")
    return {}


def _text(path: Path) -> str:
    """Raises ValueError for what is too large or no text, OSError for what cannot be read."""
    most = _MOST_BYTES[path.suffix]
    if path.stat().st_size > most:
        raise ValueError(f"Expected at most {most} bytes in {path}, got more. Leave it out.")
    return path.read_text(encoding="utf-8", errors="replace")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise ValueError(f"Expected JSON in {path}, got a damaged file. Make it again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"Expected an object in {path}, got {type(found).__name__}. Make it again.")
    return found


def _optional_json(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return _json(path)
    except (ValueError, OSError):
        notes.append(f"{path.name} could not be read.")
        return {}


def _optional_table(path: Path, notes: list[str]) -> pd.DataFrame | None:
    """Cells as text, whole lines alone; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        text = _text(path).replace("\0", "")
        whole = text[: text.rfind("\n") + 1]
        return pd.read_csv(io.StringIO(whole), dtype=str, keep_default_na=False, on_bad_lines="skip")
    except (ValueError, OSError, pd.errors.ParserError):
        notes.append(f"{path.name} could not be read.")
        return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _integer(value: Any) -> int:
    """0 for what is none."""
    return int(value) if isinstance(value, int | float) and abs(value) < 1e15 else 0  # NaN is not less


def _time(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0
