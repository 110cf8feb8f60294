import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csrtrain.losses import chunked
from csrtrain.losses.info_nce import info_nce
from csrtrain.losses.nt_xent import nt_xent


class Products(TorchDispatchMode):
    """Keeps the type of each matrix product, what float32 means in it, and the largest result of any operation."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if torch.is_tensor(out):
            self.largest = max(self.largest, out.numel())
            if func.overloadpacket._qualified_op_name in ("aten::mm", "aten::addmm_"):
                self.products.append((out.dtype, torch.backends.cuda.matmul.fp32_precision))
        return out


def losses(n=64, d=8):
    generator = torch.Generator().manual_seed(0)
    z0, z1, queue = (torch.randn(n, d, generator=generator).requires_grad_() for _ in range(3))
    return {"nt_xent": lambda: nt_xent(z0, z1, 0.1), "info_nce": lambda: info_nce(z0, z1, queue, 0.1)}


@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_products_are_float32_whatever_is_set_for_the_backbone(name):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16), Products() as seen:
            losses()[name]().backward()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"  # put back
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen.products and set(seen.products) == {(torch.float32, "ieee")}


@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_nothing_of_the_size_rows_times_columns_is_made(monkeypatch, name):
    monkeypatch.setattr(chunked, "ELEMENTS", 512)
    with Products() as seen:
        losses()[name]().backward()
    assert seen.largest <= 128 * 8 + 512  # the projections of both views, or two blocks
