import pytest

from csrtrain.data import decode, samples


@pytest.mark.parametrize(("listed", "least"), [(samples.medical, 60), (samples.natural, 14)])
def test_every_sample_decodes_and_shows_something(listed, least):
    addresses = listed()
    assert len(addresses) == len(set(addresses)) >= least
    for address in addresses:
        image = decode.read(address)
        assert min(image.shape[1:]) >= 32, address
        full = 1.0 if image.is_floating_point() else 255.0
        assert image.float().std() > 0.03 * full, address


def test_a_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(samples, "_NATURAL", (("skimage", "data/unicorn.png", None),))
    with pytest.raises(
        FileNotFoundError, match=r"Expected the sample image data/unicorn\.png inside the package skimage"
    ):
        samples.natural()
