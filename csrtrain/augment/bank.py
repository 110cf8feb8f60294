"""The module that draws types and levels of distortion and applies them in mixed batches."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csrtrain import draws
from csrtrain.augment import chunks
from csrtrain.augment.compiled import compiling
from csrtrain.augment.distort import LEVELS, Distortion
from csrtrain.precision import full_precision

PRISTINE = 0  # class id
SMALLEST = 32  # px of an image's side; a colour block would not fit a smaller one
_MOST = 8  # distortions in a row; the id of a longer sequence would not fit 64 bits
_CHUNK = 200_000  # values that a thread of a CPU works on at once: they fit its cache


class DrawnDistortions(NamedTuple):
    """What a batch of B samples gets, k distortions in a row each.

    types: (B,k) int64 on the host, rows of the bank, -1 for none.
    levels: (B,k) float64 on the host, 1 to 5.
    values: (B,k) float32, of the functions.
    seeds: (B,k) int64.
    order: (k,B) int64, for each distortion in a row the samples sorted by type, so that those of one type are a run.
    """

    types: NDArray[np.int64]
    levels: NDArray[np.float64]
    values: Tensor
    seeds: Tensor
    order: Tensor


class DistortionBank(nn.Module):
    """Types of distortion, drawn per sample on the host and applied to mixed batches on the device.

    Class ids: 0 is pristine, 1 + 5 * type + level - 1 are the others; a class whose severity is 0 is pristine too.

    Args:
        rows: the types.
        in_worker: the types that need a CPU codec are applied by the method `in_worker` in the loader's workers, and
            `forward` leaves them out.
        compiled: fuse operations with `torch.compile`, see `csrtrain.augment.compiled`; for training, as the first
            batch waits for the compiler. The results differ by rounding only.
    """

    def __init__(self, rows: Sequence[Distortion], in_worker: bool = False, compiled: bool = False) -> None:
        super().__init__()
        if not rows:
            raise ValueError("Expected at least one type of distortion, got none. Name some.")
        self.rows = tuple(rows)
        self.compiled = compiled
        self.values = np.array([row.values for row in rows], dtype=np.float64)  # (T,5)
        self.severities = np.array([row.severities for row in rows], dtype=np.float64)
        numbers = 1 + np.arange(len(rows) * LEVELS).reshape(-1, LEVELS)
        self.class_of = np.where(self.severities == 0, PRISTINE, numbers)  # (T,5)
        self.chroma = np.array([row.chroma for row in rows])  # (T,)
        self.left_out = {t for t, row in enumerate(rows) if in_worker and row.in_worker}

    def check_count(self, count: int) -> None:
        """Raise a ValueError unless so many distortions of one sample can be drawn."""
        kinds = len(self.rows)
        most = 1 if self.left_out else min(kinds, _MOST)  # a loader's worker is done before the device begins
        if not 1 <= count <= most:
            raise ValueError(
                f"Expected {'1' if most == 1 else f'1 to {most}'} for model.max_distortions with "
                f"{'jpeg2000' if self.left_out else f'{kinds} type(s)'}, got {count}. Correct the config."
            )

    def draw(
        self,
        seed: int,
        epoch: int,
        positions: NDArray[np.int64],
        authentic: NDArray[np.bool_],
        count: int = 1,
        continuous: bool = False,
        per_class: int = 1,
        authentic_parts: int = 0,
    ) -> DrawnDistortions:
        """Types and levels of each sample, a function of (seed, epoch, position).

        Nothing and every level of every type are equally likely, 1 of 1 + 5 T. The class pristine gets as many of these
        shares as there are levels that change nothing, and one more: 5 of 126 with KADIS-700k. With `count` above 1, a
        sample that is not pristine gets 1 to `count` different types in a row, as many as drawn uniformly (as in
        ARNIQA, arXiv 2310.14918, section 3.1; our levels stay uniform).

        Args:
            seed, epoch, positions: see `csrtrain.draws.uniform`; positions (B,).
            authentic: (B,) bool, samples that get nothing.
            count: most distortions of one sample, k.
            continuous: levels are uniform in [0.5, 5.5] and then clipped to [1, 5], so that each of the five is the
                nearest as often as any other, and values interpolated between those of the table.
            per_class: so many pristine images in a row get the same types and levels, each its own noise.
            authentic_parts: authentic positions among every `draws.PARTS`, which do not count as in a row.
        """
        self.check_count(count)
        kinds = len(self.rows)
        classes = positions if per_class == 1 else draws.pristine_rank(positions, authentic_parts) // per_class
        u = draws.uniform(seed, epoch, classes, draws.DISTORTION_STREAM, 2 + kinds + count)
        distorted = ~authentic & (u[:, 0] >= 1 / (1 + LEVELS * kinds))
        numbers = np.where(distorted, 1 + np.floor(u[:, 1] * count), 0)
        types = np.argsort(u[:, 2 : 2 + kinds], axis=1, kind="stable")[:, :count]  # (B,k) without repetition
        types = np.where(np.arange(count) < numbers[:, None], types, -1)
        levels = LEVELS * u[:, 2 + kinds :]
        levels = np.clip(0.5 + levels, 1, LEVELS) if continuous else 1 + np.floor(levels)
        seeds = [draws.sample_seeds(seed, epoch, positions, draws.DISTORTION_STREAM + k) for k in range(count)]
        return self.drawn(types, levels, np.stack(seeds, axis=1))

    def drawn(
        self, types: NDArray[np.int64], levels: NDArray[np.float64], seeds: NDArray[np.int64]
    ) -> DrawnDistortions:
        """The same for chosen types and levels, (B,k) each."""
        return DrawnDistortions(
            types,
            levels,
            torch.from_numpy(_interpolated(self.values, types, levels).astype(np.float32)),
            torch.from_numpy(seeds),
            torch.from_numpy(np.argsort(types, axis=0, kind="stable").T.copy()),
        )

    def severity(self, drawn: DrawnDistortions) -> NDArray[np.float64]:
        """(B,k) severities, 0 for none; between two levels interpolated, with their sign."""
        return np.where(drawn.types < 0, 0.0, np.abs(_interpolated(self.severities, drawn.types, drawn.levels)))

    def class_ids(self, drawn: DrawnDistortions, grey: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """(B,) class ids, of several distortions one id for the sequence.

        A continuous level counts as the nearest, and as pristine where its severity is nearer to 0. So does on a grey
        image what changes colours alone, unless another type comes before.

        Args:
            grey: (B,) bool, images whose three channels are equal.
        """
        nearest = np.rint(drawn.levels).astype(np.int64) - 1
        pristine = self.severity(drawn) < np.abs(self.severities[drawn.types, nearest]) / 2  # a turning point
        if grey is not None:
            pristine |= grey[:, None] & np.logical_and.accumulate(self.chroma[drawn.types], axis=1)
        ids = np.where((drawn.types < 0) | pristine, PRISTINE, self.class_of[drawn.types, nearest])  # (B,k)
        # A pristine one in between changes nothing: the sequence is what is left without it.
        ids = np.take_along_axis(ids, np.argsort(ids == PRISTINE, axis=1, kind="stable"), axis=1)
        base = 1 + self.class_of.size
        return np.asarray((ids * base ** np.arange(ids.shape[1])).sum(1), dtype=np.int64)

    def in_worker(
        self,
        images: Tensor,
        seed: int,
        epoch: int,
        positions: NDArray[np.int64],
        continuous: bool = False,
        per_class: int = 1,
        authentic_parts: int = 0,
    ) -> Tensor:
        """What `forward` leaves out, on the host: images (B,C,H,W) uint8 or float32, none authentic, to the same."""
        none = np.zeros(len(images), dtype=np.bool_)
        drawn = self.draw(seed, epoch, positions, none, 1, continuous, per_class, authentic_parts)
        out = images.clone()
        for t in sorted(self.left_out):
            rows = torch.from_numpy(np.flatnonzero(drawn.types[:, 0] == t))
            x = out[rows].float() / 255 if out.dtype == torch.uint8 else out[rows]
            x = self.rows[t].function(x, drawn.values[rows, 0], drawn.seeds[rows, 0]).clamp(0, 1)
            out[rows] = (x * 255).round().to(torch.uint8) if out.dtype == torch.uint8 else x
        return out

    def forward(self, images: Tensor, drawn: DrawnDistortions) -> Tensor:
        """Apply what was drawn, in float32 also under autocast or TF32, with no host read of a device tensor.

        Args:
            images: (B,C,H,W) uint8, or float32 in [0,1], at least 32 px in height and width.
            drawn: from `draw`, its tensors on the images' device.

        Returns:
            (B,C,H,W) float32 in [0,1].
        """
        self._check(images, drawn)
        with torch.no_grad(), full_precision(images.device), compiling(self.compiled):
            x = images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images.clamp(0, 1)
            for k in range(drawn.types.shape[1]):
                self._distort(x, drawn, k)
        return x

    def _check(self, images: Tensor, drawn: DrawnDistortions) -> None:
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                f"Expected images (B,C,H,W) in uint8, or float32 in [0,1], got {tuple(images.shape)} {images.dtype}. "
                "Convert them before."
            )
        if min(images.shape[2:]) < SMALLEST:
            height, width = images.shape[2:]
            raise ValueError(
                f"Expected images of at least {SMALLEST} x {SMALLEST} px, got {height} x {width}. Continue or enlarge "
                "them before."
            )
        if len(drawn.types) != len(images):
            raise ValueError(
                f"Expected parameters of {len(images)} samples, got {len(drawn.types)}. Draw for this batch."
            )
        colored = [self.rows[t].name for t in np.unique(drawn.types) if t >= 0 and self.rows[t].color]
        if colored and images.shape[1] != 3:
            raise ValueError(f"Expected 3 channels for {', '.join(colored)}, got {images.shape[1]}. Use `rows_for`.")

    def _distort(self, x: Tensor, drawn: DrawnDistortions, k: int) -> None:
        """Change x (B,C,H,W) in place by the k-th distortion of each sample."""
        types, starts = np.unique(np.sort(drawn.types[:, k]), return_index=True)
        ends = [*starts[1:], len(x)]
        runs = [(t, s, e) for t, s, e in zip(types, starts, ends, strict=True) if t >= 0 and t not in self.left_out]
        step = max(1, _CHUNK // x[0].numel()) if x.device.type == "cpu" else len(x)
        parts = [(t, at, min(at + step, end)) for t, start, end in runs for at in range(start, end, step)]

        values, seeds = (drawn_of[:, k].index_select(0, drawn.order[k]) for drawn_of in (drawn.values, drawn.seeds))

        def work(part: tuple[int, int, int]) -> None:
            t, start, end = part
            rows = drawn.order[k, start:end]
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # both hold for one thread
                if x.device.type == "cpu" and len(rows) == 1:  # in place, without two copies
                    target = x[int(rows.numpy()[0])][None]  # numpy: a host read of a host tensor is no synchronisation
                    torch.clamp(self.rows[t].function(target, values[start:end], seeds[start:end]), 0, 1, out=target)
                else:
                    distorted = self.rows[t].function(x.index_select(0, rows), values[start:end], seeds[start:end])
                    x.index_copy_(0, rows, distorted.clamp_(0, 1))  # of a copy, whatever the function gives back

        if x.device.type == "cpu":
            chunks.for_each(work, parts)
        else:
            for part in parts:
                work(part)


def _interpolated(
    table: NDArray[np.float64], types: NDArray[np.int64], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Entries of (T,5) at types and levels (B,k), linear between two levels."""
    below = np.clip(np.floor(levels).astype(np.int64), 1, LEVELS - 1)
    low, high = table[types, below - 1], table[types, below]
    return np.asarray(low + (high - low) * (levels - below))
