"""What a bundle makes of images: scores, heat-maps, features."""

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from csrtrain import bundle, headers
from csrtrain.data import decode
from csrtrain.data.decode import Window
from csrtrain.data.whole import WholeBatch, whole_images
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric

_LONGEST = 1024  # px: side of a drawn heat-map
_LONGEST_NAME = 200  # characters of a file name
_OPAQUE = 0.55  # of the colours over the image


class Extracted(NamedTuple):
    """Features of the images that could be read, in the order of their addresses.

    addresses: (N,).
    features: (N,F) float32.
    broken: address -> what is wrong with it.
    """

    addresses: list[str]
    features: NDArray[np.float32]
    broken: dict[str, str]


def load_features(
    paths: Sequence[str | Path], scales: tuple[float, ...] = (1.0, 0.5), l2: bool = True
) -> FrozenFeatures:
    """The backbones of bundles as one extractor of features, side by side.

    Raises:
        ValueError: a file is no bundle, or their channels or windows differ.
    """
    backbones = [bundle.load_backbone(path) for path in paths]
    windows = {str(backbone.header.input["window"]) for backbone in backbones}
    if len(windows) > 1:
        raise ValueError(f"Expected bundles of one intensity window, got {', '.join(sorted(windows))}. Use others.")
    return FrozenFeatures(backbones, [Contract(scales, l2)] * len(backbones))


def window_of(path: str | Path) -> Window:
    """The intensity window that a bundle's images were read with."""
    return _window(headers.read_header(path))


@torch.inference_mode()
def extract(
    model: FrozenFeatures,
    addresses: Sequence[str],
    *,
    device: str = "auto",
    bf16: bool = False,
    batch_size: int = 16,
    workers: int = 0,
    window: Window = "header",
    slice_axis: int = 2,
) -> Extracted:
    """Features of whole images, each once, with a progress bar.

    Args:
        model: from `load_features`.
        addresses: of the images, see `csrtrain.data.decode.read`.
        device: `cpu`, `cuda`, ..., or `auto` for a GPU where there is one.
        bf16: compute in bfloat16, two to three times faster; features differ by about 1 %.
        batch_size: most images at once; fewer where they are large.
        workers: processes that decode.
        window, slice_axis: see `csrtrain.data.decode.read`.
    """
    place = _device(device)
    model = model.folded().to(place).eval()
    features = np.empty((len(addresses), sum(model.sizes)), dtype=np.float32)
    broken: dict[int, str] = {}
    for batch in _tracked("Features", addresses, model.channels, batch_size, workers, window, slice_axis):
        if batch.images is None:
            broken[batch.rows[0]] = batch.reason
        else:
            with torch.autocast(place.type, dtype=torch.bfloat16, enabled=bf16):
                features[batch.rows] = model(batch.images.to(place)).float().cpu().numpy()
    sound = [i for i in range(len(addresses)) if i not in broken]
    return Extracted(
        [addresses[i] for i in sound],
        features if not broken else features[sound],
        {addresses[i]: reason for i, reason in sorted(broken.items())},
    )


def save_features(path: str | Path, extracted: Extracted, model: FrozenFeatures) -> None:
    """Write an `.npz` file: `paths` (N,), `features` (N,F), `sizes` (widths of the parts); whole or not at all."""
    path = Path(path)
    buffer = io.BytesIO()
    np.savez(buffer, paths=np.array(extracted.addresses), features=extracted.features, sizes=np.array(model.sizes))
    bundle.write_atomically(path, buffer.getvalue())


def score_images(
    metric: NoReferenceMetric,
    addresses: Sequence[str],
    *,
    device: str = "auto",
    bf16: bool = False,
    batch_size: int = 16,
    workers: int = 0,
    slice_axis: int = 2,
    heatmaps: str | Path | None = None,
) -> pd.DataFrame:
    """Score whole images, each once, with a progress bar; memory does not grow with their size.

    Args:
        metric: from `csrtrain.load`.
        addresses: of the images, see `csrtrain.data.decode.read`.
        device, bf16, batch_size, workers: see `extract`.
        slice_axis: axis along which NIfTI volumes are cut.
        heatmaps: folder for two files per image: `NAME.npy`, what each place of 32 x 32 pixels adds to the score
            (they sum to it), and `NAME.png`, the image with the local scores over it, red 0 and green 100.

    Returns:
        A row per address, in their order: path, score, rating, out_of_range, distance, out_of_domain (see
        `Assessment`), and error, which says why an image has no score.
    """
    place = _device(device)
    metric = metric.folded().to(place)
    values = np.full((len(addresses), 5), np.nan)
    errors = [""] * len(addresses)
    names = _names(addresses) if heatmaps is not None else []
    for batch in _tracked(
        "Scores", addresses, metric.features.channels, batch_size, workers, _window(metric.header), slice_axis
    ):
        if batch.images is None:
            errors[batch.rows[0]] = batch.reason
            continue
        for rows, images in [(batch.rows, batch.images)] if len(batch.rows) == 1 else _whole_then_one_by_one(batch):
            if not np.isnan(values[rows, 0]).all():  # done with the whole batch
                continue
            try:
                with torch.inference_mode(), torch.autocast(place.type, dtype=torch.bfloat16, enabled=bf16):
                    if heatmaps is None:
                        judged, maps = metric.assess(images.to(place)), None
                    else:
                        judged, maps = metric.explain(images.to(place))
                found = torch.stack([column.float() for column in judged], 1).cpu().numpy()
                if not np.isfinite(found[:, 0]).all():
                    raise ValueError("Expected a finite score, got none. Use another metric.")
                if heatmaps is not None and maps is not None:
                    for row, image, contributions in zip(rows, images, maps.cpu(), strict=True):
                        _write_heatmap(Path(heatmaps) / names[row], image, contributions)
                values[rows] = found
            except Exception as error:  # one image must not cost the scores of all others
                if len(rows) == 1:
                    errors[rows[0]] = f"{addresses[rows[0]]}: {' '.join(str(error).split()) or type(error).__name__}"
    table = pd.DataFrame({"path": list(addresses)})
    table["score"], table["rating"] = values[:, 0], values[:, 1]
    table["out_of_range"] = pd.array(values[:, 2], dtype="Float64").astype("boolean")
    table["distance"] = values[:, 3]
    table["out_of_domain"] = pd.array(values[:, 4], dtype="Float64").astype("boolean")
    table["error"] = errors
    return table


def _whole_then_one_by_one(batch: WholeBatch) -> Iterator[tuple[list[int], Tensor]]:
    """A batch, and its images alone for the case that it fails."""
    assert batch.images is not None
    yield batch.rows, batch.images
    for k, row in enumerate(batch.rows):
        yield [row], batch.images[k : k + 1]


def volumes(table: pd.DataFrame) -> pd.DataFrame:
    """Of each file that has several rows, `file#k`: slices scored, mean, 10th percentile, and the worst slice."""
    sliced = table[table["path"].map(lambda path: decode.split(path)[1] is not None) & table["score"].notna()]
    rows = []
    for path, slices in sliced.groupby(sliced["path"].map(lambda address: decode.split(address)[0]), sort=False):
        scores = slices["score"]
        rows.append(
            {
                "path": path,
                "slices": len(slices),
                "mean": scores.mean(),
                "percentile_10": scores.quantile(0.1),
                "worst_slice": decode.split(slices["path"][scores.idxmin()])[1],
                "out_of_domain": slices["out_of_domain"].mean(),
            }
        )
    return pd.DataFrame(rows)


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write `.csv` or `.parquet`, whole or not at all."""
    path, buffer = Path(path), io.BytesIO()
    if path.suffix == ".parquet":
        table.to_parquet(buffer, index=False)
    else:
        table.to_csv(buffer, index=False, float_format="%.7g")
    bundle.write_atomically(path, buffer.getvalue())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"Expected a device that this machine has, got {name}. Use cpu, cuda or auto.") from None
    return device


def _window(header: Any) -> Window:
    window: Any = header.input["window"] if header else "header"
    return tuple(window) if isinstance(window, list) else window


def _tracked(
    title: str,
    addresses: Sequence[str],
    channels: int,
    batch_size: int,
    workers: int,
    window: Window,
    slice_axis: int,
) -> Iterator[WholeBatch]:
    """Whole images, with a progress bar where there is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=len(addresses))
        for batch in whole_images(addresses, channels, batch_size, workers, window, slice_axis):
            yield batch
            progress.advance(task, len(batch.rows))


def _names(addresses: Sequence[str]) -> list[str]:
    """A different file name for each address, from the part of the path that differs."""
    if not addresses:
        return []
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(address)) for address in addresses])
    taken: dict[str, int] = {}
    names = []
    for address in addresses:
        name = re.sub(r"[^\w.-]+", "_", os.path.relpath(os.path.abspath(address), folder))[-_LONGEST_NAME:]
        taken[name.lower()] = taken.get(name.lower(), 0) + 1
        names.append(name if taken[name.lower()] == 1 else f"{name}-{taken[name.lower()]}")
    return names


def _write_heatmap(path: Path, image: Tensor, contributions: Tensor) -> None:
    """`path.npy` and `path.png` of one image (C,H,W) and its map (h,w)."""
    buffer = io.BytesIO()
    np.save(buffer, contributions.numpy())
    bundle.write_atomically(path.with_name(f"{path.name}.npy"), buffer.getvalue())
    height, width = image.shape[1:]
    scale = min(1.0, _LONGEST / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    x = image[None].float() / (255 if image.dtype == torch.uint8 else 1)
    grey = F.interpolate(x.mean(1, keepdim=True), size, mode="bilinear", antialias=True)[0, 0]
    local = contributions[None, None] * contributions.numel()  # whose mean is the score
    local = F.interpolate(local, size, mode="bilinear", align_corners=False)[0, 0] / 100
    colors = colormaps["RdYlGn"](local.clamp(0, 1).numpy())[..., :3]
    mixed = _OPAQUE * colors + (1 - _OPAQUE) * grey[..., None].numpy()
    buffer = io.BytesIO()
    Image.fromarray((255 * mixed).round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    bundle.write_atomically(path.with_name(f"{path.name}.png"), buffer.getvalue())
