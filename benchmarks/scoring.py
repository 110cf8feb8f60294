"""`csrtrain score` under load: many images, one of 100 megapixels, a folder full of mutated files, and pairs.

    python -m benchmarks scoring

The metric is an untrained ResNet-18 with a random head, the distance one with all weights 1: only memory, time and what
becomes of each file are looked at. `python -m benchmarks.scoring` compares the pairs alone, and keeps no result.
Memory is the largest of the command with all its processes, sampled every 50 ms: what each has to itself, and once the
pages that the process with the most of them shares with any other.
"""

import csv
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import tifffile
import torch
from PIL import Image

from benchmarks import harness
from csrtrain import bundle, headers
from csrtrain.data import decode, samples
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

FEW, MANY = 1_000, 10_000
FLAT = 1.05  # times the memory of few images
MUTATED, GOOD = 1_000, 100
SIDE = 10_000  # px: 100 megapixels
LIMIT = 4.0  # GiB
PAIRS, BROKEN = 2_000, 20


class Done(NamedTuple):
    """A finished command: exit code, seconds, largest memory in bytes, what it said, and the rows it wrote."""

    code: int
    seconds: float
    memory: int
    said: str
    rows: list[dict[str, str]]


def score(metric: Path, images: Path, output: Path, *extra: str) -> Done:
    """`csrtrain score` as a user types it, its memory watched."""
    command = [sys.executable, "-m", "csrtrain", "score", str(metric), str(images), "-o", str(output), *extra]
    start, highest, most = time.monotonic(), 0, 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [watched, *watched.children(recursive=True)]
                resident = sum(member.memory_info().rss for member in family)
                if resident > highest:  # what follows takes the kernel long, and is not above it
                    highest = resident
                    full = [member.memory_full_info() for member in family]
                    most = max(most, sum(info.uss for info in full) + max(info.rss - info.uss for info in full))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
            time.sleep(0.05)
        log.seek(0)
        said = log.read()
    rows = list(csv.DictReader(output.open(newline=""))) if output.exists() else []
    return Done(process.returncode, time.monotonic() - start, most, said, rows)


def save_metric(path: Path) -> None:
    torch.manual_seed(0)
    features = FrozenFeatures([Backbone("resnet18")], [Contract()])
    metric = NoReferenceMetric(features, RatingScale(0, 1)).eval()
    bundle.save(path, metric, headers.MetricHeader(**bundle.described_metric(metric, "header", {}, {})))


def mutate(folder: Path) -> dict[str, bytes]:
    """1,000 mutated copies of real files of many formats, and 100 sound ones; name -> content of the sound ones."""
    rng = np.random.default_rng(0)
    sources = [Path(decode.split(address)[0]) for address in (*samples.natural(), *samples.medical())]
    contents = [("".join(path.suffixes), path.read_bytes()) for path in dict.fromkeys(sources)]
    for kind in ("TIFF", "BMP", "WEBP", "JPEG2000"):
        buffer = io.BytesIO()
        Image.open(samples.natural()[0]).resize((160, 120)).save(buffer, kind)
        contents.append(({"JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}"), buffer.getvalue()))
    contents = [(suffix, content) for suffix, content in contents if len(content) < 2_000_000]
    sound = {}
    for k in range(MUTATED + GOOD):
        suffix, content = contents[k % len(contents)]
        damaged = bytearray(content)
        if k >= MUTATED:
            sound[f"good_{k}{suffix}"] = content
        elif k % 3 == 0:  # 1 to 64 bytes flipped
            for place in rng.integers(0, len(damaged), 2 ** rng.integers(0, 7)):
                damaged[place] ^= 1 << rng.integers(0, 8)
        elif k % 3 == 1:
            del damaged[rng.integers(0, len(damaged)) :]
        else:  # named as something else
            suffix = contents[rng.integers(0, len(contents))][0]
        name = f"good_{k}{suffix}" if k >= MUTATED else f"bad_{k}{suffix}"
        (folder / name).write_bytes(damaged)
    return sound


def run() -> harness.Result:
    """Measure all three."""
    with tempfile.TemporaryDirectory() as root_name:
        root = Path(root_name)
        save_metric(root / "m.safetensors")
        rows = [*many_rows(root), *large_rows(root), *mutated_rows(root), *pair_rows(root), *large_pair_rows(root)]
    notes = ["An untrained ResNet-18, float32, two processes that decode; for scores at full and half scale."]
    return harness.Result("scoring", "csrtrain score under load", rows, notes, ("torch", "pillow", "imagecodecs"))


def many_rows(root: Path) -> list[dict[str, object]]:
    """Memory of 10,000 images beside that of 1,000."""
    folder = root / "many"
    folder.mkdir()
    content = io.BytesIO()
    Image.open(samples.natural()[0]).resize((96, 80)).save(content, "JPEG")
    found = {}
    for count in (FEW, MANY):
        for k in range(len(list(folder.iterdir())), count):
            (folder / f"{k:05d}.jpg").write_bytes(content.getvalue())
        found[count] = score(root / "m.safetensors", folder, root / "s.csv", "--workers", "2")
        assert found[count].code == 0 and len(found[count].rows) == count, found[count].said[-2000:]
    shutil.rmtree(folder)
    ratio = found[MANY].memory / found[FEW].memory
    return [
        {
            "what": f"{MANY:,} images of 96 x 80 px: GiB, beside {FEW:,}",
            "found": found[MANY].memory / 2**30,
            "beside": found[FEW].memory / 2**30,
            "ratio": ratio,
            "target": f"<= {FLAT}",
            "verdict": "met" if ratio <= FLAT else "missed",
            "note": f"{found[MANY].seconds:.0f} s",
        }
    ]


def large_rows(root: Path) -> list[dict[str, object]]:
    """Memory of one image of 100 megapixels."""
    folder = root / "large"
    folder.mkdir()
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / "large.jpg", quality=90)
    found = score(root / "m.safetensors", folder, root / "l.csv", "--workers", "1", "--heatmap", str(root / "maps"))
    assert found.code == 0 and len(found.rows) == 1, found.said[-2000:]
    total = float(np.load(next((root / "maps").glob("*.npy"))).sum())
    shutil.rmtree(folder)
    gib = found.memory / 2**30
    return [
        {
            "what": f"an image of {SIDE:,} x {SIDE:,} px, with its heat-map: GiB",
            "found": gib,
            "target": f"< {LIMIT:g}",
            "verdict": "met" if gib < LIMIT else "missed",
            "note": f"{found.seconds:.0f} s; score {float(found.rows[0]['score']):.5f}, heat-map {total:.5f}",
        }
    ]


def mutated_rows(root: Path) -> list[dict[str, object]]:
    """What becomes of each mutated file."""
    folder, clean = root / "mutated", root / "clean"
    folder.mkdir()
    clean.mkdir()
    for name, content in mutate(folder).items():
        (clean / name).write_bytes(content)
    found = score(root / "m.safetensors", folder, root / "b.csv", "--workers", "2")
    expected = score(root / "m.safetensors", clean, root / "g.csv", "--workers", "2")
    files = {Path(path).name for path in map(str, folder.iterdir())}
    by_file: dict[str, list[dict[str, str]]] = {}
    for row in found.rows:
        by_file.setdefault(Path(decode.split(row["path"])[0]).name, []).append(row)
    sound = {row["path"].replace(str(clean), str(folder)): row["score"] for row in expected.rows}
    scored = {row["path"]: row["score"] for row in found.rows}
    equal = sum(abs(float(scored.get(path) or "nan") - float(value)) < 0.01 for path, value in sound.items())
    bad = [row for row in found.rows if row["error"]]
    unnamed = [row for row in bad if Path(decode.split(row["path"])[0]).name not in row["error"]]
    neither = [row for row in found.rows if not row["error"] and not row["score"]]
    missing = len(files - set(by_file))
    good = found.code == 1 and not missing and not neither and equal == len(sound) and not unnamed
    return [
        {
            "what": f"{MUTATED:,} mutated files among {GOOD} sound ones: files without a row",
            "found": missing,
            "target": "0",
            "verdict": "met" if good else "missed",
            "note": f"exit code {found.code}; {len(bad)} rows refused, {len(unnamed)} of them without the file's "
            f"name; {len(neither)} with neither score nor reason; {equal} of {len(sound)} sound rows scored as "
            f"without the others; {found.seconds:.0f} s",
        }
    ]


def save_distance(path: Path) -> None:
    torch.manual_seed(0)
    metric = FullReferenceMetric(Backbone("resnet18"))
    bundle.save(path, metric, headers.DistanceHeader(**bundle.described_distance(metric, "header", {}, {})))


def write_pairs(root: Path, count: int, broken: int) -> set[str]:
    """Pairs `images/NAME.*`, `references/NAME.*` of 32 to 64 px in several formats; the names of those that are broken.

    In turn: a truncated image, another size, NaN in a float TIFF, five channels, no reference, text named .png.
    """
    rng = np.random.default_rng(0)
    images, references = root / "images", root / "references"
    images.mkdir(parents=True)
    references.mkdir()
    places = [(k * count) // broken for k in range(broken)]
    names = set()
    for k in range(count):
        name, size = f"pair_{k:05d}", int(rng.integers(32, 65))
        pristine = rng.integers(0, 256, (size, 48, 3), dtype=np.uint8)
        noisy = (pristine * 0.8 + rng.integers(0, 50, pristine.shape)).astype(np.uint8)
        Image.fromarray(pristine).save(references / f"{name}.{('png', 'bmp', 'webp')[k % 3]}")
        if k not in places:
            Image.fromarray(noisy).save(images / f"{name}.{('png', 'jpg', 'tiff')[k % 3]}")
            continue
        names.add(name)
        kind = places.index(k) % 6
        if kind == 0:
            content = io.BytesIO()
            Image.fromarray(noisy).save(content, "PNG")
            (images / f"{name}.png").write_bytes(content.getvalue()[:-900])
        elif kind == 1:
            Image.fromarray(noisy[:-3]).save(images / f"{name}.png")
        elif kind == 2:
            floats = noisy.astype(np.float32) / 255
            floats[5, 5] = np.nan
            tifffile.imwrite(images / f"{name}.tiff", floats, photometric="rgb")
        elif kind == 3:
            many = np.repeat(noisy[..., :1], 5, axis=2)
            tifffile.imwrite(images / f"{name}.tiff", many, planarconfig="contig", photometric="minisblack")
        elif kind == 4:
            Image.fromarray(noisy).save(images / f"{name}.png")
            next(references.glob(f"{name}.*")).unlink()
        else:
            (images / f"{name}.png").write_text("this is no image, whatever its name says")
    return names


def pair_rows(root: Path) -> list[dict[str, object]]:
    """Distances of 2,000 pairs, 20 of them broken in six ways."""
    save_distance(root / "d.safetensors")
    folder = root / "pairs"
    broken = write_pairs(folder, PAIRS, BROKEN)
    found = score(
        root / "d.safetensors",
        folder / "images",
        root / "p.csv",
        *("--reference", str(folder / "references"), "--workers", "2"),
    )
    refused = {Path(row["path"]).stem for row in found.rows if row["error"]}
    unnamed = [row for row in found.rows if row["error"] and Path(row["path"]).name not in row["error"]]
    unheard = [name for name in broken if f"{name}." not in found.said]
    neither = [row for row in found.rows if not row["error"] and not row["distance"]]
    good = found.code == 1 and len(found.rows) == PAIRS and refused == broken and not (unnamed or unheard or neither)
    shutil.rmtree(folder)
    return [
        {
            "what": f"{PAIRS:,} pairs, {BROKEN} of them broken in six ways: pairs wrongly refused or wrongly compared",
            "found": len(refused ^ broken),
            "target": "0",
            "verdict": "met" if good else "missed",
            "note": f"exit code {found.code}; {len(refused)} refused, {len(unnamed) + len(unheard)} of them without "
            f"the file's name; {PAIRS - len(refused) - len(neither):,} distances; {found.memory / 2**30:.2f} GiB, "
            f"{found.seconds:.0f} s",
        }
    ]


def large_pair_rows(root: Path) -> list[dict[str, object]]:
    """Memory of the distance of two images of 12 megapixels."""
    save_distance(root / "d.safetensors")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    for name, quality in (("reference", 95), ("image", 30)):
        coarse.resize((4000, 3000), Image.Resampling.BILINEAR).save(root / f"{name}.jpg", quality=quality)
    maps = root / "pair_maps"
    extra = ("--reference", str(root / "reference.jpg"), "--workers", "1", "--heatmap", str(maps))
    found = score(root / "d.safetensors", root / "image.jpg", root / "q.csv", *extra)
    assert found.code == 0 and len(found.rows) == 1, found.said[-2000:]
    mean = float(np.load(maps / "image.jpg.npy").mean())
    gib = found.memory / 2**30
    return [
        {
            "what": "a pair of 4,000 x 3,000 px, with its heat-map: GiB",
            "found": gib,
            "target": f"< {LIMIT:g}",
            "verdict": "met" if gib < LIMIT else "missed",
            "note": f"{found.seconds:.0f} s; distance {float(found.rows[0]['distance']):.5f}, mean of the heat-map "
            f"{mean:.5f}",
        }
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root_name:
        for row in [*pair_rows(Path(root_name)), *large_pair_rows(Path(root_name))]:
            print(row)
