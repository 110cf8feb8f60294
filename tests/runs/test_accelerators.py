"""What precision, compilation, accumulation and batch-norm across ranks do to a run."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image

from benchmarks.resume import equal
from csrtrain.cli import main
from csrtrain.data.unlabeled import UnlabeledData
from csrtrain.models.weights import read_torch
from csrtrain.pretrain import CONTRIQUE, MoCo, SimCLR
from csrtrain.runs.batch_norm import SyncBatchNorms
from csrtrain.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint, newest
from csrtrain.runs.monitors import RepresentationMonitor
from csrtrain.runs.nonfinite import StopOnNonFinite

COMMON = dict(backbone="test_resnet", channels=1, modality="mri", projection_dim=16, learning_rate=0.01)
BATCHES = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(32):
        Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((56, 56)).save(folder / f"{i:02d}.png")
    return folder


def make(method, **more):
    seed_everything(0, verbose=False)
    if method == "simclr":
        return SimCLR(**COMMON, size=32, optimizer="sgd", **more)
    if method == "moco":
        return MoCo(**COMMON, size=32, queue_size=20, batch_norm_groups=2, **more)
    return CONTRIQUE(**COMMON, size=24, **more)


def fit(model, images, run_dir, resume=None, measure=(), **more):
    seed_everything(0, verbose=False)
    contrique = isinstance(model, CONTRIQUE)
    data = UnlabeledData(
        str(images),
        channels=1,
        modality="mri",
        load_size=48 if contrique else 40,
        crop="native" if contrique else "resized",
        batch_size=8,
        workers=0,
        cache_dir=str(images / ".cache"),
    )
    trainer = Trainer(
        default_root_dir=run_dir,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StopOnNonFinite(), RunCheckpoint(every_n_steps=1, keep=-1), *measure],
        plugins=[AtomicCheckpointIO()],
        **{"accelerator": "cpu", "devices": 1, **more},
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return read_torch(newest(run_dir))


def goes_on_exactly(method, images, tmp_path, **more):
    whole = fit(make(method), images, tmp_path / "whole", **more)
    stop = tmp_path / "whole" / "checkpoints" / "step-000000003.ckpt"
    parts = fit(make(method), images, tmp_path / "parts", resume=stop, **more)
    keys = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "UnlabeledData")
    assert [key for key in keys if not equal(whole[key], parts[key])] == []
    assert all(value.dtype != torch.bfloat16 for value in whole["state_dict"].values() if torch.is_tensor(value))
    return whole


@pytest.mark.parametrize("method", ["simclr", "moco", "contrique"])
def test_bf16_goes_on_exactly_with_float32_weights(images, tmp_path, method):
    bf16 = goes_on_exactly(method, images, tmp_path, precision="bf16-mixed")
    assert not equal(bf16["state_dict"], fit(make(method), images, tmp_path / "float32")["state_dict"])


class Losses(Callback):
    """Loss of each batch, and the mean that is logged of each epoch."""

    def __init__(self):
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(float(trainer.callback_metrics["train/epoch_loss"]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_of_an_epoch_is_the_mean_of_its_batches(images, tmp_path, accumulate):
    losses = Losses()
    fit(make("simclr"), images, tmp_path, measure=[RepresentationMonitor(), losses], accumulate_grad_batches=accumulate)
    means = [np.mean(losses.batches[:BATCHES]), np.mean(losses.batches[BATCHES:])]
    assert len(losses.batches) == 2 * BATCHES and losses.epochs == pytest.approx(means, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", ["simclr", "moco", "contrique"])
def test_on_a_gpu_it_goes_on_where_it_was(images, tmp_path, method, precision):
    """Kernels of a GPU add in any order, so it is not compared bit by bit."""
    more = dict(accelerator="gpu", precision=precision)
    whole = fit(make(method), images, tmp_path / "whole", **more)
    stop = tmp_path / "whole" / "checkpoints" / "step-000000003.ckpt"
    parts = fit(make(method), images, tmp_path / "parts", resume=stop, **more)
    assert whole["UnlabeledData"] == parts["UnlabeledData"] and whole["global_step"] == parts["global_step"]
    assert ("MixedPrecision" in whole) == (precision == "16-mixed")  # the scale is kept
    for name, value in whole["state_dict"].items():
        if torch.is_tensor(value) and value.is_floating_point():
            assert torch.allclose(value.cpu(), parts["state_dict"][name].cpu(), atol=2e-2, rtol=2e-2), name


@pytest.mark.gpu
def test_batch_norm_across_gpus_of_simclr(images, tmp_path):
    """One GPU is all that is asked for: that the layers are converted and the names of weights stay."""
    arguments = [
        "fit",
        "-c",
        "medical_simclr",
        f"--data.root={images}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]
    arguments += ["--trainer.strategy=ddp", "--trainer.sync_batchnorm=true", "--trainer.max_epochs=1"]
    assert main([*arguments, f"--data.cache_dir={tmp_path}", "--data.min_epoch_length=64"]) == 0
    assert any("bn1.running_mean" in name for name in read_torch(newest(tmp_path / "run"))["state_dict"])


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_resnet", "test_efficientnet"])
def test_batch_norm_across_ranks_keeps_the_activations(name):
    torch.manual_seed(0)
    model = SimCLR(**{**COMMON, "backbone": name}, size=32).eval()
    x = torch.rand(2, 1, 64, 64)
    before, weights = model.head(model.backbone.representation(x)), model.state_dict()
    converted = SyncBatchNorms().apply(model)
    norms = [m for m in converted.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, torch.nn.SyncBatchNorm) for m in norms)
    assert equal(converted.head(converted.backbone.representation(x)), before)
    assert equal(converted.state_dict(), weights)
    trainer = Trainer(accelerator="cpu", strategy="ddp", sync_batchnorm=True, plugins=[SyncBatchNorms()], logger=False)
    assert isinstance(trainer.strategy._layer_sync, SyncBatchNorms)


@pytest.mark.parametrize("config", ["medical_simclr", "medical_moco"])
def test_batch_norm_across_ranks_needs_gpus(images, tmp_path, capsys, config):
    arguments = ["fit", "-c", config, f"--data.root={images}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main([*arguments, "--trainer.accelerator=cpu", "--trainer.sync_batchnorm=true"]) == 2
    assert "Expected trainer.sync_batchnorm on GPUs, got it on cpu" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "moco", "contrique"])
def test_compiled_and_not_share_their_checkpoints(images, tmp_path, method):
    plain = fit(make(method), images, tmp_path / "plain")
    compiled = fit(make(method, compile=True), images, tmp_path / "compiled")
    assert list(compiled["state_dict"]) == list(plain["state_dict"])
    assert not any("_orig_mod" in name for name in compiled["state_dict"])

    def close(one, other, step):
        """After a step from the same weights; in more of them rounding errors grow."""
        a, b = (read_torch(tmp_path / run / f"checkpoints/step-{step:09d}.ckpt") for run in (one, other))
        for name, value in a["state_dict"].items():
            if torch.is_tensor(value) and value.is_floating_point():
                assert torch.allclose(value, b["state_dict"][name], atol=1e-3, rtol=1e-3), name

    close("plain", "compiled", 1)
    stop = "checkpoints/step-000000003.ckpt"
    fit(make(method, compile=True), images, tmp_path / "a", resume=tmp_path / "plain" / stop)
    fit(make(method), images, tmp_path / "b", resume=tmp_path / "compiled" / stop)
    close("plain", "a", 4)
    close("compiled", "b", 4)
