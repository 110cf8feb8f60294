import shutil

import kornia
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from csrtrain.augment import color, geometry, intensity, views
from csrtrain.augment.settings import SETTINGS
from csrtrain.augment.views import Views

MODALITIES = list(SETTINGS)


def make(modality, images, size=32, positions=None, compiled=False, epoch=0):
    pipeline = Views(modality, size, images.shape[1], compiled=compiled)
    positions = np.arange(len(images)) if positions is None else positions
    return pipeline(images, pipeline.draw(3, epoch, positions, *images.shape[2:]))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def natural_literally(image, drawn, view, k, size):
    """One view of one image by torchvision and kornia, from the drawn parameters, in SimCLR's order."""
    top, left, height, width, flip = drawn["crops"][view, k, :5].int().tolist()
    x = TF.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    x = TF.horizontal_flip(x) if flip else x
    brightness, contrast, saturation, hue, grey = drawn["color"][view, k].tolist()
    x = TF.adjust_brightness(x, brightness)
    x = kornia.enhance.adjust_contrast_with_mean_subtraction(x, contrast)
    x = kornia.enhance.adjust_saturation_with_gray_subtraction(x, saturation)
    x = TF.adjust_hue(x, hue)
    x = kornia.color.rgb_to_grayscale(x).expand(3, -1, -1) if grey else x
    if k in drawn[f"blurred{view}"].tolist():
        taps = 2 * geometry.blur_radius(size) + 1
        x = TF.gaussian_blur(x, taps, drawn["sigma"][view, k].item())
    return x


@pytest.mark.parametrize("compiled", [False, True])
def test_natural_equals_torchvision_and_kornia(noise_images, compiled):
    images = noise_images(20, 3, 72, 80)
    pipeline = Views("natural", 48, 3, compiled=compiled)
    drawn = pipeline.draw(0, 0, np.arange(20), 72, 80)
    assert all(0 < len(drawn[f"blurred{view}"]) < 20 for view in (0, 1))
    for view, result in enumerate(pipeline(images, drawn)):
        expected = torch.stack([natural_literally(images[k] / 255, drawn, view, k, 48) for k in range(20)])
        assert (result - expected).abs().max() < 2e-5


@pytest.mark.parametrize(
    "modality", ["histology", *(pytest.param(name, marks=pytest.mark.slow) for name in MODALITIES)]
)
def test_compiled_equals_uncompiled(noise_images, modality):
    images = noise_images(9, 3, 72, 80)
    for one, other in zip(make(modality, images, 48), make(modality, images, 48, compiled=True), strict=True):
        assert (one - other).abs().max() < 1e-5
    if shutil.which("g++") or shutil.which("clang++"):
        kernels = (color.jitter, color.stain, intensity.chain, geometry._convolve)
        assert [kernel.failure for kernel in kernels] == [None] * 4


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shape_dtype_and_range(noise_images, modality, channels):
    images = noise_images(10, channels, 50, 44)
    first, second = make(modality, images)
    for view in (first, second):
        assert view.shape == (10, channels, 32, 32) and view.dtype == torch.float32 and view.is_contiguous()
        assert view.min() >= -1e-6 and view.max() <= 1 + 1e-6
    assert not torch.allclose(first, second, atol=0.05)


@pytest.mark.parametrize("modality", MODALITIES)
def test_uint8_and_float32_agree(noise_images, modality):
    images = noise_images(5, 3, 50, 44)
    for one, other in zip(make(modality, images), make(modality, images.float() / 255), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_sample_looks_alike_in_any_batch(noise_images, modality):
    images = noise_images(19, 3, 50, 44)
    together = make(modality, images)
    for rows in ([7], [18, 3, 7], list(range(18, -1, -1))):
        apart = make(modality, images[rows], positions=np.array(rows))
        for one, other in zip(together, apart, strict=True):
            assert (one[rows] - other).abs().max() < 1e-6


@pytest.mark.parametrize("modality", MODALITIES)
def test_one_and_three_equal_channels_agree_without_color(noise_images, modality):
    images = noise_images(6, 1, 50, 44)
    single, triple = make(modality, images), make(modality, images.expand(-1, 3, -1, -1))
    setting = SETTINGS[modality]
    if setting.stain or (setting.noise and setting.noise.colored):
        return
    for one, three in zip(single, triple, strict=True):
        # A grey image has no hue or saturation to change; its luma weights sum to 1.
        assert (three - one).abs().max() < 1e-5


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_form_reads_nothing_on_the_host(no_host_reads, modality, channels):
    # On the meta device there are no values to read: what a GPU runs must be free of them.
    pipeline = Views(modality, 32, channels, compiled=False)
    drawn = pipeline.draw(0, 0, np.arange(12), 50, 44)
    on_device = {name: values.to("meta") for name, values in drawn.items()}
    images = torch.empty(12, channels, 50, 44, dtype=torch.uint8, device="meta")
    one_view = {name: values[0] for name, values in on_device.items() if not name.startswith("blurred")}
    with no_host_reads():  # all of `forward` but autocast, which knows no meta device
        x = geometry.crop(images, one_view["crops"], 32)
        result = pipeline._vary(x, one_view, on_device["blurred0"])
    assert result.shape == (12, channels, 32, 32)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_host_form_reads_nothing_either(no_host_reads, noise_images, modality, one_thread):
    with no_host_reads():  # which sees the operations of its own thread
        make(modality, noise_images(12, 3, 50, 44))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0.5],
        lambda x: x.index_put_((x > 0.5,), torch.tensor(0.0)),
        lambda x: torch.equal(x, x + 1),
        lambda x: x.masked_select(x > 0.5),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64), 0),
        lambda x: float(x[0]),
        lambda x: torch.empty(3, device="meta").to("cpu"),
        lambda x: x.copy_(torch.empty(4, device="meta")),
    ],
)
def test_the_mode_catches_host_reads(no_host_reads, host_read_error, read):
    with pytest.raises(host_read_error), no_host_reads():
        read(torch.rand(4))


@pytest.mark.parametrize("modality", MODALITIES)
def test_both_forms_of_the_crop_give_the_same_views(noise_images, modality):
    images = noise_images(12, 3, 50, 44)
    pipeline = Views(modality, 32, 3, compiled=False)
    drawn = pipeline.draw(3, 0, np.arange(12), 50, 44)
    on_device = {name: values[0] for name, values in drawn.items() if not name.startswith("blurred")}
    cropped = geometry.crop_batch(images, on_device["crops"], 32)
    result = pipeline._vary(cropped, on_device, drawn["blurred0"])
    assert (result - pipeline(images, drawn)[0]).abs().max() < 2e-5


def test_autocast_changes_nothing(noise_images):
    images = noise_images(6, 3, 50, 44)
    expected = make("mri", images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = make("mri", images)
    assert all(torch.equal(one, other) for one, other in zip(expected, result, strict=True))


def test_no_state_and_no_gradient(noise_images):
    pipeline = Views("natural", 32, 3)
    assert not pipeline.state_dict() and not list(pipeline.parameters())
    images = noise_images(2, 3, 40, 40).float().requires_grad_()
    assert not make("natural", images / 255)[0].requires_grad


def test_no_flip_where_a_side_matters():
    for modality in ("medical", "mri", "ct", "xray"):
        assert SETTINGS[modality].flip_columns.chance == 0, modality
    assert [name for name, setting in SETTINGS.items() if setting.flip_rows.chance] == ["histology"]


def test_no_color_operation_on_one_channel(noise_images):
    # With saturation, hue, greyscale and stain out, brightness and contrast of the jitter and the geometry remain.
    for modality in MODALITIES:
        pipeline = Views(modality, 32, 1, compiled=False)
        drawn = pipeline.draw(3, 0, np.arange(8), 40, 40)
        images = noise_images(8, 1, 40, 40)
        expected = pipeline(images, drawn)
        if "color" in drawn:
            drawn["color"][..., 2:] = 9.0
        drawn["stain"] = torch.full((2, 8, 7), 9.0)
        assert all(torch.equal(one, other) for one, other in zip(expected, pipeline(images, drawn), strict=True))


def test_every_operation_has_a_reason():
    for setting in SETTINGS.values():
        for operation in vars(setting).values():
            assert operation is None or len(operation.reason) >= 8


def test_compiled_by_default_where_it_pays():
    assert Views("natural", 224, 3).compiled and not Views("natural", 64, 3).compiled
    assert not Views("natural", 224, 3, compiled=False).compiled


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(2, 1, 40, 40), r"Expected images \(B,3,H,W\), got \(2, 1, 40, 40\). Set data.channels"),
        (torch.zeros(3, 40, 40), r"Expected images \(B,3,H,W\), got \(3, 40, 40\)"),
        (torch.zeros(2, 3, 40, 40, dtype=torch.float16), r"Expected uint8, or float32 in \[0,1\], got torch.float16"),
        (torch.zeros(3, 3, 40, 40), r"Expected parameters of 3 samples, got 2. Draw for this batch."),
    ],
)
def test_wrong_images(images, match):
    pipeline = Views("natural", 32, 3)
    with pytest.raises(ValueError, match=match):
        pipeline(images, pipeline.draw(0, 0, np.arange(2), 40, 40))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="Expected a modality of natural, medical, .*, got 'pet'"):
        Views("pet", 32, 3)
    with pytest.raises(ValueError, match="Expected size >= 8 and channels >= 1, got size 4"):
        Views("natural", 4, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_equals_cpu_without_synchronisation(noise_images, modality, compiled):
    images = noise_images(20, 3, 72, 80)
    pipeline = Views(modality, 48, 3, compiled=compiled)
    drawn = pipeline.draw(0, 0, np.arange(20), 72, 80)
    expected = Views(modality, 48, 3, compiled=False)(images, drawn)
    on_device = {name: values.cuda() for name, values in drawn.items()}
    on_gpu = images.cuda()
    pipeline(on_gpu, on_device)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = pipeline(on_gpu, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(expected, result, strict=True):
        assert (one - other.cpu()).abs().max() < 2e-5


def test_chunks_cover_the_batch():
    assert views._CHUNK < 19  # the batch of the invariance test spans several chunks
