"""What every distance asks of the images that it compares."""

import torch
from torch import Tensor

_OVERSHOOT = 0.25  # beyond [0,1] that a network's output may have as a loss


def check_shapes(x: Tensor, y: Tensor) -> None:
    """Refuse references y that are not one for each image of x, or one for all, of its size.

    Raises:
        ValueError: they are not.
    """
    if y.shape[1:] != x.shape[1:] or len(y) not in (1, len(x)):
        raise ValueError(
            f"Expected references of the images' shape {tuple(x.shape)}, got {tuple(y.shape)}. Give pairs."
        )


def check_range(what: str, images: Tensor) -> None:
    """Refuse floats far from [0,1] on a CPU. On other devices this would wait for them, see `out_of_range`.

    Raises:
        ValueError: values beyond [-0.25,1.25], or NaN.
    """
    if torch.compiler.is_compiling():  # or exported: there are no values
        return
    if images.device.type == "cpu" and images.is_floating_point() and images.numel():
        # numpy: a host read of a host tensor is no synchronisation
        low, high = (float(value.float().numpy()) for value in images.detach().aminmax())
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):  # NaN too
            advice = "Replace NaN." if low != low else "Divide 8-bit values by 255."
            raise ValueError(f"Expected {what} in [0,1], got {low:g} to {high:g}. {advice}")


def out_of_range(images: Tensor) -> Tensor:
    """(B,) which of (B,C,H,W) `check_range` would refuse; their distance is NaN where nobody waits for values."""
    return ~((images >= -_OVERSHOOT) & (images <= 1 + _OVERSHOOT)).flatten(1).all(1)  # NaN too
