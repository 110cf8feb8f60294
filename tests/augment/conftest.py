import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_unique2")


class HostReadError(Exception):
    pass


class NoHostReads(TorchDispatchMode):
    """Raises at operations that wait for the device: scalars, shapes that depend on data, copies to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in HOST_READS or name.startswith("unique") or str(func) == "aten.repeat_interleave.Tensor":
            raise HostReadError(str(func))
        if name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], (list, tuple)) else [])
        ):
            raise HostReadError(f"{func} with a mask")
        if name in ("_to_copy", "copy_") and self._leaves_device(name, args, kwargs or {}):
            raise HostReadError(f"{func} to the host")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _leaves_device(name, args, kwargs):
        source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
        return target is not None and torch.device(target).type == "cpu" and source.device.type != "cpu"


@pytest.fixture
def no_host_reads():
    return NoHostReads


@pytest.fixture
def host_read_error():
    return HostReadError


@pytest.fixture
def noise_images():
    """(B,C,H,W) uint8: independent pixels, the hardest case for interpolation and hue, with flat and grey parts."""

    def make(n, channels, height, width, seed=0):
        images = np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)
        images[:, :, : height // 4] = images[:, :1, : height // 4]  # grey: no hue
        images[:, :, : height // 8, : width // 4] = 0
        images[:, :, : height // 8, width // 4 : width // 2] = 255
        return torch.from_numpy(images)

    return make
