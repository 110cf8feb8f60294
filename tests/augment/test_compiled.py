import functools
import logging

import pytest
import torch
from torch._inductor import config

from csrtrain.augment.compiled import Kernel


def double(x, factor):
    return x * factor + x


def test_without_a_compiler_it_runs_uncompiled_and_says_so_once(caplog):
    kernel = Kernel(double)
    x = torch.rand(3, 5)
    no_compiler = config.patch({"cpp.cxx": (None, "/nonexistent/compiler"), "force_disable_caches": True})
    with no_compiler, caplog.at_level(logging.WARNING, logger="csrtrain"):
        assert torch.equal(kernel(x, 2.0, compiled=True), double(x, 2.0))
        assert torch.equal(kernel(x, 2.0, compiled=True), double(x, 2.0))
    assert "compiler" in kernel.failure.lower()
    messages = [record.message for record in caplog.records if "run uncompiled" in record.message]
    assert len(messages) == 1 and kernel.failure in messages[0]


def test_a_mistake_in_the_arguments_is_raised_and_switches_nothing_off():
    kernel = Kernel(double)
    try:
        kernel(torch.rand(3, 5), torch.rand(4), compiled=True)
    except RuntimeError as error:
        assert "size" in str(error)
    else:
        raise AssertionError("Expected an error.")
    assert kernel.failure is None


def test_switched_off_it_uses_the_library_form():
    kernel = Kernel(double, lambda x, factor: x - factor)
    x = torch.rand(2, 2)
    assert torch.equal(kernel(x, 2.0, compiled=False), x - 2.0)


def test_beyond_dynamos_number_of_versions_it_uses_the_library_form_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    kernel = Kernel(lambda x, times: sum(x for _ in range(times)), lambda x, times: x * times + 100)
    x = torch.rand(2, 3)
    with torch._dynamo.config.patch(recompile_limit=2), caplog.at_level(logging.WARNING, logger="csrtrain"):
        found = [float((kernel(x, times, compiled=True, batched=False) - x * times).mean()) for times in range(1, 5)]
    assert found == pytest.approx([0, 0, 100, 100], abs=1e-3)
    assert kernel.failure in caplog.text and "Limit" in kernel.failure
