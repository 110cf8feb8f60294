"""Heads on frozen backbones, one LightningModule per file."""

from csrtrain.quality.no_reference import NoReference

__all__ = ["NoReference"]
