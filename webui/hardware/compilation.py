"""Compiling what a network repeats with torch.compile: slower to start, faster to run, and the same pictures.

Each block is compiled by itself, so blocks of one shape share their code and the warm-up is a fraction of a whole
network's. What is compiled is kept on disk by torch (`use_folder` says where).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

# diffusers' names of the blocks that UNets are made of.
REPEATED = frozenset({"BasicTransformerBlock", "ResnetBlock2D"})

# torch compiles a function for at most eight shapes before it gives up; a UNet has more shapes of blocks than that.
_SHAPES = 64

_CPP_COMPILERS = ("c++", "g++", "clang++")
_C_COMPILERS = ("gcc", "clang")  # those that triton looks for
_OLDEST_CARD = (7, 0)  # the compute capability that triton's code needs


def why_not(device: torch.device) -> str:
    """Why networks cannot be compiled for `device`, as a sentence; "" where they can."""
    if device.type == "cuda":
        return _why_not_for_a_card(device)
    if device.type != "cpu":
        return f"Compiling is not known to work on {device.type}."
    if "CXX" not in os.environ and not any(shutil.which(name) for name in _CPP_COMPILERS):
        return f"Compiling for the CPU needs a C++ compiler ({', '.join(_CPP_COMPILERS)}), and there is none."
    return ""


def _why_not_for_a_card(device: torch.device) -> str:
    """As `why_not`. On Linux triton builds a module for Python when it first runs; elsewhere it brings a compiler."""
    if importlib.util.find_spec("triton") is None:
        return "Compiling for this card needs the package triton, which is not installed."
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST_CARD:
        return "Compiling needs a card of NVIDIA's Volta generation (2017) or a later one."
    if sys.platform != "linux":
        return ""
    if "CC" not in os.environ and not any(shutil.which(name) for name in _C_COMPILERS):
        return f"Compiling for this card needs a C compiler ({', '.join(_C_COMPILERS)}), and there is none."
    if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists():
        return "Compiling for this card needs Python's C headers (the package python3-dev or python3-devel)."
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


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Within the block all of `network` runs as it is, and after it what was compiled does so again.

    For whoever adds hooks for a while: compiled code goes by those that there were when it was made.
    """
    before = [(each, each._compiled_call_impl) for each in network.modules() if each._compiled_call_impl is not None]
    for module, _ in before:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, compiled in before:
            module._compiled_call_impl = compiled


def _repeated(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if type(module).__name__ in REPEATED]
