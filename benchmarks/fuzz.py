"""Hostile files: the readers of bundles, weights, checkpoints, manifests, lists and labels on damaged and evil ones.

    python -m benchmarks fuzz

Case i is a function of (seed, i): a sound file, changed at random, and a reader. It must be read soundly (an untouched
part was hit), or refused with a ValueError (FileNotFoundError) of csrtrain that names the file. All else is a fault:
another exception, a message without the name or longer than a screen, a crash, more than 10 seconds of a processor, no
end within 60 seconds, more than 512 MiB beyond what the process had, anything of a network, another program, or a file
written beside the case's own folder.
Cases run in processes of their own, which are watched: by a clock, by the kernel's peak of resident memory, and by
Python's audit events.
"""

import contextlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks import harness
from benchmarks.fuzz_changes import changed_bytes, changed_safetensors, changed_table, special_file
from csrtrain import bundle, headers
from csrtrain.data import index, labels, manifest, pairs, triplets
from csrtrain.evaluate.rated import rated_of
from csrtrain.models import weights
from csrtrain.models.backbone import Backbone
from csrtrain.models.difference import DifferenceMetric
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

CASES = 21_000
SEED = 0
_SECONDS = 10.0  # of a processor that a case may take
_HANG = 60.0  # seconds of the clock after which it is given up
_MEMORY = 512 * 2**20  # bytes that a case may take; the files are below 4 MB
_SCREEN = 4000  # characters of a message


class Outcome(NamedTuple):
    """Of a case: which reader, which change, what came of it ("read", "refused", or the fault), seconds, bytes."""

    case: int
    reader: str
    change: str
    result: str
    seconds: float
    memory: int


# What is read


def _sound(module: torch.nn.Module) -> None:
    for name, value in module.state_dict().items():
        assert bool(torch.isfinite(value.double()).all()), f"{name} is not finite"
    header = module.header
    assert isinstance(header, headers.BundleHeader | headers.MetricHeader | headers.DistanceHeader)
    json.dumps(repr(header))
    bundle.weights.metadata({"training": header.training, "results": header.results})


def _load(path: str) -> None:
    _sound(bundle.load(path))


def _backbone(path: str) -> None:
    """As a config names it: `model.backbone`."""
    made = Backbone(path, 1)
    assert made.representation_dim > 0 and all(math.isfinite(v) for v in made.arguments()["mean"])


def _weights(path: str) -> None:
    for name, value in weights.read(path).tensors.items():
        assert isinstance(name, str) and value.numel() * value.element_size() <= os.path.getsize(path)


def _export(path: str) -> None:
    output = Path(path).with_name("exported.safetensors")
    bundle.export_checkpoint(path, output)
    _sound(bundle.load(output))


def _ratings(path: str) -> None:
    found = manifest.read_manifest(path)
    assert len(found.ratings) == len(found.addresses) == len(found.groups) == len(found.lines) > 0
    assert np.isfinite(found.ratings).all() and all(map(_is_image, found.addresses))
    assert found.splits is None or set(found.splits) <= set(manifest.SPLITS)
    rated = rated_of(found)
    assert rated.levels is None or len(rated.levels) == len(found)


def _triplets(path: str) -> None:
    found = triplets.read_triplets(path)
    assert ((found.judge >= 0) & (found.judge <= 1)).all()
    assert all(map(_is_image, (*found.references, *found.p0, *found.p1)))


def _jnd(path: str) -> None:
    found = triplets.read_jnd(path)
    assert ((found.same >= 0) & (found.same <= 1)).all() and all(map(_is_image, (*found.p0, *found.p1)))


def _labels(path: str) -> None:
    found = labels.read_labels(path, "class", "group")
    assert len(found.values) == len(found.groups) > 0 and np.isfinite(found.values).all()


def _pairs(path: str) -> None:
    found = pairs.pairs_of([path])
    assert len(found.pairs) > 0 and all(isinstance(text, str) for pair in found.pairs for text in pair)


def _index(path: str) -> None:
    cache = os.path.join(os.path.dirname(path), "cache")
    found = index.build_index(path, column="path", cache_dir=cache, skip_empty=False)
    assert all(map(_is_image, found[:: max(1, len(found) // 10_000)]))


def _is_image(address: str) -> bool:
    return os.path.isfile(address.rpartition("#")[0]) or os.path.isfile(address)


READERS: dict[str, Callable[[str], None]] = {
    "csrtrain.load": _load,
    "headers.read_header": lambda path: json.dumps(repr(headers.read_header(path))) and None,
    "Backbone": _backbone,
    "weights.read": _weights,
    "export_checkpoint": _export,
    "read_manifest": _ratings,
    "read_triplets": _triplets,
    "read_jnd": _jnd,
    "read_labels": _labels,
    "pairs_of": _pairs,
    "build_index": _index,
}


# Sound files


class Sound(NamedTuple):
    """A sound file: its name's end, content, and the readers that take it."""

    suffix: str
    content: bytes
    readers: tuple[str, ...]


def sound_files(folder: Path) -> list[Sound]:
    """Bundles of all kinds, weights, a checkpoint, and tables whose images lie in `folder`."""
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", 1).eval()
    path = folder / "x.safetensors"
    found = []
    training = {"method": "SimCLR", "data": {"digest": "00ff", "images": 7}, "seed": 3, "steps": 9}
    bundle.save(
        path, backbone, bundle.header_for(backbone, [40.0, 400.0], training, {"torch": "2"}, {"train/loss": 1.5})
    )
    own = ("csrtrain.load", "csrtrain.load", "headers.read_header", "Backbone", "weights.read")
    found.append(Sound(".safetensors", path.read_bytes(), own))
    features = FrozenFeatures([backbone], [Contract((1.0, 0.5))])
    rater = NoReferenceMetric(features, RatingScale(0.0, 100.0), 6).eval()
    bundle.save(path, rater, headers.MetricHeader(**bundle.described_metric(rater, "header", training, {"srcc": 0.5})))
    found.append(Sound(".safetensors", path.read_bytes(), own[:3]))
    for metric in (FullReferenceMetric(backbone, [1, 3]), DifferenceMetric(features)):
        described = bundle.described_distance(metric.eval(), "full", training, {"2afc": 0.7}, "mos")
        bundle.save(path, metric, headers.DistanceHeader(**described))
        found.append(Sound(".safetensors", path.read_bytes(), own[:3]))
    torch.save(backbone.network.state_dict(), path)
    found.append(Sound(".pth", path.read_bytes(), ("weights.read",)))
    described = {
        **{key: training[key] for key in ("method", "seed", "steps", "data")},
        "backbone": backbone.arguments(),
    }
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    torch.save({"state_dict": state, "csrtrain": {**described, "versions": {}, "results": {}}}, path)
    found.append(Sound(".ckpt", path.read_bytes(), ("export_checkpoint", "weights.read")))
    path.unlink()
    return found + _tables(folder)


def _tables(folder: Path) -> list[Sound]:
    names = [f"{folder}/{letter}.png" for letter in "abcdefgh"]
    for number, name in enumerate(names):
        Image.new("L", (8, 8), 30 * number).save(name)
    splits = ("train", "val", "test")

    def table(head: str, row: Callable[[int], str], *readers: str) -> Sound:
        return Sound(".csv", "\n".join([head, *map(row, range(8)), ""]).encode(), readers)

    return [
        table(
            "path,mos,reference,group,split,std,level,type",
            lambda i: f"{names[i]},{i / 2},{names[0]},{i // 2},{splits[i % 3]},0.5,{i},blur",
            *("read_manifest", "read_manifest", "pairs_of", "build_index"),
        ),
        table("path,dmos", lambda i: f'"{names[i]}",{i}', "read_manifest", "build_index"),
        table(
            "reference,p0,p1,judge,subset,group",
            lambda i: f"{names[0]},{names[i]},{names[-1]},{i / 8},cnn,{i // 2}",
            "read_triplets",
        ),
        table("p0,p1,same", lambda i: f"{names[0]},{names[i]},{i / 8}", "read_jnd"),
        table("path,class,group", lambda i: f"{names[i]},{i % 2},{i // 2}", "read_labels", "build_index"),
        table("path,class,group", lambda i: f"{names[i]},{i * 1.5},{i}", "read_labels"),
        Sound(".txt", "\n".join(names).encode(), ("build_index",)),
    ]


# A case


def run_case(case: int, seed: int, sound: list[Sound], folder: Path) -> Outcome:
    """Make the file of a case in `folder`, an empty one, and read it."""
    rng = random.Random(f"{seed}-{case}")
    one = rng.choice(sound)
    reader = rng.choice(one.readers)
    path = str(folder / f"case{one.suffix}")
    if rng.random() < 0.02:
        path, change = special_file(rng, folder, one.suffix, one.content)
    else:
        if one.suffix == ".safetensors" and rng.random() < 0.8:
            content, change = changed_safetensors(rng, one.content)
        elif one.suffix in (".csv", ".txt") and rng.random() < 0.85:
            content, change = changed_table(rng, one.content)
        else:
            content, change = changed_bytes(rng, one.content)
        Path(path).write_bytes(content)
    WATCHED.clear()
    Path("/proc/self/clear_refs").write_text("5")
    before = harness.status("VmRSS")
    start = time.process_time()
    _arm(folder)
    try:
        READERS[reader](path)
        result = "read"
    except (ValueError, FileNotFoundError) as error:
        result = _refused(error, path)
    except BaseException as error:  # all else is what this looks for
        where = traceback.extract_tb(error.__traceback__)[-1]
        result = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    finally:
        _disarm()
    seconds = time.process_time() - start
    memory = max(0, harness.status("VmHWM") - before)
    if seconds > _SECONDS:
        result = f"slow: {seconds:.1f} s"
    if memory > _MEMORY:
        result = f"memory: {memory >> 20} MiB"
    if WATCHED:
        result = f"forbidden: {WATCHED[0]}"
    if (folder.parent / "owned").exists():
        result = "code ran"
    return Outcome(case, reader, change, result, seconds, memory)


def _refused(error: Exception, path: str) -> str:
    """Whether a refusal is csrtrain's own and says which file."""
    text = str(error)
    name = os.path.basename(path.rstrip("/"))[:40].split("\0")[0]
    if not ("Expected " in text and "got " in text):
        return f"a foreign message: {type(error).__name__}: {text[:200]}"
    if name not in text:
        return f"a message without the file's name: {text[:300]}"
    if len(text) > _SCREEN:
        return f"a message of {len(text)} characters: {text[:200]}"
    return "refused"


WATCHED: list[str] = []
_allowed: list[str] = []
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "urllib.",
    "ftplib.",
    "pty.",
)
_WRITES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.",
)


def _watch(event: str, arguments: Any) -> None:
    """Python's audit hook: note what no reader may do while it reads."""
    if not _allowed:
        return
    if event.startswith(_FORBIDDEN):
        WATCHED.append(f"{event} {arguments!r}"[:200])
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _note_outside(event, arguments[0])
    elif event == "open" and str(arguments[0]).startswith("/dev/"):
        WATCHED.append(f"{event} {arguments[0]}")
    elif event.startswith(_WRITES):
        for argument in arguments:
            if isinstance(argument, str | bytes | os.PathLike):
                _note_outside(event, argument)


def _note_outside(event: str, path: Any) -> None:
    text = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
    if text and not text.startswith((_allowed[0], "/proc/self/")):
        WATCHED.append(f"{event} {text}"[:200])


def _arm(folder: Path) -> None:
    _allowed[:] = [str(folder)]


def _disarm() -> None:
    _allowed.clear()


# Processes


def _work(pipe: Connection, seed: int, sound: list[Sound], folder: Path) -> None:
    """Run the cases that the other end of the pipe names."""
    os.setsid()
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    sys.addaudithook(_watch)
    while (case := pipe.recv()) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        pipe.send(run_case(case, seed, sound, folder))


class _Worker:
    """A process that runs cases, and what it is at."""

    def __init__(self, number: int, seed: int, sound: list[Sound], root: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, seed, sound, root / f"worker{number}"), daemon=True)
        self.process.start()
        other.close()
        self.case: int | None = None
        self.started = 0.0

    def give(self, case: int) -> None:
        """Begin a case."""
        self.case, self.started = case, time.monotonic()
        self.pipe.send(case)

    def end(self) -> None:
        """Kill it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.pipe.close()


def drill(cases: int, seed: int = SEED, workers: int = 2, first: int = 0) -> list[Outcome]:
    """The outcomes of `cases` cases from `first` on; a worker that hangs or dies is replaced, and its case a fault."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        sound = sound_files(root)
        waiting: Iterator[int] = iter(range(first, first + cases))
        outcomes: list[Outcome] = []
        crew = [_Worker(number, seed, sound, root) for number in range(workers)]
        for worker in crew:
            _next(worker, waiting)
        while any(worker.case is not None for worker in crew):
            ready = wait([worker.pipe for worker in crew if worker.case is not None], timeout=0.5)
            for number, worker in enumerate(crew):
                case = worker.case
                if case is None:
                    continue
                fault = ""
                if worker.pipe in ready:
                    try:
                        outcomes.append(worker.pipe.recv())
                    except EOFError:
                        worker.process.join()
                        fault = f"crash: exit code {worker.process.exitcode}"
                elif time.monotonic() - worker.started > _HANG:
                    fault = f"hang: more than {_HANG:g} s"
                else:
                    continue
                if fault:
                    worker.end()
                    print(f"case {case}: {fault}", file=sys.stderr, flush=True)
                    outcomes.append(_unknown(case, seed, sound, root, fault))
                    crew[number] = worker = _Worker(number, seed, sound, root)
                _next(worker, waiting)
        for worker in crew:
            worker.end()
    return sorted(outcomes)


def _next(worker: _Worker, waiting: Iterator[int]) -> None:
    worker.case = None
    if (case := next(waiting, None)) is not None:
        worker.give(case)


def _unknown(case: int, seed: int, sound: list[Sound], root: Path, fault: str) -> Outcome:
    """Of a case whose process is gone: the reader is drawn again."""
    rng = random.Random(f"{seed}-{case}")
    one = rng.choice(sound)
    return Outcome(case, rng.choice(one.readers), one.suffix, fault, _HANG, 0)


# Large tables


def large(reader: str, head: str, row: str, count: int, suffix: str = ".csv") -> dict[str, Any]:
    """Time and memory of a table of `count` equal rows, in a process of its own; a row of the result."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        Image.new("L", (8, 8)).save(folder / "a.png")
        path = folder / f"large{suffix}"
        with path.open("w") as file:
            file.write(head)
            for _ in range(count // 100_000):
                file.write(row * 100_000)
        pipe, other = multiprocessing.get_context("fork").Pipe()
        process = multiprocessing.get_context("fork").Process(target=_read_large, args=(other, reader, str(path)))
        process.start()
        other.close()
        try:
            result, seconds, memory = pipe.recv()
        except EOFError:
            result, seconds, memory = "crash", math.nan, 0
        process.join()
    return {
        "reader": f"{reader}, {count:,} rows",
        "cases": 1,
        "refused": int(result == "refused"),
        "read": int(result == "read"),
        "faults": int(result not in ("read", "refused")),
        "longest, CPU s": seconds,
        "most memory, MiB": memory / 2**20,
    }


def _read_large(pipe: Connection, reader: str, path: str) -> None:
    Path("/proc/self/clear_refs").write_text("5")
    before, start = harness.status("VmRSS"), time.process_time()
    try:
        READERS[reader](path)
        result = "read"
    except ValueError as error:
        result = _refused(error, path)
    except MemoryError:
        result = "memory"
    pipe.send((result, time.process_time() - start, harness.status("VmHWM") - before))


def faults(outcomes: list[Outcome]) -> list[Outcome]:
    """Those that are neither read nor refused."""
    return [outcome for outcome in outcomes if outcome.result not in ("read", "refused")]


def run() -> harness.Result:
    """All cases, a row per reader."""
    outcomes = drill(CASES)
    rows = []
    for reader in READERS:
        own = [outcome for outcome in outcomes if outcome.reader == reader]
        results = Counter(outcome.result if outcome.result in ("read", "refused") else "fault" for outcome in own)
        rows.append(
            {
                "reader": reader,
                "cases": len(own),
                "refused": results["refused"],
                "read": results["read"],
                "faults": results["fault"],
                "longest, CPU s": max(outcome.seconds for outcome in own),
                "most memory, MiB": max(outcome.memory for outcome in own) / 2**20,
            }
        )
    ratings = ("path,mos\n", "a.png,1\n")
    rows.append(large("read_manifest", *ratings, 1_000_000))
    rows.append(large("read_manifest", *ratings, 10_000_000))
    rows.append(large("build_index", "", "a.png\n", 10_000_000, ".txt"))
    kinds = Counter(outcome.change for outcome in outcomes)
    notes = [
        f"{len(outcomes)} cases, seed {SEED}; {len(faults(outcomes))} faults.",
        *(f"case {one.case}, {one.reader}, {one.change}: {one.result}" for one in faults(outcomes)[:20]),
        f"{len(kinds)} kinds of changes: {', '.join(f'{kind} ({count})' for kind, count in sorted(kinds.items()))}.",
        "Below, tables of equal rows: a manifest of more than a million is refused unless CSRTRAIN_MAX_ROWS is set, "
        "a list (build_index) of more than 20 million.",
        "A fault is all but a sound reading and a refusal that names the file: see benchmarks/fuzz.py. Limits: "
        f"{_SECONDS:g} s of a processor, {_HANG:g} s of the clock, {_MEMORY >> 20} MiB of resident memory beyond "
        "what the process had; files are below 4 MB.",
    ]
    return harness.Result("fuzz", "Damaged and hostile files", rows, notes, ("torch", "timm", "safetensors"))
