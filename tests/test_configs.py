"""Every shipped config runs one step; paper-scale ones with size, batch and devices made small."""

import re
from pathlib import Path

import pytest
import yaml

from csrtrain.cli import config_path, main

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/*.yaml"))
PRETRAINING = [path for path in CONFIGS if "csrtrain.pretrain." in path.read_text()]
SMALL = [
    "--model.backbone=test_resnet",
    "--model.size=32",
    "--data.load_size=64",
    "--data.batch_size=8",
    "--data.workers=0",
    "--data.min_epoch_length=1",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.max_epochs=-1",
    "--trainer.max_steps=1",
    "--trainer.sync_batchnorm=false",
    "--trainer.logger=false",
]


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_one_step(path, tmp_path, capsys):
    config = yaml.safe_load(path.read_text())
    modality = config["data"]["init_args"]["modality"]
    root = "samples:natural" if modality == "natural" else "samples:medical"
    run_dir = tmp_path / "run"
    arguments = ["fit", "-c", str(path), *SMALL, f"--data.root={root}", f"--trainer.default_root_dir={run_dir}"]
    if config["model"]["class_path"].endswith("MoCo"):
        arguments.append("--model.batch_norm_groups=4")
    if config["data"]["init_args"].get("authentic"):
        arguments.append(f"--data.authentic={root}")
    assert main([*arguments, f"--data.cache_dir={tmp_path}"]) == 0
    assert (run_dir / "checkpoints" / "step-000000001.ckpt").exists()
    assert (run_dir / "metrics.csv").exists()
    assert "trained test_resnet" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_says_what_a_user_needs(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for word in ("Command:", "Hardware:", "Result:", "Source:"):
        assert word in text
    assert re.search(rf"csrtrain fit -c configs/{path.name}", text)


def test_configs_resolve_by_path_and_by_name():
    assert CONFIGS
    for path in CONFIGS:
        assert config_path(str(path)) == path
        assert config_path(path.stem).read_text() == path.read_text()
        assert config_path(f"configs/{path.name}").read_text() == path.read_text()
