"""csrtrain: perceptual quality metrics for your own image domain."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csrtrain.bundle import load

__all__ = ["__version__", "load"]
__version__ = version("csrtrain")


def __getattr__(name: str) -> Any:
    """`csrtrain.load`, imported when it is asked for: `import csrtrain` alone does not import torch."""
    if name == "load":
        from csrtrain.bundle import load

        return load
    raise AttributeError(f"module 'csrtrain' has no attribute {name!r}")
