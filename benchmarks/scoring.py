"""`csrtrain score` under load: many images, one of 100 megapixels, and a folder full of mutated files.

    python -m benchmarks scoring

The metric is an untrained ResNet-18 with a random head: only memory, time and what becomes of each file are looked at.
Memory is the largest resident memory of the command with all its processes, sampled every 50 ms.
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
import torch
from PIL import Image

from benchmarks import harness
from csrtrain import bundle, headers
from csrtrain.data import decode, samples
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

FEW, MANY = 1_000, 10_000
FLAT = 1.05  # times the memory of few images
MUTATED, GOOD = 1_000, 100
SIDE = 10_000  # px: 100 megapixels
LIMIT = 4.0  # GiB


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
    start, most = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [watched, *watched.children(recursive=True)]
                most = max(most, sum(member.memory_info().rss for member in family))
            except psutil.NoSuchProcess:
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
    contents = [(path.suffix, path.read_bytes()) for path in dict.fromkeys(sources)]
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
        rows = [*many_rows(root), *large_rows(root), *mutated_rows(root)]
    notes = ["An untrained ResNet-18, full and half scale, float32, two processes that decode."]
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
