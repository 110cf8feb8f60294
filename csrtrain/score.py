"""What a bundle makes of images: scores, distances to references, heat-maps, features."""

import copy
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from csrtrain import bundle, headers
from csrtrain.data import decode
from csrtrain.data.decode import Window
from csrtrain.data.whole import WholeBatch, whole_images, whole_pairs
from csrtrain.files import as_text, write_atomically
from csrtrain.heatmaps import file_names, write_distances, write_scores
from csrtrain.models.difference import DifferenceMetric
from csrtrain.models.features import Contract, FrozenFeatures, tiles
from csrtrain.models.full_reference import FullReferenceMetric, Reference
from csrtrain.models.no_reference import NoReferenceMetric

NO_MAPS = (
    "Expected a distance of feature maps for heat-maps, got one of representations, which have no places. Leave the "
    "heat-maps out, or make one of a backbone: csrtrain export BACKBONE -o DISTANCE --distance."
)


INTERRUPTED = "Not reached: interrupted."
"""The error of images that Ctrl-C has cost their score."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `score_images` or `score_pairs`; `table` is what they return, with all that was done."""

    def __init__(self, table: pd.DataFrame) -> None:
        super().__init__()
        self.table = table


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
    paths: Sequence[str | Path],
    scales: tuple[float, ...] = (1.0, 0.5),
    l2: bool = True,
    stages: tuple[int, ...] | None = None,
) -> FrozenFeatures:
    """The backbones of bundles as one extractor of features, side by side; see `csrtrain.models.features.Contract`.

    Raises:
        ValueError: a file is no bundle, or their channels or windows differ, or there are no such stages.
    """
    backbones = [bundle.load_backbone(path) for path in paths]
    windows = {str(backbone.header.input["window"]) for backbone in backbones}
    if len(windows) > 1:
        raise ValueError(f"Expected bundles of one intensity window, got {', '.join(sorted(windows))}. Use others.")
    return FrozenFeatures(backbones, [Contract(scales, l2, stages=stages)] * len(backbones))


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
    batches = whole_images(addresses, model.channels, batch_size, workers, window, slice_axis)
    for batch in _tracked("Features", len(addresses), batches):
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
    write_atomically(path, buffer.getvalue())


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
        `Assessment`), empty_slice, and error, which says why an image has no score. An empty slice of a volume shows
        next to nothing within the metric's window, see `csrtrain.data.index.spans_nothing`.

    Raises:
        Interrupted: Ctrl-C, with the scores so far.
    """
    place = _device(device)
    metric = metric.folded().to(place)
    values = np.full((len(addresses), 5), np.nan)
    empty: list[int] = []
    errors = [""] * len(addresses)
    names = _heatmap_names(heatmaps, addresses)
    window = _window(metric.header)
    batches = whole_images(addresses, metric.features.channels, batch_size, workers, window, slice_axis)
    interrupted = False
    try:
        for batch in _tracked("Scores", len(addresses), batches):
            if batch.images is None:
                errors[batch.rows[0]] = batch.reason
                continue
            empty += batch.empty
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
                            write_scores(Path(heatmaps) / names[row], image, contributions)
                    values[rows] = found
                except Exception as error:  # one image must not cost the scores of all others
                    if len(rows) == 1:
                        errors[rows[0]] = (
                            f"{addresses[rows[0]]}: {' '.join(str(error).split()) or type(error).__name__}"
                        )
    except KeyboardInterrupt:
        interrupted = True
        errors = [e or (INTERRUPTED if np.isnan(v) else "") for e, v in zip(errors, values[:, 0], strict=True)]
    table = pd.DataFrame({"path": list(map(as_text, addresses))})
    table["score"], table["rating"] = values[:, 0], values[:, 1]
    table["out_of_range"] = pd.array(values[:, 2], dtype="Float64").astype("boolean")
    table["distance"] = values[:, 3]
    table["out_of_domain"] = pd.array(values[:, 4], dtype="Float64").astype("boolean")
    table["empty_slice"] = _flags(empty, values[:, 0])
    table["error"] = list(map(as_text, errors))
    if interrupted:
        raise Interrupted(table)
    return table


def score_pairs(
    metric: bundle.Distance,
    pairs: Sequence[tuple[str, str]],
    *,
    device: str = "auto",
    bf16: bool = False,
    batch_size: int = 16,
    workers: int = 0,
    slice_axis: int = 2,
    heatmaps: str | Path | None = None,
    size: int | None = None,
) -> pd.DataFrame:
    """Distances of whole images to their references, with a progress bar; memory grows with neither number nor size.

    A reference that several pairs in a row share goes through the network once, unless it is larger than a tile.
    Images of more than `csrtrain.models.features.TILE` squared pixels are compared tile by tile, each tile as an image
    of its own, and the mean, weighted by area, is the distance (our choice).

    Args:
        metric: from `csrtrain.load`.
        pairs: addresses of the image and of its reference, see `csrtrain.data.decode.read`.
        device, bf16, batch_size, workers: see `extract`.
        slice_axis: axis along which NIfTI volumes are cut.
        heatmaps: folder for two files per image: `NAME.npy`, the distance map (H,W) float32, and `NAME.png`, the image
            with the map over it. Only of a metric that has `distance_map`.
        size: resize all to a square of so many pixels, see `csrtrain.data.whole.whole_pairs`.

    Returns:
        A row per pair, in their order: path, reference, distance, empty_slice (of the reference, see `score_images`),
        and error, which names both files and says why there is no distance.

    Raises:
        ValueError: heat-maps of a metric that has none, or no such device.
        Interrupted: Ctrl-C, with the distances so far.
    """
    if heatmaps is not None and isinstance(metric, DifferenceMetric):
        raise ValueError(NO_MAPS)
    place = _device(device)
    metric = metric.folded() if isinstance(metric, DifferenceMetric) else copy.deepcopy(metric).eval()
    metric = metric.to(place)
    most = 0.0 if isinstance(metric, DifferenceMetric) else sum(float(w.mean()) for w in metric.weights.values()) or 1.0
    references = _References([reference for _, reference in pairs])
    values = np.full(len(pairs), np.nan)
    empty: list[int] = []
    errors = [""] * len(pairs)
    names = _heatmap_names(heatmaps, [address for address, _ in pairs])
    window = _window(metric.header)
    batches = whole_pairs(pairs, metric.channels, batch_size, workers, window, slice_axis, size=size)
    interrupted = False
    try:
        for batch in _tracked("Distances", len(pairs), batches):
            if batch.images is None:
                errors[batch.rows[0]] = batch.reason
                references.done(batch.rows)
                continue
            empty += batch.empty
            for rows, images in [(batch.rows, batch.images)] if len(batch.rows) == 1 else _whole_then_one_by_one(batch):
                if not np.isnan(values[rows]).all():  # done with the whole batch
                    continue
                try:
                    with torch.inference_mode(), torch.autocast(place.type, dtype=torch.bfloat16, enabled=bf16):
                        found, maps = _compare(metric, images.to(place), rows, references, heatmaps is not None)
                    if not bool(torch.isfinite(found).all()):
                        raise ValueError("Expected a finite distance, got none. Use another metric.")
                    if heatmaps is not None and maps is not None:
                        for row, image, local in zip(rows, images[:, 0], maps.cpu(), strict=True):
                            write_distances(Path(heatmaps) / names[row], image, local, most)
                    values[rows] = found.float().cpu().numpy()
                except Exception as error:  # one pair must not cost the distances of all others
                    if len(rows) == 1:
                        reason = " ".join(str(error).split()) or type(error).__name__
                        errors[rows[0]] = f"{pairs[rows[0]][0]} against {pairs[rows[0]][1]}: {reason}"
            references.done(batch.rows)
    except KeyboardInterrupt:
        interrupted = True
        errors = [e or (INTERRUPTED if np.isnan(v) else "") for e, v in zip(errors, values, strict=True)]
    table = pd.DataFrame([tuple(map(as_text, pair)) for pair in pairs], columns=["path", "reference"])
    table["distance"], table["empty_slice"] = values, _flags(empty, values)
    table["error"] = list(map(as_text, errors))
    if interrupted:
        raise Interrupted(table)
    return table


def _flags(rows: Sequence[int], values: NDArray[np.float64]) -> Any:
    """A column that is true for these rows, and says nothing where there is no value."""
    found = np.isin(np.arange(len(values)), rows)
    return pd.array(np.where(np.isnan(values), np.nan, found), dtype="Float64").astype("boolean")


class _References:
    """What is kept of references that pairs to come share; at most as many as images wait for their batch.

    Args:
        names: (N,) addresses of the references of all pairs.
    """

    def __init__(self, names: Sequence[str]) -> None:
        changes = [k > 0 and name != names[k - 1] for k, name in enumerate(names)]
        self._runs = np.cumsum(changes, dtype=np.int64)  # (N,) pairs in a row with one reference share a number
        self._left = np.bincount(self._runs)
        self._kept: dict[int, list[Tensor]] = {}

    def of(self, metric: FullReferenceMetric, rows: Sequence[int], y: Tensor) -> Tensor | Reference:
        """The references y (B,C,H,W) of rows (B,), with the maps of each that is shared, made at most once."""
        runs, first, where = np.unique(self._runs[rows], return_index=True, return_inverse=True)
        if (self._left[runs] == 1).all() and self._kept.keys().isdisjoint(runs):
            return y
        missing = [k for k, run in enumerate(runs) if run not in self._kept]
        made = metric.reference(y[first[missing]]).maps if missing else []
        maps = {run: self._kept[run] for run in runs if run in self._kept}
        maps |= {runs[k]: [m[j : j + 1] for m in made] for j, k in enumerate(missing)}
        for k in missing:
            if self._left[runs[k]] > 1:  # a copy: a part would keep all of it
                self._kept[runs[k]] = [m.clone() for m in maps[runs[k]]]
        under_autocast = torch.is_autocast_enabled(y.device.type)
        if len(runs) == 1:
            return Reference(y[:1], maps[runs[0]], under_autocast, metric.backbone, metric.stages, metric.scales)
        joined = [torch.cat(stage)[where] for stage in zip(*(maps[run] for run in runs), strict=True)]
        return Reference(y, joined, under_autocast, metric.backbone, metric.stages, metric.scales)

    def one(self, rows: Sequence[int]) -> bool:
        """Whether rows have one reference."""
        return len(set(self._runs[rows])) == 1

    def done(self, rows: Sequence[int]) -> None:
        """Forget references that no pair to come has."""
        for run in self._runs[rows]:
            self._left[run] -= 1
            if not self._left[run]:
                self._kept.pop(run, None)


def _compare(
    metric: bundle.Distance, images: Tensor, rows: Sequence[int], references: _References, mapped: bool
) -> tuple[Tensor, Tensor | None]:
    """(B,) distances of pairs (B,2,C,H,W), and their maps (B,H,W) where these are wanted."""
    if isinstance(metric, DifferenceMetric):
        x, y = images.unbind(1)
        return metric.distance(x, y[:1] if references.one(rows) else y), None
    count, height, width = len(images), *images.shape[3:]
    pieces = list(tiles(height, width))
    found = torch.zeros(count, device=images.device)
    maps = torch.zeros((count, height, width), device=images.device) if mapped else None
    for top, bottom, left, right, share in pieces:
        part = images[..., top:bottom, left:right]
        x, y = (part.float() / 255 if part.dtype == torch.uint8 else part).unbind(1)
        reference = references.of(metric, rows, y) if len(pieces) == 1 else y
        if maps is None:
            found += share * metric.distance(x, reference)
        else:
            distance, maps[:, top:bottom, left:right] = metric.explain(x, reference)
            found += share * distance
    return found, maps


def _whole_then_one_by_one(batch: WholeBatch) -> Iterator[tuple[list[int], Tensor]]:
    """A batch, and its images alone for the case that it fails."""
    assert batch.images is not None
    yield batch.rows, batch.images
    for k, row in enumerate(batch.rows):
        yield [row], batch.images[k : k + 1]


def volumes(table: pd.DataFrame) -> pd.DataFrame:
    """Of each file that has several rows, `file#k`: how many count, their mean, bad end, and the worst of them.

    Empty slices at either end, which are air, do not count, unless all are empty; one between others does, because it
    is a fault. The bad end is the 10th percentile of scores, which are higher for better images, and the 90th of
    distances. Of the distances of one file to several references, each reference counts by itself.
    """
    distances = "reference" in table
    value = "distance" if distances else "score"
    sliced = table[table["path"].map(lambda path: decode.split(path)[1] is not None) & table[value].notna()]
    rows: list[dict[str, Any]] = []
    files = [
        sliced[name].map(lambda address: decode.split(address)[0]) for name in ("path", "reference")[: 1 + distances]
    ]
    for names, slices in sliced.groupby(files, sort=False):
        shown = np.flatnonzero(~slices["empty_slice"].to_numpy(dtype=bool))
        counted = slices.iloc[shown[0] : shown[-1] + 1] if len(shown) else slices
        found = counted[value]
        row = dict(zip(("path", "reference"), names, strict=False))
        row |= {"slices": len(counted), "air": len(slices) - len(counted), "mean": found.mean()}
        if distances:
            row["percentile_90"] = found.quantile(0.9)
        else:
            row["percentile_10"] = found.quantile(0.1)
        row["worst_slice"] = decode.split(counted["path"][found.idxmax() if distances else found.idxmin()])[1]
        if not distances:
            row["out_of_domain"] = counted["out_of_domain"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write `.csv` or `.parquet`, whole or not at all."""
    path, buffer = Path(path), io.BytesIO()
    if path.suffix == ".parquet":
        table.to_parquet(buffer, index=False)
    else:
        table.to_csv(buffer, index=False, float_format="%.7g")
    write_atomically(path, buffer.getvalue())


def _heatmap_names(folder: str | Path | None, addresses: Sequence[str]) -> list[str]:
    """Make the folder, where one is wanted; the name of each image in it."""
    if folder is None:
        return []
    Path(folder).mkdir(parents=True, exist_ok=True)
    return file_names(addresses)


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


def _tracked(title: str, total: int, batches: Iterator[WholeBatch]) -> Iterator[WholeBatch]:
    """The batches, with a progress bar where there is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch.rows))
