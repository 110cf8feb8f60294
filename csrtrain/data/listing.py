"""What the user names -> a list of entries: folders, text lists, CSV columns, embedded samples."""

import hashlib
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from csrtrain.data import decode, samples
from csrtrain.data.rows import MOST_PATHS, limit, stream_rows, text_lines
from csrtrain.files import check_file, is_address, shown

_RACY_NS = 2_000_000_000

Times = dict[str, tuple[int, int]]
"""Relative path -> (modification time in ns, size; 0 for folders) of what must not change for a listing to hold."""


class Listing(NamedTuple):
    """What is found before frames are counted.

    base: relative addresses start here.
    entries: addresses as they are listed, in order.
    explicit: whether the user named each entry, so that none may be passed over.
    times: directories of the tree, for a folder.
    stamp: digest of the text, for a list or CSV.
    """

    base: str
    entries: list[str]
    explicit: bool
    times: Times
    stamp: str


def list_folder(root: str) -> Listing:
    """All supported files below a folder, sorted; hidden files and folders left out, links followed once."""
    entries: list[str] = []
    times: Times = {}
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        path = os.path.join(root, folder)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back, or a second way to the same folder
            continue
        seen.add((status.st_dev, status.st_ino))
        racy = status.st_mtime_ns > time.time_ns() - _RACY_NS
        times[folder] = (-1 if racy else status.st_mtime_ns, 0)
        with os.scandir(path) as listed:
            found = sorted((e for e in listed if not e.name.startswith((".", "__MACOSX"))), key=lambda e: e.name)
        folders = [entry for entry in found if _is_folder(entry)]
        pending += [os.path.join(folder, entry.name) for entry in reversed(folders)]
        files = [entry for entry in found if not _is_folder(entry) and decode.is_supported(entry.path)]
        entries += [os.path.join(folder, entry.name) for entry in files]
    return Listing(root, sorted(entries), False, times, "")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: whoever reads it says so
        return False


def list_file(root: str, column: str | None) -> Listing:
    """Entries of a list, a CSV column or the embedded samples, in their order."""
    if root in ("samples:medical", "samples:natural"):
        entries = samples.medical() if root.endswith("medical") else samples.natural()
        base = os.path.commonpath([os.path.dirname(entry) for entry in entries])
        stamp = hashlib.sha256("\n".join(entries).encode("utf-8", "surrogateescape")).hexdigest()
        return Listing(base, [os.path.relpath(entry, base) for entry in entries], True, {}, stamp)
    if root.startswith("samples:"):
        raise ValueError(f"Expected samples:medical or samples:natural, got {root}. Correct the path.")
    try:
        check_file(root)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected a folder, a list or a CSV file, got nothing at {shown(root)}. Correct the path."
        ) from None
    if root.lower().endswith(".csv"):
        entries = _read_column(root, column)
    elif root.lower().endswith((".txt", ".lst")):
        entries = _read_list(root)
    else:
        raise ValueError(f"Expected a folder, or a .txt, .lst or .csv file, got {shown(root)}. Correct the path.")
    with open(root, "rb") as file:
        stamp = hashlib.file_digest(file, "sha256").hexdigest()
    return Listing(os.path.dirname(root), entries, True, {}, stamp)


def _read_list(root: str) -> list[str]:
    most = limit(MOST_PATHS)
    entries = []
    with open(root, newline="\n", encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in text_lines(file, root):
            if entry := line.strip():
                entries.append(entry)
            if len(entries) > most:
                raise ValueError(
                    f"Expected at most {most} paths in {root}, got more. Split the file, or raise the limit with the "
                    "environment variable CSRTRAIN_MAX_ROWS."
                )
    return entries


def _read_column(root: str, column: str | None) -> list[str]:
    names, lines = stream_rows(root, limit(MOST_PATHS), "surrogateescape")
    with lines:
        if column not in names:
            got = "no column name" if column is None else f"{column!r}"
            raise ValueError(
                f"Expected one of the columns {shown(', '.join(names))} of {root}, got {got}. Name one (data.column, "
                "--column)."
            )
        place, entries, blank = names.index(column), [], []
        for line, cells in lines:
            entries.append(cells[place])
            if not cells[place]:
                blank.append(line)
    if blank:
        raise ValueError(
            f"Expected a path in each cell of {column!r} in {root}, got none in line {_some(blank)}. Fill it."
        )
    return entries


def _some(things: Sequence[object]) -> str:
    return ", ".join(str(thing) for thing in things[:5]) + (f" and {len(things) - 5} more" if len(things) > 5 else "")


def require_files(root: str, listing: Listing) -> None:
    """Refuse a list that names files which do not exist."""
    paths = [os.path.join(listing.base, entry) for entry in listing.entries]
    missing = [path for path in paths if not os.path.isfile(decode.split(path)[0])]
    if addresses := [entry for entry in listing.entries if is_address(entry)] if missing else []:
        raise ValueError(
            f"Expected files on this machine in {root}, got {len(addresses)} addresses: {shown(_some(addresses))}. "
            "Nothing is fetched from a network: download them first."
        )
    if missing:
        raise FileNotFoundError(
            f"Expected {len(paths)} files named in {root}, got {len(missing)} that do not exist: "
            f"{shown(_some(missing))}. Paths are relative to the list; correct it."
        )


def nothing_found(root: str, listing: Listing) -> str:
    """The message for an empty listing."""
    if listing.explicit:
        return f"Expected paths in {root}, got none. Name one image per line."
    names = [name for _, _, files in os.walk(root) for name in files]
    kinds = sorted({os.path.splitext(name)[1].lower() or "(no extension)" for name in names})
    got = f"{len(names)} files of the kinds {', '.join(kinds[:10])}" if names else "an empty folder"
    return f"Expected images in {root} ({' '.join(decode.EXTENSIONS)}), got {got}. Correct the path."
