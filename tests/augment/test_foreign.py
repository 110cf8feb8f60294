import kornia.augmentation as K
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from csrtrain.augment.foreign import KorniaViews


def pipeline(size=24):
    return K.ImageSequential(K.RandomResizedCrop((size, size)), K.RandomHorizontalFlip(), K.RandomGaussianNoise(p=1.0))


def make(views, images, epoch=0, positions=None):
    drawn = views.draw(1, epoch, np.arange(len(images)) if positions is None else positions, *images.shape[2:])
    return views(images, drawn)


def test_two_different_views_of_the_asked_size(noise_images):
    first, second = make(KorniaViews(pipeline(), 24), noise_images(4, 3, 40, 36))
    assert first.shape == second.shape == (4, 3, 24, 24) and first.dtype == torch.float32
    assert not torch.allclose(first, second, atol=0.05)


def test_the_same_batch_gives_the_same_views_again(noise_images):
    images = noise_images(4, 3, 40, 36)
    views = KorniaViews(pipeline(), 24)
    first, later = make(views, images), make(views, images, epoch=1)
    torch.manual_seed(99)
    again = make(KorniaViews(pipeline(), 24), images)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], later[0])
    assert not torch.equal(first[0], make(views, images, positions=np.arange(4, 8))[0])


def test_the_global_generator_is_left_alone(noise_images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make(KorniaViews(pipeline(), 24), noise_images(2, 3, 40, 36))
    assert torch.equal(torch.rand(3), expected)


def test_uint8_and_float32_agree(noise_images):
    images = noise_images(2, 1, 40, 36)
    square = images[:, :, :36]
    views = KorniaViews(nn.Identity(), 36)
    assert torch.equal(make(views, square)[0], square.float() / 255)
    assert torch.equal(make(views, square.float() / 255)[1], square.float() / 255)


def test_a_list_of_operations_from_a_config():
    parser = ArgumentParser()
    parser.add_argument("--views", type=nn.Module)
    operations = [
        {"class_path": "kornia.augmentation.RandomResizedCrop", "init_args": {"size": [16, 16]}},
        {"class_path": "kornia.augmentation.RandomVerticalFlip", "init_args": {"p": 0.5}},
    ]
    value = {
        "class_path": "csrtrain.augment.foreign.KorniaViews",
        "init_args": {"pipeline": operations, "size": 16},
    }
    views = parser.instantiate(parser.parse_object({"views": value})).views
    assert make(views, torch.rand(3, 3, 30, 30))[0].shape == (3, 3, 16, 16)


def test_a_pipeline_of_another_size_is_refused(noise_images):
    with pytest.raises(ValueError, match=r"Expected views \(2, 3, 24, 24\) .* got \(2, 3, 32, 32\). Let it begin with"):
        make(KorniaViews(pipeline(32), 24), noise_images(2, 3, 40, 36))
