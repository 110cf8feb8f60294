"""Where the images are: a folder, a list, a CSV column or the embedded samples -> a flat index of addresses.

The index is one file in a cache directory: a blob of addresses and an array of offsets, opened as a memory map. Workers
share its pages, so their memory does not grow with the number of images, and it is pickled as the name of that file.

When a cached index is used again
- folder: no directory in the tree has another modification time (a file was added, removed or renamed in it), and no
  multi-frame file has another size or time. A single-frame file overwritten in place keeps its address, so nothing is
  missed. Not noticed: a single-frame file overwritten by one with several frames. On file systems without directory
  times nothing is noticed; remove the cache, or name another `cache_dir`.
- list or CSV: its bytes are the same. That a listed file has vanished is noticed when it is read.
Directories changed less than two seconds before they were listed count as changed, since such a change may be missed.
"""

import atexit
import hashlib
import json
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from rich.console import Console
from rich.progress import track

from csrtrain.data import decode
from csrtrain.data.listing import Listing, Times, list_file, list_folder, nothing_found, require_files
from csrtrain.distributed import rank
from csrtrain.files import check_file, is_address

_MAGIC = b"csrtrain index 1"
_KEPT = 2  # index files per folder or list: a run that goes on may still read the last but one
_EMPTY_SPAN = 0.05  # of the range: a slice whose 1 % and 99 % quantiles lie closer together shows air; our choice
_MULTI_FRAME = (".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".tif", ".tiff")


class Index(Sequence[str]):
    """Addresses of all images, memory-mapped; `index[i]` is what `csrtrain.data.decode.read` takes.

    Args:
        path: index file written by `build_index`.

    Attributes:
        digest: SHA-256 of the relative addresses in order; the same wherever the data lie.
        root: folder that relative addresses start from.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        data = np.memmap(self.path, dtype=np.uint8, mode="r")
        if bytes(data[:16]) != _MAGIC:
            raise ValueError(f"Expected an index file, got {self.path}. Remove it.")
        count, header_length, times_length = (int(number) for number in data[16:40].view(np.int64))
        header, rest = data[40 : 40 + header_length], data[40 + header_length :]
        self._offsets = rest[: 8 * (count + 1)].view(np.int64)
        self._blob = rest[8 * (count + 1) : len(rest) - times_length]
        self._times_text = rest[len(rest) - times_length :]
        if len(self._offsets) <= count or len(self._blob) != int(self._offsets[-1]):
            raise ValueError(f"Expected a whole index file, got a truncated one: {self.path}. Remove it.")
        fields = json.loads(header.tobytes())
        self.digest: str = fields["digest"]
        self.root: str = fields["base"]
        self._stamp: str = fields["stamp"]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"Expected an index below {len(self)}, got {i}.")
        return os.path.join(self.root, self._relative(i % len(self)))

    def __reduce__(self) -> tuple[type["Index"], tuple[str]]:
        return Index, (self.path,)

    def _times(self) -> Times:
        """Folders and multi-frame files as they were; kept in the file, not in memory."""
        times = json.loads(self._times_text.tobytes())
        return {name: (mtime_ns, size) for name, (mtime_ns, size) in times.items()}

    def _holds(self) -> bool:
        """Whether nothing on disk has changed since the folder was listed."""
        return all(_status(os.path.join(self.root, name)) == old for name, old in self._times().items())

    def _known_frames(self) -> dict[str, list[str]]:
        """Addresses of the multi-frame files of a folder that have not changed."""
        times = self._times()
        known: dict[str, list[str]] = {
            name: [] for name, old in times.items() if old[1] and _status(os.path.join(self.root, name)) == old
        }
        if known:
            for i in range(len(self)):
                address = self._relative(i)
                name, mark, _ = address.rpartition("#")
                if mark and name in known:
                    known[name].append(address)
        return known

    def _relative(self, i: int) -> str:
        return os.fsdecode(self._blob[self._offsets[i] : self._offsets[i + 1]].tobytes())


def build_index(
    root: str,
    *,
    column: str | None = None,
    slice_axis: int = 2,
    skip_empty: bool = True,
    cache_dir: str | None = None,
) -> Index:
    """Find all images.

    Args:
        root: folder (searched recursively, sorted, hidden files and folders left out), `.txt` or `.lst` file with one
            path per line, `.csv` file, or `samples:medical` / `samples:natural`. Paths in a list or CSV are absolute or
            relative to it, and may be addresses (`path#k`).
        column: column of paths when `root` is a CSV file.
        slice_axis: axis of the stored array along which NIfTI volumes are cut.
        skip_empty: leave out frames of multi-frame files that show next to nothing (air): the volumes are read once,
            the result is cached. A frame is empty when its 1 % and 99 % quantiles lie within 5 % of the range.
        cache_dir: where the index is kept; by default `$XDG_CACHE_HOME/csrtrain/index` or `~/.cache/csrtrain/index`.
            When it cannot be written to, the index lies in a temporary folder and is built anew each time.

    Returns:
        Index of addresses; multi-frame files count once per frame. Files that cannot be read stay in it: whoever reads
        them raises or replaces them.

    Raises:
        FileNotFoundError: no such folder or list, or listed files are missing.
        ValueError: nothing found, no such column, an empty cell.
    """
    if is_address(root) and not root.startswith("samples:"):
        check_file(root)  # says that nothing is fetched
    root = root if root.startswith("samples:") or "\0" in root else os.path.abspath(os.path.expanduser(root))
    arguments = (root, column, slice_axis, skip_empty, decode.EXTENSIONS, _EMPTY_SPAN)
    key = hashlib.sha256(json.dumps(arguments).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    base = Path(cache_dir).expanduser().absolute() if cache_dir is not None else _default_cache()
    folder = base / key
    is_folder = os.path.isdir(root)
    cached = _newest(folder)
    if is_folder and cached is not None and cached._holds():
        return cached
    listing = list_folder(root) if is_folder else list_file(root, column)
    if cached is not None and listing.stamp and cached._stamp == listing.stamp and cached._holds():
        return cached
    if listing.explicit:
        require_files(root, listing)
    addresses, times = _expand(
        listing, slice_axis, skip_empty, cached._known_frames() if is_folder and cached is not None else {}
    )
    if not addresses:
        raise ValueError(nothing_found(root, listing))
    return Index(_write(folder, addresses, listing, times))


def addresses_of(images: str, column: str | None = None, slice_axis: int = 2) -> Sequence[str]:
    """Addresses of what a user names: as `build_index`, or one image file, whose frames count one by one.

    Nearly empty frames are kept.

    Args:
        images: folder, list, CSV file, embedded samples, or an image file or frame of one.
        column: of paths, when it is a CSV file.
        slice_axis: axis along which NIfTI volumes are cut.
    """
    path, frame = decode.split(images)
    if not os.path.isfile(path) or path.lower().endswith((".csv", ".txt", ".lst")):
        column = column if images.lower().endswith(".csv") else None
        return build_index(images, column=column, slice_axis=slice_axis, skip_empty=False)
    try:
        count = 1 if frame is not None else decode.count_frames(path, slice_axis)
    except decode.DecodeError:
        count = 1  # whoever reads it says why
    return [images] if count == 1 else [f"{images}#{k}" for k in range(count)]


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "csrtrain" / "index"


def _status(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, 0 if stat.S_ISDIR(status.st_mode) else status.st_size


# Frames


def _expand(
    listing: Listing, slice_axis: int, skip_empty: bool, known: dict[str, list[str]]
) -> tuple[list[str], Times]:
    """Addresses with frame numbers, and the times of multi-frame files; `known` ones are not read again."""
    addresses: list[str] = []
    times = dict(listing.times)
    single: set[str] = set()  # named again, in a list, they are not opened again
    for entry in _progress(listing.entries):
        path = os.path.join(listing.base, entry)
        name, frame = decode.split(path)
        if frame is not None or entry in single or not may_have_frames(name):
            addresses.append(entry)
            continue
        if entry not in known:
            try:
                count = decode.count_frames(name, slice_axis)
            except decode.NoImageError:
                addresses += [entry] if listing.explicit else []
                single |= {entry} if listing.explicit else set()
                continue
            except decode.DecodeError:
                count = 1
            if count == 1:
                addresses.append(entry)
                single.add(entry)
                continue
            kept = [k for k in range(count) if not (skip_empty and is_empty(f"{path}#{k}", slice_axis))]
            known[entry] = [f"{entry}#{k}" for k in kept]
        addresses += known[entry]
        times[entry] = _status(name) or (-1, 0)
    return addresses, times


def may_have_frames(path: str) -> bool:
    """Whether a file may hold several images, by its name: whether it has to be opened to count them."""
    name = path.lower()
    extension = os.path.splitext(name)[1]
    return name.endswith(_MULTI_FRAME) or not extension or extension[1:].isdigit()


def _progress(entries: list[str]) -> Iterable[str]:
    """A progress bar when headers have to be read for more than a few files."""
    console = Console(stderr=True)
    if rank() > 0 or not console.is_terminal or sum(map(may_have_frames, entries[:100_000])) < 64:
        return entries
    return track(entries, "Reading headers and volumes", console=console, transient=True)


def is_empty(address: str, slice_axis: int = 2) -> bool:
    """Whether a frame shows next to nothing: 98 % of its values lie within 5 % of the range. False when unreadable."""
    try:
        image = decode.read(address, slice_axis=slice_axis)
    except decode.DecodeError:
        return False
    return spans_nothing(image.numpy())


def spans_nothing(image: Any) -> bool:
    """The rule of `is_empty` for a decoded image (C,H,W), looked at on at most 256 x 256 of its pixels."""
    coarse = image[:, :: max(1, image.shape[1] // 256), :: max(1, image.shape[2] // 256)]
    low, high = np.quantile(coarse, (0.01, 0.99))
    return bool(high - low < _EMPTY_SPAN * (255 if image.dtype == np.uint8 else 1))


# The file


def _newest(folder: Path) -> Index | None:
    """The index last written to a cache folder, if it can be read."""
    for path in _index_files(folder):
        try:
            return Index(path)
        except (OSError, ValueError, KeyError):
            continue
    return None


def _index_files(folder: Path) -> list[Path]:
    """Newest first."""
    try:
        found = [(path.stat().st_mtime_ns, path) for path in folder.glob("*.index")]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def _write(folder: Path, addresses: list[str], listing: Listing, times: Times) -> Path:
    encoded = [os.fsencode(address) for address in addresses]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(address) for address in encoded], out=offsets[1:])
    blob = b"".join(encoded)
    digest = hashlib.sha256(offsets.tobytes() + blob).hexdigest()
    header = json.dumps({"digest": digest, "base": listing.base, "stamp": listing.stamp}).encode()
    header += b" " * (-len(header) % 8)
    tail = json.dumps(times).encode()
    numbers = np.array([len(encoded), len(header), len(tail)], dtype=np.int64).tobytes()
    parts = (_MAGIC, numbers, header, offsets.tobytes(), blob, tail)
    name = f"{hashlib.sha256(b''.join(parts)).hexdigest()[:32]}.index"
    try:
        path = _replace(folder, name, parts)
    except OSError as error:
        temporary = tempfile.mkdtemp(prefix="csrtrain-index-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        warnings.warn(
            f"Expected to write the index to {folder}, got {error.strerror}. It lies in {temporary} until the end "
            "and is built again next time; set data.cache_dir to a folder that can be written to.",
            stacklevel=3,
        )
        return _replace(Path(temporary), name, parts)
    for old in _index_files(folder)[_KEPT:]:
        old.unlink(missing_ok=True)
    return path


def _replace(folder: Path, name: str, parts: Iterable[bytes]) -> Path:
    """Write to a temporary file in the same folder and rename it: readers see the whole file or none."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        os.replace(temporary, folder / name)
    except BaseException:
        os.unlink(temporary)
        raise
    return folder / name
