"""Attention kernels: one file a backend, a selector that tries them on the machine, and what puts one into a model.

All backends are functions of one signature, `backend.AttentionFunction`.
"""

from webui.hardware.attention.processor import apply_attention, head_sizes, patched
from webui.hardware.attention.selector import AttentionChoice, AttentionSelector

__all__ = ["AttentionChoice", "AttentionSelector", "apply_attention", "head_sizes", "patched"]
