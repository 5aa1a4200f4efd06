"""Where modules are while they work: moved to the device for a block, and back to where they were after it.

Where everything fits, the manager loads onto the device and these moves cost nothing; where it does not, modules wait
in main memory and only the one at work is on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def placed(module: Any, device: torch.device) -> Iterator[None]:
    """`module` (a diffusers or transformers model, or any with `.device` and `.to`) on `device` inside the block."""
    home = module.device
    if home == device:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
