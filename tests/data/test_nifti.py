import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from csrtrain.data import decode
from csrtrain.data.decode import DecodeError

RNG = np.random.default_rng(0)
EMBEDDED = Path(nibabel.__file__).parent / "tests" / "data"


def save(tmp_path, voxels, name="a.nii", kind=nibabel.Nifti1Image, slope=None, intercept=None, calibration=None):
    image = kind(voxels, np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    if calibration is not None:
        image.header["cal_min"], image.header["cal_max"] = calibration
    path = str(tmp_path / name)
    nibabel.save(image, path)
    return path


def volume(shape=(9, 8, 7), dtype=np.int16):
    return RNG.integers(0, 1000, shape).astype(dtype)


def close(got, want, atol=1e-6):
    torch.testing.assert_close(got[0].double(), torch.from_numpy(np.array(want, dtype=np.float64)), atol=atol, rtol=0)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_slices_of_the_full_range(tmp_path, kind, name, slice_axis):
    voxels = volume()
    path = save(tmp_path, voxels, name, kind)
    low, high = voxels.min(), voxels.max()
    assert decode.count_frames(path, slice_axis) == voxels.shape[slice_axis]
    for k in range(voxels.shape[slice_axis]):
        want = np.rot90(voxels.take(k, slice_axis).astype(float))
        close(decode.read(f"{path}#{k}", window="full", slice_axis=slice_axis), (want - low) / (high - low))


def test_four_axes(tmp_path):
    voxels = volume((5, 6, 7, 3))
    path = save(tmp_path, voxels)
    assert [decode.count_frames(path, axis) for axis in range(3)] == [15, 18, 21]
    close(decode.read(f"{path}#17", window=(500.0, 1000.0)), np.rot90(voxels[:, :, 3, 2]) / 1000)
    close(decode.read(f"{path}#11", window=(500.0, 1000.0), slice_axis=0), np.rot90(voxels[1, :, :, 2]) / 1000)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 1, 1, 1)])
def test_one_slice_needs_no_number(tmp_path, shape):
    voxels = volume(shape)
    path = save(tmp_path, voxels)
    assert decode.count_frames(path) == 1
    close(decode.read(path, window=(500.0, 1000.0)), np.rot90(voxels.reshape(9, 8)) / 1000)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_types_slope_and_intercept(tmp_path, dtype, byteorder):
    voxels = RNG.integers(0, 200, (9, 8, 7)).astype(dtype)
    image = nibabel.Nifti1Image(voxels, np.eye(4), nibabel.Nifti1Header(endianness=byteorder))
    image.set_data_dtype(np.dtype(dtype).newbyteorder(byteorder))
    image.header.set_slope_inter(2, -30)
    path = str(tmp_path / "a.nii")
    nibabel.save(image, path)
    scaled = np.asarray(nibabel.load(path).dataobj)
    close(decode.read(f"{path}#3", window=(100.0, 300.0)), ((np.rot90(scaled[:, :, 3]) + 50) / 300).clip(0, 1))


def test_header_window_is_the_calibration_else_percentiles(tmp_path):
    voxels = volume()
    voxels[0, 0, 0] = 32000  # one bright voxel does not darken the rest
    calibrated = save(tmp_path, voxels, "b.nii", calibration=(100, 600))
    close(decode.read(f"{calibrated}#2"), ((np.rot90(voxels[:, :, 2]) - 100.0) / 500).clip(0, 1))
    low, high = np.percentile(voxels, (0.5, 99.5))
    for name in ("c.nii", "c.nii.gz"):
        path = save(tmp_path, voxels, name)
        close(decode.read(f"{path}#2"), ((np.rot90(voxels[:, :, 2]) - low) / (high - low)).clip(0, 1))


def test_percentiles_of_a_large_volume_are_estimated_and_do_not_depend_on_compression(tmp_path):
    voxels = (RNG.normal(size=(20, 20, 90, 2)) * 100).astype(np.int16)
    plain, packed = save(tmp_path, voxels, "a.nii"), save(tmp_path, voxels, "a.nii.gz")
    assert torch.equal(decode.read(f"{plain}#100"), decode.read(f"{packed}#100"))
    low, high = np.percentile(voxels, (0.5, 99.5))
    close(decode.read(f"{plain}#100"), ((np.rot90(voxels[:, :, 10, 1]) - low) / (high - low)).clip(0, 1), atol=0.01)


def test_negative_slope(tmp_path):
    voxels = volume()
    path = save(tmp_path, voxels, slope=-1, intercept=0)
    values = np.asarray(nibabel.load(path).dataobj)
    low, high = np.percentile(values, (0.5, 99.5))
    close(decode.read(f"{path}#2"), ((np.rot90(values[:, :, 2]) - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_a_changed_file_is_read_again(tmp_path):
    path = save(tmp_path, volume(), "a.nii.gz")
    first = decode.read(f"{path}#0", window=(500.0, 1000.0))
    again = volume()
    save(tmp_path, again, "a.nii.gz")
    os.utime(path, (1, 1))
    assert not torch.equal(decode.read(f"{path}#0", window=(500.0, 1000.0)), first)
    close(decode.read(f"{path}#0", window=(500.0, 1000.0)), np.rot90(again[:, :, 0]) / 1000)


def test_rgb_volumes(tmp_path):
    voxels = RNG.integers(0, 256, (9, 8, 7, 3), dtype=np.uint8)
    rgb = np.ascontiguousarray(voxels).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    got = decode.read(f"{save(tmp_path, rgb)}#4")
    assert got.dtype == torch.uint8
    assert np.array_equal(got.permute(1, 2, 0).numpy(), np.rot90(voxels[:, :, 4]))


def test_real_volumes_equal_nibabel():
    for name in ("anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"):
        path = EMBEDDED / name
        voxels = np.asarray(nibabel.load(path).dataobj).astype(float)
        voxels = voxels.reshape(*voxels.shape[:3], -1)
        low, high = voxels.min(), voxels.max()
        for k in (0, voxels.shape[2], voxels.shape[2] * voxels.shape[3] - 1):
            if k < voxels.shape[2] * voxels.shape[3]:
                want = np.rot90(voxels[:, :, k % voxels.shape[2], k // voxels.shape[2]])
                close(decode.read(f"{path}#{k}", window="full"), (want - low) / (high - low), atol=1e-5)


def test_compression_is_told_by_content(tmp_path):
    path = Path(save(tmp_path, volume()))
    misnamed = tmp_path / "packed.nii"
    misnamed.write_bytes(gzip.compress(path.read_bytes()))
    assert torch.equal(decode.read(f"{misnamed}#2"), decode.read(f"{path}#2"))


# Broken files


def test_broken_volumes(tmp_path):
    data = Path(save(tmp_path, volume())).read_bytes()
    packed = gzip.compress(data)
    faults = {
        "cut.nii": data[:-100],
        "header.nii": data[:300],
        "cut.nii.gz": packed[:-300],
        "crc.nii.gz": packed[:-8] + b"abcdefgh",
        "dims.nii": data[:42] + b"\xff\x7f\xff\x7f" + data[46:],
        "none.nii": data[:42] + b"\0\0" + data[44:],
        "other.nii.gz": gzip.compress(b"not a volume" * 100),
    }
    for name, fault in faults.items():
        path = tmp_path / name
        path.write_bytes(fault)
        with pytest.raises(DecodeError, match=f"{name}"):
            decode.read(f"{path}#1")


def test_not_finite_complex_and_shapeless_volumes(tmp_path):
    voxels = volume(dtype=np.float32)
    voxels[1, 2, 3] = np.nan
    path = save(tmp_path, voxels)
    assert decode.read(f"{path}#2").isfinite().all()
    with pytest.raises(DecodeError, match=r"a\.nii#3: Expected finite pixel values, got 1 of 72"):
        decode.read(f"{path}#3")
    with pytest.raises(DecodeError, match="Expected real voxels, got complex ones"):
        decode.read(f"{save(tmp_path, volume(dtype=np.complex64), 'c.nii')}#0")
    with pytest.raises(DecodeError, match=r"Expected a 2-D, 3-D or 4-D NIfTI image, got 5 axes \(9, 8, 7, 1, 2\)"):
        decode.count_frames(save(tmp_path, volume((9, 8, 7, 1, 2)), "d.nii"))
    with pytest.raises(
        DecodeError, match=r"a\.nii: Expected a slice axis of 0, 1 or 2, got 3. Correct data.slice_axis"
    ):
        decode.count_frames(path, 3)
    with pytest.raises(DecodeError, match="Expected at most 5e-05 megapixels, got 9 x 8"):
        decode.read(f"{path}#2", max_megapixels=0.00005)


def test_a_compressed_bomb_is_refused_by_its_header(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2000, 2000, 2000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(10_000_000)))
    with pytest.raises(
        DecodeError, match=r"bomb\.nii\.gz#1: Expected at most 6400 million voxels in a compressed file"
    ):
        decode.read(f"{path}#1")
