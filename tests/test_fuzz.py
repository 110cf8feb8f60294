"""A part of `python -m benchmarks fuzz`, of other cases; that it can find something is tested too."""

import time

import pytest

from benchmarks import fuzz


def test_hostile_files_are_read_soundly_or_refused_by_name():
    outcomes = fuzz.drill(300, seed=1, workers=1)
    assert [outcome.case for outcome in outcomes] == list(range(300))
    assert fuzz.faults(outcomes) == []
    results = {outcome.result for outcome in outcomes}
    assert results == {"read", "refused"}


@pytest.mark.parametrize(
    ("reader", "fault"),
    [
        (lambda path: {}["x"], "KeyError"),
        (lambda path: int("x"), "a foreign message"),
        (lambda path: (_ for _ in ()).throw(ValueError("Expected a file, got none. Go.")), "without the file's name"),
        (lambda path: time.sleep(600), "hang"),
        (lambda path: fuzz.os._exit(3), "crash: exit code 3"),
        (lambda path: bytearray(600 * 2**20), "memory"),
        (lambda path: open(f"{path}/../../beside", "w").close(), "forbidden: open"),
        (lambda path: fuzz.os.system("true"), "forbidden: os.system"),
    ],
)
def test_the_drill_finds_faults(reader, fault, monkeypatch):
    if fault == "hang":
        monkeypatch.setattr(fuzz, "_HANG", 2.0)
    monkeypatch.setattr(fuzz, "READERS", dict.fromkeys(fuzz.READERS, reader))
    monkeypatch.setattr(fuzz, "changed_bytes", lambda rng, content: (content, "none"))
    (outcome,) = fuzz.drill(1, seed=4, workers=1)
    assert fault in outcome.result and fuzz.faults([outcome]) == [outcome]
