"""What of a run goes to Weights & Biases, and what its files there already hold."""

import csv
import json
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from csrtrain.runs.places import is_place

STEP = "trainer/global_step"  # Lightning's name of the x-axis
SPECTRUM = "train/spectrum"

# wandb stores by itself what names a machine, a person or a place: host, user, program, command line, git remote, code,
# list of packages, and everything that is printed, file names in warnings among it. Utilisation of devices is kept.
SETTINGS: dict[str, Any] = {
    "host": "",
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "silent": True,
    "finish_timeout": 60.0,  # seconds; what was not sent stays in the run directory
}

_HIDDEN = "<path>"
_MOST_POINTS = 10_000  # of a scatter plot, as wandb draws them
_MOST_BINS = 512  # of a histogram


def without_paths(config: Any, key: str = "") -> Any:
    """A config with `<path>` for every path: the name of a folder may be that of a patient."""
    if isinstance(config, dict):
        return {name: without_paths(value, str(name)) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_paths(value, key) for value in config]
    named = isinstance(config, Path) or (isinstance(config, str) and is_place(config, key))
    return _HIDDEN if named else config


class Points(NamedTuple):
    """One call of the logger: values by name at a step."""

    step: int
    values: dict[str, float]


def logged(run_dir: Path) -> list[Points]:
    """The rows of `metrics.csv`, in order; a row that a kill cut short is left out."""
    path = run_dir / "metrics.csv"
    if not path.exists():
        return []
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                values = {name: float(value) for name, value in row.items() if name != "step" and value}
                found.append(Points(int(row["step"]), values))
            except (TypeError, ValueError):
                continue
    return found


def spectra(run_dir: Path) -> dict[int, list[float]]:
    """Step -> shares, of `spectrum.csv`; a row that a kill cut short, or that is none, is left out."""
    path = run_dir / "spectrum.csv"
    if not path.exists():
        return {}
    found = {}
    header, *rows = [line.split(",") for line in path.read_text(errors="replace").splitlines()] or [[]]
    for row in rows:
        try:
            if len(row) == len(header):
                found[int(row[0])] = [float(share) for share in row[1:]]
        except ValueError:
            continue
    return found


def new_values(values: Mapping[str, float], known: set[str]) -> dict[str, float]:
    """What of a call is not held yet; nothing when only the number of the epoch is left, which comes with others."""
    new = {name: value for name, value in values.items() if name == "epoch" or name not in known}
    return new if set(new) - {"epoch"} else {}


def files_of(run_dir: Path, run_id: str) -> list[Path]:
    """The files that wandb keeps of each start of a run, oldest first.

    Its folders are named [offline-]run-TIME-ID, and [offline-]run-TIME-ID-N where the second is that of another start.
    """

    def order(path: Path) -> tuple[str, int]:
        time, _, number = path.parent.name.partition("run-")[2].partition(f"-{run_id}")
        return time, int(number.removeprefix("-") or 0)

    folders = [*run_dir.glob(f"wandb/*run-*-{run_id}"), *run_dir.glob(f"wandb/*run-*-{run_id}-[0-9]*")]
    return sorted((path for folder in folders for path in folder.glob("*.wandb")), key=order)


def held(files: list[Path], sent: int | None) -> dict[int, set[str]]:
    """Step -> names of what wandb holds of a run, by its own reader.

    A killed process loses what wandb had not yet written, up to 15 seconds.

    Args:
        files: see `files_of`.
        sent: the last step that the server has, -1 if none; beyond it, what an online start has in its file is not
            counted as held. None where no server can be asked.

    Raises:
        ValueError: wandb cannot read its files.
    """
    found: dict[int, set[str]] = {}
    with ThreadPoolExecutor(4) as pool:
        for path, items in zip(files, pool.map(_history, files), strict=True):
            for item in items:
                step = item.get(STEP)
                if not isinstance(step, int | float):
                    continue
                if sent is None or step <= sent or path.parent.name.startswith("offline-"):
                    found.setdefault(int(step), set()).update(name.partition(".")[0] for name in item)
    return found


def _history(path: Path) -> list[dict[str, Any]]:
    return [record["history"].get("item", {}) for record in records(path) if record.get("type") == "history"]


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Everything that a `.wandb` file holds; one that was cut short up to its end.

    By what `wandb leet inspect --json` runs, without the half second that its command line takes to load.
    """
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(path.resolve())]
    done = subprocess.run([*command, str(path.resolve().parent)], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise ValueError(
            f"Expected {path} to be readable by wandb leet inspect, got: {done.stderr.strip()[-300:]}. Update wandb."
        )
    for line in done.stdout.splitlines():
        yield json.loads(line)


def histogram(shares: list[float]) -> tuple[list[float], list[float]]:
    """Shares of singular values as heights and edges of bars, 1 to d; several in one bar where there are too many."""
    width = -(-len(shares) // _MOST_BINS)
    heights = [sum(shares[start : start + width]) for start in range(0, len(shares), width)]
    return heights, [0.5 + width * i for i in range(len(heights) + 1)]


class Scatter(NamedTuple):
    """Predicted beside rated, of `scores.csv`.

    x, y: names of the axes.
    rows: (split, rating, prediction), no names of files.
    """

    x: str
    y: str
    rows: list[tuple[str, float, float]]


def scatter(run_dir: Path) -> Scatter | None:
    """What a head predicts beside what people said: the score, or the distance to the reference; None without ratings.

    Of more than 10,000 rows every so many-th.
    """
    path = run_dir / "scores.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        columns, *rows = list(csv.reader(file))
    if "predicted" not in columns:
        return None
    predicted = columns.index("predicted")
    y = columns.index("distance") if "distance" in columns else predicted
    rating, split = predicted - 1, columns.index("split")
    step = -(-len(rows) // _MOST_POINTS) or 1
    kept = [(row[split], float(row[rating]), float(row[y])) for row in rows[::step]]
    return Scatter(columns[rating], columns[y], kept)
