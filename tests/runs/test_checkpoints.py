import os
import subprocess
import sys
import tempfile

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


def test_while_a_checkpoint_is_replaced_both_are_whole(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    old = path.read_bytes()
    save(tmp_path, 1, 5.0)
    assert checkpoints.newest(tmp_path) == path and path.read_bytes() != old
    path.write_bytes(old)  # as after a kill between the digest and the checkpoint
    assert checkpoints.newest(tmp_path) == path
    save(tmp_path, 1, 6.0)
    path.write_bytes(old[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.newest(tmp_path) is None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def big(directory, step, size):
    path = directory / "checkpoints" / f"step-{step:09d}.ckpt"
    checkpoints.AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(size // 4)}, path)
    return path


@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_temporary_file(small_disk, step):
    """Step 1 is replaced, step 2 is new."""
    good = big(small_disk, 1, 80_000)
    with pytest.raises(checkpoints.CheckpointError, match="Expected to write .* got No space left on device. Earlier"):
        big(small_disk, step, 150_000)
    assert checkpoints.newest(small_disk) == good
    assert sorted(path.name for path in good.parent.iterdir()) == [good.name, good.with_suffix(".sha256").name]
    assert big(small_disk, 3, 80_000) == checkpoints.newest(small_disk)


def test_a_read_only_directory(small_disk):
    good = big(small_disk, 1, 80_000)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(checkpoints.CheckpointError, match="Expected to write .* got Read-only file system"):
        big(small_disk, 2, 8_000)
    assert checkpoints.newest(small_disk) == good


def test_without_the_right_to_mount_a_limit_on_the_size_of_files_does(tmp_path):
    code = (
        "import resource, sys, torch; from pathlib import Path; from csrtrain.runs import checkpoints\n"
        "io, path = checkpoints.AtomicCheckpointIO(), Path(sys.argv[1], 'checkpoints', 'step-000000001.ckpt')\n"
        "io.save_checkpoint({'w': torch.zeros(20_000)}, path)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    io.save_checkpoint({'w': torch.zeros(40_000)}, path.with_stem('step-000000002'))\n"
        "except checkpoints.CheckpointError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "got File too large. Earlier checkpoints are whole" in done.stdout, done.stderr
    assert checkpoints.newest(tmp_path).name == "step-000000001.ckpt"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_temporary_files_are_not_on_another_file_system(small_disk, tmp_path, monkeypatch):
    """A rename from TMPDIR would be a copy, which a kill can cut short."""
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert big(tmp_path, 1, 400_000) == checkpoints.newest(tmp_path)  # larger than what TMPDIR holds
