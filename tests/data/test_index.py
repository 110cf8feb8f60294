import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from csrtrain.data.index import Index, build_index, is_empty

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (8, 9), dtype=np.uint8)).save(path)
    return path


def save_volume(path, slices=5, empty=(0, 4)):
    voxels = RNG.integers(0, 1000, (9, 8, slices)).astype(np.int16)
    voxels[:, :, list(empty)] = 3
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def age(root):
    """Make everything look an hour old: what changed in the last two seconds is listed again."""
    then = time.time() - 3600
    for folder, _, _ in os.walk(root):
        os.utime(folder, (then, then))


def relative(index, root):
    return [os.path.relpath(address, root) for address in index]


def is_cached(root, **options):
    """Whether a second start takes the index of the first."""
    first = build_index(str(root), **options)
    written = os.stat(first.path).st_mtime_ns
    second = build_index(str(root), **options)
    assert list(second) == list(first) and second.digest == first.digest
    return second.path == first.path and os.stat(second.path).st_mtime_ns == written


def test_folder_is_sorted_recursive_and_without_hidden_files(tmp_path):
    for name in ("b.png", "a/z.png", "a/b/c.jpg", "a-b.png", "Ü 1.png", ".hidden.png", ".git/x.png", "__MACOSX/x.png"):
        image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    index = build_index(str(tmp_path))
    assert relative(index, tmp_path) == ["a-b.png", "a/b/c.jpg", "a/z.png", "b.png", "Ü 1.png"]
    assert index[0] == str(tmp_path / "a-b.png") and index[-1] == index[4] and index[1:3] == [index[1], index[2]]
    assert len(index) == 5
    with pytest.raises(IndexError, match="Expected an index below 5, got 5"):
        index[5]


def test_links_are_followed_once(tmp_path):
    image(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "real")
    assert relative(build_index(str(tmp_path)), tmp_path) == ["real/a.png"]


def test_pipes_and_loops_of_links_in_a_folder_are_neither_waited_for_nor_followed(tmp_path):
    image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "scan")  # without an extension: is it DICOM?
    (tmp_path / "self").symlink_to("self")
    assert relative(build_index(str(tmp_path)), tmp_path) == ["a.png"]


def test_names_that_are_not_utf8(tmp_path):
    path = os.fsencode(image(tmp_path / "a.png").parent) + b"/\xff\xfe.png"
    os.rename(tmp_path / "a.png", path)
    assert os.fsencode(build_index(str(tmp_path))[0]) == path


def test_digest_follows_names_not_places(tmp_path):
    for root in ("one", "two"):
        image(tmp_path / root / "a.png")
    one, two = (build_index(str(tmp_path / root)).digest for root in ("one", "two"))
    assert one == two
    image(tmp_path / "two" / "b.png")
    assert build_index(str(tmp_path / "two")).digest != one


def test_pickles_as_its_path(tmp_path):
    image(tmp_path / "a.png")
    index = build_index(str(tmp_path))
    data = pickle.dumps(index)
    assert len(data) < 400
    assert list(pickle.loads(data)) == list(index)


# Frames


def test_volumes_without_empty_slices(tmp_path):
    save_volume(tmp_path / "a.nii")
    image(tmp_path / "b.png")
    assert relative(build_index(str(tmp_path)), tmp_path) == ["a.nii#1", "a.nii#2", "a.nii#3", "b.png"]
    everything = build_index(str(tmp_path), skip_empty=False)
    assert relative(everything, tmp_path) == [*(f"a.nii#{k}" for k in range(5)), "b.png"]
    assert len(build_index(str(tmp_path), slice_axis=0, skip_empty=False)) == 10
    assert is_empty(f"{tmp_path}/a.nii#0") and not is_empty(f"{tmp_path}/a.nii#1")


def test_dicom_with_frames_and_without_pixels(tmp_path):
    names = ("SC_rgb_rle_2frame.dcm", "CT_small.dcm", "rtplan.dcm", "dicomdirtests/DICOMDIR")
    for name in names:
        data = Path(get_testdata_file(name, download=False)).read_bytes()
        (tmp_path / os.path.basename(name)).write_bytes(data)
    (tmp_path / "IM0001").write_bytes((tmp_path / "CT_small.dcm").read_bytes())
    (tmp_path / "README").write_text("text")
    want = ["CT_small.dcm", "IM0001", "SC_rgb_rle_2frame.dcm#0", "SC_rgb_rle_2frame.dcm#1"]
    assert relative(build_index(str(tmp_path)), tmp_path) == want


def test_broken_files_stay_in_the_index(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"broken")
    (tmp_path / "b.dcm").write_bytes(b"broken")
    (tmp_path / "c.jpg").write_bytes(b"")
    assert relative(build_index(str(tmp_path)), tmp_path) == ["a.nii", "b.dcm", "c.jpg"]


# Cache


def test_second_start_takes_the_cached_index_until_something_changes(tmp_path):
    for name in ("a.png", "x/b.png"):
        image(tmp_path / name)
    save_volume(tmp_path / "v.nii")
    age(tmp_path)
    assert is_cached(tmp_path)
    for change in (
        lambda: image(tmp_path / "x" / "new.png"),
        lambda: (tmp_path / "a.png").unlink(),
        lambda: (tmp_path / "x" / "b.png").rename(tmp_path / "x" / "c.png"),
        lambda: image(tmp_path / "y" / "deep" / "d.png"),
        lambda: save_volume(tmp_path / "v.nii", slices=9),
    ):
        before = list(build_index(str(tmp_path)))
        change()
        after = build_index(str(tmp_path))
        assert list(after) != before
        age(tmp_path)
        build_index(str(tmp_path))
        assert is_cached(tmp_path)


def test_unchanged_volumes_are_not_read_again(tmp_path):
    save_volume(tmp_path / "v.nii")
    build_index(str(tmp_path))
    status = os.stat(tmp_path / "v.nii")
    with open(tmp_path / "v.nii", "r+b") as file:  # same size and time, all slices alike: only reading it would tell
        file.seek(352)
        file.write(bytes(2 * 9 * 8 * 5))
    os.utime(tmp_path / "v.nii", ns=(status.st_atime_ns, status.st_mtime_ns))
    image(tmp_path / "new.png")
    assert relative(build_index(str(tmp_path)), tmp_path) == ["new.png", "v.nii#1", "v.nii#2", "v.nii#3"]


def test_a_folder_changed_just_before_it_was_listed_is_listed_again(tmp_path):
    """A second change within the same tick of the file system's clock leaves the same time."""
    image(tmp_path / "a.png")
    now = time.time()
    os.utime(tmp_path, (now, now))
    build_index(str(tmp_path))
    image(tmp_path / "b.png")
    os.utime(tmp_path, (now, now))
    assert len(build_index(str(tmp_path))) == 2


def test_a_damaged_cache_is_built_again(tmp_path):
    image(tmp_path / "a.png")
    age(tmp_path)
    index = build_index(str(tmp_path))
    for damage in (b"", b"nothing", Path(index.path).read_bytes()[:-3], Path(index.path).read_bytes()[:40]):
        Path(index.path).write_bytes(damage)
        assert list(build_index(str(tmp_path))) == [str(tmp_path / "a.png")]
    with pytest.raises(ValueError, match="Expected an index file, got"):
        Index(tmp_path / "a.png")


def test_old_index_files_are_removed(tmp_path):
    for k in range(5):
        image(tmp_path / f"{k}.png")
        index = build_index(str(tmp_path))
    assert len(list(Path(index.path).parent.glob("*"))) == 2


def test_cache_dir_that_cannot_be_written(tmp_path):
    image(tmp_path / "a.png")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match="Expected to write the index to .*, got Not a directory"):
        index = build_index(str(tmp_path), cache_dir=str(blocked))
    assert list(index) == [str(tmp_path / "a.png")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_index(str(tmp_path), cache_dir=str(tmp_path / "made")).path.startswith(str(tmp_path / "made"))


def test_an_index_in_place_of_the_cache_goes_with_the_process(tmp_path, monkeypatch):
    image(tmp_path / "a.png")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    program = (
        f"from csrtrain.data.index import build_index as b; print(b({str(tmp_path)!r}, cache_dir='/dev/null').path)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert path.startswith(str(tmp_path / "temporary" / "csrtrain-index-"))
    assert not any((tmp_path / "temporary").iterdir())


def _build(root, results):
    results.put(list(build_index(root)))


def test_several_processes_build_at_once(tmp_path):
    for k in range(20):
        image(tmp_path / f"{k}.png")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_build, args=(str(tmp_path), results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(names == found[0] and len(names) == 20 for names in found)


# Lists and CSV columns


def test_list(tmp_path):
    elsewhere = image(tmp_path / "elsewhere" / "x.png")
    image(tmp_path / "data" / "a.png")
    save_volume(tmp_path / "data" / "v.nii")
    text = f"sub/../a.png\n\n{elsewhere}\r\nv.nii#2\nv.nii\na.png\n"
    path = tmp_path / "data" / "images.txt"
    (tmp_path / "data" / "sub").mkdir()
    path.write_text(text)
    want = ["data/a.png", "elsewhere/x.png", "data/v.nii#2", *(f"data/v.nii#{k}" for k in (1, 2, 3)), "data/a.png"]
    assert relative(build_index(str(path)), tmp_path) == want
    assert is_cached(path)
    path.write_text(text + "a.png\n")
    assert relative(build_index(str(path)), tmp_path) == [*want, "data/a.png"]
    path.write_text("a.png\nmissing.png\ngone/b.png\n")
    with pytest.raises(
        FileNotFoundError, match=r"Expected 3 files named in .*, got 2 that do not exist: .*missing\.png, .*b"
    ):
        build_index(str(path))
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"Expected paths in .*images\.txt, got none"):
        build_index(str(path))


def test_csv_column(tmp_path):
    for name in ("a.png", "b, 1.png"):
        image(tmp_path / name)
    path = tmp_path / "labels.csv"
    path.write_text('\ufeffimage,mos\n"b, 1.png",3\na.png,4\n', encoding="utf-8")
    assert relative(build_index(str(path), column="image"), tmp_path) == ["b, 1.png", "a.png"]
    assert is_cached(path, column="image")
    with pytest.raises(
        ValueError, match=r"Expected one of the columns image, mos of .*labels\.csv, got 'path'. Name one"
    ):
        build_index(str(path), column="path")
    with pytest.raises(ValueError, match="got no column name"):
        build_index(str(path))
    path.write_text("image,mos\na.png,3\n,4\n  ,5\n")
    with pytest.raises(ValueError, match="Expected a path in each cell of 'image' in .*, got none in line 3, 4"):
        build_index(str(path), column="image")


def test_hostile_lists(tmp_path, monkeypatch):
    image(tmp_path / "a.png")
    path = tmp_path / "images.txt"
    path.write_text("a.png\nhttps://example.com/b.png\n")
    with pytest.raises(ValueError, match="images.txt, got 1 addresses: https://example.com/b.png. Nothing is fetched"):
        build_index(str(path))
    path.write_text("a.png\n" + "x" * 10**6 + "\n")
    with pytest.raises(FileNotFoundError, match=r"images.txt, got 1 that do not exist: .*x\.\.\.\.") as caught:
        build_index(str(path))
    assert len(str(caught.value)) < 1000
    path.write_text("x" * 2**20)
    with pytest.raises(ValueError, match="lines of less than 1048576 characters in .*images.txt, got a longer line 1"):
        build_index(str(path))
    monkeypatch.setenv("CSRTRAIN_MAX_ROWS", "2")
    path.write_text("a.png\n" * 3)
    with pytest.raises(ValueError, match="at most 2 paths in .*images.txt, got more.*CSRTRAIN_MAX_ROWS"):
        build_index(str(path))
    os.mkfifo(tmp_path / "pipe.txt")
    for name, words in (
        (str(tmp_path / "pipe.txt"), "a device, pipe or socket for .*pipe.txt"),
        ("/dev/zero", "a device, pipe or socket for /dev/zero"),
        ("https://example.com/images.txt", "Nothing is fetched from a network"),
        ("a\0b.txt", "embedded null byte"),
    ):
        with pytest.raises(ValueError, match=words):
            build_index(name)


def test_nothing_to_index(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "README").write_text("text")
    match = r"Expected images in .* \(\.jpg .*\), got 2 files of the kinds \(no extension\), \.txt. Correct the path"
    with pytest.raises(ValueError, match=match):
        build_index(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="got an empty folder"):
        build_index(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="got nothing at .*nowhere"):
        build_index(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"Expected a folder, or a \.txt, \.lst or \.csv file, got .*a\.png"):
        build_index(str(image(tmp_path / "a.png")))
    with pytest.raises(ValueError, match="Expected samples:medical or samples:natural, got samples:cats"):
        build_index("samples:cats")


def test_samples():
    index = build_index("samples:medical")
    assert len(index) == 65 and any("CT_small.dcm" in address for address in index)
    assert build_index("samples:medical").path == index.path


# A million


def _read_many(index, results):
    process = psutil.Process()
    before = process.memory_full_info().uss
    for i in np.random.default_rng(0).integers(0, len(index), 200_000):
        index[int(i)]
    results.put(process.memory_full_info().uss - before)


@pytest.mark.slow
def test_a_million_paths(tmp_path):
    """The second start takes less than 5 s, and a worker needs no more memory than the index file has bytes."""
    for folder in range(100):
        (tmp_path / f"{folder:03d}").mkdir()
        for k in range(10_000):
            os.close(os.open(tmp_path / f"{folder:03d}" / f"image_{folder:03d}_{k:05d}.jpg", os.O_CREAT))
    age(tmp_path)
    started = time.perf_counter()
    index = build_index(str(tmp_path))
    first = time.perf_counter() - started
    started = time.perf_counter()
    again = build_index(str(tmp_path))
    second = time.perf_counter() - started
    assert len(again) == 1_000_000 and again.path == index.path
    assert second < 5
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_read_many, args=(again, results))
    process.start()
    grown = results.get(timeout=120)
    process.join()
    size = os.path.getsize(again.path)
    print(f"first start {first:.2f} s, second {second:.3f} s, file {size / 1e6:.0f} MB, worker +{grown / 1e6:.0f} MB")
    assert grown < size + 10e6
