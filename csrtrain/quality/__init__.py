"""Heads on frozen backbones, one LightningModule per file, and proxy ratings."""

from csrtrain.quality.difference import Difference
from csrtrain.quality.full_reference import Opinion, Preference
from csrtrain.quality.no_reference import NoReference
from csrtrain.quality.proxy import ProxyData

Head = NoReference | Preference | Opinion | Difference
"""What is fitted after one pass of frozen features, and cannot go on from where it was stopped."""

__all__ = ["Difference", "Head", "NoReference", "Opinion", "Preference", "ProxyData"]
