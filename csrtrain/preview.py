"""Pictures to look at before a training: the views of a config, and the distortions of a bank."""

import io
import tempfile
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from csrtrain import grids
from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.distort import rows_for
from csrtrain.augment.settings import Modality
from csrtrain.config_files import read_run_config
from csrtrain.data import decode
from csrtrain.data.images import native
from csrtrain.training_cli import TrainingCLI

_SIDE = 224  # px of the image that `distortions` shows


def views(args: list[str], images: int = 6) -> Path:
    """Draw a picture of what a config trains on: each row an image as loaded and two views of it, in two epochs.

    Args:
        args: as for `fit`, and `-o P.png`.
        images: rows.

    Returns:
        Path of the picture.
    """
    cli = _pretraining(args)
    path = _png(cli.config.get("output"))
    data: Any = cli.datamodule
    _views(cli, images, f"{data.title}: {data.modality}, {data.channels} channel(s)", path)
    return path


def of_run(config: Path) -> list[tuple[str, bytes]]:
    """Pictures of what a run trains on, titles and PNG: its views, and for CONTRIQUE every distortion of an image.

    No name of a file is in them.

    Args:
        config: `config.yaml` of a run of pretraining.

    Raises:
        ValueError: the config is none, or its images are gone.
    """
    if not config.is_file():
        raise ValueError(f"Expected the config of a run, got none at {config}. Name a run that has begun.")
    tree = read_run_config(config)
    kept = {key: tree[key] for key in ("seed_everything", "model", "data") if key in tree}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(kept))
        cli = _pretraining(["-c", str(path)])
    data: Any = cli.datamodule
    picture = io.BytesIO()
    _views(cli, 4, f"{data.modality}, {data.channels} channel(s)", picture)
    pictures = [("views", picture.getvalue())]
    if type(cli.model).__name__ == "CONTRIQUE":
        picture = io.BytesIO()
        first = data.sources[int(data.order(0)[0])]
        _distortions(first, data.modality, min(3, data.channels), picture)
        pictures.append(("distortions", picture.getvalue()))
    return pictures


def _pretraining(args: list[str]) -> TrainingCLI:
    cli = TrainingCLI(args, run=False)
    if not hasattr(cli.datamodule, "first_batch"):
        raise ValueError("Expected a config of pretraining, which has views to look at, got another. Name another.")
    return cli


def _views(cli: TrainingCLI, images: int, title: str, file: Path | io.BytesIO) -> None:
    """Images as loaded and two views of each, in two epochs."""
    data: Any = cli.datamodule
    model: Any = cli.model
    data.setup("preview")
    cli.trainer.datamodule = data  # type: ignore[attr-defined]  # as in a training, for the method's own setup
    model.trainer = cli.trainer
    model.setup("preview")
    rows, titles = grids.views(model, data, images)
    _draw(rows, titles, None, title, file)


def distortions(image: str, modality: Modality, output: str | None, channels: int | None = None) -> Path:
    """Draw every type of distortion (rows) at every level (columns) on the centre of an image.

    Args:
        image: address of a file, see `csrtrain.data.decode.read`; smaller than 224 px it is continued by reflection.
        modality: whose bank.
        output: the PNG to write.
        channels: 1 or 3; by default those of the image.

    Returns:
        Path of the picture.
    """
    path = _png(output)
    _distortions(image, modality, channels, path)
    return path


def _distortions(image: str, modality: Modality, channels: int | None, file: Path | io.BytesIO) -> None:
    """Every type at every level on the centre of an image."""
    loaded = decode.read(image)
    loaded = decode.to_channels(loaded, channels or min(3, len(loaded)))
    bank = DistortionBank(rows_for(modality, len(loaded), jpeg2000=True))
    rows, titles, names = grids.distortions(native(loaded, _SIDE, 0.5, 0.5), bank)
    _draw(rows, titles, names, f"Distortions of the bank {modality}, {len(loaded)} channel(s)", file)


def _png(output: str | None) -> Path:
    path = Path(output or "")
    if path.suffix.lower() != ".png":
        raise ValueError(f"Expected a PNG to write, got {output}. Name it with -o views.png.")
    if not path.parent.is_dir():
        raise ValueError(f"Expected a folder that exists for {path}, got none. Create {path.parent}.")
    return path


def _draw(
    rows: list[list[Tensor]], titles: list[str], names: list[str] | None, title: str, file: Path | io.BytesIO
) -> None:
    """A grid as PNG, see `csrtrain.grids.draw`."""
    grids.draw(rows, titles, names, title).savefig(file, format="png", dpi=100)
