import pytest
import torch

from csrtrain.precision import full_precision


def test_inside_products_are_ieee_and_afterwards_as_before():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.device("cpu")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.matmul(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_is_put_back_after_an_error():
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(KeyError), full_precision(torch.device("cpu")):
        raise KeyError
    assert torch.backends.cuda.matmul.fp32_precision == before
