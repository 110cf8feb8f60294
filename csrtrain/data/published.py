"""Published rating sets -> a manifest: which there are, what is checked, and the summary of `csrtrain manifest`."""

import csv
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from csrtrain.data import layouts
from csrtrain.data.layouts import Found, Row
from csrtrain.data.manifest import inspect_manifest

_PATHS = ("path", "reference", "p0", "p1")
_RATINGS = {
    "mos": "higher is better",
    "dmos": "lower is better",
    "judge": "the share of people who chose p1",
    "same": "the share of people who saw no difference",
}
_MARKED = ("pristine", "training")
_LISTED = 5


class PublishedSet(NamedTuple):
    """A set that `csrtrain manifest` knows.

    title: what its authors call it.
    read: its folder -> its rows; the layout is described there.
    rows: as published, without those that belong to no protocol.
    rating_range: smallest and largest rating of the scale; None where it has no fixed ends.
    paper: where it is described.
    source: where to get it.
    tolerance: by how many rows `rows` is rounded.
    """

    title: str
    read: Callable[[Path], Found]
    rows: int
    rating_range: tuple[float, float] | None
    paper: str
    source: str
    tolerance: int = 0


SETS = {
    "live": PublishedSet(
        "LIVE, release 2",
        layouts.live,
        779,
        None,
        "Sheikh et al., IEEE TIP 2006",
        "https://live.ece.utexas.edu/research/quality/subjective.htm",
    ),
    "csiq": PublishedSet(
        "CSIQ",
        layouts.csiq,
        866,
        (0, 1),
        "Larson and Chandler, J. Electronic Imaging 2010",
        "https://s2.smu.edu/~eclarson/csiq.html",
    ),
    "tid2013": PublishedSet(
        "TID2013",
        layouts.tid2013,
        3000,
        (0, 9),
        "Ponomarenko et al., Signal Processing: Image Communication 2015",
        "http://www.ponomarenko.info/tid2013.htm",
    ),
    "kadid10k": PublishedSet(
        "KADID-10k",
        layouts.kadid10k,
        10125,
        (1, 5),
        "Lin et al., QoMEX 2019",
        "http://database.mmsp-kn.de/kadid-10k-database.html",
    ),
    "clive": PublishedSet(
        "CLIVE (LIVE In the Wild Challenge)",
        layouts.clive,
        1162,
        (0, 100),
        "Ghadiyaram and Bovik, IEEE TIP 2016",
        "https://live.ece.utexas.edu/research/ChallengeDB/index.html",
    ),
    "koniq10k": PublishedSet(
        "KonIQ-10k",
        layouts.koniq10k,
        10073,
        (0, 100),
        "Hosu et al., IEEE TIP 2020",
        "http://database.mmsp-kn.de/koniq-10k-database.html",
    ),
    "flive": PublishedSet(
        "FLIVE (LIVE-FB, PaQ-2-PiQ)",
        layouts.flive,
        39807,
        (0, 100),
        "Ying et al., CVPR 2020",
        "https://github.com/baidut/PaQ-2-PiQ",
    ),
    "spaq": PublishedSet(
        "SPAQ",
        layouts.spaq,
        11125,
        (0, 100),
        "Fang et al., CVPR 2020",
        "https://github.com/h4nwei/SPAQ",
    ),
    "pipal": PublishedSet(
        "PIPAL, training part",
        layouts.pipal,
        23200,
        None,
        "Gu et al., ECCV 2020",
        "https://github.com/HaomingCai/PIPAL-dataset",
    ),
    "biq2021": PublishedSet(
        "BIQ2021",
        layouts.biq2021,
        12000,
        (0, 1),
        "Ahmed and Asif, J. Electronic Imaging 2022",
        "https://github.com/nisarahmedrana/BIQ2021",
    ),
    "ldctiqac": PublishedSet(
        "LDCTIQAC 2023 (low-dose CT), training part",
        layouts.ldctiqac,
        1000,
        (0, 4),
        "Lee et al., Medical Image Analysis 2025",
        "https://zenodo.org/records/7833096",
    ),
    "bapps-2afc": PublishedSet(
        "BAPPS, 2AFC triplets",
        layouts.bapps_2afc,
        187_600,
        (0, 1),
        "Zhang et al., CVPR 2018",
        "https://github.com/richzhang/PerceptualSimilarity",
        tolerance=450,
    ),
    "bapps-jnd": PublishedSet(
        "BAPPS, JND pairs",
        layouts.bapps_jnd,
        9600,
        (0, 1),
        "Zhang et al., CVPR 2018",
        "https://github.com/richzhang/PerceptualSimilarity",
        tolerance=100,
    ),
}


@dataclass
class PublishedManifest:
    """What was read from a folder.

    Attributes:
        published: the set.
        rows: those that are written, as text by column; paths as they are on disk.
        columns: in the order of the file.
        rating_name: mos, dmos, judge or same.
        notes: what the user should know.
        faults: rows that have no usable rating and are not written, in words.
    """

    published: PublishedSet
    rows: list[Row]
    columns: list[str]
    rating_name: str
    notes: list[str]
    faults: list[str]


def read_published(name: str, folder: str, everything: bool = False) -> PublishedManifest:
    """Read a published set.

    Args:
        name: one of `SETS`.
        folder: what the set unpacks to; see the function of the set in `csrtrain.data.layouts`.
        everything: keep rated images that belong to no protocol; `type` says which they are (pristine, training).

    Raises:
        FileNotFoundError: the folder, a file of the layout or an image is missing; the message names the first.
        ValueError: there is no such set, or a file is not what it should be.
    """
    if name not in SETS:
        raise ValueError(f"Expected one of {', '.join(SETS)}, got {name!r}. csrtrain manifest --help describes them.")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"Expected the folder of {SETS[name].title}, got {folder}, which is none. Correct it.")
    published = SETS[name]
    rows, notes = published.read(Path(folder))
    marked = Counter(row["type"] for row in rows if row.get("type") in _MARKED)
    kept = rows if everything else [row for row in rows if row.get("type") not in _MARKED]
    if not kept:
        raise ValueError(f"Expected rated images of {published.title} in {folder}, got none. Unpack the whole set.")
    for kind, count in marked.items():
        notes.append(
            f"{count} rows of type {kind} are {'in it' if everything else 'left out (--all keeps them)'}; they belong "
            "to no protocol"
        )
    count = len(kept) - (sum(marked.values()) if everything else 0)
    if abs(count - published.rows) > published.tolerance:
        about = "about " if published.tolerance else ""
        notes.append(f"warning: {count} rows, but {about}{published.rows} were published")
    columns = [column for column in dict.fromkeys(key for row in kept for key in row) if any(map(_has(column), kept))]
    _check_files(published.title, folder, kept, columns)
    rating_name = next(column for column in _RATINGS if column in columns)
    reasons = (_rating_faults if "path" in columns else _share_faults)(kept, columns, rating_name, published)
    faults = [f"{_name(kept[i], folder)}: {reason}" for i, reason in sorted(reasons.items())]
    return PublishedManifest(
        published, [row for i, row in enumerate(kept) if i not in reasons], columns, rating_name, notes, faults
    )


def _has(column: str) -> Callable[[Row], bool]:
    return lambda row: bool(row.get(column))


def _name(row: Row, folder: str) -> str:
    return os.path.relpath(row.get("path") or row["p0"], folder)


def _check_files(title: str, folder: str, rows: list[Row], columns: list[str]) -> None:
    """Every image is there; folders are listed once."""
    listed: dict[str, set[str]] = {}
    missing: dict[str, None] = {}
    total = 0
    for path in dict.fromkeys(row[column] for column in columns if column in _PATHS for row in rows if row.get(column)):
        place, name = os.path.split(path)
        if place not in listed:
            listed[place] = set(os.listdir(place)) if os.path.isdir(place) else set()
        total += 1
        if name not in listed[place]:
            missing[os.path.relpath(path, folder)] = None
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise FileNotFoundError(
            f"Expected {total} images of {title} in {folder}, got no {', '.join(list(missing)[:_LISTED])}{more}. "
            "Unpack the whole set."
        )


def _rating_faults(rows: list[Row], columns: list[str], _rating: str, published: PublishedSet) -> dict[int, str]:
    """Row -> what is wrong with it, as `csrtrain.data.manifest` finds when it reads the rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "manifest.csv")
        _write(path, rows, columns, relative=False)
        manifest, problems = inspect_manifest(path, rating_range=published.rating_range)
    row_of = {line: i for i, line in enumerate(manifest.lines)}
    return {row_of[problem.line]: problem.text for problem in problems}


def _share_faults(rows: list[Row], _columns: list[str], rating: str, _published: PublishedSet) -> dict[int, str]:
    return {i: f"{rating} is {row[rating]}" for i, row in enumerate(rows) if not 0 <= float(row[rating]) <= 1}


def write_published(manifest: PublishedManifest, output: str) -> None:
    """Write the CSV file. Images below its folder are named relative to it, others by their whole path.

    Raises:
        ValueError: the name does not end in .csv, or no row is left to write.
        OSError: it cannot be written.
    """
    check_output(output)
    if not manifest.rows:
        raise ValueError(f"Expected a usable rating in {manifest.published.title}, got none. Get its files again.")
    partial = f"{output}.partial"
    _write(partial, manifest.rows, manifest.columns, relative=True)
    os.replace(partial, output)


def check_output(output: str) -> None:
    """Raise unless it can be the name of a manifest."""
    if not output.lower().endswith(".csv"):
        raise ValueError(f"Expected a name that ends in .csv, got {output}. Change the name.")
    if not os.access(os.path.dirname(output) or ".", os.W_OK) or os.path.isdir(output):
        raise ValueError(f"Expected a file in a folder that can be written to, got {output}. Name another.")


def _write(path: str, rows: list[Row], columns: list[str], relative: bool) -> None:
    base = os.path.dirname(os.path.abspath(path))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            named = {column: _place(row[column], base, relative) for column in _PATHS if row.get(column)}
            writer.writerow([named.get(column, row.get(column, "")) for column in columns])


def _place(path: str, base: str, relative: bool) -> str:
    path = os.path.abspath(path)
    return os.path.relpath(path, base) if relative and path.startswith(os.path.join(base, "")) else path


def format_published(manifest: PublishedManifest) -> str:
    """What is in it, in words."""
    rows, rating = manifest.rows, manifest.rating_name
    ratings = [float(row[rating]) for row in rows]
    span = f"{min(ratings):g} to {max(ratings):g}" if ratings else "none"
    scale = manifest.published.rating_range
    of = f" (scale {scale[0]:g} to {scale[1]:g})" if scale else ""
    lines = [
        f"{manifest.published.title} ({manifest.published.paper}): {len(rows)} rows.",
        f"Ratings: {rating}, {_RATINGS[rating]}; {span}{of}.",
    ]
    for column, title in (("reference", "References"), ("group", "Groups")):
        count = len({row[column] for row in rows if row.get(column)})
        lines.append(f"{title}: {count or 'none'}.")
    for column, title in (("split", "Splits"), ("subset", "Subsets"), ("type", "Types")):
        if column in manifest.columns:
            counts = Counter(row[column] for row in rows if row.get(column))
            lines.append(f"{title}: " + ", ".join(f"{name}: {count}" for name, count in counts.items()) + ".")
    if "split" not in manifest.columns:
        lines.append("Splits: none.")
    return "\n".join(lines)
