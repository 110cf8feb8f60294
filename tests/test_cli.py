import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from csrtrain import bundle
from csrtrain.cli import config_path, main
from csrtrain.models.backbone import Backbone
from csrtrain.pretrain import MoCo

SMALL = [
    "--model.backbone=test_resnet",
    "--model.size=32",
    "--data.load_size=40",
    "--data.batch_size=8",
    "--data.workers=0",
    "--data.min_epoch_length=16",
    "--data.modality=mri",
    "--trainer.max_epochs=2",
]


@pytest.fixture
def fit(images, tmp_path):
    def run(*arguments, config="medical_simclr"):
        return main(
            [
                *("fit", "-c", config, *SMALL, f"--data.root={images}", f"--data.cache_dir={tmp_path / 'cache'}"),
                *(f"--trainer.default_root_dir={tmp_path / 'run'}", *arguments),
            ]
        )

    return run


def test_a_full_disk_is_said_in_a_sentence(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("step,train/loss\n0,1.5\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert main(["report", str(run), "-o", str(tmp_path / "r.html")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (
        f"error: Expected room on the disk for {tmp_path / 'r.html'}, got File too large. Make"
        in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_fit_says_what_came_out_and_the_same_command_goes_on(fit, images, tmp_path, capsys):
    labels = [f"--data.labels={images / 'labels.csv'}"]
    assert fit(*labels) == 0
    out = capsys.readouterr().out
    assert "16 images" in out and "SimCLR trained test_resnet on 16 images: 4 steps" in out
    assert "effective rank" in out and "val/knn_accuracy" in out and "untrained" in out
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "val/knn_accuracy" in rows[0] and rows[1].startswith("0,")  # the untrained backbone's value at step 0
    assert fit(*labels) == 0
    assert "This run is complete: 4 steps" in capsys.readouterr().out
    assert fit(*labels, "--trainer.max_epochs=3") == 0
    out = capsys.readouterr().out
    assert "resuming from step-000000004.ckpt" in out and "6 steps" in out


def test_a_changed_config_is_refused_and_fresh_begins_anew(fit, tmp_path, capsys):
    assert fit() == 0
    assert fit("--model.temperature=0.5") == 2
    assert "model.init_args.temperature: 0.1 -> 0.5" in capsys.readouterr().err
    assert fit("--model.temperature=0.5", "--fresh") == 0
    assert (tmp_path / "run.old-1" / "config.yaml").exists()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["temperature"] == 0.5


def test_validate_measures_and_leaves_the_run_alone(fit, images, tmp_path, capsys):
    labels = f"--data.labels={images / 'labels.csv'}"
    arguments = ["validate", "-c", "medical_simclr", *SMALL, f"--data.root={images}", f"--data.cache_dir={tmp_path}"]
    arguments.append(f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert main([*arguments, labels]) == 2
    assert "a run with a checkpoint" in capsys.readouterr().err
    assert fit(labels) == 0
    before = (tmp_path / "run" / "metrics.csv").read_text()
    assert main([*arguments, labels]) == 0
    assert "step-000000004.ckpt" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.csv").read_text() == before


def test_a_run_that_diverges_stops_and_saves_nothing(fit, tmp_path, capsys):
    assert fit("--model.optimizer=sgd", "--model.learning_rate=1e38", "--model.warmup_fraction=0") == 2
    said = capsys.readouterr().err
    assert "Expected a finite loss and finite gradients, got others in step 2" in said
    assert said.count(".png\n") == 8  # the files of the batch
    assert not list((tmp_path / "run").glob("checkpoints/*.ckpt"))


def test_a_distance_of_chosen_stages_and_scales(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    backbone = Backbone("test_resnet", 1)
    bundle.save("b.safetensors", backbone, bundle.header_for(backbone))
    command = ["export", "b.safetensors", "-o", "d.safetensors"]
    assert main([*command, "--distance", "1", "3", "--scales", "1", "0.5"]) == 0
    assert "distance of stages [1, 3] at scales [1.0, 0.5] of b.safetensors" in capsys.readouterr().out
    made = bundle.load_distance("d.safetensors")
    assert made.stages == (1, 3) and made.scales == (1, 0.5)
    assert main([*command, "--scales", "0.5"]) == 2
    assert "Expected --scales with --distance, got it without" in capsys.readouterr().err
    assert main([*command, "--distance", "--scales", "9"]) == 2
    assert "Expected scales from 1/16 to 4, each once, at most 16, got [9.0]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_epochs=0", "Expected trainer.max_epochs of 1 or more"),
        ("--trainer.max_steps=0", "Expected trainer.max_steps of 1 or more"),
        ("--model.temperature=0", "Expected temperature > 0, got 0"),
    ],
)
def test_what_cannot_train_is_refused_before_it_begins(fit, tmp_path, capsys, option, message):
    assert fit(option) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_trial_leaves_nothing_that_binds_the_run(fit, tmp_path, capsys):
    assert fit("--trainer.fast_dev_run=true") == 0
    out = capsys.readouterr().out
    assert "nothing was kept" in out and "csrtrain export" not in out
    assert not (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "run" / "checkpoints").exists()
    assert fit() == 0


@pytest.mark.slow
def test_a_live_run_is_neither_joined_nor_moved_aside(fit, tmp_path, capsys):
    assert fit() == 0
    code = (
        "import sys; from pathlib import Path; from csrtrain.runs import directory\n"
        "held = directory.lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for argument in ("--trainer.max_epochs=3", "--fresh"):
            assert fit(argument) == 2
            assert f"in use by process {holder.pid}" in capsys.readouterr().err
        holder.stdin.close()
    assert not (tmp_path / "run.old-1").exists()


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("medical_simclr", []),
        ("medical_moco", ["--model.queue_size=20"]),
        ("medical_contrique", ["--model.size=24", "--data.load_size=48"]),
    ],
)
def test_export_makes_a_bundle_that_loads(fit, tmp_path, capsys, config, more):
    assert fit(*more, config=config) == 0
    bundle = tmp_path / "backbone.safetensors"
    assert main(["export", str(tmp_path / "run"), "-o", str(bundle)]) == 0
    import csrtrain

    backbone = csrtrain.load(str(bundle))
    h = backbone.representation(torch.rand(2, 1, 40, 40))
    assert h.shape == (2, backbone.representation_dim)
    assert torch.isfinite(h).all()
    assert {"train/embedding_std", "train/effective_rank"} <= backbone.header.results.keys()
    assert main(["export", str(tmp_path / "nothing"), "-o", str(bundle)]) == 2
    assert "nothing" in capsys.readouterr().err


def test_preview_draws_a_picture(images, tmp_path):
    path = tmp_path / "views.png"
    arguments = ["preview", "-c", "medical_simclr", *SMALL, f"--data.root={images}", f"--data.cache_dir={tmp_path}"]
    assert main([*arguments, "-o", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.width > 500 and len(np.unique(np.array(picture.convert("L")))) > 50


def test_preview_shows_what_the_loader_distorts(images, tmp_path, monkeypatch):
    """JPEG2000 of ratio 16 to 400 on all images but a pristine one of six."""
    from csrtrain import preview

    drawn = []
    monkeypatch.setattr(preview, "_draw", lambda rows, *rest: drawn.append(rows))
    arguments = ["-c", str(config_path("contrique_small")), *SMALL, "--model.size=16", "--data.load_size=32"]
    arguments += ["--data.modality=natural", f"--data.root={images}", f"--data.cache_dir={tmp_path}"]
    arguments += ["-o", str(tmp_path / "views.png"), "--model.color_spaces=false"]
    for jpeg2000 in ("jpeg2000", "mean_shift"):
        preview.views([*arguments, f"--model.distortions=[{jpeg2000}]"])
    coded, plain = drawn
    for loaded in (0, 3):  # of both epochs
        assert sum(not torch.equal(one[loaded], other[loaded]) for one, other in zip(coded, plain, strict=True)) >= 3


def test_preview_refuses_what_a_training_refuses(images, tmp_path, capsys):
    arguments = ["preview", "-c", "contrique_small", *SMALL, f"--data.root={images}", f"--data.cache_dir={tmp_path}"]
    arguments += ["-o", str(tmp_path / "views.png")]
    assert main([*arguments, "--data.crop=resized", "--model.size=16"]) == 2
    assert "Expected data.crop native for CONTRIQUE, got resized" in capsys.readouterr().err
    assert main([*arguments, "--data.load_size=63"]) == 2
    assert "at least 64 px, twice model.size, got 63 x 63" in capsys.readouterr().err


def test_preview_draws_every_distortion_at_every_level(tmp_path):
    path = tmp_path / "distortions.png"
    image = tmp_path / "scan.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (230, 240), dtype=np.uint8)).save(image)
    assert main(["preview", "--distortions", str(image), "--bank", "mri", "-o", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.height > 12 * 200 and picture.width > 6 * 200  # types by pristine and five levels


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--distortions", "{}/none.png", "-o", "{}/p.png"], ["none.png"]),
        (["--distortions", "{}/broken.png", "-o", "{}/p.png"], ["broken.png"]),
        (["--distortions", "{}/grey.png", "-o", "{}/p.jpg"], ["Expected a PNG to write", "p.jpg"]),
        (["--distortions", "{}/grey.png", "-o", "{}/nowhere/p.png"], ["Expected a folder that exists", "nowhere"]),
    ],
)
def test_preview_of_distortions_names_what_is_wrong(arguments, words, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (64, 64)).save(tmp_path / "grey.png")
    assert main(["preview", *(argument.format(tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words)
    assert not list(tmp_path.glob("**/p.*"))


def test_preview_of_an_unknown_bank_names_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["preview", "--distortions", "scan.png", "--bank", "moon", "-o", "p.png"])
    error = capsys.readouterr().err
    assert "moon" in error and "ultrasound" in error


def test_check_data_counts_and_names_what_is_broken(images, capsys):
    assert main(["check-data", str(images), "--workers", "1"]) == 0
    (images / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["check-data", str(images), "--workers", "1"]) == 1
    assert "bad.png" in capsys.readouterr().out
    (images / "list.csv").write_text("path\n00.png\n")
    assert main(["check-data", str(images / "list.csv"), "--column", "path", "--workers", "0"]) == 0
    assert "No column mos or dmos" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.ddp
def test_two_gloo_ranks_train_and_end_with_the_weights_of_one(images, tmp_path):
    """Without batch-norm the number of devices does not change what is learned."""
    states = []
    for devices in (1, 2):
        run_dir = tmp_path / f"run-{devices}"
        command = [sys.executable, "-m", "csrtrain", "fit", "-c", "medical_moco", *SMALL]
        command += ["--model.backbone=test_convnext", "--model.queue_size=20", f"--data.root={images}"]
        command += [f"--trainer.devices={devices}", "--trainer.accelerator=cpu", f"--data.cache_dir={tmp_path}"]
        command += [f"--trainer.default_root_dir={run_dir}"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        states.append(torch.load(run_dir / "checkpoints" / "step-000000004.ckpt", weights_only=True)["state_dict"])
    for name, value in states[0].items():
        if torch.is_tensor(value) and value.is_floating_point():
            assert torch.allclose(value, states[1][name], atol=1e-4), name


def test_sync_batch_norm_with_moco_is_refused():
    """Before training; on the CPU, where there is none, the command line says so first."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(MoCo(backbone="test_resnet", channels=1, size=32, queue_size=20))
    model.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="Expected plain batch-norm for MoCo, got SyncBatchNorm"):
        model.setup("fit")


@pytest.mark.parametrize("key, value", [("overfit_batches", "2"), ("barebones", "true")])
def test_what_the_run_cannot_do_without_is_not_switched_off(fit, capsys, key, value):
    assert fit(f"--trainer.{key}={value}") == 2
    assert f"Expected trainer.{key} off, got" in capsys.readouterr().err


def test_a_picture_of_another_kind_is_refused(capsys):
    assert main(["preview", "-c", "medical_simclr", "-o", "views.xyz"]) == 2
    assert "Expected a PNG to write, got views.xyz" in capsys.readouterr().err


EVIL = {
    "os.system": {"class_path": "os.system", "init_args": {"command": "touch {}"}},
    "torch.hub.load": {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "{}", "model": "x"}},
    "subprocess.run": {"class_path": "subprocess.run", "init_args": {"args": ["touch", "{}"]}},
}


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("where", ["trainer.callbacks", "model.views", "trainer.logger", "model"])
def test_a_class_path_outside_the_list_is_refused_by_name(fit, tmp_path, capsys, name, where):
    owned = tmp_path / "owned"
    spec = yaml.safe_load(yaml.safe_dump(EVIL[name]).replace("{}", str(owned)))
    value = [spec] if where in ("trainer.callbacks", "trainer.logger") else spec
    if where == "model.views":
        value = {"class_path": "csrtrain.pretrain.SimCLR", "init_args": {"backbone": "resnet18", "views": spec}}
    section, _, key = where.partition(".")
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump({section: value if section == "model" else {key: value}}))
    assert fit(f"--config={path}") == 2
    assert name in capsys.readouterr().err
    assert not owned.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argument, word",
    [
        ("--model.tempreature=0.2", "tempreature"),
        ("--data.rot=x", "rot"),
        ("--trainer.max_epoch=3", "max_epoch"),
        ("--weights_only=false", "weights_only"),
    ],
)
def test_an_unknown_key_is_named(fit, capsys, argument, word):
    assert fit(argument) == 2
    said = capsys.readouterr().err
    assert word in said and "usage" not in said and len(said.splitlines()) == 1


def test_an_unknown_key_in_a_yaml_is_named(fit, tmp_path, capsys):
    path = tmp_path / "typo.yaml"
    path.write_text("data:\n  init_args:\n    batchsize: 3\n")
    assert fit(f"--config={path}") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Expected options as in csrtrain fit --help, got another on the command line or in ")
    assert f" or in {path}: Problem with given class_path 'csrtrain.data.unlabeled.UnlabeledData'" in said
    assert said.endswith(": Option 'batchsize' is not accepted. Correct it.\n") and said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, code, word",
    [
        (["fot"], 2, "fot"),
        ([], 2, "usage"),
        (["--help"], 0, "usage"),
        (["--version"], 0, "csrtrain 0"),
        (["fit", "-c", "nope"], 2, "Shipped configs: contrique"),
        (["fit", "-c", "/nowhere/medical_simclr.yaml"], 2, "Shipped configs: contrique"),
        (["fit", "-c", ""], 2, "Shipped configs: contrique"),
        (["fit", "-c", "medical_simclr", "--trainer.precision=16-true"], 2, "got 16-true"),
        (["fit", "-c", "medical_simclr", "--trainer.max_epochs=-1"], 2, "number of steps"),
        (["check-data", "/nonexistent"], 2, "/nonexistent"),
    ],
)
def test_wrong_use(arguments, code, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert word in captured.out + captured.err


@pytest.mark.parametrize(
    "argument, line",
    [
        ("--data.batch_size=0", "Expected data.batch_size >= 1, got 0. Correct the config."),
        ("--model.projection_dim=0", "Expected model.projection_dim >= 1, got 0. Correct the config."),
        (
            "--data.root=samples:moon",
            "Expected samples:medical or samples:natural, got samples:moon. Correct the path.",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(fit, capsys, argument, line):
    assert fit(argument) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_checkpoint_of_another_model_or_program_is_refused(fit, tmp_path, capsys):
    assert fit() == 0
    (checkpoint,) = sorted((tmp_path / "run" / "checkpoints").glob("*.ckpt"))[-1:]
    other = [f"--ckpt_path={checkpoint}", "--trainer.max_epochs=9"]
    capsys.readouterr()
    assert fit(*other, "--model.backbone=test_vit", f"--trainer.default_root_dir={tmp_path / 'other'}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Expected a checkpoint of the model that the config names, got another in")
    assert str(checkpoint) in error and len(error) < 1000
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"state_dict": content["state_dict"], "hyper_parameters": {"_instantiator": "os.system"}}, checkpoint)
    assert fit(*other, f"--trainer.default_root_dir={tmp_path / 'foreign'}") == 2
    assert "Expected a checkpoint of csrtrain fit, got" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check-data", "score", "features", "evaluate"])
@pytest.mark.parametrize(
    "name, words",
    [
        ("pipe.csv", "pipe.csv"),
        ("zeros.csv", "zeros.csv"),
        ("utf16.csv", "utf16.csv"),
        ("https://127.0.0.1:9/a.csv", "https://127.0.0.1:9/a.csv"),
    ],
)
def test_hostile_tables_are_refused_in_one_sentence(verb, name, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.csv")
    os.symlink("/dev/zero", "zeros.csv")
    (tmp_path / "utf16.csv").write_bytes("path,mos\na.png,1\n".encode("utf-16"))
    backbone = Backbone("test_resnet", 1)
    bundle.save("b.safetensors", backbone, bundle.header_for(backbone))
    bundle.export_distance("b.safetensors", "d.safetensors")
    arguments = {
        "check-data": [name, "--column", "path"],
        "score": ["d.safetensors", name, "--reference", "b.safetensors", "-o", "s.csv"],
        "features": ["b.safetensors", name, "-o", "f.npz"],
        "evaluate": ["d.safetensors", "--manifest", name, "-o", "results"],
    }[verb]
    workers = ["--workers", "0"]
    assert main([verb, *arguments, *workers]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Expected") and words in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_run_with_its_name_and_the_reason(fit, images, capsys, workers):
    (images / "07.png").write_bytes((images / "07.png").read_bytes()[:300])
    assert fit(f"--data.workers={workers}") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "07.png: Expected" in error


def test_missing_and_empty_folders_stop_before_anything_is_written(fit, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert fit(f"--data.root={tmp_path / 'empty'}") == 2
    assert "empty" in capsys.readouterr().err
    assert fit("--fresh", f"--data.root={tmp_path / 'missing'}") == 2
    assert "missing" in capsys.readouterr().err
    assert fit() == 0  # the mistyped folders have not become the run's config


def test_an_interruption_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("csrtrain.data.published.read_published", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main(["manifest", "live", str(tmp_path), "-o", str(tmp_path / "m.csv")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert said.startswith("interrupted: ") and said.count("\n") == 1 and not list(tmp_path.iterdir())
