"""Two views of a batch of 64: ours, compiled and not, beside kornia.

    python -m benchmarks views

The peer has the operations and strengths of our `natural` setting: random resized crop (not antialiased: kornia's has
no such option), flip, colour jitter, greyscale, blur of 23 taps. 256 px in, 224 px out, CPU, float32.
"""

from collections.abc import Callable

import kornia.augmentation as K
import numpy as np
import torch

from benchmarks import harness
from csrtrain.augment.settings import SETTINGS
from csrtrain.augment.views import Views

BATCH, LOADED, SIZE = 64, 256, 224
ROUNDS = 11


def kornia_views(*, compiled: bool) -> K.AugmentationSequential:
    """kornia's SimCLR pipeline, eager, or with its compiled `ColorJitter` of fixed order."""
    setting = SETTINGS["natural"]
    jitter, grayscale = setting.jitter, setting.grayscale
    assert jitter and grayscale
    color = K.ColorJitter(
        jitter.brightness,
        jitter.contrast,
        jitter.saturation,
        jitter.hue,
        p=jitter.chance,
        order=(0, 1, 2, 3) if compiled else None,
    )
    if compiled:
        color.compile()
    return K.AugmentationSequential(
        K.RandomResizedCrop((SIZE, SIZE), scale=(setting.crop.smallest, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
        color,
        K.RandomGrayscale(p=grayscale.chance),
        K.RandomGaussianBlur((23, 23), (setting.blur.low, setting.blur.high), p=setting.blur.chance),
    )


def ours(*, compiled: bool, images: torch.Tensor) -> Callable[[], object]:
    """Draw and make both views; every call another epoch, so that all parameters change as in training."""
    views = Views("natural", SIZE, 3, compiled=compiled)
    epochs = iter(range(10**9))
    positions = np.arange(len(images))

    def call() -> object:
        return views(images, views.draw(0, next(epochs), positions, LOADED, LOADED))

    call()  # compiles
    return call


def run() -> harness.Result:
    """Measure."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 3, LOADED, LOADED), dtype=torch.uint8)
    floats = pixels.float() / 255
    eager, fixed = kornia_views(compiled=False), kornia_views(compiled=True)
    variants: dict[str, Callable[[], object]] = {
        "kornia eager": lambda: (eager(floats), eager(floats)),
        "kornia, ColorJitter(order=fixed) compiled": lambda: (fixed(floats), fixed(floats)),
        "csrtrain compiled, uint8": ours(compiled=True, images=pixels),
        "csrtrain compiled, float32": ours(compiled=True, images=floats),
        "csrtrain uncompiled, uint8": ours(compiled=False, images=pixels),
        "copy of the two views": lambda: (floats[..., :SIZE, :SIZE].clone(), floats[..., :SIZE, :SIZE].clone()),
    }
    seconds = harness.interleave(variants, ROUNDS)
    rows = [
        {
            "variant": name,
            "ms": 1e3 * value,
            "kornia eager / this": seconds["kornia eager"] / value,
            "kornia compiled / this": seconds["kornia, ColorJitter(order=fixed) compiled"] / value,
        }
        for name, value in seconds.items()
    ]
    notes = [
        f"Two views of {BATCH} RGB images, {LOADED} px to {SIZE} px, CPU, medians of {ROUNDS} interleaved rounds.",
        "Bars: at least 4 times kornia eager and 2 times kornia compiled, with our colour part compiled.",
        "The physical limit is the copy: memory for the views, written once.",
        "kornia takes float32 (its conversion from uint8 is not counted) and does not antialias the crop.",
    ]
    return harness.Result("views", "Views of SimCLR and MoCo v2", rows, notes, ("torch", "kornia"))
