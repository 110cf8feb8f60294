"""The 25 natural distortions in batches, beside the same operations image by image; the DCT JPEG beside kornia's codec.

    python -m benchmarks distortions

32 photographs of 224 px, each type at all five levels in turn, CPU, one thread on both sides: peers that go image by
image are spread over processes, and so are ours in a loader. One row has ours in all of torch's threads, as a batch is
in training, beside peers that have one. Ours goes through the bank, from float32 to float32, compiled as in training on
a CPU; peers that Pillow does fastest work on bytes.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from kornia.enhance import jpeg_codec_differentiable
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import harness
from benchmarks.peers import DIRECT, PEERS, Peer
from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.distort import LEVELS, NATURAL, Distortion
from csrtrain.augment.distortions import compression
from csrtrain.data import decode, samples

BATCH, SIZE = 32, 224
ROUNDS = 15
BAR, JPEG_BAR, PSNR_BAR = 3.0, 7.0, 0.05  # times, times, dB
QUALITIES = (4, 7, 10, 24, 36, 43, 60, 75, 90)
CHUNK = 8  # images that the bank hands to a function at once on a CPU


def photographs(count: int, size: int) -> Tensor:
    """(count,3,size,size) uint8: the middle, the corners and the whole of the colour photographs in the packages."""
    images = [decode.read(address) for address in samples.natural()]
    squares = []
    for image in (image for image in images if len(image) == 3):
        height, width = image.shape[1:]
        side = min(height, width)
        whole = image[:, (height - side) // 2 :, (width - side) // 2 :][:, :side, :side]
        squares += [F.interpolate(whole[None].float(), (size, size), mode="area")[0]]
        squares += [image[:, y : y + size, x : x + size] for y in (0, height - size) for x in (0, width - size)]
    return torch.stack([square.round().to(torch.uint8) for square in squares[:: len(squares) // count][:count]])


def _type_row(
    row: Distortion, peer: Peer, bytes_: Tensor, threads: int
) -> tuple[dict[str, object], float, float, float]:
    """One type, and ms per image of ours, of the peer, and of ours in so many threads."""
    values = [row.values[k % LEVELS] for k in range(BATCH)]
    floats, random = bytes_.float() / 255, np.random.default_rng(0)
    taken = [x.numpy() for x in (floats if peer.floats else bytes_).permute(0, 2, 3, 1).contiguous()]
    bank = DistortionBank([row], compiled=True)
    levels = np.array([[1.0 + k % LEVELS] for k in range(BATCH)])
    drawn = bank.drawn(np.zeros((BATCH, 1), dtype=np.int64), levels, np.arange(BATCH)[:, None] * 7919)

    def theirs() -> list[NDArray[np.generic]]:
        return [peer.function(image, value, random) for image, value in zip(taken, values, strict=True)]

    def threaded() -> None:
        torch.set_num_threads(threads)
        bank(floats, drawn)
        torch.set_num_threads(1)

    calls = {"ours": lambda: bank(floats, drawn), "peer": theirs, "threaded": threaded, "copy": floats.clone}
    seconds = harness.interleave(calls, ROUNDS)
    ours, other, in_threads, copy = (1e3 * seconds[key] / BATCH for key in calls)
    return (
        {
            "what": f"{row.name}: ms per image",
            "ours": ours,
            "peer": other,
            "ratio": other / ours,
            "physical limit": f"a copy: {copy:.3f} ms",
            "verdict": "gains" if other > 1.05 * ours else "equal" if other > ours / 1.05 else "does not gain",
            "note": f"peer: {peer.made_of}",
        },
        ours,
        other,
        in_threads,
    )


def _jpeg_rows(bytes_: Tensor) -> list[dict[str, object]]:
    """The transform beside kornia's codec, and its PSNR beside libjpeg's."""
    x = bytes_.float() / 255
    quality = torch.tensor([NATURAL_JPEG.values[k % LEVELS] for k in range(BATCH)])

    def ours() -> None:
        for images, q in zip(x.split(CHUNK), quality.split(CHUNK), strict=True):
            compression.jpeg_dct(images, q)

    def chunked_peer() -> None:
        for images, q in zip(x.split(CHUNK), quality.split(CHUNK), strict=True):
            jpeg_codec_differentiable(images, q)

    def peer() -> Tensor:
        return jpeg_codec_differentiable(x, quality)

    seconds = harness.interleave({"ours": ours, "peer": peer, "chunked": chunked_peer}, ROUNDS)
    ms = {name: 1e3 * value / BATCH for name, value in seconds.items()}
    rows = []
    for name, peers_batch in (("peer", BATCH), ("chunked", CHUNK)):
        what = f"JPEG by cosine transform: ms per image, peer in batches of {peers_batch}"
        rows.append(harness.compared(what, ms["ours"], ms[name], JPEG_BAR))
        rows[-1]["note"] = f"peer: kornia's codec; ours in batches of {CHUNK}, as the bank goes"
    worst = {"ours": 0.0, "peer": 0.0}
    for q in QUALITIES:
        qualities = torch.full((BATCH,), float(q))
        real = _psnr(compression.jpeg(x, qualities, torch.zeros(BATCH)), x)
        for name, coded in (
            ("ours", compression.jpeg_dct(x, qualities)),
            ("peer", jpeg_codec_differentiable(x, qualities)),
        ):
            worst[name] = max(worst[name], float((_psnr(coded, x) - real).abs().max()))
    return [
        *rows,
        {
            "what": f"JPEG by cosine transform: largest difference of PSNR to libjpeg, quality {min(QUALITIES)} to "
            f"{max(QUALITIES)}, dB",
            **worst,
            "target": f"<= {PSNR_BAR}",
            "verdict": "met" if worst["ours"] <= PSNR_BAR else "missed",
            "note": "of any image",
        },
    ]


NATURAL_JPEG = next(row for row in NATURAL if row.name == "jpeg")


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)))


def run() -> harness.Result:
    """Measure every type."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        warnings.filterwarnings("ignore", message=".*negative Z values")  # of scikit-image
        bytes_ = photographs(BATCH, SIZE)
        rows, ours, peers, together, direct, direct_rows = [], [], [], [], [], []
        for distortion in NATURAL:
            row, mine, other, in_threads = _type_row(distortion, PEERS[distortion.name], bytes_, threads)
            rows.append(row)
            ours.append(mine)
            peers.append(other)
            together.append(in_threads)
            if distortion.name in DIRECT:
                row, _, other, _ = _type_row(distortion, DIRECT[distortion.name], bytes_, threads)
                row["note"] = f"{row['note']}, its own function"
                direct_rows.append(row)
            direct.append(other)
        mean = harness.compared("mean over types: ms per image", float(np.mean(ours)), float(np.mean(peers)), BAR)
        codec = [row.name for row in NATURAL].index("jpeg2000")
        without_codec = np.delete(peers, codec).sum() / np.delete(ours, codec).sum()
        geometric = float(np.exp(np.mean(np.log(np.array(peers) / np.array(ours)))))
        mean["note"] = (
            f"of the ratios the mean is {np.mean(np.array(peers) / np.array(ours)):.2f}, the geometric mean "
            f"{geometric:.2f}; {sum(r['verdict'] == 'gains' for r in rows)} of {len(rows)} types gain; without "
            f"JPEG2000, the same codec on both sides, {without_codec:.2f}"
        )
        plain = harness.compared(
            "the same, peers by the library's own functions", float(np.mean(ours)), float(np.mean(direct)), BAR
        )
        plain["note"] = f"{', '.join(DIRECT)}: as a user would first write them"
        what = f"the same, ours in {threads} threads: ms per image"
        shared = harness.compared(what, float(np.mean(together)), float(np.mean(direct)), BAR)
        shared["note"] = "the peers in one, as they stand"
        rows = [mean, plain, shared, *_jpeg_rows(bytes_), *rows, *direct_rows]
    finally:
        torch.set_num_threads(threads)
    notes = [
        f"{BATCH} images of {SIZE} px, one thread, {ROUNDS} interleaved rounds, medians.",
        "JPEG and JPEG2000 are the real codecs on both sides; on a GPU ours are the transform, and a loader.",
    ]
    packages = ("torch", "kornia", "scipy", "scikit-image", "pillow", "imagecodecs")
    return harness.Result("distortions", "Distortions beside peers image by image", rows, notes, packages)
