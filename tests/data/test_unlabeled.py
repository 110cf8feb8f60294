import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain import draws
from csrtrain.batches import ImageBatch
from csrtrain.data.decode import DecodeError
from csrtrain.data.images import native, square
from csrtrain.data.labels import read_labels
from csrtrain.data.unlabeled import UnlabeledData


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (40 + i, 60), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def make(images, **arguments):
    defaults = dict(channels=1, modality="medical", load_size=32, batch_size=4, workers=0, seed=7)
    data = UnlabeledData(root=str(images), cache_dir=str(images / ".cache"), **{**defaults, **arguments})
    data.setup("fit")
    return data


def test_an_epoch_is_its_permutation_in_batches(images):
    data = make(images)
    batches = list(data.train_dataloader())
    assert [batch.number for batch in batches] == [0, 1]  # the last two images do not fill a batch
    order = draws.epoch_order(7, 0, 10)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == order[:8].tolist()
    assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(8))
    assert all(batch.images.shape == (4, 1, 32, 32) and batch.images.dtype == torch.uint8 for batch in batches)


def test_the_stream_does_not_depend_on_workers(images):
    streams = [[batch.images for batch in make(images, workers=workers).train_dataloader()] for workers in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*streams, strict=True))


def test_a_stored_position_is_where_the_next_iterator_begins(images):
    whole = list(make(images).train_dataloader())
    data = make(images)
    data.load_state_dict({"epoch": 0, "batch": 1, "digest": data.sources.digest, "broken": {}})
    rest = list(data.train_dataloader())
    assert [batch.number for batch in rest] == [1]
    assert torch.equal(rest[0].images, whole[1].images)


def test_the_position_moves_when_a_batch_is_moved_to_the_device_not_when_it_is_fetched(images):
    data = make(images)
    batches = list(data.train_dataloader())
    assert (data.epoch, data.batch) == (0, 0)
    data.transfer_batch_to_device(batches[0], torch.device("cpu"), 0)
    assert (data.epoch, data.batch) == (0, 1)
    data.transfer_batch_to_device(batches[1], torch.device("cpu"), 0)
    assert (data.epoch, data.batch) == (1, 0)


def test_other_images_than_at_the_start_are_refused(images):
    data = make(images)
    with pytest.raises(ValueError, match="another list of files"):
        data.load_state_dict({"epoch": 0, "batch": 1, "digest": "x", "broken": {}})


def test_small_sets_are_repeated(images):
    data = make(images, min_epoch_length=25)
    assert data.epoch_length == 30
    assert np.bincount(data.order(0)).tolist() == [3] * 10
    batches = [batch.indices for batch in data.train_dataloader()]
    assert all(len(set(batch)) == 4 for batch in (batches[0], batches[1]))  # no image is its own negative
    stopped = make(images, min_epoch_length=25)
    stopped.load_state_dict({**data.state_dict(), "batch": 5})
    assert [batch.indices.tolist() for batch in stopped.train_dataloader()] == [b.tolist() for b in batches[5:]]


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("length", [1, 9, 10, 11, 20, 33, 34, 400])
def test_an_epoch_is_as_long_as_wanted_and_no_repetition_longer(images, captured, fraction, length):
    data = make(images, authentic=str(captured), authentic_fraction=fraction, min_epoch_length=length)
    once = 10 * 1000 // (1000 - data.authentic_parts)
    assert len(data.order(0)) == data.epoch_length >= length
    assert data.epoch_length < max(length, once) + once + 1
    assert np.bincount(data.order(0))[:10].tolist() == [data.repeats] * 10


@pytest.fixture
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captured")
    for i in range(7):
        Image.fromarray(np.full((50, 50), 30 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("fraction, length", [(0.5, 20), (0.2, 12), (0.7, 33)])
def test_two_sources_share_every_run_of_positions(images, captured, fraction, length):
    data = make(images, authentic=str(captured), authentic_fraction=fraction, batch_size=4)
    order = data.order(0)
    assert len(order) == data.epoch_length == length and data.sources.pristine == 10
    assert sorted(order[order < 10]) == list(range(10))  # every pristine image once
    captured_counts = np.bincount(order[order >= 10] - 10, minlength=7)
    assert captured_counts.max() - captured_counts.min() <= 1
    for start in range(length - 4):
        assert abs((order[start : start + 4] >= 10).sum() - 4 * fraction) < 1
    assert not np.array_equal(order, data.order(1))
    for batch in data.train_dataloader():
        assert np.array_equal(batch.authentic, batch.indices >= 10)
        for image, index in zip(batch.images, batch.indices, strict=True):
            assert index < 10 or bool((image == 30 * (index - 10)).all())


def test_either_source_may_stand_alone(images, captured):
    assert not any(batch.authentic.any() for batch in make(images).train_dataloader())
    data = make(images)
    alone = UnlabeledData(None, authentic=str(captured), channels=1, load_size=32, batch_size=3, workers=0)
    alone.setup()
    assert all(batch.authentic.all() for batch in alone.train_dataloader())
    assert alone.sources.digest != data.sources.digest and alone.title == str(captured)
    with pytest.raises(ValueError, match="data.root, data.authentic or both, got neither"):
        UnlabeledData(None)


@pytest.mark.parametrize("fraction", [1.0, 0.0, -0.5, 0.0004, 0.9996, float("nan"), float("inf")])
def test_a_share_that_leaves_one_source_out_is_refused(fraction):
    with pytest.raises(ValueError, match=f"data.authentic_fraction from 0.001 to 0.999, got {fraction}"):
        UnlabeledData("samples:natural", authentic="samples:natural", authentic_fraction=fraction)


def test_a_broken_file_is_replaced_by_one_of_its_source(images, captured):
    (captured / "0.png").write_bytes(b"broken")
    data = make(images, authentic=str(captured), max_broken=1, batch_size=2)
    batches = list(data.train_dataloader())
    assert {i for batch in batches for i, _ in batch.broken} == {10}
    for batch in batches:
        for image, authentic in zip(batch.images, batch.authentic, strict=True):
            assert not authentic or bool((image == image[0, 0, 0]).all())  # those are flat


def test_native_crops_are_parts_of_the_image(images):
    data = make(images, crop="native", load_size=24, batch_size=10)
    first, again = (next(iter(data.train_dataloader())) for _ in range(2))
    assert torch.equal(first.images, again.images) and first.padded == ()
    for image, index in zip(first.images, first.indices, strict=True):
        whole = torch.from_numpy(np.array(Image.open(data.sources[int(index)])))
        places = [(t, left) for t in range(whole.shape[0] - 23) for left in range(37)]
        assert any(torch.equal(whole[t : t + 24, left : left + 24], image[0]) for t, left in places)


def test_native_continues_small_images_by_reflection_and_counts_them(images):
    ramp = torch.arange(5 * 7, dtype=torch.uint8).view(1, 5, 7)
    padded = native(ramp, 30, 0.5, 0.5)
    assert np.array_equal(padded.numpy(), np.pad(ramp.numpy(), ((0, 0), (12, 13), (11, 12)), mode="reflect"))
    assert torch.equal(native(ramp, 5, 1.0, 0.0), ramp[:, :, :5])
    data = make(images, crop="native", load_size=45, batch_size=10)
    with pytest.warns(UserWarning, match="smaller than data.load_size, 45 px"):
        data.transfer_batch_to_device(next(iter(data.train_dataloader())), torch.device("cpu"), 0)
    assert len(data.padded) == 5  # heights 40 to 44


def test_native_crops_of_air_are_drawn_again(tmp_path):
    picture = np.zeros((64, 640), dtype=np.uint8)
    picture[:, 500:] = np.random.default_rng(0).integers(0, 256, (64, 140))
    for i in range(8):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    batch = next(iter(make(tmp_path, crop="native", batch_size=8).train_dataloader()))
    assert (
        sum(bool(image.float().std() > 1) for image in batch.images) >= 6
    )  # one draw alone would find it 1 in 4 times


def test_grey_images_of_three_channels_are_marked(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "1.png")
    Image.fromarray(pixels[:, :, [1, 1, 1]]).save(tmp_path / "2.png")
    batch = next(iter(make(tmp_path, channels=3, batch_size=3).train_dataloader()))
    assert batch.grey.tolist() == (batch.indices > 0).tolist()


def _invert(images, seed, epoch, positions):
    assert len(images) == len(positions)
    return 255 - images


def test_a_transform_reaches_pristine_images_only(images, captured):
    plain = make(images, authentic=str(captured))
    changed = make(images, authentic=str(captured), workers=1)
    changed.transform = _invert
    for one, other in zip(plain.train_dataloader(), changed.train_dataloader(), strict=True):
        rows = torch.from_numpy(one.authentic)
        assert torch.equal(one.images[rows], other.images[rows])
        assert torch.equal(255 - one.images[~rows], other.images[~rows])


def test_square_keeps_the_aspect_and_cuts_where_told():
    ramp = torch.arange(64, dtype=torch.float32).expand(1, 32, 64) / 64
    left, middle, right = (square(ramp, 16, offset) for offset in (0.0, 0.5, 1.0))
    assert left.shape == middle.shape == right.shape == (1, 16, 16)
    assert left.mean() < middle.mean() < right.mean()
    assert abs(float(middle.mean()) - 0.5) < 0.02


def test_empty_crops_are_drawn_again(tmp_path):
    strip = np.zeros((32, 320), dtype=np.uint8)
    strip[:, 256:] = np.random.default_rng(0).integers(0, 256, (32, 64))  # a fifth of the picture shows something
    for i in range(4):
        Image.fromarray(strip).save(tmp_path / f"{i}.png")
    data = make(tmp_path, min_epoch_length=64)
    crops = torch.cat([batch.images for batch in data.train_dataloader()]).float()
    filled = (crops.std(dim=(1, 2, 3)) > 2).float().mean()
    assert filled > 0.85  # one draw alone would give about 0.33


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_stop_or_are_replaced_and_counted(images, workers):
    (images / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DecodeError, match=r"3\.png"):
        list(make(images, batch_size=10, workers=workers).train_dataloader())
    streams = []
    for _ in range(2):
        data = make(images, batch_size=10, max_broken=1, workers=workers)
        (batch,) = data.train_dataloader()
        with pytest.warns(UserWarning, match=r"Replaced a broken file \(1 of at most 1\).*3\.png"):
            data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        assert list(data.broken) == [3]
        streams.append(batch.images)
    assert torch.equal(*streams)


def test_more_broken_files_than_allowed_are_all_named(images):
    for i in (2, 5):
        (images / f"{i}.png").write_bytes(b"no image")
    data = make(images, batch_size=10, max_broken=1)
    (batch,) = data.train_dataloader()
    with (
        pytest.warns(UserWarning, match="Replaced"),
        pytest.raises(DecodeError, match=r"(?s)at most 1 broken.*got 2.*5\.png|2\.png"),
    ):
        data.transfer_batch_to_device(batch, torch.device("cpu"), 0)


def test_eight_bit_and_deeper_files_share_a_batch(images):
    Image.fromarray(np.full((40, 60), 30000, dtype=np.uint16)).save(images / "deep.png")
    (batch,) = make(images, batch_size=11).train_dataloader()
    assert batch.images.dtype == torch.float32
    deep = batch.images[list(batch.indices).index(10)]
    assert torch.allclose(deep, torch.full_like(deep, 30000 / 65535), atol=1e-4)


def write_labels(images, text):
    path = images / "labels.csv"
    path.write_text(text)
    return str(path)


def test_labels_classes_groups_and_ratings(images):
    path = write_labels(images, "image,class,group\n" + "".join(f"{i}.png,{'ab'[i % 2]},{i // 2}\n" for i in range(10)))
    labels = read_labels(path, "class", "group")
    assert (
        labels.is_class
        and labels.values.tolist() == [0, 1] * 5
        and labels.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    )
    ratings = read_labels(write_labels(images, "image,mos\n" + "".join(f"x,{i / 7}\n" for i in range(30))), "mos", None)
    assert not ratings.is_class and ratings.values[7] == 1.0 and len(set(ratings.groups)) == 30


def test_labels_in_another_encoding_are_refused(images):
    (images / "labels.csv").write_bytes("image,class\n0.png,gr\u00fcn\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8, got .*labels.csv"):
        read_labels(str(images / "labels.csv"), "class", None)


def test_a_long_strip_is_cut_before_it_is_resized():
    strip = torch.zeros(1, 2, 100_000, dtype=torch.uint8)
    assert square(strip, 128, 0.3).shape == (1, 128, 128)  # resized whole it would take 819 MB


@pytest.mark.parametrize(
    "text, match",
    [
        ("image,mos\n0.png,1\n", "column 'class'.*got image, mos"),
        ("image,class\n0.png,a\n1.png,\n", r"rows \[2\]"),
        ("image,class\n" + "".join(f"0.png,{i}\n" for i in range(30)) + "1.png,nan\n", "got nan in row 31"),
    ],
)
def test_wrong_labels(images, text, match):
    with pytest.raises(ValueError, match=match):
        read_labels(write_labels(images, text), "class", None)


def test_a_device_without_a_labelled_image_is_refused(images, monkeypatch):
    path = write_labels(images, "image,class\n0.png,a\n1.png,b\n")
    monkeypatch.setattr("csrtrain.data.unlabeled.world_size", lambda: 4)
    with pytest.raises(ValueError, match="Expected a labelled image for each of the 4 devices in .*, got 2. Add some"):
        make(images, labels=path)


def test_validation_shows_every_labelled_image_once(images):
    path = write_labels(images, "image,class\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(10)))
    data = make(images, labels=path)
    batches = list(data.val_dataloader())
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(10))
    assert not isinstance(batches[0], ImageBatch) and batches[0].images.dtype == torch.float32


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"batch_size": 11}, "at least one batch of 11, got 10 images"),
        ({"batch_size": 0}, "data.batch_size >= 1"),
        ({"load_size": 0}, "data.load_size >= 1"),
        ({"workers": -1}, "data.workers >= 0"),
    ],
)
def test_wrong_arguments(images, arguments, match):
    with pytest.raises(ValueError, match=match):
        make(images, **arguments)


def test_the_description_names_no_file(images):
    text = str(make(images).describe())
    assert str(images) not in text and ".png" not in text
