"""What a bundle makes of images: features."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from csrtrain import bundle
from csrtrain.data.decode import Window
from csrtrain.data.whole import whole_images
from csrtrain.models.features import Contract, FrozenFeatures


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
    backbones = [bundle.load(path) for path in paths]
    windows = {str(backbone.header.input["window"]) for backbone in backbones}
    if len(windows) > 1:
        raise ValueError(f"Expected bundles of one intensity window, got {', '.join(sorted(windows))}. Use others.")
    return FrozenFeatures(backbones, [Contract(scales, l2)] * len(backbones))


def window_of(path: str | Path) -> Window:
    """The intensity window that a bundle's images were read with."""
    window = bundle.read_header(path).input["window"]
    return tuple(window) if isinstance(window, list) else window


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
    place = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )
    model.to(place).eval()
    features = np.empty((len(addresses), sum(model.sizes)), dtype=np.float32)
    broken: dict[int, str] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Features", total=len(addresses))
        for batch in whole_images(addresses, model.channels, batch_size, workers, window, slice_axis):
            if batch.images is None:
                broken[batch.rows[0]] = batch.reason
            else:
                with torch.autocast(place.type, dtype=torch.bfloat16, enabled=bf16):
                    features[batch.rows] = model(batch.images.to(place)).float().cpu().numpy()
            progress.advance(task, len(batch.rows))
    sound = [i for i in range(len(addresses)) if i not in broken]
    return Extracted(
        [addresses[i] for i in sound],
        features if not broken else features[sound],
        {addresses[i]: reason for i, reason in sorted(broken.items())},
    )


def save_features(path: str | Path, extracted: Extracted, model: FrozenFeatures) -> None:
    """Write an `.npz` file: `paths` (N,), `features` (N,F), `sizes` (widths of the parts); whole or not at all."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        try:
            np.savez(
                file, paths=np.array(extracted.addresses), features=extracted.features, sizes=np.array(model.sizes)
            )
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
