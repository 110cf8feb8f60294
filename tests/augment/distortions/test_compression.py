import io

import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain.augment.distortions import compression
from csrtrain.data import decode, samples

QUALITIES = (4, 7, 10, 24, 36, 43, 50, 60, 75, 90)


@pytest.fixture(scope="module")
def photographs():
    """(N,3,150,203) crops of real photographs: sides that are no multiples of 8, one of them odd."""
    images = [decode.read(address) for address in samples.natural()]
    crops = [image[:, y : y + 150, :203] for image in images if len(image) == 3 for y in (0, 100)]
    return torch.stack([crop for crop in crops if crop.shape[1:] == (150, 203)]).float() / 255


def pillow_jpeg(x, quality):
    """Pillow's own codec, libjpeg with chroma at half resolution: (C,H,W) in [0,1] to the same."""
    image = np.ascontiguousarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    file = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(file, "JPEG", quality=quality)
    decoded = np.array(Image.open(file), ndmin=3)
    return torch.from_numpy(decoded if len(x) == 1 else decoded.transpose(2, 0, 1)).float() / 255


def psnr(a, b):
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)))


def seeds(x):
    return torch.zeros(len(x), dtype=torch.int64)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_codec_is_libjpeg(photographs, quality, channels):
    x = photographs[:2, :channels]
    coded = compression.jpeg(x, torch.full((2,), float(quality)), seeds(x))
    for one, original in zip(coded, x, strict=True):
        assert torch.equal(one, pillow_jpeg(original, quality))


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_cosine_transform_has_libjpegs_psnr_on_every_image(photographs, quality, channels):
    x = photographs[:, :channels]
    assert len(x) >= 4
    reference = torch.stack([pillow_jpeg(original, quality) for original in x])
    coded = compression.jpeg_dct(x, torch.full((len(x),), float(quality)))
    assert (psnr(coded, x) - psnr(reference, x)).abs().max() < 0.05
    assert (coded - reference).abs().mean() < 0.3 / 255


def test_every_sample_has_its_own_quality(photographs):
    x, qualities = photographs[:1].expand(10, -1, -1, -1), torch.tensor(QUALITIES, dtype=torch.float32)
    for function in (lambda x, q: compression.jpeg(x, q, seeds(x)), compression.jpeg_dct):
        together = function(x, qualities)
        for k in range(10):
            assert torch.equal(together[k : k + 1], function(x[:1], qualities[k : k + 1]))
        assert (psnr(together, x).diff() > 0).all()


@pytest.mark.parametrize("quality", [1, 25, 50, 99, 100])
def test_steps_are_those_of_libjpeg(quality):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization
    q = torch.tensor([float(quality)])
    assert compression._steps(compression._LUMA_STEPS, q).flatten().tolist() == tables[0]
    assert compression._steps(compression._CHROMA_STEPS, q).flatten().tolist() == tables[1]


def test_other_channels_are_coded_as_grey(photographs):
    four = torch.cat([photographs[:1], photographs[:1, :1].flip(3)], dim=1)
    q = torch.tensor([20.0])
    for function in (lambda x: compression.jpeg(x, q, seeds(x)), lambda x: compression.jpeg_dct(x, q)):
        together = function(four)
        for k in range(4):
            assert torch.equal(together[:, k : k + 1], function(four[:, k : k + 1].contiguous()))


def test_jpeg2000_is_pillows(photographs):
    x, ratios = photographs[:2], torch.tensor([16.0, 120.0])
    coded = compression.jpeg2000(x, ratios, seeds(x))
    for one, original, ratio in zip(coded, x, ratios.tolist(), strict=True):
        bytes_ = (original * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(bytes_).save(
            file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=1
        )
        assert len(file.getvalue()) < bytes_.size / ratio * 1.1 + 200
        assert torch.equal(one, torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255)
    grey = compression.jpeg2000(x[:, :1], ratios, seeds(x))
    assert grey.shape == (2, 1, *x.shape[2:])


def test_jpeg2000_stays_on_the_host():
    with pytest.raises(ValueError, match="on the CPU for JPEG2000, got meta"):
        compression.jpeg2000(torch.rand(1, 3, 16, 16, device="meta"), torch.ones(1), torch.zeros(1))
