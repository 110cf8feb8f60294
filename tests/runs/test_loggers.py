import csv
import subprocess
from types import SimpleNamespace

import pytest

from csrtrain.runs import wandb_contents
from csrtrain.runs.loggers import CsvLogger, Wandb
from csrtrain.runs.monitors import RepresentationMonitor


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_rows_and_late_columns(tmp_path):
    logger = CsvLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.5}, step=0)
    logger.log_metrics({"loss": 1.25, "knn": 0.5}, step=1)
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "0", "loss": "1.5", "knn": ""},
        {"step": "1", "loss": "1.25", "knn": "0.5"},
    ]


def test_csv_goes_on_after_a_resume_and_drops_what_is_written_again(tmp_path):
    first = CsvLogger(str(tmp_path))
    for step in range(6):
        first.log_metrics({"loss": float(step)}, step=step)
    second = CsvLogger(str(tmp_path))
    second.resume_from(4)  # after 4 steps, rows 0 to 3; the next is row 4
    second.log_metrics({"loss": 40.0, "new": 1.0}, step=4)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "3.0"),
        ("4", "40.0"),
    ]


def test_wandb_keeps_its_run_and_is_offline_without_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    ids = []
    for _ in range(2):
        logger = Wandb(run_dir=str(tmp_path / "run"))
        logger.log_metrics({"loss": 1.0}, step=1)
        ids.append(logger.experiment.id)
        logger.experiment.finish()
        del logger
    assert ids[0] == ids[1] == (tmp_path / "run" / "wandb_id").read_text()
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{ids[0]}"))


@pytest.mark.parametrize("left", [b"\0\0\0", b"\xff\xfe\n", b"1\xc3,2"])
def test_what_a_node_that_failed_left_behind_is_dropped(tmp_path, left):
    metrics, spectrum = tmp_path / "metrics.csv", tmp_path / "spectrum.csv"
    for file in (metrics, spectrum):
        file.write_bytes(b"step,share_1\n0,0.5\n" + left)
    assert wandb_contents.spectra(tmp_path)[0] == [0.5]
    RepresentationMonitor(str(tmp_path)).on_train_start(SimpleNamespace(global_step=9), None)
    assert spectrum.read_text() == "step,share_1\n0,0.5\n"
    logger = CsvLogger(str(tmp_path))
    logger.resume_from(9)
    assert rows(metrics) == [{"step": "0", "share_1": "0.5"}]
    metrics.write_bytes(left)
    logger.resume_from(9)
    logger.log_metrics({"loss": 1.0}, step=9)
    assert rows(metrics) == [{"step": "9", "loss": "1.0"}]


@pytest.mark.parametrize("step", [0, 7])
def test_resuming_without_a_file_is_nothing(tmp_path, step):
    CsvLogger(str(tmp_path)).resume_from(step)
    assert not (tmp_path / "metrics.csv").exists()


def test_a_full_disk_leaves_whole_rows(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        logger = CsvLogger(str(folder))
        logger.log_metrics({"loss": 0.0}, step=0)
        with pytest.raises(OSError, match="Expected to write a row to .*metrics.csv, got No space left on device"):
            for step in range(1, 10_000):
                logger.log_metrics({"loss": 0.1234567890123 * step}, step=step)
        written = rows(folder / "metrics.csv")
        assert len(written) == step and all(float(row["loss"]) == 0.1234567890123 * int(row["step"]) for row in written)
        with pytest.raises(OSError, match="Expected to write a row"):
            logger.log_metrics({"loss": 1.0, "knn": 0.5}, step=step)
        assert rows(folder / "metrics.csv") == written and [p.name for p in folder.iterdir()] == ["metrics.csv"]
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
