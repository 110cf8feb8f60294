"""Resume drill: a run stopped after any optimiser step ends bit-identical to one that was never stopped.

    python -m benchmarks resume
    python -m benchmarks.resume --method contrique --write

The first runs the full product of the factors below, three quarters of an hour of a core, the second a third of it; the
tests run a pairwise subset.
For every setting the uninterrupted run keeps a checkpoint of each step. From each of them the run is resumed to its
end, and once it is stopped twice. Compared bit by bit: the stream of sample indices and view pixels from the stop on,
and at the end weights, queue, optimiser, schedule and the data module's position.
"""

import argparse
import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image

from benchmarks import harness
from csrtrain.data.unlabeled import UnlabeledData
from csrtrain.models.weights import read_torch
from csrtrain.pretrain import CONTRIQUE, MoCo, SimCLR
from csrtrain.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint, newest
from csrtrain.runs.monitors import LabelProbe, RepresentationMonitor

EPOCHS = 3
BATCHES = 4
BATCH_SIZE = 8


class Setting(NamedTuple):
    """One row of the drill."""

    ranks: int
    method: str
    workers: int
    by: str
    accumulate: int
    validate: bool
    limit: bool


FACTORS: dict[str, tuple[Any, ...]] = {
    "ranks": (1, 2),
    "method": ("simclr", "moco", "contrique"),
    "workers": (0, 2),
    "by": ("max_epochs", "max_steps"),
    "accumulate": (1, 2),
    "validate": (False, True),
    "limit": (False, True),
}


def product() -> list[Setting]:
    """Every combination."""
    return [Setting(*values) for values in itertools.product(*FACTORS.values())]


def _pairs(setting: Setting) -> set[tuple[int, Any, int, Any]]:
    return {(a, setting[a], b, setting[b]) for a, b in itertools.combinations(range(len(setting)), 2)}


def pairwise() -> list[Setting]:
    """A greedy subset in which every pair of values of two factors occurs."""
    missing = set().union(*map(_pairs, product()))
    chosen: list[Setting] = []
    while missing:
        best = max(product(), key=lambda setting: len(_pairs(setting) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


class Recorder(Callback):
    """What each step was trained on: digest of indices and pixels, one list per run."""

    def __init__(self) -> None:
        self.stream: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        digest = hashlib.sha256(batch.indices.tobytes())
        for view in (batch.view0, batch.view1):
            digest.update(view.contiguous().numpy().tobytes())
        self.stream.append(digest.hexdigest()[:16])


def make_images(directory: Path) -> None:
    """35 small random pictures (the last ones do not fill a batch) and a label for each."""
    if (directory / "labels.csv").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = ["image,class"]
    for i in range(BATCHES * BATCH_SIZE + 3):
        coarse = rng.integers(0, 256, (6, 7), dtype=np.uint8)
        Image.fromarray(coarse).resize((56, 48), Image.Resampling.BILINEAR).save(directory / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,{i % 2}")
    (directory / "labels.csv").write_text("\n".join(rows) + "\n")


def fit(setting: Setting, images: Path, run_dir: Path, resume: Path | None) -> list[str]:
    """One start of a run; returns the stream of this rank."""
    seed_everything(0, verbose=False)
    data = UnlabeledData(
        root=str(images),
        channels=1,
        modality="mri",
        load_size=48 if setting.method == "contrique" else 40,
        crop="native" if setting.method == "contrique" else "resized",
        batch_size=BATCH_SIZE,
        workers=setting.workers,
        labels=str(images / "labels.csv") if setting.validate else None,
        cache_dir=str(images / ".cache"),
        seed=3,
    )
    arguments: dict[str, Any] = dict(backbone="test_resnet", channels=1, modality="mri", size=32, projection_dim=16)
    model: SimCLR | MoCo | CONTRIQUE
    if setting.method == "moco":
        model = MoCo(**arguments, queue_size=20, batch_norm_groups=2, momentum=0.9, learning_rate=0.05)
    elif setting.method == "contrique":
        model = CONTRIQUE(**{**arguments, "size": 24}, learning_rate=0.05)
    else:
        model = SimCLR(**arguments, optimizer="sgd", learning_rate=0.05)
    batches = 3 if setting.limit else BATCHES
    steps = -(-batches // setting.accumulate) * EPOCHS
    recorder = Recorder()
    trainer = Trainer(
        default_root_dir=run_dir,
        accelerator="cpu",
        devices=setting.ranks,
        strategy="ddp" if setting.ranks > 1 else "auto",
        max_epochs=EPOCHS if setting.by == "max_epochs" else -1,
        max_steps=-1 if setting.by == "max_epochs" else steps,
        accumulate_grad_batches=setting.accumulate,
        val_check_interval=2 if setting.validate else None,
        limit_train_batches=3 if setting.limit else None,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[RunCheckpoint(every_n_steps=1, keep=-1), recorder, RepresentationMonitor(), LabelProbe()],
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.global_step != steps:
        raise AssertionError(f"Expected {steps} steps, got {trainer.global_step} in {setting}.")
    return recorder.stream


def equal(a: Any, b: Any) -> bool:
    """Bit by bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def faults(whole: Path, part: Path) -> list[str]:
    """What differs between the last checkpoints of two runs."""
    a, b = newest(whole), newest(part)
    assert a is not None and b is not None
    x, y = read_torch(a), read_torch(b)
    keys = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "UnlabeledData")
    return [key for key in keys if not equal(x[key], y[key])]


def drill(setting: Setting, root: Path, images: Path) -> dict[str, Any]:
    """All stops of one setting."""
    start = time.perf_counter()
    name = "-".join(str(value) for value in setting)
    whole = fit(setting, images, root / name / "whole", None)
    paths = sorted((root / name / "whole" / "checkpoints").glob("step-*.ckpt"))
    bad: list[str] = []

    def judge(what: str, stream: list[str], run_dir: Path) -> None:
        if stream != whole[len(whole) - len(stream) :]:
            bad.append(f"{what}: other samples or views")
        if int(os.environ.get("RANK", "0")) == 0:
            bad.extend(f"{what}: {key} differs" for key in faults(root / name / "whole", run_dir))

    for path in paths[:-1]:
        run_dir = root / name / path.stem
        judge(path.stem, fit(setting, images, run_dir, path), run_dir)
    once = sorted((root / name / paths[0].stem / "checkpoints").glob("step-*.ckpt"))  # stopped after step 1, then 2
    twice = root / name / "twice"
    judge("stopped twice", fit(setting, images, twice, once[0]), twice)
    return {**setting._asdict(), "stops": len(paths), "faults": bad, "seconds": time.perf_counter() - start}


def drill_all(settings: list[Setting], root: Path) -> list[dict[str, Any]]:
    """Rows in the order of the number of ranks; of each number all settings in one start, of two under torchrun."""
    make_images(root / "images")
    rows: list[dict[str, Any]] = []
    for ranks in sorted({setting.ranks for setting in settings}):
        chosen = [setting for setting in settings if setting.ranks == ranks]
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
        launcher = [*torchrun, "--no-python"] if ranks > 1 else []
        output = root / f"rows-{ranks}.json"
        # Not -m: loader workers of ranks would import that module, and with it all that it imports, each anew.
        command = [*launcher, sys.executable, "-c", "from benchmarks import resume; resume.main()"]
        done = subprocess.run(
            [*command, "--worker", str(root), "--output", str(output), "--settings", json.dumps(chosen)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"The drill with {ranks} ranks failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        rows += json.loads(output.read_text())
    return rows


def _worker(root: Path, settings: list[Setting], output: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    rows = [drill(setting, root / "runs", root / "images") for setting in settings]
    Path(f"{output}.{rank}").write_text(json.dumps(rows))
    if rank == "0":
        deadline = time.monotonic() + 60
        others = [Path(f"{output}.{r}") for r in range(1, int(os.environ.get("WORLD_SIZE", "1")))]
        while not all(path.exists() for path in others) and time.monotonic() < deadline:
            time.sleep(0.1)
        for path in others:
            for row, other in zip(rows, json.loads(path.read_text()), strict=True):
                row["faults"] += [f"rank {path.suffix[1:]}: {fault}" for fault in other["faults"]]
        output.write_text(json.dumps(rows))


def run(method: str | None = None) -> harness.Result:
    """The full product of the factors, or that of one method."""
    settings = [setting for setting in product() if method in (None, setting.method)]
    with tempfile.TemporaryDirectory() as directory:
        rows = drill_all(settings, Path(directory))
    bad = [row for row in rows if row["faults"]]
    table = [
        {**{name: row[name] for name in FACTORS}, "stops": row["stops"], "faults": "; ".join(row["faults"]) or "none"}
        for row in rows
    ]
    notes = [
        f"{len(rows)} settings, {sum(row['stops'] for row in rows)} stops (each after an optimiser step of {EPOCHS} "
        f"epochs, and one run per setting stopped twice within an epoch): {len(bad)} settings with a fault.",
        "Compared bit by bit: samples and view pixels from the stop on; weights, queue, optimiser, schedule, position.",
    ]
    title = "Resume: stopped after any step, ended as if never stopped"
    if method is None:
        return harness.Result("resume", title, table, notes)
    command = f"python -m benchmarks.resume --method {method} --write"
    return harness.Result(f"resume_{method}", f"{title}: {method}", table, notes, command=command)


def main() -> None:
    """One method's drill; also the entry point of the worker processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=FACTORS["method"])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None:
        result = run(options.method)
        result.show(options.write)
        return
    _worker(options.worker, [Setting(*values) for values in json.loads(options.settings)], options.output)


if __name__ == "__main__":
    main()
