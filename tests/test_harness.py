"""The measurements that benchmarks rely on."""

import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import harness

MIB = 2**20


_MEASURED = """
import sys, torch
from benchmarks import harness
n = int(sys.argv[1]) * 2**20 // 4

def two_in_turn():
    for _ in range(2):  # the second finds the first one's memory free
        torch.ones(n).sum()

def two_at_once():
    first = torch.ones(n)
    return first + torch.ones(n)

print(harness.peak_memory(two_in_turn), harness.peak_memory(two_at_once))
"""


@pytest.mark.parametrize("mib", [24, 200])  # below and above what the allocator keeps for itself
def test_peak_memory_is_that_of_one_call(mib):
    """In a process of its own: what the allocator keeps depends on all that it has seen."""
    root = Path(harness.__file__).parents[1]
    command = [sys.executable, "-c", _MEASURED, str(mib)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    in_turn, at_once = (int(text) / MIB for text in done.stdout.split())
    assert in_turn == pytest.approx(mib, rel=0.1)
    assert at_once == pytest.approx(3 * mib, rel=0.1)


def test_peak_memory_does_not_count_what_was_there_before():
    kept = torch.ones(100 * MIB // 4)
    assert harness.peak_memory(lambda: kept.add_(1)) < 3 * MIB


def test_interleave_rotates_the_variants_and_takes_medians():
    order = []

    def variant(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    times = harness.interleave({"a": variant("a", 0.02), "b": variant("b", 0.06)}, rounds=3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]  # warm-up, then three rounds
    assert times["a"] >= 0.02 and times["b"] >= 0.06


def test_result_page_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    rows = [harness.compared("time", 2.0, 7.0, 3.0, "limit"), harness.compared("memory", 2.0, 5.0, 3.0)]
    result = harness.Result("name", "Title", rows, ["A note."])
    result.write()
    page = (tmp_path / "results" / "name.md").read_text()
    assert "| time | 2 | 7 | 3.5 | >= 3 | limit | met |" in page
    assert "| memory | 2 | 5 | 2.5 | >= 3 |  | missed |" in page
    assert "A note." in page and "python -m benchmarks name --write" in page
    assert f"torch {importlib.metadata.version('torch')}" in page
    assert (tmp_path / "results" / "name.json").exists()
