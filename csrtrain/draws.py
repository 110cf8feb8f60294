"""The randomness contract: everything random about a sample is a function of (seed, epoch, position, stream).

The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), evaluated for
a whole batch at once. It has no state, so the parameters of a sample depend neither on the number of workers or ranks
nor on interruptions.
"""

import random

import numpy as np
import torch
from numpy.typing import NDArray

# A stream names what a draw is for. Streams below 16 are the views of a sample.
VIEW_STREAMS = (0, 1)
CROP_STREAM = 16
REPLACEMENT_STREAM = 17
STEP_STREAM = 18
PERMUTATION_STREAM = 19
DISTORTION_STREAM = 20  # and those after it, for further distortions of the same sample
SCALE_STREAM = 40

PARTS = 1000  # the share of authentic images is a whole number of these

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox-4x32-10: 32-bit counters (..., 4) and a 32-bit key pair -> 32-bit random words (..., 4)."""
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def _words(seed: int, epoch: int, positions: NDArray[np.int64], stream: int, n: int) -> NDArray[np.uint64]:
    """n random 32-bit words for each position: (B, n)."""
    positions = np.asarray(positions, dtype=np.int64)
    blocks = (n + 3) // 4
    counter = np.zeros((len(positions), blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks, dtype=np.uint64)
    counter[..., 1] = np.uint64(stream)
    counter[..., 2] = np.uint64(epoch)
    counter[..., 3] = positions.astype(np.uint64)[:, None]
    return philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)).reshape(len(positions), -1)[:, :n]


def uniform(seed: int, epoch: int, positions: NDArray[np.int64], stream: int, n: int) -> NDArray[np.float64]:
    """n uniform numbers in [0, 1) for each position.

    Args:
        seed: seed of the run, 64 bits are used.
        epoch: epoch number, from 0.
        positions: (B,) positions in the epoch's order, below 2**32.
        stream: what the numbers are for (`VIEW_STREAMS`, `CROP_STREAM`, ...).
        n: numbers per position; the first k of n are the k that a call with n=k gives.

    Returns:
        (B, n) float64, resolution 2**-32.
    """
    return _words(seed, epoch, positions, stream, n).astype(np.float64) * 2.0**-32


def sample_seeds(seed: int, epoch: int, positions: NDArray[np.int64], stream: int) -> NDArray[np.int64]:
    """(B,) seeds in [0, 2**63) for per-pixel noise, one per position."""
    words = _words(seed, epoch, positions, stream + 0x10000, 2)
    return ((words[:, 0] << _SHIFT | words[:, 1]) >> np.uint64(1)).astype(np.int64)


def epoch_order(seed: int, epoch: int, n: int, repeats: int = 1, source: int = 0) -> NDArray[np.int64]:
    """The order of an epoch: `repeats` permutations of range(n) in a row, a function of (seed, epoch, source) alone.

    One after the other, so that an image meets itself in a batch only where two permutations join.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), epoch + (source << 48)]))
    return np.concatenate([generator.permutation(n) for _ in range(repeats)]).astype(np.int64)


def pristine_rank(positions: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """How many pristine images stand before each position, where `parts` of every `PARTS` positions are authentic.

    A position is authentic where the number does not rise; so they are spread evenly over an epoch.
    """
    return positions - positions * parts // PARTS


def reseed(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Reseed the global generators of torch, NumPy and Python for one training step.

    It covers what the contract above cannot reach: dropout, drop-path, a foreign augmentation pipeline.
    """
    word = int(sample_seeds(seed, epoch, np.array([batch], dtype=np.int64), STEP_STREAM + 0x100 * (rank + 1))[0])
    torch.manual_seed(word)
    np.random.seed(word % 2**32)
    random.seed(word)
