"""What one loader process delivers: decode and resize alone (views are made on the device), beside lightly's way."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image

from benchmarks import harness
from csrtrain.data import decode, samples
from csrtrain.data.images import square

COUNT = 40


def run() -> harness.Result:
    """Photographs of 500 x 375 pixels as JPEG; one thread, as in a loader process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        paths = []
        for i, address in enumerate((samples.natural() * COUNT)[:COUNT]):
            pixels = decode.to_channels(decode.read(address), 3).permute(1, 2, 0).numpy()
            path = Path(directory, f"{i}.jpg")
            Image.fromarray(np.ascontiguousarray(pixels)).resize((500, 375)).save(path, quality=90)
            paths.append(str(path))
        views = SimCLRTransform(input_size=224)

        def ours() -> None:
            for path in paths:
                square(decode.to_channels(decode.read(path), 3), 256, 0.5)

        def pil() -> None:
            for path in paths:
                with Image.open(path) as image:
                    image.convert("RGB").resize((341, 256), Image.Resampling.BILINEAR)

        def lightly() -> None:
            for path in paths:
                with Image.open(path) as image:
                    views(image.convert("RGB"))

        seconds = harness.interleave({"ours": ours, "PIL": pil, "lightly": lightly}, 5)
    torch.set_num_threads(threads)
    rows = [
        {
            "what": "500 x 375 JPEG, images per second and process",
            "ours": COUNT / seconds["ours"],
            "PIL decode + resize": COUNT / seconds["PIL"],
            "lightly (PIL decode + 2 views)": COUNT / seconds["lightly"],
            "times lightly": seconds["lightly"] / seconds["ours"],
            "target": 5.0,
            "met": seconds["lightly"] / seconds["ours"] >= 5.0,
        }
    ]
    notes = ["Ours leaves the views to the device; `python -m benchmarks views` has their time."]
    return harness.Result(
        "loader", "Loader, decode and resize", rows, notes, ("torch", "torchvision", "lightly", "pillow", "simplejpeg")
    )
