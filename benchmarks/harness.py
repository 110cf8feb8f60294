"""Timing and memory, ours beside the peer in one process, and the result files."""

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from csrtrain import bundle
from csrtrain.models.backbone import Backbone

RESULTS = Path(__file__).parent / "results"


def interleave(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each variant, one call of each per round in rotating order, after one warm-up call each.

    Absolute times drift on a shared machine; ratios within one call of this function do not.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        variants[name]()
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"Expected {key} in /proc/self/status, got none. This measurement needs Linux.")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes by which one call raises the resident memory at its highest (Linux: VmHWM reset by clear_refs).

    A first call warms up thread pools and caches; what the allocator kept of it is given back before the second.
    """
    function()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def compared(what: str, ours: float, peer: float, target: float, limit: str = "") -> dict[str, Any]:
    """A row for a quantity of which less is better: the peer's is to be at least `target` times ours.

    limit: what physics allows, in words, and how far ours is from it.
    """
    ratio = peer / ours
    verdict = "met" if ratio >= target else "missed"
    return {
        "what": what,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "target": f">= {target:g}",
        "physical limit": limit,
        "verdict": verdict,
    }


def machine() -> str:
    """Processor, cores in use, and GPU."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), model)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads{gpu}"


def data_root() -> Path:
    """The folder of data sets, which benchmarks of learned metrics read."""
    if "CSRTRAIN_DATA" not in os.environ:
        raise SystemExit("Expected the folder of data sets in CSRTRAIN_DATA, got none. Set it.")
    return Path(os.environ["CSRTRAIN_DATA"])


def backbones(bundles: dict[str, str]) -> dict[str, Backbone]:
    """Those of bundles by name, and first the control: the same network untrained."""
    torch.manual_seed(0)
    return {"untrained": Backbone("resnet18")} | {name: bundle.load_backbone(path) for name, path in bundles.items()}


def named(arguments: Sequence[str]) -> dict[str, str]:
    """NAME=BUNDLE ... -> {NAME: BUNDLE}."""
    if wrong := [argument for argument in arguments if "=" not in argument]:
        raise SystemExit(f"Expected NAME=BUNDLE, got {wrong[0]}. Name it.")
    return dict(argument.split("=", 1) for argument in arguments)


def trained(path: str) -> str:
    """Method, steps and data of a bundle, for a note."""
    training: Any = bundle.load_backbone(path).header.training
    return f"trained by {training['method']}, {training['steps']} steps; {training['data']}."


@dataclass
class Result:
    """A table and what was measured with what.

    name: of the benchmark and its files; title: one line; rows: the table; notes: sentences below it;
    packages: peers whose versions matter.
    """

    name: str
    title: str
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    packages: Sequence[str] = ("torch",)
    command: str = ""

    def markdown(self) -> str:
        """The result as a page."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [f"# {self.title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in self.rows]
        lines += ["", *[f"- {note}" for note in self.notes], *[f"- {line}" for line in self.provenance()]]
        return "\n".join(lines) + "\n"

    def show(self, write: bool = False) -> None:
        """Print the page, and keep it."""
        print(self.markdown())
        if write:
            self.write()

    def provenance(self) -> list[str]:
        """Command, machine, versions, commit, date."""
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("csrtrain", *self.packages))
        commit = _git("describe", "--always") or "unknown"
        if _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results"):
            commit += "-dirty"
        command = self.command or f"python -m benchmarks {self.name} --write"
        return [f"Command: `{command}`", f"Machine: {machine()}", f"{versions}, commit {commit}, {date.today()}"]

    def write(self) -> None:
        """benchmarks/results/NAME.md and NAME.json."""
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(self.markdown())
        content = {"title": self.title, "rows": self.rows, "notes": self.notes, "provenance": self.provenance()}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
