"""SimCLR and MoCo against literal re-implementations, and what only a whole module can get wrong."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from PIL import Image

from csrtrain.batches import ImageBatch, ViewBatch
from csrtrain.data.unlabeled import UnlabeledData
from csrtrain.metrics.representation import RepresentationStatistics
from csrtrain.pretrain import MoCo, SimCLR
from csrtrain.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint, newest

SMALL = dict(backbone="test_resnet", channels=1, modality="mri", size=32, projection_dim=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(32):
        Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((48, 48)).save(folder / f"{i:02d}.png")
    return dict(
        root=str(folder), channels=1, modality="mri", load_size=40, batch_size=8, workers=0, cache_dir=str(folder)
    )


def trainer(tmp_path, **arguments):
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[RunCheckpoint()],
        **{"max_epochs": 1, **arguments},
    )


def views(model, data, number=0):
    module = UnlabeledData(**data)
    module.setup("fit")
    batch = list(module.train_dataloader())[number]
    batch = model.on_before_batch_transfer(batch, 0)
    assert isinstance(batch, ImageBatch)
    return model.on_after_batch_transfer(batch, 0)


def test_simclr_step_is_the_loss_of_the_paper(data):
    torch.manual_seed(0)
    model = SimCLR(**SMALL, temperature=0.5).train()
    batch = views(model, data)
    out = copy.deepcopy(model).training_step(batch, 0)
    z = F.normalize(model.head(model.backbone.representation(torch.cat([batch.view0, batch.view1]))).double(), dim=1)
    similarity = z @ z.T / 0.5
    terms = []
    for i in range(16):  # equation 1 of arXiv 2002.05709, one anchor at a time
        others = [k for k in range(16) if k != i]
        terms.append(torch.logsumexp(similarity[i, others], 0) - similarity[i, (i + 8) % 16])
    assert abs(float(out["loss"]) - float(torch.stack(terms).mean())) < 1e-5
    assert out["projections"][0].shape == (8, 16) and not out["projections"][0].requires_grad


def test_moco_step_is_algorithm_1_without_batch_norm(data):
    torch.manual_seed(0)
    arguments = {**SMALL, "backbone": "test_convnext"}
    model = MoCo(**arguments, temperature=0.2, queue_size=12).train()
    assert not model.backbone.has_batch_norm
    batch = views(model, data)
    queue = model.queue.rows.clone()
    out = model.training_step(batch, 0)
    q = F.normalize(model.head(model.backbone.representation(batch.view0)), dim=1)
    k = F.normalize(model.key_head(model.key_backbone.representation(batch.view1)), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    assert abs(float(out["loss"]) - float(F.cross_entropy(logits, torch.zeros(8, dtype=torch.long)))) < 1e-5
    assert torch.allclose(model.queue.rows[:8], k, atol=1e-6) and torch.equal(model.queue.rows[8:], queue[8:])


def test_moco_groups_do_not_see_each_other(data):
    """The key of an image may depend on its own batch-norm group alone: groups are disjoint parts of a shuffle."""
    torch.manual_seed(0)
    model = MoCo(**SMALL, queue_size=16, batch_norm_groups=4).train()
    batch = views(model, data)
    order = model._order(batch, 8)
    assert sorted(order.tolist()) == list(range(8)) and order.tolist() != list(range(8))
    keys = copy.deepcopy(model)._shuffled_keys(batch)
    for group in order.chunk(4):
        alone = copy.deepcopy(model)
        expected = alone.key_head(alone.key_backbone.representation(batch.view1[group]))
        assert torch.allclose(keys[group], expected, atol=1e-5)
    query = copy.deepcopy(model)._project(model.backbone, model.head, batch.view0)
    changed = batch.view0.clone()
    changed[2:] = 0.5  # other groups
    assert torch.allclose(query[:2], copy.deepcopy(model)._project(model.backbone, model.head, changed)[:2], atol=1e-6)


def test_moco_momentum_moves_once_per_optimiser_step(data, tmp_path):
    torch.manual_seed(0)
    model = MoCo(**SMALL, queue_size=16, batch_norm_groups=2, momentum=0.9, learning_rate=0.1)
    moves = []
    before = {}

    def remember(module, *_):
        now = torch.cat([p.flatten() for p in module.key_backbone.parameters()]).clone()
        if "key" in before and not torch.equal(before["key"], now):
            moves.append(1)
        before["key"] = now

    model.on_train_batch_end = lambda *a: remember(model)
    start = copy.deepcopy(model.key_backbone)
    trainer(tmp_path, accumulate_grad_batches=2).fit(model, datamodule=UnlabeledData(**data))
    assert len(moves) == 2  # 4 batches, 2 optimiser steps
    name, key = next(iter(model.key_backbone.named_parameters()))
    online = dict(model.backbone.named_parameters())[name]
    assert not torch.equal(key, dict(start.named_parameters())[name]) and not torch.equal(key, online)
    assert not key.requires_grad


@pytest.mark.parametrize("method", [SimCLR, MoCo])
def test_training_lowers_the_loss_and_moves_the_weights(data, tmp_path, method):
    torch.manual_seed(0)
    extra = {"queue_size": 16, "batch_norm_groups": 2} if method is MoCo else {"optimizer": "sgd"}
    model = method(**SMALL, **extra, learning_rate=0.05)
    first = [p.clone() for p in model.backbone.parameters()]
    losses = []
    model.on_train_batch_end = lambda outputs, *a: losses.append(float(outputs["loss"]))
    trainer(tmp_path, max_epochs=8).fit(model, datamodule=UnlabeledData(**data))
    assert all(not torch.equal(a, b) for a, b in zip(first, model.backbone.parameters(), strict=True))
    if method is SimCLR:  # MoCo's loss first rises while the queue fills with real keys
        assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_biases_and_norms_are_not_decayed(data, tmp_path, optimizer):
    model = SimCLR(**SMALL, optimizer=optimizer, learning_rate=0.01, weight_decay=0.1)
    run = trainer(tmp_path, max_steps=1, max_epochs=-1)
    run.fit(model, datamodule=UnlabeledData(**data))
    groups = run.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(
        [*model.backbone.parameters(), *model.head.parameters()]
    )


def test_bf16_keeps_views_and_loss_in_float32(data, tmp_path):
    model = SimCLR(**SMALL, optimizer="sgd", learning_rate=0.05)
    seen = {}

    def look(batch, batch_idx):
        assert isinstance(batch, ViewBatch)
        seen["view"] = batch.view0.dtype

    model.on_train_batch_start = look
    model.on_train_batch_end = lambda outputs, *a: seen.update(loss=outputs["loss"].dtype)
    trainer(tmp_path, max_steps=1, max_epochs=-1, precision="bf16-mixed").fit(model, datamodule=UnlabeledData(**data))
    assert seen == {"view": torch.float32, "loss": torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("method", [SimCLR, MoCo])
def test_16_mixed_on_a_gpu(data, tmp_path, method):
    extra = {"queue_size": 16, "batch_norm_groups": 2} if method is MoCo else {"optimizer": "sgd"}
    model = method(**SMALL, **extra, learning_rate=0.05)
    run = Trainer(
        default_root_dir=tmp_path, accelerator="gpu", devices=1, precision="16-mixed", max_epochs=1, logger=False
    )
    run.fit(model, datamodule=UnlabeledData(**data))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_sync_batch_norm_with_moco_is_refused(data, tmp_path):
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(MoCo(**SMALL, queue_size=16, batch_norm_groups=2))
    with pytest.raises(ValueError, match="Expected plain batch-norm for MoCo, got SyncBatchNorm"):
        trainer(tmp_path).fit(model, datamodule=UnlabeledData(**data))


@pytest.mark.parametrize("groups", [3, 8])
def test_groups_that_do_not_fit_the_batch_are_refused(data, tmp_path, groups):
    with pytest.raises(ValueError, match=rf"batch_norm_groups.*got {groups}"):
        trainer(tmp_path).fit(MoCo(**SMALL, queue_size=16, batch_norm_groups=groups), datamodule=UnlabeledData(**data))


@pytest.mark.parametrize(
    "method, arguments, match",
    [(MoCo, {"momentum": 1.0}, "model.momentum in"), (SimCLR, {"backbone": "resnet19"}, "resnet18")],
)
def test_wrong_arguments(method, arguments, match):
    with pytest.raises(ValueError, match=match):
        method(**{**SMALL, **arguments})


def test_a_finished_run_that_goes_on_has_the_rate_of_its_new_length(data, tmp_path):
    """4 steps of cosine end at 0; in the same run of 8, whose last step has 0, step 4 has 0.39 of the peak."""
    module = UnlabeledData(**data)
    arguments = dict(**SMALL, optimizer="sgd", learning_rate=0.1, warmup_fraction=0.0)
    trainer(tmp_path).fit(SimCLR(**arguments), datamodule=module)
    seen = []

    class Watched(SimCLR):
        def optimizer_step(self, epoch, batch_idx, optimizer, *others, **more):
            seen.append(optimizer.param_groups[0]["lr"])
            super().optimizer_step(epoch, batch_idx, optimizer, *others, **more)

    again = trainer(tmp_path, max_epochs=2)
    again.fit(Watched(**arguments), datamodule=UnlabeledData(**data), ckpt_path=newest(tmp_path), weights_only=True)
    expected = [0.05 * (1 + np.cos(np.pi * step / 7)) for step in range(4, 8)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-9)


def test_wrong_warm_up_is_refused_before_training(data, tmp_path):
    with pytest.raises(ValueError, match="warmup_fraction"):
        trainer(tmp_path).fit(SimCLR(**SMALL, warmup_fraction=1.5), datamodule=UnlabeledData(**data))


@pytest.mark.parametrize("method", [SimCLR, MoCo])
def test_a_step_reads_no_device_tensor(data, method, no_host_reads):
    extra = {"queue_size": 20, "batch_norm_groups": 2} if method is MoCo else {}
    model = method(**SMALL, **extra).train()
    module = UnlabeledData(**data)
    module.setup("fit")
    batch = model.on_before_batch_transfer(next(iter(module.train_dataloader())), 0)  # on the host: may read
    monitor = RepresentationStatistics(16)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9)
    for _ in range(2):
        with no_host_reads():
            out = model.training_step(model.on_after_batch_transfer(batch, 0), 0)
            out["loss"].backward()
            monitor.update(*out["projections"])
            optimizer.step()
            optimizer.zero_grad()
