"""Where modules are while they work: moved to the device for a block, and back to where they were after it.

Where everything fits, the manager loads onto the device and these moves cost nothing; where it does not, modules wait
in main memory and only the one at work is on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """Any one weight, for its device and dtype: what diffusers' own properties walk all modules to find."""
    return next(module.parameters())


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """`module`, whose weights are all in one place, on `device` inside the block."""
    home = weight_of(module).device
    if home == device:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
