import os

import pytest
import torch

from csrtrain.runs import checkpoints


def save(directory, step, value=1.0):
    path = directory / "checkpoints" / f"step-{step:09d}.ckpt"
    checkpoints.AtomicCheckpointIO().save_checkpoint({"global_step": step, "w": torch.full((1000,), value)}, path)
    return path


def test_round_trip_and_newest(tmp_path):
    assert checkpoints.newest(tmp_path) is None
    save(tmp_path, 1)
    path = save(tmp_path, 20, 2.0)
    assert checkpoints.newest(tmp_path) == path
    loaded = checkpoints.AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["global_step"] == 20 and torch.equal(loaded["w"], torch.full((1000,), 2.0))
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".ckpt", ".ckpt", ".sha256", ".sha256"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "no digest"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, damage):
    good = save(tmp_path, 1)
    bad = save(tmp_path, 2)
    content = bytearray(bad.read_bytes())
    if damage == "truncated":
        bad.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    elif damage == "empty":
        bad.write_bytes(b"")
    else:
        bad.with_suffix(".sha256").unlink()
    with pytest.warns(UserWarning, match="damaged checkpoint .*step-000000002"):
        assert checkpoints.newest(tmp_path) == good


def test_a_failing_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 1, 5.0)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/csrtrain-owned",))


def test_a_pickle_posing_as_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "step-000000001.ckpt"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(ValueError, match=r"step-000000001.ckpt, got a pickle that asks for (posix|os|nt)\.system"):
        checkpoints.AtomicCheckpointIO().load_checkpoint(path)
    assert not os.path.exists("/tmp/csrtrain-owned")


@pytest.mark.parametrize("arguments, match", [({"every_n_steps": 0}, "every_n_steps"), ({"keep": 1}, "keep")])
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        checkpoints.RunCheckpoint(**arguments)
