"""Every shipped config runs one step; paper-scale ones with size, batch and devices made small."""

import csv
import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml

import csrtrain
from csrtrain.cli import config_path, main
from csrtrain.quality import ProxyData

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/*.yaml"))
PRETRAINING = [path for path in CONFIGS if "csrtrain.pretrain." in path.read_text()]
COMPARING = [path for path in CONFIGS if path.stem.startswith("fr_")]
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


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Embedded images, distorted and rated by MS-SSIM: a manifest with references, and triplets, both proxies."""
    folder = tmp_path_factory.mktemp("proxy")
    ProxyData(sources=10, types_per_source=3, side=176).write(folder / "rated")
    with (folder / "rated" / "ratings.csv").open() as file:
        rows = list(csv.DictReader(file))
    versions = [rows[k : k + 4] for k in range(0, len(rows), 4)]  # the pristine one first
    text = ["path,reference,proxy,split"]
    text += [f"{row['path']},{of[0]['path']},{row['proxy']},{row['split']}" for of in versions for row in of]
    (folder / "rated" / "pairs.csv").write_text("\n".join(text))
    text = ["reference,p0,p1,judge,split"]
    for pristine, *others in versions:
        for p0, p1 in itertools.permutations(others, 2):
            judge = int(float(p1["proxy"]) > float(p0["proxy"]))
            text.append(f"{pristine['path']},{p0['path']},{p1['path']},{judge},{pristine['split']}")
    (folder / "rated" / "triplets.csv").write_text("\n".join(text))
    return folder / "rated"


@pytest.mark.parametrize("path", COMPARING, ids=lambda path: path.stem)
def test_a_distance_is_fitted_to_proxies(path, compared, tmp_path, capsys):
    triplets = "triplets" in yaml.safe_load(path.read_text())["data"]["init_args"]
    rows = f"--data.triplets={compared / 'triplets.csv'}" if triplets else f"--data.manifest={compared / 'pairs.csv'}"
    run_dir = tmp_path / "run"
    options = ["--model.backbone=test_resnet", "--data.workers=0", "--trainer.accelerator=cpu", rows]
    assert main(["fit", "-c", str(path), *options, f"--trainer.default_root_dir={run_dir}"]) == 0
    said = capsys.readouterr().out
    assert "mos" not in said and ("(proxy, best 1)" in said or triplets)
    assert main(["export", str(run_dir), "-o", str(tmp_path / "d.safetensors")]) == 0
    distance = csrtrain.load(tmp_path / "d.safetensors")
    assert distance.header.distance["fitted_to"] == ("2afc" if triplets else "proxy")
    images = torch.rand(2, 3, 64, 64)
    assert distance.distance(images, images).tolist() == [0, 0]
    name = "test/two_afc" if triplets else "test/srcc"
    assert 0.5 < distance.header.results[name] <= 1  # of MS-SSIM, which an untrained network follows a little


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
