"""Fault drill: a small run meets a fault, is started again by the same command, and must end as if nothing had been.

    python -m benchmarks faults --write
    python -m benchmarks.faults --part 1/3 --output 1.json      and 2/3, 3/3
    python -m benchmarks.faults --merge 1.json 2.json 3.json --write

Runs of one and of two ranks, forked from a process that has the imports (`benchmarks.starts`), and a few by the command
line, whose second rank Lightning starts. What is injected comes from outside the program, but for the NaN. Moments are
random: anywhere in a start, in training, or in a save. After the fault all ranks have to end by themselves within 60
seconds, no epoch that was finished may be missing, and in the end weights, queue, optimiser, schedule and position are
compared bit by bit with a run that met none.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks import harness
from benchmarks.resume import faults as differences
from benchmarks.resume import make_images
from benchmarks.starts import Start, Starter, children, workers
from csrtrain.runs.checkpoints import newest

CONFIG: dict[str, Any] = {
    "seed_everything": 5,
    "model": {
        "class_path": "csrtrain.pretrain.MoCo",
        "init_args": {
            "backbone": "test_resnet",
            "size": 32,
            "projection_dim": 16,
            "queue_size": 20000,  # makes the checkpoint larger and its save longer
            "batch_norm_groups": 2,
            "learning_rate": 0.05,
        },
    },
    "data": {
        "class_path": "csrtrain.data.unlabeled.UnlabeledData",
        "init_args": {
            "channels": 1,
            "modality": "mri",
            "load_size": 40,
            "batch_size": 8,
            "workers": 1,
        },
    },
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "strategy": {
            "class_path": "lightning.pytorch.strategies.DDPStrategy",
            "init_args": {"timeout": "0:00:15"},
        },
        "callbacks": [
            {"class_path": "csrtrain.runs.checkpoints.RunCheckpoint", "init_args": {"every_n_steps": 1, "keep": 3}}
        ],
    },
}
BATCHES = 4  # per epoch: 35 images in batches of 8
LONGEST = 60.0  # seconds from the fault to the end of all ranks
PATIENCE = 240.0  # seconds for a start that meets no fault, on a machine that others use too
MOMENTS = ("any", "training", "save")
REPEATS = 15


class Case(NamedTuple):
    """One run of the drill."""

    kind: str
    ranks: int
    number: int


class Met(NamedTuple):
    """What came of a fault: exit codes in rank order, what was printed, and what is wrong."""

    codes: list[int]
    said: str
    wrong: list[str]


def cases() -> list[Case]:
    """All runs, kinds and ranks in turn, so that each part has some of each."""
    in_turn = [Case(kind, ranks, number) for number in range(REPEATS) for kind in KINDS for ranks in (1, 2)]
    more = [Case(IN_A_ROW, ranks, number) for number in range(3) for ranks in (1, 2)]
    return in_turn + more + [Case(COMMAND_LINE, 2, number) for number in range(6)]


def poison(at: str) -> None:
    """In a rank: one pixel of the views of `RANK,EPOCH,BATCH` is not a number."""
    from csrtrain.pretrain import MoCo

    rank, epoch, number = map(int, at.split(","))
    views = MoCo.on_after_batch_transfer

    def poisoned(self: MoCo, batch: Any, dataloader_idx: int) -> Any:
        made = views(self, batch, dataloader_idx)
        if (int(os.environ.get("RANK", "0")), batch.epoch, batch.number) == (rank, epoch, number):
            made.view0[0, 0, 0, 0] = float("nan")
        return made

    MoCo.on_after_batch_transfer = poisoned  # type: ignore[method-assign]


class Drill:
    """A folder with images, uninterrupted runs to compare with, and one run per case."""

    def __init__(self, root: Path, starter: Starter) -> None:
        self.root = root
        self.starter = starter
        make_images(root / "images")
        (root / "faults.yaml").write_text(yaml.safe_dump(CONFIG))
        self._whole: set[int] = set()

    def arguments(self, run_dir: Path, ranks: int) -> list[str]:
        """The command that a user types, and types again."""
        named = ["--data.root", self.root / "images", "--data.cache_dir", self.root / ".cache"]
        named += ["--trainer.default_root_dir", run_dir, "--trainer.devices", ranks]
        named += ["--trainer.strategy=auto"] if ranks == 1 else []
        return ["fit", "-c", str(self.root / "faults.yaml"), *map(str, named)]

    def whole(self, ranks: int) -> Path:
        """The uninterrupted run."""
        run_dir = self.root / f"whole-{ranks}"
        if ranks not in self._whole:
            log = self.root / f"whole-{ranks}.log"
            codes = self.starter.wait(self.starter.start(self.arguments(run_dir, ranks), log, ranks), PATIENCE)
            if codes != [0] * ranks:
                raise RuntimeError(f"The uninterrupted run ended with {codes}:\n{log.read_text()[-3000:]}")
            self._whole.add(ranks)
        return run_dir

    def run(self, case: Case) -> dict[str, Any]:
        """One run: fault, end, start again, compare."""
        whole = self.whole(case.ranks)
        name = f"{case.kind}-{case.ranks}-{case.number}".replace(" ", "_").replace(",", "")
        here = Here(self, self.root / name, case, random.Random(name))
        here.run_dir.parent.mkdir()
        started = time.monotonic()
        met = (KINDS | OTHERS)[case.kind](here)
        wrong = list(met.wrong)
        finished = [int(step) for step in re.findall(r"^step (\d+):", met.said, re.MULTILINE)]
        found = newest(here.run_dir)
        step = int(found.stem.removeprefix("step-")) if found else 0
        if case.kind != "newest checkpoint damaged" and finished and step < max(finished):
            wrong.append(f"epoch lost: step {max(finished)} was finished, the newest checkpoint is of step {step}")
        if left := list(here.run_dir.glob("**/.*.tmp")):
            if case.kind not in KILLS:
                wrong.append(f"temporary files left: {', '.join(path.name for path in left)}")
        code = here.again()
        if any(code):
            wrong.append(f"started again, it ended with {code}: {here.log.read_text()[-1500:]}")
        else:
            wrong += [f"{key} differs" for key in differences(whole, here.run_dir)]
        here.clean()
        return {
            **case._asdict(),
            "moment": here.moment,
            "step": step,
            "codes": met.codes,
            "end": here.seconds,
            "seconds": time.monotonic() - started,
            "wrong": wrong,
        }


class Here:
    """One case while it runs.

    seconds: from the fault to the end of all ranks.
    """

    def __init__(self, drill: Drill, folder: Path, case: Case, rng: random.Random) -> None:
        self.starter = drill.starter
        self.run_dir = folder / "run"
        self.log = folder / "log"
        self.arguments = drill.arguments(self.run_dir, case.ranks)
        self.ranks = case.ranks
        self.rng = rng
        self.moment = MOMENTS[case.number % len(MOMENTS)]
        self.seconds = 0.0
        self._mounted = False

    def start(self, patch: str | None = None) -> Start:
        return self.starter.start(self.arguments, self.log, self.ranks, patch=patch)

    def saves(self) -> list[Path]:
        return list((self.run_dir / "checkpoints").glob(".*.tmp"))

    def wait_for_moment(self, alive: Callable[[], Any], moment: str) -> None:
        """A random moment of this start, or its end if that comes first."""
        deadline = time.monotonic() + PATIENCE
        if moment == "any":
            time.sleep(self.rng.uniform(0, 6))
            return
        count = self.rng.randint(1, 2 * BATCHES)  # of 3 * BATCHES steps
        while alive() and len(list((self.run_dir / "checkpoints").glob("*.ckpt"))) == 0:
            time.sleep(0.01)
        first = time.monotonic()
        while alive() and self._step() < count and time.monotonic() < min(deadline, first + 60):
            time.sleep(0.01)
        if moment == "training":
            time.sleep(self.rng.uniform(0, 0.2))
            return
        self.wait_for_save()

    def wait_for_save(self) -> None:
        """Until a temporary file is there; a save takes milliseconds."""
        for _ in range(20000):
            if self.saves():
                return
            time.sleep(0.0002)

    def _step(self) -> int:
        steps = [int(path.stem[5:]) for path in (self.run_dir / "checkpoints").glob("step-*.ckpt")]
        return max(steps, default=0)

    def ended(self, start: Start, wrong: list[str]) -> Met:
        """Wait for the end of all ranks after a fault."""
        begun = time.monotonic()
        codes = self.starter.wait(start, LONGEST)
        self.seconds = time.monotonic() - begun
        if codes is None:
            wrong.append(f"still running {LONGEST:.0f} s after the fault")
            for pid in self.starter.alive(start):
                os.kill(pid, signal.SIGKILL)
            codes = self.starter.wait(start, LONGEST) or []
        return Met(codes, self.log.read_text(), wrong)

    def again(self) -> list[int]:
        """Start the same command until the end."""
        codes = self.starter.wait(self.start(), PATIENCE)
        return [-1] if codes is None else codes

    def clean(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.run_dir)], check=True)

    def alive(self, start: Start) -> Callable[[], Any]:
        return lambda: self.starter.alive(start)

    def begun(self) -> bool:
        """Whether training had begun, so that a signal is answered by a save."""
        return " steps done." in self.log.read_text()

    # The faults.

    def kill_all(self) -> Met:
        start = self.start()
        self.wait_for_moment(self.alive(start), self.moment)
        for pid in self.starter.alive(start):
            os.kill(pid, signal.SIGKILL)
        return self.ended(start, [])

    def kill_all_again(self) -> Met:
        """Each start makes some progress, so that it ends."""
        for _ in range(5):
            start, before = self.start(), self._step()
            while self.starter.alive(start) and self._step() == before:
                time.sleep(0.01)
            self.moment = self.rng.choice(MOMENTS[1:])
            if self.moment == "training":
                time.sleep(self.rng.uniform(0, 0.3))
            else:
                self.wait_for_save()
            for pid in self.starter.alive(start):
                os.kill(pid, signal.SIGKILL)
            self.starter.wait(start, LONGEST)
        return self.ended(start, [])

    def kill_one(self) -> Met:
        start = self.start()
        self.wait_for_moment(self.alive(start), self.moment)
        killed = self.rng.randrange(len(start.pids))
        self._kill(start.pids[killed])
        met = self.ended(start, [])
        if met.codes[killed] == -signal.SIGKILL and not all(met.codes):  # otherwise it had ended before
            met.wrong.append(f"exit codes {met.codes}, though a rank was killed")
        return met

    @staticmethod
    def _kill(pid: int, number: int = signal.SIGKILL) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def terminate_one(self) -> Met:
        start = self.start()
        self.wait_for_moment(self.alive(start), self.moment)
        begun = self.begun()
        self._kill(self.rng.choice(start.pids), signal.SIGTERM)
        if self.rng.random() < 0.5:  # one signal is seldom all
            time.sleep(self.rng.uniform(0, 0.1))
            self._kill(self.rng.choice(start.pids), signal.SIGTERM)
        met = self.ended(start, [])
        over = "Keep the backbone: " in met.said  # the last that a run says; only the process was left to end
        if begun and not over and met.codes not in ([143] * self.ranks, [0] * self.ranks):
            met.wrong.append(f"exit codes {met.codes}, not 143 on all ranks")
        return met

    def disk_full(self) -> Met:
        self.run_dir.mkdir()
        size = "size=40m"
        self._mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.run_dir]).returncode
        start = self.start()
        self.wait_for_moment(self.alive(start), "training")
        alive = self.starter.alive(start)
        ballast = self.run_dir / "ballast"
        if self._mounted:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(100_000))
        else:  # without the right to mount: no file of the first rank may grow
            import resource

            resource.prlimit(start.pids[0], resource.RLIMIT_FSIZE, (10_000, 10_000))
        met = self.ended(start, [])
        if alive and met.codes not in ([2] * self.ranks, [0] * self.ranks):
            met.wrong.append(f"exit codes {met.codes}, not 2 on all ranks: {met.said[-1500:]}")
        if any(met.codes) and not re.search(r"error: Expected (to write|room)", met.said):
            met.wrong.append(f"no message about the full disk: {met.said[-1500:]}")
        if "Traceback" in met.said:
            met.wrong.append(f"a traceback: {met.said[-1500:]}")
        ballast.unlink(missing_ok=True)
        return met

    def not_a_number(self) -> Met:
        at = (self.rng.randrange(self.ranks), self.rng.randrange(2), self.rng.randrange(BATCHES))
        start = self.start(f"benchmarks.faults:poison:{','.join(map(str, at))}")
        step = at[1] * BATCHES + at[2] + 1
        deadline = time.monotonic() + PATIENCE
        while self.starter.alive(start) and self._step() < step - 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        met = self.ended(start, [])
        if met.codes != [2] * self.ranks:
            met.wrong.append(f"exit codes {met.codes}, not 2 on all ranks: {met.said[-1500:]}")
        named = re.findall(r"error: Expected a finite loss and finite gradients, got others in step (\d+).*", met.said)
        if named != [str(step)] or not re.search(r"^\S+\.png$", met.said, re.MULTILINE):
            met.wrong.append(f"named step {named}, not {step}, or no files: {met.said[-1500:]}")
        if self._step() >= step:
            met.wrong.append(f"saved step {self._step()}, after the NaN of step {step}")
        return met

    def damage_newest(self) -> Met:
        met = self.kill_all()
        path = newest(self.run_dir)
        if path is not None:
            content = bytearray(path.read_bytes())
            how = self.rng.choice(("cut", "flipped", "emptied", "no digest"))
            if how == "flipped":
                content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            cut = {"cut": self.rng.randrange(len(content)), "emptied": 0}.get(how, len(content))
            path.write_bytes(content[:cut])
            if how == "no digest":
                path.with_suffix(".sha256").unlink()
        return met

    def kill_worker(self) -> Met:
        start = self.start()
        self.wait_for_moment(self.alive(start), "training")
        killed = [pid for rank in start.pids for pid in workers(rank)]
        too_late = not killed or not self._kill(self.rng.choice(killed))
        met = self.ended(start, [])
        if not too_late and any(met.codes) and "loader process" not in met.said:
            met.wrong.append(f"no message about the lost loader process: {met.said[-1500:]}")
        return met

    def by_command_line(self) -> Met:
        """Kill one rank where Lightning has started the second one."""
        command = [sys.executable, "-m", "csrtrain", *self.arguments]
        command += ["--trainer.strategy.init_args.timeout=0:02:00"]  # the second rank still has to import everything

        def begin() -> subprocess.Popen[bytes]:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with self.log.open("ab") as log:
                return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

        def command_line(pid: int) -> bytes:
            try:
                return Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                return b""

        first = begin()
        self.wait_for_moment(lambda: first.poll() is None, "training")
        second = next((pid for pid in children(first.pid) if "LOCAL_RANK=1" in _environment(pid)), 0)
        if not second:
            return Met([first.wait()], self.log.read_text(), ["the run had ended before the fault"])
        killed = self.rng.choice((first.pid, second))
        self._kill(killed)
        begun = time.monotonic()
        wrong: list[str] = []
        while (first.poll() is None or b"csrtrain" in command_line(second)) and time.monotonic() < begun + LONGEST:
            time.sleep(0.05)
        self.seconds = time.monotonic() - begun
        if first.poll() is None or b"csrtrain" in command_line(second):
            wrong.append(f"rank {0 if first.poll() is None else 1} still runs {LONGEST:.0f} s after the other's end")
            first.kill()
            self._kill(second)
        code = first.wait()
        if code == 0:
            wrong.append("exit code 0, though a rank was killed")
        said = self.log.read_text()
        self.again = lambda: [begin().wait(PATIENCE)]  # type: ignore[method-assign]
        return Met([code], said, wrong)


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


COMMAND_LINE = "SIGKILL of a rank, second rank started by Lightning"
IN_A_ROW = "SIGKILL of all ranks, five times"
KINDS: dict[str, Callable[[Here], Met]] = {
    "SIGKILL of all ranks": Here.kill_all,
    "SIGKILL of one rank": Here.kill_one,
    "SIGTERM to one rank": Here.terminate_one,
    "disk full": Here.disk_full,
    "NaN in one rank": Here.not_a_number,
    "newest checkpoint damaged": Here.damage_newest,
    "loader process killed": Here.kill_worker,
}
OTHERS: dict[str, Callable[[Here], Met]] = {IN_A_ROW: Here.kill_all_again, COMMAND_LINE: Here.by_command_line}
KILLS = ("SIGKILL of all ranks", IN_A_ROW, "SIGKILL of one rank", "newest checkpoint damaged", COMMAND_LINE)


def drill(chosen: Sequence[Case], root: Path, output: Path | None = None) -> list[dict[str, Any]]:
    """A row for each case; those that the output has already are not run again."""
    rows: list[dict[str, Any]] = json.loads(output.read_text()) if output is not None and output.exists() else []
    done = {(row["kind"], row["ranks"], row["number"]) for row in rows}
    with Starter() as starter:
        one = Drill(root, starter)
        for case in chosen:
            if case in done:
                continue
            rows.append(one.run(case))
            print(json.dumps(rows[-1])[:600], file=sys.stderr, flush=True)
            if output is not None:
                output.write_text(json.dumps(rows))
    return rows


def table(rows: list[dict[str, Any]]) -> harness.Result:
    """A line per kind of fault and number of ranks."""
    lines = []
    for kind, ranks in dict.fromkeys((row["kind"], row["ranks"]) for row in rows):
        of = [row for row in rows if (row["kind"], row["ranks"]) == (kind, ranks)]
        codes = sorted({" ".join(map(str, row["codes"])) for row in of})
        lines.append(
            {
                "fault": kind,
                "ranks": ranks,
                "runs": len(of),
                "ended as the uninterrupted run": sum(not row["wrong"] for row in of),
                "exit codes after the fault": ", ".join(codes),
                "longest end after it, s": max(row["end"] for row in of),
                "wrong": "; ".join(dict.fromkeys(wrong[:200] for row in of for wrong in row["wrong"])) or "none",
            }
        )
    bad = sum(bool(row["wrong"]) for row in rows)
    notes = [
        f"{len(rows)} runs, {bad} with something wrong. Compared bit by bit: weights, queue, optimiser, schedule, "
        "position. Moments: anywhere in a start, in training, in a save.",
        "Negative exit codes are signals. Code 0 after a fault: the run had ended, or did so in spite of it.",
    ]
    return harness.Result("faults", "Faults at random moments", lines, notes)


def run() -> harness.Result:
    """All of it, in one piece."""
    with tempfile.TemporaryDirectory() as folder:
        return table(drill(cases(), Path(folder)))


def main() -> None:
    """A part, or the table of all parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", metavar="I/N", default="1/1", help="every N-th run, from the I-th on")
    parser.add_argument("--kind", help="only these faults")
    parser.add_argument("--output", type=Path, help="rows, as JSON; a drill that was stopped goes on with it")
    parser.add_argument("--merge", type=Path, nargs="+", help="make the table of these")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.merge:
        rows = [row for path in options.merge for row in json.loads(path.read_text())]
    else:
        part, parts = map(int, options.part.split("/"))
        chosen = [case for case in cases() if options.kind in (None, case.kind)][part - 1 :: parts]
        with tempfile.TemporaryDirectory() as folder:
            rows = drill(chosen, Path(folder), options.output)
    table(rows).show(options.write)


if __name__ == "__main__":
    main()
