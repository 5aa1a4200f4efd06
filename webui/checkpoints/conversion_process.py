"""The process that reads one pickle with torch's weights-only loader and writes it as safetensors, within limits.

``python -m webui.checkpoints.conversion_process SOURCE TARGET``. Exits with `REFUSED` and a sentence on standard output
for what it will not or cannot read; any other failure, such as reaching a limit, says nothing a person could use.
Started by `webui.checkpoints.conversion` alone.
"""

from __future__ import annotations

import pickle
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from webui.checkpoints.containers.pickle_machine import is_inert
from webui.checkpoints.containers.state import remarks_of, weights_of
from webui.checkpoints.containers.torch_file import names_in
from webui.checkpoints.conversion import REFUSED
from webui.core.errors import UnsupportedModel

# Beside the file's own size: for torch's buffers and for a tensor that has to be copied.
_SLACK_BYTES = 2**30
_CPU_SECONDS = 120
_BYTES_PER_CPU_SECOND = 20 * 2**20


class Inert:
    """Stands for anything that trainers leave beside the weights: takes what it is given and does nothing."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        """Keeps the state, in which there may be tensors."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keeps the entry, for what was derived from a dict."""
        self.state[key] = value


def main(source: Path, target: Path) -> None:
    """Converts `source`; raises whatever torch and safetensors raise."""
    _limit(source.stat().st_size)
    inert: list[Any] = [(Inert, name) for name in names_in(source) if is_inert(name)]
    with torch.serialization.safe_globals(inert):
        # Mapping spares a copy in memory; files from before torch 1.6 cannot be mapped.
        tree = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    save_file(_apart(weights_of(tree, torch.Tensor)), target, metadata=remarks_of(tree))


def _apart(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same numbers, each tensor with memory of its own as safetensors wants it."""
    storages: set[int] = set()
    apart: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        place = weight.untyped_storage().data_ptr()
        shared = place in storages
        storages.add(place)
        apart[name] = weight.detach().clone() if shared else weight.detach().contiguous()
    return apart


def _limit(file_bytes: int) -> None:
    """Bounds memory, processor time, and what can be written; torch's libraries are in memory by now."""
    address_bytes = _address_bytes()
    limits = {
        resource.RLIMIT_CPU: _CPU_SECONDS + file_bytes // _BYTES_PER_CPU_SECOND,
        resource.RLIMIT_FSIZE: 2 * file_bytes + 2**20,
        resource.RLIMIT_CORE: 0,
    }
    if address_bytes is not None:
        limits[resource.RLIMIT_AS] = address_bytes + 4 * file_bytes + _SLACK_BYTES
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _address_bytes() -> int | None:
    """What this process has mapped so far; None where the system does not say (macOS)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return None
    return pages * resource.getpagesize()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (pickle.UnpicklingError, SafetensorError, UnsupportedModel, OSError) as error:
        sys.stdout.write(str(error).partition("\n")[0])
        sys.exit(REFUSED)
