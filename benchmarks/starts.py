"""Starts of `csrtrain` for the drills: one process has imported everything and forks each rank of each start.

A start by the command line spends most of its time on imports. A forked one runs the same `csrtrain.cli.main` with the
same arguments, its ranks find each other as under torchrun, and it ends as a process does: exit hooks and exit code.
"""

import atexit
import contextlib
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Start(NamedTuple):
    """Processes of one start, in rank order."""

    pids: list[int]
    codes: dict[int, int]  # of those that have ended, negative for a signal


class Starter:
    """Use as a context; without it nothing is left running."""

    def __enter__(self) -> "Starter":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.starts"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._starts: list[Start] = []
        return self

    def __exit__(self, *error: Any) -> None:
        self.end()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: list[str],
        log: Path,
        ranks: int = 1,
        environment: dict[str, str] | None = None,
        patch: str | None = None,
    ) -> Start:
        """Start `csrtrain ARGUMENTS` on so many ranks.

        Args:
            arguments: of the command.
            log: what it prints is appended.
            ranks: processes; `--trainer.devices` is to say the same.
            environment: variables beside the inherited ones.
            patch: `module:function:argument`; the function is called with the argument in each rank before it begins.
        """
        request = {"arguments": arguments, "log": str(log), "ranks": ranks, "patch": patch}
        start = Start(self._ask({**request, "environment": environment or {}}), {})
        self._starts.append(start)
        return start

    def alive(self, start: Start) -> list[int]:
        """Those of its processes that have not ended."""
        ended = self._ask({})
        for one in self._starts:
            one.codes.update({pid: ended[str(pid)] for pid in one.pids if str(pid) in ended})
        return [pid for pid in start.pids if pid not in start.codes]

    def wait(self, start: Start, seconds: float) -> list[int] | None:
        """Exit codes in rank order, None when it has not ended in time; a signal's number is negative."""
        deadline = time.monotonic() + seconds
        while self.alive(start):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return [start.codes[pid] for pid in start.pids]

    def end(self) -> None:
        """Kill what still runs."""
        for start in self._starts:
            for pid in self.alive(start):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._starts = []


def workers(pid: int) -> list[int]:
    """Loader workers of a process: its children, or a rank's server's."""
    found = children(pid)
    found += [grandchild for child in found for grandchild in children(child)]
    return [process for process in found if _name(process) == "pt_data_worker"]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _serve() -> list[str] | None:
    """Answer requests; in a forked process the arguments of its command come back."""
    ended: dict[int, int] = {}
    for request in _requests():
        if "arguments" not in request:
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    ended[found[0]] = os.waitstatus_to_exitcode(found[1])
            print(json.dumps(ended), flush=True)
            continue
        ranks, port, pids = request["ranks"], _free_port(), []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                _become(request, rank, port)
                return list(request["arguments"])
            pids.append(pid)
        print(json.dumps(pids), flush=True)
    return None


def _become(request: dict[str, Any], rank: int, port: int) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    if request["ranks"] > 1:
        ranks = str(request["ranks"])
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="drill", GROUP_RANK="0")
        from lightning.fabric.utilities import rank_zero
        from lightning.pytorch.utilities import rank_zero as rank_zero_pytorch

        rank_zero.rank_zero_only.rank = rank_zero_pytorch.rank_zero_only.rank = rank  # read when it was imported
    random.seed(rank)
    if request["patch"]:
        module, function, argument = request["patch"].split(":", 2)
        getattr(__import__(module, fromlist=[function]), function)(argument)


def main() -> None:
    """Import everything, and serve."""
    import csrtrain.training_cli  # noqa: F401
    from csrtrain.cli import main as csrtrain_main

    gc.collect()
    gc.freeze()  # the forked processes share these pages
    if (arguments := _serve()) is None:
        return
    try:
        code = csrtrain_main(arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    # As an interpreter ends, but for freeing all that was imported object by object, which takes seconds.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
