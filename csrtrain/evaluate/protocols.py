"""What is fitted to which rows and judged on which: from bundles and manifests to results."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csrtrain import bundle
from csrtrain.data.manifest import Manifest, is_manifest, read_manifest
from csrtrain.data.splits import (
    Split,
    check_manifests_apart,
    check_rows,
    native_split,
    random_splits,
    with_copies_together,
)
from csrtrain.evaluate import judging, rated
from csrtrain.evaluate.methods import Contender, Method, Reading, distance_methods, load, no_reference_methods
from csrtrain.evaluate.preferences import is_preferences, read_preferences, tested_rows
from csrtrain.evaluate.preferences import judge as judge_preferences
from csrtrain.metrics.bootstrap import DRAWS

Seen = tuple[list[Method], rated.Rated, rated.Rows]
"""Of a manifest: methods, ratings, and the rows that all methods can judge."""

PROTOCOLS = ("splits", "native", "whole", "cross")
SPLITS = 10
_FEWEST = 5


def evaluate(
    bundles: Sequence[str | Path],
    manifests: Sequence[str],
    protocol: str | None = None,
    reading: Reading | None = None,
    with_controls: bool = True,
    seed: int = 0,
    size: int | None = None,
) -> dict[str, Any]:
    """Judge bundles by people's ratings, beside controls; see docs/evaluation.md.

    Args:
        bundles: backbones, no-reference metrics, full-reference distances.
        manifests: CSV files; several for the protocol cross.
        protocol: one of `PROTOCOLS`; by default cross for several manifests; where a head has to be fitted the split
            of the manifest, or random splits; else whole.
        reading: how images are read.
        with_controls: whether controls stand beside.
        seed: of splits, folds, bootstrap samples and untrained backbones.
        size: resize images of choices to a square of so many pixels, antialiased, as LPIPS does with 64.

    Returns:
        Plain data: what `csrtrain evaluate` writes as results.json.

    Raises:
        ValueError: wrong use, wrong rows, or something shared between what is fitted to and what is judged on.
    """
    reading = reading or Reading()
    contenders = load(bundles)
    if not contenders or not manifests:
        raise ValueError(f"Expected bundles and a manifest, got {len(contenders)} and {len(manifests)}. Name both.")
    if any(is_preferences(path) for path in manifests):
        return _evaluate_preferences(contenders, manifests, protocol, reading, with_controls, seed, size)
    if size is not None:
        raise ValueError(
            f"Expected no size for ratings, got {size}: people rated images as they are, and a resize changes quality. "
            "Leave it out."
        )
    read = [_read(path) for path in manifests]
    protocol = _protocol(protocol, contenders, read)
    results = _frame(protocol, seed, reading, contenders, [(m.file, m.digest, len(m), m.rating_name) for m in read])
    results["notes"] = _notes(contenders, [(m.file, m.digest) for m in read], protocol)
    if protocol == "cross":
        check_manifests_apart(read)
    if protocol != "native":
        read = [with_copies_together(manifest) for manifest in read]
    rows = [_splits(protocol, manifest, seed) for manifest in read]
    seen = [_seen(contenders, one, reading, with_controls, seed, results["broken"]) for one in read]
    if protocol == "cross":
        seen = _of_all(seen)
        results["evaluations"] = _cross(seen, read, rows, reading, seed)
    else:
        methods, judged, sound = seen[0]
        splits = _only(rows[0], sound, read[0].file)
        found = judging.judge(methods, judged, splits, reading, seed, True)
        results["evaluations"] = [{"train": None, "test": os.path.basename(read[0].file), **found}]
    results["notes"] += _left_out(seen[0][0], with_controls)
    return results


def _frame(
    protocol: str,
    seed: int,
    reading: Reading,
    contenders: Sequence[Contender],
    manifests: Sequence[tuple[str, str, int, str]],
) -> dict[str, Any]:
    """What results say before there are any."""
    return {
        "protocol": protocol,
        "seed": seed,
        "bf16": reading.bf16,
        "bootstrap_draws": DRAWS,
        "versions": {**bundle.versions(), **_versions()},
        "bundles": {one.name: _described(one) for one in contenders},
        "manifests": [
            {"file": os.path.basename(file), "digest": digest, "rows": rows, "ratings": ratings}
            for file, digest, rows, ratings in manifests
        ],
        "notes": [],
        "broken": [],
        "evaluations": [],
    }


def _evaluate_preferences(
    contenders: Sequence[Contender],
    manifests: Sequence[str],
    protocol: str | None,
    reading: Reading,
    with_controls: bool,
    seed: int,
    size: int | None,
) -> dict[str, Any]:
    """2AFC triplets or JND pairs; backbones are distances with all weights 1."""
    if len(manifests) > 1:
        raise ValueError(f"Expected one manifest of choices, got {len(manifests)}. Evaluate them one by one.")
    if wrong := [one.name for one in contenders if one.kind == "no_reference"]:
        raise ValueError(f"Expected distances or backbones for choices, got the no-reference metric {wrong[0]}.")
    read, protocol = read_preferences(manifests[0]), protocol or "whole"
    rows = tested_rows(read, protocol)
    file, ratings = os.path.basename(read.file), "choices (2AFC)" if read.kind == "2afc" else "seen differences (JND)"
    results = _frame(protocol, seed, reading, contenders, [(read.file, read.digest, len(read.share), ratings)])
    results["notes"] = _notes(contenders, [(read.file, read.digest)], protocol, True)
    pairs, first, second = read.pairs()
    methods = distance_methods(contenders, pairs, reading, with_controls, seed, size)
    results["notes"] += _left_out(methods, with_controls)
    if size is not None:
        results["notes"].append(f"Images were resized to {size} x {size} pixels.")
    reasons = _reasons(methods, [f"{image} against {reference}" for image, reference in pairs])
    sound = []
    for row in rows:
        reason = reasons.get(int(first[row])) or reasons.get(int(second[row]))
        if reason:
            results["broken"].append({"manifest": file, "line": read.lines[row], "reason": reason})
        else:
            sound.append(row)
    _check_enough(sound, read.file, reasons)
    found = judge_preferences(methods, read, first, second, np.array(sound), seed)
    results["evaluations"] = [{"train": None, "test": file, **found}]
    return results


def _left_out(methods: Sequence[Method], with_controls: bool) -> list[str]:
    """Whether a control of distances could not be computed."""
    compared = [method.controls for method in methods if method.kind == "distance"]
    if with_controls and compared and "MS-SSIM" not in compared[0]:
        return ["The control MS-SSIM is left out: an image has a side below 176 pixels, and no fifth scale."]
    return []


def _reasons(methods: Sequence[Method], names: Sequence[str]) -> dict[int, str]:
    """Rows that some method has no values for, and why."""
    reasons: dict[int, str] = {}
    for method in methods:
        for row, reason in method.broken.items():
            reasons.setdefault(row, reason)
        for row in map(int, np.flatnonzero(~np.isfinite(method.values).all(1))):
            reasons.setdefault(row, f"{names[row]}: {method.name} has no finite value for it")
    return dict(sorted(reasons.items()))


def _check_enough(sound: Sequence[Any] | rated.Rows, file: str, reasons: dict[int, str]) -> None:
    if len(sound) < _FEWEST:
        first = next(iter(reasons.values()), "")
        raise ValueError(
            f"Expected at least {_FEWEST} rows whose images can be read in {file}, got {len(sound)}"
            f"{f' ({first}). Mend the files.' if first else '. Rate more images.'}"
        )


def _read(path: str) -> Manifest:
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "nothing"
        raise ValueError(f"Expected a manifest (.csv), got {found} at {path}. Correct the path.")
    if not is_manifest(path):
        raise ValueError(f"Expected a manifest (.csv with mos or dmos, or judge, or same), got {path}. Name another.")
    manifest = read_manifest(path)
    check_rows(manifest)
    if np.ptp(manifest.ratings) == 0:
        raise ValueError(
            f"Expected different ratings in {path}, got {manifest.rating_name} {manifest.ratings[0]:g} for all. "
            "Rate the images."
        )
    return manifest


def _protocol(asked: str | None, contenders: Sequence[Contender], manifests: Sequence[Manifest]) -> str:
    """The protocol that was asked for, or the one that these need."""
    fits = [one.name for one in contenders if one.kind == "backbone"]
    if asked is None:
        if len(manifests) > 1:
            return "cross"
        return "whole" if not fits else "splits" if manifests[0].splits is None else "native"
    if asked not in PROTOCOLS:
        raise ValueError(f"Expected a protocol of {', '.join(PROTOCOLS)}, got {asked!r}. Name one.")
    if (asked == "cross") != (len(manifests) > 1):
        raise ValueError(
            f"Expected several manifests for cross and one for others, got {len(manifests)} for {asked}. Correct it."
        )
    if asked == "whole" and fits:
        raise ValueError(
            f"Expected fitted metrics or distances for the protocol whole, got the backbone {fits[0]}, which needs "
            "images to fit a head to. Use splits or native."
        )
    return asked


def _splits(protocol: str, manifest: Manifest, seed: int) -> list[Split]:
    if protocol in ("splits", "cross"):
        return random_splits(manifest.groups, SPLITS, seed=seed)
    if protocol == "native":
        return [native_split(manifest)]
    return [Split(np.empty(0, dtype=np.int64), np.arange(len(manifest)))]


def _only(splits: Sequence[Split], sound: rated.Rows, file: str) -> list[Split]:
    """Splits without the rows of broken images."""
    kept = [Split(train[np.isin(train, sound)], test[np.isin(test, sound)]) for train, test in splits]
    if not all(len(split.test) for split in kept):
        raise ValueError(f"Expected rows to judge on in {file}, got a split whose images are all broken. Mend them.")
    return kept


def _seen(
    contenders: Sequence[Contender],
    manifest: Manifest,
    reading: Reading,
    with_controls: bool,
    seed: int,
    broken: list[dict[str, Any]],
) -> Seen:
    """What each method makes of the images of a manifest, and the rows that all can judge; others go to `broken`."""
    judged = rated.rated_of(manifest)
    distances = [one for one in contenders if one.kind == "distance"]
    others = [one for one in contenders if one.kind != "distance"]
    if distances:
        missing = [n for n, r in zip(manifest.lines, manifest.references or [""] * len(manifest), strict=True) if not r]
        if missing:
            listed = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"Expected a reference for every image of {manifest.file} to compare it with, got none in lines "
                f"{listed}. Add them, or leave {distances[0].name} out."
            )
    pairs = list(zip(manifest.addresses, manifest.references or [], strict=True)) if distances else []
    methods = no_reference_methods(others, manifest.addresses, reading, with_controls, seed)
    methods += distance_methods(distances, pairs, reading, with_controls, seed)
    methods.sort(key=lambda method: method.kind == "control")
    reasons = _reasons(methods, manifest.addresses)
    for row, reason in reasons.items():
        broken.append({"manifest": os.path.basename(manifest.file), "line": manifest.lines[row], "reason": reason})
    sound = np.array([row for row in range(len(manifest)) if row not in reasons], dtype=np.int64)
    _check_enough(sound, manifest.file, reasons)
    return methods, judged, sound


def _of_all(seen: Sequence[Seen]) -> list[Seen]:
    """Without the controls that one of the manifests has no values of."""
    names = set.intersection(*({method.name for method in methods} for methods, _, _ in seen))
    found = []
    for methods, judged, sound in seen:
        kept = [method for method in methods if method.name in names]
        for method in kept:
            method.controls = [name for name in method.controls if name in names]
        found.append((kept, judged, sound))
    return found


def _cross(
    seen: Sequence[Seen],
    manifests: Sequence[Manifest],
    rows: Sequence[Sequence[Split]],
    reading: Reading,
    seed: int,
) -> list[dict[str, Any]]:
    """Every manifest to fit to with every one to judge on; on the diagonal random splits of it."""
    found = []
    for a, source in enumerate(manifests):
        for b, target in enumerate(manifests):
            if a == b:
                methods, judged, sound = seen[a]
                splits = _only(rows[a], sound, source.file)
            else:
                methods, judged, splits = _joined(seen[a], seen[b])
            cell = judging.judge(methods, judged, splits, reading, seed, False)
            found.append({"train": os.path.basename(source.file), "test": os.path.basename(target.file), **cell})
    return found


def _joined(source: Seen, target: Seen) -> tuple[list[Method], rated.Rated, list[Split]]:
    """The rows of two manifests one after the other; all of the first to fit to, all of the second to judge on."""
    (methods, first, sound), (others, second, also) = source, target
    count = len(first.quality)
    both = []
    for method, other in zip(methods, others, strict=True):
        values = np.concatenate([method.values, other.values])
        both.append(Method(method.name, method.kind, method.head, values, {}, method.respond, controls=method.controls))
    nothing = np.full(count, np.nan)
    joined = rated.Rated(
        np.concatenate([first.quality, second.quality]),
        None if second.deviation is None else np.concatenate([nothing, second.deviation]),
        None if second.types is None else np.concatenate([np.full(count, ""), second.types]),
        None if second.levels is None else np.concatenate([nothing, second.levels]),
        np.concatenate([first.series, second.series + first.series.max() + 1]),
        np.concatenate([first.groups, second.groups + first.groups.max() + 1]),
        first.addresses + second.addresses,
        None,
    )
    return both, joined, [Split(sound, also + count)]


def _described(contender: Contender) -> dict[str, Any]:
    header: Any = contender.module.header
    return {
        "file": os.path.basename(contender.file),
        "digest": hashlib.sha256(Path(contender.file).read_bytes()).hexdigest(),
        "kind": contender.kind,
        "training": header.training if header else {},
        "input": header.input if header else {},
    }


def _notes(
    contenders: Sequence[Contender], manifests: Sequence[tuple[str, str]], protocol: str, choices: bool = False
) -> list[str]:
    """What a reader has to know to judge the numbers.

    Args:
        manifests: their files and digests.
        choices: whether backbones are distances.

    Raises:
        ValueError: a metric was fitted to rows that it would be judged on.
    """
    notes = []
    for one in contenders:
        if one.kind == "backbone" and choices:
            notes.append(
                f"{one.name}: the distance of all its feature maps with weights 1, which no rating was used for. "
                "Whether its pretraining saw these images is not known."
            )
            continue
        if one.kind == "backbone":
            notes.append(
                f"{one.name}: a ridge head is fitted in every split to its frozen features. Whether its pretraining "
                "saw the test images, without ratings, is not known."
            )
            continue
        if one.kind == "distance" and one.module.header and one.module.header.distance["fitted_to"] == "ones":
            notes.append(f"{one.name}: a distance with all weights 1, which no rating was used for.")
            continue
        training = one.module.header.training if one.module.header else {}
        digest = training.get("data", {}).get("digest") if isinstance(training.get("data"), dict) else None
        for file, its_digest in manifests:
            if digest != its_digest:
                continue
            if protocol != "native":
                raise ValueError(
                    f"Expected ratings that {one.name} was not fitted to, got {file}, which it was fitted to "
                    "(same digest). Use --protocol native with its column split, or other ratings."
                )
            notes.append(f"{one.name} was fitted to the rows of split train of this manifest.")
        if digest not in [its_digest for _, its_digest in manifests]:
            notes.append(
                f"{one.name} is judged as it is. It was fitted elsewhere; whether images of this manifest were among "
                "those it was fitted to cannot be known."
            )
    if protocol == "whole" and any(one.kind == "no_reference" for one in contenders):
        notes.append(
            "Controls with a head are fitted to four fifths of these ratings and judged on the fifth, in turn: an "
            "advantage that the metrics do not have."
        )
    return notes


def _versions() -> dict[str, str]:
    import scipy
    import sklearn

    return {
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
    }
