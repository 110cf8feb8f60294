"""Protocols, measures with intervals, and the controls that every result stands beside."""

from csrtrain.evaluate.protocols import PROTOCOLS, evaluate
from csrtrain.evaluate.report import write

__all__ = ["PROTOCOLS", "evaluate", "write"]
