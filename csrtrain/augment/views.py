"""Two random views of every image, drawn on the host and made on the device."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csrtrain.augment import chunks, color, geometry, intensity, parameters
from csrtrain.augment.compiled import COMPILED_FROM
from csrtrain.augment.settings import SETTINGS
from csrtrain.augment.settings import Modality as Modality
from csrtrain.batches import Drawn

_CHUNK = 8  # samples that a thread of a CPU works on at once: they fit its cache


class ViewPipeline(Protocol):
    """Any module with this pair makes views."""

    def draw(self, seed: int, epoch: int, positions: NDArray[np.int64], height: int, width: int) -> Drawn: ...

    def __call__(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]: ...


class Views(nn.Module):
    """The two views of SimCLR and MoCo, by kind of image (`csrtrain.augment.settings`).

    Args:
        modality: which setting.
        size: side of the views, pixels.
        channels: of the images. With other counts than 3 the colour operations are left out.
        compiled: fuse the operations with `torch.compile`; by default from 128 px on. Where there is no compiler the
            views run uncompiled and say so. The results differ by rounding only.
    """

    def __init__(self, modality: Modality, size: int, channels: int, compiled: bool | None = None) -> None:
        super().__init__()
        if modality not in SETTINGS:
            raise ValueError(f"Expected a modality of {', '.join(SETTINGS)}, got {modality!r}.")
        if size < 8 or channels < 1:
            raise ValueError(f"Expected size >= 8 and channels >= 1, got size {size} and channels {channels}.")
        self.setting = SETTINGS[modality]
        self.size = size
        self.channels = channels
        self.compiled = size >= COMPILED_FROM if compiled is None else compiled

    def draw(self, seed: int, epoch: int, positions: NDArray[np.int64], height: int, width: int) -> Drawn:
        """Parameters of both views, see `csrtrain.augment.parameters.draw`.

        Those of a sample are a function of (seed, epoch, position, view), whatever the batch it is in.
        """
        return parameters.draw(self.setting, seed, epoch, positions, height, width)

    def forward(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Make the views, in float32 also under autocast, with no host read of a device tensor.

        Args:
            images: (B,C,H,W) uint8, or float32 in [0,1].
            drawn: of `draw`, on the device of the images.

        Returns:
            two (B,C,size,size) float32 in [0,1], up to rounding.
        """
        self._check(images, drawn)
        return self._view(images, drawn, 0), self._view(images, drawn, 1)

    def _check(self, images: Tensor, drawn: Drawn) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"Expected images (B,{self.channels},H,W), got {tuple(images.shape)}. Set data.channels to theirs."
            )
        if images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"Expected uint8, or float32 in [0,1], got {images.dtype}. Convert the images before.")
        if drawn["crops"].shape[1] != len(images):
            raise ValueError(
                f"Expected parameters of {len(images)} samples, got {drawn['crops'].shape[1]}. Draw for this batch."
            )

    def _view(self, images: Tensor, drawn: Drawn, view: int) -> Tensor:
        blurred = drawn[f"blurred{view}"]
        drawn = {name: values[view] for name, values in drawn.items() if not name.startswith("blurred")}
        if images.device.type != "cpu":
            return self._make(images, drawn, blurred)
        rows = blurred.numpy()
        out = torch.empty((len(images), self.channels, self.size, self.size), dtype=torch.float32)

        def work(chunk: slice) -> None:
            inside = torch.from_numpy(rows[(rows >= chunk.start) & (rows < chunk.stop)] - chunk.start)
            out[chunk] = self._make(images[chunk], {name: values[chunk] for name, values in drawn.items()}, inside)

        chunks.for_each_chunk(work, len(images), _CHUNK)
        return out

    def _make(self, images: Tensor, drawn: Drawn, blurred: Tensor) -> Tensor:
        """One view of each image; `blurred` are the rows to blur."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):  # both hold for one thread
            return self._vary(geometry.crop(images, drawn["crops"], self.size), drawn, blurred)

    def _vary(self, x: Tensor, drawn: Drawn, blurred: Tensor) -> Tensor:
        """Colour, blur and imaging chain of crops (n,C,S,S)."""
        if "stain" in drawn and self.channels == 3:
            x = color.stain(x, drawn["stain"], compiled=self.compiled)
        if "color" in drawn:
            x = color.jitter(x, drawn["color"], compiled=self.compiled)
        if len(blurred):
            sharp, sigma = x.index_select(0, blurred), drawn["sigma"].index_select(0, blurred)
            soft = geometry.blur(sharp, sigma, geometry.blur_radius(self.size), compiled=self.compiled)
            x.index_copy_(0, blurred, soft)
        if "chain" in drawn:
            x = self._expose(x, drawn)
        return x

    def _expose(self, x: Tensor, drawn: Drawn) -> Tensor:
        field = x.new_zeros((len(x), 1, 1, 1))
        if "field" in drawn:
            field = intensity.log_field(drawn["field"], self.size, self.size)
        noise = self.setting.noise
        kind, colored = (noise.kind, noise.colored) if noise else ("none", False)
        seeds = drawn.get("seeds", x.new_zeros(len(x), dtype=torch.int64))
        return intensity.chain(x, drawn["chain"], field, seeds, kind, colored, compiled=self.compiled)
