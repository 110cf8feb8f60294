"""How the published rating sets lie on disk: a function per set, from the folder it unpacks to -> rows as text.

A row has the columns of a manifest (`csrtrain.data.manifest`) and, where the set has them, `type` and `level` of the
distortion and `std`, the standard deviation of the ratings of its image. Paths are those on disk; whether the images
are there is checked by `csrtrain.data.published`. The type `pristine` or `training` marks images that are rated but
belong to no protocol. A layout is what the set's authors published; packages made by others differ. What of it could
not be checked is in the docstring.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from csrtrain.data import tables

Row = dict[str, str]

LIVE_COUNTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
"""Folders of LIVE in the order of its arrays, and the images in each."""

CSIQ_TYPES = {
    "noise": ("awgn", "AWGN"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}
"""Type in the sheet -> folder, and part of the file names."""

TID2013_TYPES = (
    *("gaussian_noise", "color_noise", "correlated_noise", "masked_noise", "high_frequency_noise", "impulse_noise"),
    *("quantization_noise", "gaussian_blur", "denoise", "jpeg", "jpeg2000", "jpeg_transmission_errors"),
    *("jpeg2000_transmission_errors", "non_eccentricity_patches", "block_distortions", "mean_shift"),
    *("change_contrast", "color_saturation", "multiplicative_noise", "comfort_noise", "lossy_compressed_noise"),
    *("color_quantization_dither", "chromatic_aberration", "sparse_sampling"),
)
"""Types 1 to 24 of TID2013, in its order (Table 1 of the paper)."""

KADID_TYPES = (
    *("gaussian_blur", "lens_blur", "motion_blur", "color_diffusion", "color_shift", "color_quantization"),
    *("saturate_hsv", "saturate_lab", "jpeg2000", "jpeg", "white_noise", "white_noise_ycbcr", "impulse_noise"),
    *("multiplicative_noise", "denoise", "brighten", "darken", "mean_shift", "jitter", "non_eccentricity_patches"),
    *("pixelate", "quantize_levels", "color_blocks", "sharpen", "change_contrast"),
)
"""Types 1 to 25 of KADID-10k, in its order, by the names of `csrtrain.augment.distort`."""


class Found(NamedTuple):
    """The rows of a set, and what the user should know of them."""

    rows: list[Row]
    notes: list[str]


def live(folder: Path) -> Found:
    """LIVE, release 2: `refimgs`, five folders of `imgN.bmp`, and MATLAB files; DMOS.

    `dmos_realigned.mat` (`dmos_new`, `dmos_std`, `orgs`), which comes beside the archive, is preferred to `dmos.mat`
    (`dmos`, `orgs`). Where `orgs` is 1 the image is a copy of its reference: type `pristine`. The references in each
    folder's `info.txt`, where it is there, are compared with those of `refnames_all.mat`. What its third column means
    could not be checked; it is not read, so there is no level.
    """
    root = _inside(folder, "databaserelease2")
    _require(root, "refnames_all.mat", "refimgs", *LIVE_COUNTS)
    realigned = [path for path in (root / "dmos_realigned.mat", folder / "dmos_realigned.mat") if path.is_file()]
    notes = []
    if realigned:
        dmos, std, copies = (tables.vector(realigned[0], name) for name in ("dmos_new", "dmos_std", "orgs"))
    else:
        _require(root, "dmos.mat")
        dmos, copies = (tables.vector(root / "dmos.mat", name) for name in ("dmos", "orgs"))
        std = np.full(len(dmos), np.nan)
        notes.append("dmos.mat was read, because dmos_realigned.mat is not there")
    references = tables.names(root / "refnames_all.mat", "refnames_all")
    _same_length(root, sum(LIVE_COUNTS.values()), dmos=dmos, dmos_std=std, orgs=copies, refnames_all=references)
    rows, others, i = [], [], 0
    for kind, count in LIVE_COUNTS.items():
        named = _live_info(root / kind / "info.txt")
        for k in range(1, count + 1):
            name = f"img{k}.bmp"
            if named.get(name, references[i]) != references[i]:
                others.append(f"{kind}/{name}")
            rows.append(
                {
                    "path": str(root / kind / name),
                    "reference": str(root / "refimgs" / references[i]),
                    "dmos": tables.text(dmos[i]),
                    "group": Path(references[i]).stem,
                    "type": "pristine" if copies[i] else kind,
                    "std": tables.text(std[i]) if np.isfinite(std[i]) else "",
                }
            )
            i += 1
    if others:
        notes.append(
            f"warning: info.txt names other references than refnames_all.mat, which was used, for {len(others)} "
            f"images, first {others[0]}; is this the authors' order?"
        )
    return Found(rows, notes)


def _live_info(path: Path) -> dict[str, str]:
    """Image -> reference."""
    if not path.is_file():
        return {}
    words = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return {line[1]: line[0] for line in words if len(line) > 1}


def csiq(folder: Path) -> Found:
    """CSIQ: `src_imgs`, `dst_imgs` with a folder per type, and sheet `all_by_image` of `csiq.DMOS.xlsx`; DMOS."""
    _require(folder, "csiq.DMOS.xlsx", "src_imgs", "dst_imgs", *(f"dst_imgs/{kind}" for kind, _ in CSIQ_TYPES.values()))
    sheet = folder / "csiq.DMOS.xlsx"
    columns = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
    pristine = _Folder(folder / "src_imgs")
    distorted = {kind: _Folder(folder / "dst_imgs" / kind) for kind, _ in CSIQ_TYPES.values()}
    rows = []
    for image, kind_name, level, std, dmos in tables.sheet(sheet, "all_by_image", columns):
        if kind_name not in CSIQ_TYPES:
            raise ValueError(
                f"Expected one of {', '.join(CSIQ_TYPES)} as dst_type in {sheet}, got {kind_name!r}. Correct it."
            )
        kind, part = CSIQ_TYPES[kind_name]
        rows.append(
            {
                "path": distorted[kind].file(f"{image}.{part}.{level}.png"),
                "reference": pristine.file(f"{image}.png"),
                "dmos": dmos,
                "group": image,
                "type": kind,
                "level": level,
                "std": std,
            }
        )
    return Found(rows, [])


def tid2013(folder: Path) -> Found:
    """TID2013: `reference_images`, `distorted_images`, `mos_with_names.txt`, `mos_std.txt`; MOS, 0 to 9.

    The names' letters are upper case in some places and lower case in others; both are found. A level is the one of the
    file name; of mean_shift and change_contrast it does not order the images by quality.
    """
    _require(folder, "mos_with_names.txt", "reference_images", "distorted_images")
    path = folder / "mos_with_names.txt"
    lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    deviations = [""] * len(lines)
    if (folder / "mos_std.txt").is_file():
        deviations = (folder / "mos_std.txt").read_text(encoding="utf-8", errors="replace").split()
        _same_length(folder / "mos_std.txt", len(lines), lines=deviations)
    pristine, distorted = _Folder(folder / "reference_images"), _Folder(folder / "distorted_images")
    rows = []
    for words, std in zip(lines, deviations, strict=True):
        found = re.fullmatch(r"(I\d\d)_(\d\d)_(\d)\.bmp", words[-1], re.IGNORECASE)
        if len(words) != 2 or not found or not 1 <= int(found[2]) <= len(TID2013_TYPES):
            raise ValueError(f"Expected lines like '5.51 I01_01_1.bmp' in {path}, got {' '.join(words)!r}. Correct it.")
        rows.append(
            {
                "path": distorted.file(words[1]),
                "reference": pristine.file(f"{found[1]}.BMP"),
                "mos": words[0],
                "group": found[1].upper(),
                "type": TID2013_TYPES[int(found[2]) - 1],
                "level": found[3],
                "std": std,
            }
        )
    return Found(rows, [])


def kadid10k(folder: Path) -> Found:
    """KADID-10k: `images` (references too) and `dmos.csv`; its column dmos is a MOS, 1 to 5, higher is better.

    Its column var is in truth the standard deviation, as those say who compared it with the single ratings.
    """
    _require(folder, "dmos.csv", "images")
    path = folder / "dmos.csv"
    rows = []
    for image, reference, mos, std in tables.table(path, "dist_img", "ref_img", "dmos", "var"):
        found = re.fullmatch(r"I\d\d_(\d\d)_0?(\d)\.png", image)
        if not found or not 1 <= int(found[1]) <= len(KADID_TYPES):
            raise ValueError(f"Expected names like I01_01_01.png in {path}, got {image!r}. Correct it.")
        rows.append(
            {
                "path": str(folder / "images" / image),
                "reference": str(folder / "images" / reference),
                "mos": mos,
                "group": Path(reference).stem,
                "type": KADID_TYPES[int(found[1]) - 1],
                "level": found[2],
                "std": std,
            }
        )
    return Found(rows, [])


def clive(folder: Path) -> Found:
    """LIVE In the Wild Challenge: `Images`, `Data/All{Images,MOS,StdDev}_release.mat`; MOS, 0 to 100.

    The seven images `t1.bmp` ... that trained the raters lie in `Images/trainingImages`: type `training`.
    """
    root = _inside(folder, "ChallengeDB_release")
    files = {name: root / "Data" / f"All{name}_release.mat" for name in ("Images", "MOS", "StdDev")}
    _require(root, "Images", *(f"Data/{path.name}" for path in files.values()))
    names = tables.names(files["Images"], "AllImages_release")
    mos, std = (tables.vector(files[name], f"All{name}_release") for name in ("MOS", "StdDev"))
    _same_length(root / "Data", len(names), AllMOS_release=mos, AllStdDev_release=std)
    rows = []
    for name, rating, deviation in zip(names, mos, std, strict=True):
        training = bool(re.fullmatch(r"t\d+\.bmp", name))
        place = root / "Images" / "trainingImages" if training else root / "Images"
        kind = "training" if training else ""
        rows.append(
            {"path": str(place / name), "mos": tables.text(rating), "type": kind, "std": tables.text(deviation)}
        )
    return Found(rows, [])


def koniq10k(folder: Path) -> Found:
    """KonIQ-10k: `1024x768` (or `512x384`) and `koniq10k_distributions_sets.csv`; MOS, 0 to 100, and the split.

    That file is in the authors' code repository (subpic/koniq, metadata). Where it is not there, column MOS_zscore of
    `koniq10k_scores_and_distributions.csv`, which comes with the images, is the same MOS, without a split. SD is in
    units of the five answers, not of the MOS.
    """
    size = next((name for name in ("1024x768", "512x384") if (folder / name).is_dir()), "1024x768")
    sets, scores = "koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv"
    if not (folder / sets).is_file() and (folder / scores).is_file():
        _require(folder, size)
        listed = [(*row, "") for row in tables.table(folder / scores, "image_name", "MOS_zscore", "SD")]
        notes = [f"no split: {sets} (github.com/subpic/koniq, metadata) is not there"]
    else:
        _require(folder, sets, size)
        listed, notes = [(*row,) for row in tables.table(folder / sets, "image_name", "MOS", "SD", "set")], []
    splits = {"training": "train", "validation": "val", "test": "test", "": ""}
    wrong = [row[3] for row in listed if row[3] not in splits]
    if wrong:
        raise ValueError(
            f"Expected training, validation or test as set in {folder / sets}, got {wrong[0]!r}. Correct it."
        )
    rows = [
        {"path": str(folder / size / name), "mos": mos, "split": splits[part], "std": std}
        for name, mos, std, part in listed
    ]
    return Found(rows, notes)


def flive(folder: Path) -> Found:
    """FLIVE (LIVE-FB, PaQ-2-PiQ), whole images: `labels_image.csv` and `database` with the images; MOS, 0 to 100.

    The split of the paper is that of two more tables of the authors: `labels640.csv` names the test images (a side
    above 640 px), `labels=640_padded.csv` says by is_valid which others validate; images in neither train. Without both
    tables there is no split.
    """
    root = _inside(folder, "database")
    labels = _first("labels_image.csv", folder, root) or folder / "labels_image.csv"
    _require(labels.parent, labels.name)
    larger, padded = (_first(name, folder, root) for name in ("labels640.csv", "labels=640_padded.csv"))
    parts: dict[str, str] = {}
    notes = []
    if larger and padded:
        for name, valid in tables.table(padded, "name_image", "is_valid"):
            parts[name] = "val" if valid.lower() in ("true", "1", "1.0") else "train"
        parts |= {name: "test" for (name,) in tables.table(larger, "name_image")}
    else:
        notes.append("no split: labels640.csv and labels=640_padded.csv (from the authors) are not both there")
    rows = []
    for name, mos in tables.table(labels, "name", "mos"):
        split = parts.get(name, "train") if parts else ""
        rows.append({"path": str(root / name), "mos": mos, "split": split})
    return Found(rows, notes)


def spaq(folder: Path) -> Found:
    """SPAQ: `TestImage` and `Annotations/MOS and Image attribute scores.xlsx`; MOS, 0 to 100. No official split."""
    sheet = "Annotations/MOS and Image attribute scores.xlsx"
    _require(folder, sheet, "TestImage")
    listed = tables.sheet(folder / sheet, None, ("Image name", "MOS"))
    return Found([{"path": str(folder / "TestImage" / name), "mos": mos} for name, mos in listed], [])


def pipal(folder: Path) -> Found:
    """PIPAL: `Train_Ref`, `Train_Label/*.txt` with lines `name.bmp,score`, `Distortion_1` to `_4`; Elo scores as MOS.

    The scores of the validation and test images of its challenges are not in the set as it is published, so there is no
    split. The images may also lie together in `Train_Distort`. The number of the type is that of the file name; what it
    stands for could not be checked.
    """
    _require(folder, "Train_Ref", "Train_Label")
    places = [path for path in (*sorted(folder.glob("Distortion_*")), folder / "Train_Distort") if path.is_dir()]
    if not places:
        _require(folder, *(f"Distortion_{k}" for k in range(1, 5)))
    where = {name: path / name for path in places for name in os.listdir(path)}
    rows = []
    for path in sorted((folder / "Train_Label").glob("*.txt")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, comma, score = (part.strip() for part in line.partition(","))
            if not line.strip():
                continue
            found = re.fullmatch(r"([^_]+)_(\d+)_(\d+)\.bmp", name)
            if not found or not comma:
                raise ValueError(f"Expected lines like 'A0001_00_00.bmp,1500.0' in {path}, got {line!r}. Correct it.")
            rows.append(
                {
                    "path": str(where.get(name, places[0] / name)),
                    "reference": str(folder / "Train_Ref" / f"{found[1]}.bmp"),
                    "mos": score,
                    "group": found[1],
                    "type": found[2],
                }
            )
    return Found(rows, [])


def biq2021(folder: Path) -> Found:
    """BIQ2021: `Images` and `{Train,Test} (Images and MOS).csv`; MOS, 0 to 1, and the split.

    The `Train.csv` and `Test.csv` beside them hold other values, some below 0, and are not read.
    """
    files = {part: folder / f"{name} (Images and MOS).csv" for part, name in (("train", "Train"), ("test", "Test"))}
    _require(folder, "Images", *(path.name for path in files.values()))
    rows = []
    for part, path in files.items():
        for name, mos in tables.table(path, "Image Name", "MOS"):
            rows.append({"path": str(folder / "Images" / name), "mos": mos, "split": part})
    return Found(rows, [])


def ldctiqac(folder: Path) -> Found:
    """LDCTIQAC 2023, training part: `image/*.tif` and `train.json`, name -> score; MOS of five radiologists, 0 to 4.

    Names are those of the files, with or without `.tif`. Names of the form patient_slice_k_k have the patient as the
    group. Names that are numbers (0000.tif) say nothing of the patient, so there is no group, and random splits of
    them put one patient on both sides. The files of the test part are not read.
    """
    root = _inside(folder, "LDCTIQAG2023_train")
    _require(root, "train.json", "image")
    path = root / "train.json"
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected a JSON file, got {path} ({error}). Get it again.") from None
    if not isinstance(scores, dict):
        raise ValueError(f"Expected names with scores in {path}, got {type(scores).__name__}. Get the file again.")
    patients = [re.match(r"([A-Z]+\d+)_\d+_\d+_\d+(\.tif)?$", name) for name in scores]
    known = all(patients)
    rows = []
    for (name, score), patient in zip(scores.items(), patients, strict=True):
        file = name if name.endswith(".tif") else f"{name}.tif"
        group = patient[1] if known and patient else ""
        rows.append({"path": str(root / "image" / file), "mos": str(score), "group": group})
    return Found(rows, [] if known else ["no group: the names do not say which images are of one patient"])


def bapps_2afc(folder: Path) -> Found:
    """BAPPS, 2AFC: `2afc/{train,val}/SUBSET/{ref,p0,p1,judge}`; judge is the share of people who chose p1.

    A triplet is its own group: whether a patch comes in two triplets is not published.
    """
    rows = []
    for place in _subsets(folder, "2afc", ("train", "val"), ("ref", "p0", "p1", "judge")):
        split, subset = place.parts[-2:]
        for stem, judge in _shares(place / "judge"):
            patches = {key: str(place / name / f"{stem}.png") for key, name in _TRIPLET.items()}
            rows.append(
                patches | {"judge": judge, "group": f"{split}/{subset}/{stem}", "split": split, "subset": subset}
            )
    return Found(rows, [])


_TRIPLET = {"reference": "ref", "p0": "p0", "p1": "p1"}


def bapps_jnd(folder: Path) -> Found:
    """BAPPS, JND: `jnd/val/SUBSET/{p0,p1,same}`; same is the share of people who saw no difference."""
    rows = []
    for place in _subsets(folder, "jnd", ("val",), ("p0", "p1", "same")):
        for stem, same in _shares(place / "same"):
            patches = {name: str(place / name / f"{stem}.png") for name in ("p0", "p1")}
            rows.append(patches | {"same": same, "group": f"{place.name}/{stem}", "subset": place.name})
    return Found(rows, [])


def _subsets(folder: Path, kind: str, splits: tuple[str, ...], contents: tuple[str, ...]) -> list[Path]:
    """Folders of subsets, each checked for its contents; splits that are not there are left out."""
    root = _inside(folder, "dataset")
    _require(root, kind)
    there = [path for split in splits if (path := root / kind / split).is_dir()]
    if not there:
        _require(root, *(f"{kind}/{split}" for split in splits))
    found = [path for split in there for path in sorted(split.iterdir()) if path.is_dir()]
    for path in found:
        _require(path, *contents)
    return found


def _shares(folder: Path) -> list[tuple[str, str]]:
    """(name without ending, share) of each `.npy` of a folder, sorted."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".npy"))
    console = Console(stderr=True)
    title = f"Reading {folder.parent.parent.name}/{folder.parent.name}"
    bar = track(names, title, console=console, transient=True, disable=not console.is_terminal)
    return [(name.removesuffix(".npy"), tables.share(folder / name)) for name in bar]


class _Folder:
    """The files of a folder by name; where letters differ in case only, the file there is meant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = {name.lower(): name for name in sorted(os.listdir(path), reverse=True)}

    def file(self, name: str) -> str:
        return str(self.path / self.names.get(name.lower(), name))


def _inside(folder: Path, name: str) -> Path:
    """The folder of that name in it, where archives unpack to one; else itself."""
    return folder / name if (folder / name).is_dir() else folder


def _first(name: str, *folders: Path) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _require(folder: Path, *names: str) -> None:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"Expected {', '.join(names)} in {folder}, got no {', '.join(missing)}. Give the folder that holds them; "
            "csrtrain manifest --help says where the set is from."
        )


def _same_length(place: Path, count: int, **columns: Any) -> None:
    for name, values in columns.items():
        if len(values) != count:
            raise ValueError(f"Expected {count} {name} in {place}, got {len(values)}. Unpack the set again.")
