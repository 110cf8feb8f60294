"""A `kornia.augmentation` pipeline as views."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csrtrain import draws
from csrtrain.batches import Drawn


class KorniaViews(nn.Module):
    """Two views by calling a foreign pipeline twice.

    No promise about speed or host reads: kornia draws its parameters itself and reads them back. They come from
    torch's global generators, which are seeded here for each batch from (seed, epoch, first position) and restored
    afterwards, so a resumed run sees the same views; a sample's views do depend on the batch it is in.

    Args:
        pipeline: (B,C,H,W) float32 in [0,1] -> (B,C,size,size): a module, or a list of modules that are applied in
            turn, which is what a YAML can say. It should begin with a `RandomResizedCrop`.
        size: side of the views, pixels.
    """

    def __init__(self, pipeline: nn.Module | list[nn.Module], size: int) -> None:
        super().__init__()
        self.pipeline = nn.Sequential(*pipeline) if isinstance(pipeline, list) else pipeline
        self.size = size
        self._seed = 0

    def draw(self, seed: int, epoch: int, positions: NDArray[np.int64], height: int, width: int) -> Drawn:
        """Nothing to send along; remembers the seed of the `forward` that follows."""
        self._seed = int(draws.sample_seeds(seed, epoch, np.asarray(positions[:1]), draws.VIEW_STREAMS[0])[0])
        return {}

    @torch.no_grad()
    def forward(self, images: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """(B,C,H,W) uint8, or float32 in [0,1] -> two (B,C,size,size) float32."""
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), torch.autocast(images.device.type, enabled=False):
            torch.manual_seed(self._seed)
            x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
            return self._view(x), self._view(x)

    def _view(self, x: Tensor) -> Tensor:
        view: Tensor = self.pipeline(x)
        expected = (*x.shape[:2], self.size, self.size)
        if tuple(view.shape) != expected:
            raise ValueError(
                f"Expected views {expected} from the pipeline, got {tuple(view.shape)}. Let it begin with "
                f"RandomResizedCrop(size=({self.size}, {self.size})), or set size to what it gives."
            )
        return view.float()
