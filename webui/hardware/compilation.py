"""Compiling what a network repeats with torch.compile: slower to start, faster to run, and the same pictures.

Each block is compiled by itself, so blocks of one shape share their code and the warm-up is a fraction of a whole
network's. What is compiled is kept on disk by torch (`use_folder` says where).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from torch import nn

# diffusers' names of the blocks that UNets are made of.
REPEATED = frozenset({"BasicTransformerBlock", "ResnetBlock2D"})

# torch compiles a function for at most eight shapes before it gives up; a UNet has more shapes of blocks than that.
_SHAPES = 64

_COMPILERS = ("c++", "g++", "clang++")


def why_not(device: torch.device) -> str:
    """Why networks cannot be compiled for `device`, as a sentence; "" where they can."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Compiling for this card needs the package triton, which is not installed."
        return ""
    if device.type != "cpu":
        return f"Compiling is not known to work on {device.type}."
    if "CXX" not in os.environ and not any(shutil.which(name) for name in _COMPILERS):
        return f"Compiling for the CPU needs a C++ compiler ({', '.join(_COMPILERS)}), and there is none."
    return ""


def use_folder(folder: Path) -> None:
    """Has torch keep compiled code in `folder`, unless the environment already says where."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def set_compiled(network: nn.Module, *, wanted: bool, backend: str = "inductor") -> bool:
    """Has the repeated blocks of `network` run compiled, or as they are; returns whether that is a change.

    Compiling itself happens when a block is first called with a shape.
    """
    blocks = _repeated(network)
    changed = [block for block in blocks if (block._compiled_call_impl is not None) != wanted]
    if changed and wanted:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    for block in changed:
        if wanted:
            block.compile(backend=backend)
        else:
            block._compiled_call_impl = None
    return bool(changed)


def is_compiled(network: nn.Module) -> bool:
    """Whether the repeated blocks of `network` run compiled; not where it has none."""
    return any(block._compiled_call_impl is not None for block in _repeated(network))


def _repeated(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if type(module).__name__ in REPEATED]
