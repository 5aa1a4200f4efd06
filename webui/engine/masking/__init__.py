"""Masks made by models: from words (CLIPSeg), and of what stands in front (U²-Net)."""

from webui.engine.masking.masker import EngineMasker

__all__ = ["EngineMasker"]
