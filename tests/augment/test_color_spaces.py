import kornia
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import torch
from PIL import Image

from csrtrain.augment import color_spaces


@pytest.fixture(scope="module")
def images():
    return torch.rand((6, 3, 30, 40), generator=torch.Generator().manual_seed(0))


def last(x):
    return x.permute(0, 2, 3, 1).double().numpy()


def test_lab_is_skimages_and_back(images):
    lab = color_spaces.rgb_to_lab(images)
    assert np.abs(last(lab) - skimage.color.rgb2lab(last(images))).max() < 1e-3  # of 100
    torch.testing.assert_close(color_spaces.lab_to_rgb(lab), images, atol=2e-5, rtol=0)
    dark = color_spaces.rgb_to_lab(images / 20)  # the linear branches
    assert np.abs(last(dark) - skimage.color.rgb2lab(last(images / 20))).max() < 1e-3


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_lab_outside_of_srgb_is_skimages(images):
    lab = color_spaces.rgb_to_lab(images)
    lab[:, 1:] *= 9
    ours = color_spaces.lab_to_rgb(lab).clamp(0, 1)
    assert np.abs(last(ours) - skimage.color.lab2rgb(last(lab))).max() < 1e-4


def test_lab_of_kernels_is_the_same(images):
    lab = color_spaces.rgb_to_lab(images)
    torch.testing.assert_close(color_spaces.lab_of(images), lab, atol=1e-3, rtol=0)  # of 100
    dark = images / 20
    torch.testing.assert_close(color_spaces.lab_of(dark), color_spaces.rgb_to_lab(dark), atol=1e-3, rtol=0)
    lab[:, 1:] *= torch.tensor([0, 0.3, 1, 1, 3, 9])[:, None, None, None]
    found, expected = color_spaces.rgb_of(lab), color_spaces.lab_to_rgb(lab)
    torch.testing.assert_close(found[:4], expected[:4], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.clamp(0, 1), expected.clamp(0, 1), atol=2e-5, rtol=0)


def test_ycbcr_is_pillows_and_back(images):
    bytes_ = (images * 255).round().to(torch.uint8)
    ycbcr = color_spaces.rgb_to_ycbcr(bytes_.float() / 255)
    for image, values in zip(bytes_, ycbcr, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("YCbCr"))
        ours = 255 * values.permute(1, 2, 0).numpy() + [0, 128, 128]
        assert np.abs(ours - expected).max() < 1.01
    torch.testing.assert_close(color_spaces.ycbcr_to_rgb(ycbcr), bytes_.float() / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(ycbcr[:, 0], kornia.color.rgb_to_ycbcr(bytes_.float() / 255)[:, 0], atol=1e-5, rtol=0)


def test_every_image_gets_the_space_that_it_drew(images):
    choice = torch.tensor(
        [
            color_spaces.UNCHANGED,
            color_spaces.GREY,
            color_spaces.LAB,
            color_spaces.HSV,
            color_spaces.MEAN_SUBTRACTED,
            color_spaces.LAB,
        ]
    )
    y = color_spaces.to_color_space(images, choice)
    assert torch.equal(y[0], images[0])
    grey = skimage.color.rgb2gray(last(images)[1])  # its weights are those of BT.709
    assert torch.equal(y[1, 0], y[1, 1]) and abs(np.corrcoef(grey.ravel(), y[1, 0].ravel())[0, 1]) > 0.9
    luma = np.tensordot(last(images)[1], [0.299, 0.587, 0.114], 1)
    np.testing.assert_allclose(y[1, 0], luma, atol=1e-5)
    lab = (skimage.color.rgb2lab(last(images)[2]) + [0, 128, 128]) / [100, 255, 255]
    np.testing.assert_allclose(last(y)[2], lab, atol=1e-3)
    np.testing.assert_allclose(last(y)[3], skimage.color.rgb2hsv(last(images)[3]), atol=1e-4)
    for k in range(3):
        image = images[4, k].double().numpy()
        difference = image - scipy.ndimage.gaussian_filter(image, 7 / 6, radius=3, mode="mirror")
        expected = (difference - difference.min()) / (difference.max() - difference.min() + 1e-3)
        np.testing.assert_allclose(y[4, k], expected, atol=1e-4)
    torch.testing.assert_close(y[5:], color_spaces.to_color_space(images[5:], choice[5:]))


def test_a_flat_image_is_not_blown_up():
    flat = torch.full((1, 1, 20, 20), 0.4) + 1e-5 * torch.rand((1, 1, 20, 20))
    assert color_spaces.to_color_space(flat, torch.tensor([color_spaces.MEAN_SUBTRACTED])).max() < 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_other_devices_take_the_same_values_without_a_read(no_host_reads, channels):
    spaces = color_spaces.SPACES_OF_COLOR if channels == 3 else color_spaces.SPACES_OF_GREY
    x, choice = torch.rand(5, channels, 16, 16), torch.tensor([*spaces, *spaces, *spaces][:5])
    with no_host_reads():
        assert color_spaces.to_color_space(x.to("meta"), choice.to("meta")).shape == x.shape
