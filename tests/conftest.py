"""Two test processes share two cores: one thread each, also in the processes that tests start."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

torch.set_num_threads(1)

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
def images(tmp_path):
    """A folder of 16 grey images of two classes, and its labels."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((48, 48)).save(folder / f"{i:02d}.png")
    (folder / "labels.csv").write_text("image,class\n" + "".join(f"{i:02d}.png,{i % 2}\n" for i in range(16)))
    return folder


@pytest.fixture
def no_host_reads():
    return NoHostReads


@pytest.fixture
def host_read_error():
    return HostReadError
