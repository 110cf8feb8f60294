import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image

from benchmarks.resume import equal
from csrtrain.data.unlabeled import UnlabeledData
from csrtrain.models.weights import read_torch
from csrtrain.pretrain import MoCo, SimCLR
from csrtrain.runs.agreement import Agreement
from csrtrain.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint, newest
from csrtrain.runs.monitors import RepresentationMonitor
from csrtrain.runs.nonfinite import StopOnNonFinite


class Poison(Callback):
    """One pixel is no number, in some batches counted from 0."""

    def __init__(self, *batches):
        self.batches = batches

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx in self.batches:
            batch.view0[0, 0, 0, 0] = torch.nan
            self.indices = batch.indices


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(32):
        Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((48, 48)).save(folder / f"{i:02d}.png")
    return folder


def simclr(**arguments):
    common = dict(backbone="test_resnet", channels=1, modality="mri", size=32, projection_dim=16, learning_rate=0.01)
    return SimCLR(**common, **{"optimizer": "adamw", **arguments})


def moco():
    common = dict(backbone="test_resnet", channels=1, modality="mri", size=32, projection_dim=16, learning_rate=0.01)
    return MoCo(**common, queue_size=10, batch_norm_groups=2, momentum=0.9)


def fit(model, images, run_dir, poison, guard, every=1, accumulate=1, resume=None):
    seed_everything(0, verbose=False)
    data = UnlabeledData(
        str(images), channels=1, modality="mri", load_size=40, batch_size=4, workers=0, cache_dir=str(images / ".cache")
    )
    trainer = Trainer(
        default_root_dir=run_dir,
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[guard, poison, RepresentationMonitor(), RunCheckpoint(every, keep=-1)],
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer


def state(run_dir, step):
    return read_torch(run_dir / "checkpoints" / f"step-{step:09d}.ckpt")


@pytest.mark.parametrize("accumulate, bad, step", [(1, 2, 3), (2, 4, 3), (2, 5, 3)])
def test_stops_before_the_step_and_names_the_files(images, tmp_path, accumulate, bad, step):
    poison = Poison(bad)
    with pytest.raises(ValueError, match=f"finite gradients, got others in step {step}") as raised:
        fit(simclr(), images, tmp_path, poison, StopOnNonFinite(), accumulate=accumulate)
    assert newest(tmp_path).name == f"step-{step - 1:09d}.ckpt"
    named = str(raised.value).split("Images of the step:\n")[1].splitlines()
    assert {str(images / f"{i:02d}.png") for i in poison.indices} <= set(named)
    assert len(named) == 4 * accumulate


@pytest.mark.parametrize("every, last", [(1, 2), (None, None)])
def test_read_late_it_still_stops_in_time_and_saves_nothing(images, tmp_path, every, last):
    """As on a GPU: the step is masked on the device, two more may be made, and a checkpoint waits for the flag."""
    guard, model = StopOnNonFinite(), simclr()
    guard._agreement = Agreement(lag=2)
    batches = []
    poison = Poison(2)
    poison.on_train_batch_end = lambda trainer, module, outputs, batch, number: batches.append(number)
    with pytest.raises(ValueError, match="got others in step 3"):
        fit(model, images, tmp_path, poison, guard, every)
    assert max(batches) <= 4  # the third batch is number 2
    found = newest(tmp_path)
    assert (found is None) if last is None else found.name == f"step-{last:09d}.ckpt"
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("make", [simclr, moco])
@pytest.mark.parametrize("accumulate, bad, step", [(1, 0, 1), (1, 2, 3), (2, 4, 3), (2, 5, 3)])
def test_a_skipped_step_leaves_everything_as_it_was(images, tmp_path, make, accumulate, bad, step):
    guard = StopOnNonFinite(skip=1)
    with pytest.warns(UserWarning, match=rf"Skipped step {step} \(1 of at most 1\)"):
        trainer = fit(make(), images, tmp_path, Poison(bad), guard, accumulate=accumulate)
    assert trainer.global_step == 8 // accumulate and guard.skipped == 1
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 1
    assert all(value == value for value in trainer.callback_metrics.values() if value.numel() == 1 and step != 8)
    after = state(tmp_path, step)
    assert after["callbacks"]["StopOnNonFinite"] == {"skipped": 1}
    assert all(bool(v.isfinite().all()) for v in after["state_dict"].values() if torch.is_tensor(v))
    if step > 1:
        before = state(tmp_path, step - 1)
        assert equal(before["state_dict"], after["state_dict"])
        assert equal(before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"])
    else:
        assert after["optimizer_states"][0]["state"] == {}
    assert not equal(after["state_dict"], state(tmp_path, step + 1)["state_dict"])


def test_the_budget_is_of_the_whole_run(images, tmp_path):
    with pytest.warns(UserWarning, match="Skipped step 2"), pytest.raises(ValueError, match="step 4 after 1 skipped"):
        fit(simclr(), images, tmp_path, Poison(1, 3), StopOnNonFinite(skip=1))
    resume = newest(tmp_path)
    assert resume.name == "step-000000003.ckpt"
    with pytest.raises(ValueError, match="step 6 after 1 skipped"):
        fit(simclr(), images, tmp_path / "b", Poison(5), StopOnNonFinite(skip=1), resume=resume)


class Overflow(Callback):
    """A weight becomes infinite in a step whose gradient was finite."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            next(pl_module.parameters()).data.view(-1)[0] = torch.inf


def test_weights_that_overflow_are_not_saved(images, tmp_path):
    with pytest.raises(ValueError, match="Expected finite weights, got others after step 2"):
        fit(simclr(), images, tmp_path, Overflow(), StopOnNonFinite())
    assert newest(tmp_path).name == "step-000000001.ckpt"


def test_the_step_reads_nothing_from_the_device(images, no_host_reads):
    """But for the verdicts, which are read late."""
    guard, model = StopOnNonFinite(), simclr()
    guard._agreement = Agreement(lag=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with no_host_reads():
        guard.on_before_backward(trainer, model, torch.ones(()))
        guard.on_before_optimizer_step(trainer, model, optimizer)
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    next(model.parameters()).grad.view(-1)[0] = torch.inf
    with no_host_reads():
        guard.on_before_backward(trainer, model, torch.ones(()))
        guard.on_before_optimizer_step(trainer, model, optimizer)
    assert all(bool((p.grad == 0).all()) for p in model.parameters())


@pytest.mark.gpu
def test_infinite_gradients_under_a_scaler_are_its_own_business(images, tmp_path):
    """A scale of 2**40 overflows at first; the scaler skips and lowers it, and the run goes on."""
    seed_everything(0, verbose=False)
    data = UnlabeledData(str(images), channels=1, modality="mri", load_size=40, batch_size=4, workers=0)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="gpu",
        devices=1,
        precision="16-mixed",
        max_epochs=4,
        logger=False,
        enable_progress_bar=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[StopOnNonFinite(), RunCheckpoint()],
    )
    trainer.precision_plugin.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    trainer.fit(simclr(), datamodule=data)
    assert trainer.global_step == 32 and trainer.precision_plugin.scaler.get_scale() < 2.0**40


def test_wrong_arguments():
    with pytest.raises(ValueError, match="Expected skip >= 0, got -1"):
        StopOnNonFinite(skip=-1)
