"""CONTRIQUE against a literal re-implementation, and what only the whole module can get wrong."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from PIL import Image

import csrtrain
from csrtrain import bundle
from csrtrain.batches import ImageBatch
from csrtrain.data.unlabeled import UnlabeledData
from csrtrain.pretrain import CONTRIQUE
from csrtrain.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint, newest

SMALL = dict(backbone="test_resnet", channels=3, modality="natural", size=24, projection_dim=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folders = {}
    rng = np.random.default_rng(0)
    for name in ("pristine", "captured"):
        folders[name] = tmp_path_factory.mktemp(name)
        for i in range(16):
            small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(folders[name] / f"{i:02d}.png")
    return dict(
        root=str(folders["pristine"]),
        authentic=str(folders["captured"]),
        load_size=48,
        crop="native",
        batch_size=8,
        workers=0,
        cache_dir=str(folders["pristine"]),
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
    batch = model.on_before_batch_transfer(list(module.train_dataloader())[number], 0)
    assert isinstance(batch, ImageBatch)
    return batch, model.on_after_batch_transfer(batch, 0)


def test_step_is_the_method_of_the_paper(data):
    torch.manual_seed(0)
    model = CONTRIQUE(**SMALL, temperature=0.2).train()
    _, batch = views(model, data)
    out = copy.deepcopy(model).training_step(batch, 0)
    x = torch.cat([batch.view0, batch.view1])
    maps = model.backbone.network.forward_features(model.backbone._normalised(x))  # (16,D,s,s)
    rows, ids = [], []
    for image in range(16):
        for part in F.adaptive_avg_pool2d(maps[image], 2).flatten(1).T:  # quadrants, row by row
            rows.append(F.normalize(part, dim=0))
            ids.append(int(batch.classes[image % 8]))
    z = F.normalize(model.head(torch.stack(rows)), dim=1)
    similarity = z @ z.T / 0.2
    terms = []
    for a in range(64):
        others = [k for k in range(64) if k != a]
        positives = [k for k in others if ids[k] == ids[a]]
        assert len(positives) >= 7
        terms.append(torch.logsumexp(similarity[a, others], 0) - similarity[a, positives].mean())
    assert abs(float(out["loss"]) - float(torch.stack(terms).mean())) < 1e-5
    assert out["projections"][0].shape == (32, 16) and not out["projections"][0].requires_grad


def test_classes_of_synthetic_and_authentic_images(data):
    model = CONTRIQUE(**SMALL)
    for number in range(4):
        loaded, batch = views(model, data, number)
        classes = batch.classes.numpy()
        assert np.array_equal(classes[loaded.authentic], -1 - loaded.indices[loaded.authentic])
        synthetic = model.views.bank.class_ids(loaded.drawn.distortions)
        assert np.array_equal(classes[~loaded.authentic], synthetic[~loaded.authentic])
        assert (synthetic[loaded.authentic] == 0).all() and loaded.authentic.sum() == 4


@pytest.mark.parametrize("batch_size", [8, 12])
def test_images_of_a_class_are_as_many_as_told_beside_authentic_ones(data, batch_size, tmp_path):
    """Four synthetic images in a row share a class, with JPEG2000 too, which a worker has to draw for itself."""
    model = CONTRIQUE(**SMALL, distortions=["jpeg2000", "pixelate"], images_per_class=4, learning_rate=0.01)
    run = trainer(tmp_path, max_steps=1)
    module = UnlabeledData(**{**data, "batch_size": batch_size}, authentic_fraction=0.3, min_epoch_length=100)
    run.fit(model, datamodule=module)
    module.epoch = module.batch = 0
    plain = UnlabeledData(**{**data, "batch_size": batch_size}, authentic_fraction=0.3, min_epoch_length=100)
    plain.setup()
    classes = []
    for batch, raw in zip(module.train_dataloader(), plain.train_dataloader(), strict=True):
        batch = model.on_before_batch_transfer(batch, 0)
        ids = model.views.bank.class_ids(batch.drawn.distortions)
        coded = (batch.images != raw.images).flatten(1).any(1).numpy()
        assert np.array_equal(coded, (1 <= ids) & (ids <= 5))  # by the worker, the same
        classes += ids[~batch.authentic].tolist()
    groups = np.array(classes[: len(classes) // 4 * 4]).reshape(-1, 4)
    assert (groups == groups[:, :1]).all() and len(set(groups[:, 0])) > 4


@pytest.mark.parametrize("batch_size, per_class", [(1, 1), (7, 4)])
def test_a_batch_of_one_class_is_refused(data, tmp_path, batch_size, per_class):
    match = f"data.batch_size >= {2 * per_class}, twice model.images_per_class, got {batch_size}"
    with pytest.raises(ValueError, match=match):
        module = UnlabeledData(**{**data, "batch_size": batch_size})
        trainer(tmp_path).fit(CONTRIQUE(**SMALL, images_per_class=per_class), datamodule=module)


def test_one_authentic_image_alone_is_refused(data, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "0.png")
    alone = UnlabeledData(**{**data, "root": None, "authentic": str(tmp_path)}, min_epoch_length=8)
    with pytest.raises(ValueError, match="at least 2 images in data.authentic without data.root, got 1"):
        trainer(tmp_path).fit(CONTRIQUE(**SMALL), datamodule=alone)


def test_a_saturation_of_a_grey_photograph_is_pristine(data, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)).save(tmp_path / "0.png")
    grey = {**data, "root": str(tmp_path), "authentic": None, "min_epoch_length": 8}
    _, batch = views(CONTRIQUE(**SMALL, distortions=["saturate_hsv", "saturate_lab"]), grey)
    assert (batch.classes == 0).all()


def test_the_default_classes_are_those_of_the_paper_without_jpeg2000(data):
    assert CONTRIQUE(**SMALL).views.bank.class_of.size == 24 * 5
    assert CONTRIQUE(**SMALL, jpeg2000=True).views.bank.class_of.size == 25 * 5
    chosen = CONTRIQUE(**SMALL, distortions=["jpeg", "rician_noise"])
    assert [row.name for row in chosen.views.bank.rows] == ["jpeg", "rician_noise"]


@pytest.mark.parametrize("channels, modality", [(1, "mri"), (1, "medical"), (3, "histology"), (4, "natural")])
def test_other_channels_and_modalities_train(data, tmp_path, channels, modality):
    model = CONTRIQUE(**{**SMALL, "channels": channels, "modality": modality}, learning_rate=0.01)
    images = torch.rand(8, channels, 48, 48)
    batch = ImageBatch(images, np.arange(8), np.arange(8), 0, 0, 0, np.zeros(8, dtype=bool))
    made = model.on_after_batch_transfer(model.on_before_batch_transfer(batch, 0), 0)
    assert made.view0.shape == made.view1.shape == (8, channels, 24, 24)
    assert torch.isfinite(model.training_step(made, 0)["loss"])


@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit"])
def test_every_parameter_gets_a_gradient(backbone):
    """DDP stops where one does not."""
    model = CONTRIQUE(**{**SMALL, "backbone": backbone, "size": 32})
    batch = ImageBatch(torch.rand(8, 3, 64, 64), np.arange(8), np.arange(8), 0, 0, 0, np.zeros(8, dtype=bool))
    made = model.on_after_batch_transfer(model.on_before_batch_transfer(batch, 0), 0)
    model.training_step(made, 0)["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_what_cannot_train_is_refused_at_once():
    with pytest.raises(ValueError, match=r"Expected temperature > 0, got -1"):
        CONTRIQUE(**SMALL, temperature=-1)
    with pytest.raises(ValueError, match=r"Expected 1 for model.max_distortions with jpeg2000, got 2"):
        CONTRIQUE(**SMALL, jpeg2000=True, max_distortions=2)


@pytest.mark.parametrize("extra", [{}, {"jpeg2000": True}, {"max_distortions": 3, "continuous_level": True}])
def test_training_runs_and_resumes_exactly(data, tmp_path, extra):
    """4 batches per epoch; stopped after the third step, in the second epoch and uninterrupted."""
    states = []
    for stops in ((8,), (3, 5, 8)):
        folder = tmp_path / f"{stops}"
        for stop in stops:
            torch.manual_seed(0)
            model = CONTRIQUE(**SMALL, **extra, learning_rate=0.05)
            run = trainer(folder, max_steps=stop, max_epochs=-1)
            model.trainer_steps = 8
            run.fit(_fixed_schedule(model), datamodule=UnlabeledData(**data, seed=4), ckpt_path=newest(folder))
        states.append(torch.load(newest(folder), weights_only=True))
    assert states[0]["global_step"] == states[1]["global_step"] == 8
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name


def _fixed_schedule(model):
    """The rate of a run of 8 steps, wherever a start of it ends."""
    plain = model.configure_optimizers

    def configure():
        steps = model.trainer.fit_loop.epoch_loop.max_steps
        model.trainer.fit_loop.epoch_loop.max_steps = 8
        built = plain()
        model.trainer.fit_loop.epoch_loop.max_steps = steps
        return built

    model.configure_optimizers = configure
    return model


def test_nothing_is_read_from_the_device_in_a_step(data, no_host_reads):
    model = CONTRIQUE(**SMALL)
    _, batch = views(model, data)
    model.log = lambda *a, **k: None
    with no_host_reads():
        model.training_step(batch, 0)["loss"].backward()


def test_views_and_loss_stay_in_float32_under_autocast(data):
    model = CONTRIQUE(**SMALL)
    _, expected = views(model, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, batch = views(model, data)
        out = model.training_step(batch, 0)
    assert torch.equal(batch.view0, expected.view0) and torch.equal(batch.view1, expected.view1)
    assert out["loss"].dtype == torch.float32


def test_a_bundle_says_what_the_features_are(data, tmp_path):
    model = CONTRIQUE(**SMALL, learning_rate=0.01)
    trainer(tmp_path / "run").fit(model, datamodule=UnlabeledData(**data))
    path = tmp_path / "backbone.safetensors"
    bundle.export_checkpoint(newest(tmp_path / "run"), path)
    features = csrtrain.load(str(path)).header.features
    assert features["scales"] == [1.0, 0.5] and features["l2"] and features["half_scale_filter"] == "bilinear_aa"


def test_resized_images_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="data.crop native for CONTRIQUE, got resized.*load_size to 48"):
        trainer(tmp_path).fit(CONTRIQUE(**SMALL), datamodule=UnlabeledData(**{**data, "crop": "resized"}))


def test_images_that_are_too_small_for_two_scales_are_refused(data):
    with pytest.raises(ValueError, match="at least 48 px, twice model.size, got 40 x 40"):
        views(CONTRIQUE(**SMALL), {**data, "load_size": 40})
