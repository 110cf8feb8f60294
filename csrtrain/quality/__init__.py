"""Heads on frozen backbones, one LightningModule per file, and proxy ratings."""

from csrtrain.quality.no_reference import NoReference
from csrtrain.quality.proxy import ProxyData

__all__ = ["NoReference", "ProxyData"]
