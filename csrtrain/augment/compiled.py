"""Batch functions that are compiled where the machine has a compiler, and run as they stand where it has none."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
_reported: set[str] = set()
_wanted = False

COMPILED_FROM = 128  # px; below, a run is over before compilation (half a minute to one, mostly once per machine) pays


class Kernel:
    """A function of tensors (n, ...) that `torch.compile` fuses at its first call.

    Compilation needs a C++ compiler on a CPU and Triton on a GPU. Where it fails, the reason is logged once and the
    function runs uncompiled from then on, with the same result up to rounding.

    Args:
        function: tensors that share the leading dimension n, then plain values, to a tensor; with no read of a
            tensor on the host. Of images alone, as `per_image` gives them, (C,H,W) as well: axes counted from the end.
        uncompiled: the same by library calls, where those are faster than `function` uncompiled.
    """

    def __init__(self, function: Callable[..., Tensor], uncompiled: Callable[..., Tensor] | None = None) -> None:
        self.function = function
        self.uncompiled = uncompiled or function
        self.failure: str | None = None
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, *arguments: Any, compiled: bool, batched: bool = True) -> Tensor:
        """Call the function; `compiled` is the caller's wish, not a promise, `batched` whether there is an n."""
        if not compiled or self.failure is not None:
            return self.uncompiled(*arguments)
        try:
            return self._call_compiled(arguments, batched)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a mistake in the arguments is raised again by the uncompiled call
            result = self.uncompiled(*arguments)
            self.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if self.failure not in _reported:
                _reported.add(self.failure)
                logger.warning("Augmentations run uncompiled, which is slower: %s", self.failure)
            return result

    def _call_compiled(self, arguments: tuple[Any, ...], batched: bool) -> Tensor:
        """One compilation serves every n: it is marked as dynamic, and 1, which is always special, becomes 2."""
        if self._compiled is None:
            # fullgraph: beyond dynamo's 8 versions it raises, instead of running the function as it stands.
            self._compiled = torch.compile(self.function, fullgraph=True)
        if not batched:
            return self._compiled(*arguments)
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if tensors[0].shape[0] == 1:
            doubled = [torch.cat([x, x]) if isinstance(x, Tensor) else x for x in arguments]
            return self._call_compiled(tuple(doubled), batched)[:1]
        for tensor in tensors:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._compiled(*arguments)


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Whether kernels of single images are compiled meanwhile, in all threads: for one bank at a time."""
    global _wanted
    before, _wanted = _wanted, on
    try:
        yield
    finally:
        _wanted = before


def wanted(kernel: Kernel, x: Tensor) -> bool:
    """Whether to compile it for x: on a CPU where `compiling` says so, unless that has failed."""
    return _wanted and x.device.type == "cpu" and kernel.failure is None


def per_image(kernel: Kernel, x: Tensor, *values: Tensor) -> Tensor:
    """A kernel of whole images: x (n,C,H,W) and values (n,1 or C,1,1) to (n,...).

    Where compilation is `wanted`, image by image, so that the result does not depend on the batch and each stays in the
    cache; the kernel gets (C,H,W) and (1 or C,1,1) there. On other devices than a CPU the library form runs: compiled
    it has not been measured there.
    """
    if not wanted(kernel, x):
        return kernel(x, *values, compiled=False)
    images = [kernel(*of_one, compiled=True, batched=False) for of_one in zip(x.contiguous(), *values, strict=True)]
    return images[0][None] if len(images) == 1 else torch.stack(images)
