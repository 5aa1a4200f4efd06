"""In which order a network's pictures lie in memory: channel by channel, or (channels last) pixel by pixel.

Owns the trial that decides it on a card, which is remembered like the choices of attention. On the CPU there is nothing
to try: in float32 an SD 1.5 UNet took 12% (256 × 256 pixels) to 22% (128 × 128) more processor time with channels last,
in bfloat16 a quarter less, and its VAE two fifths less.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from webui.hardware.attention.remembered import Choice, RememberedChoices
from webui.hardware.attention.trial import Clock, wait_for
from webui.hardware.device import describe

USUAL, CHANNELS_LAST = "contiguous", "channels last"
_FORMATS = {USUAL: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}

# The widest maps that there are many of: SD 1.5's UNet at 512 × 512 pixels, in the batch that guidance makes.
_SHAPE = (2, 320, 64, 64)
_GROUPS = 32
_RUNS, _CALLS_A_RUN, _WARM_UP_CALLS = 3, 8, 3
# Another order changes a picture's last bits, so chance must not decide.
_CLEARLY_FASTER = 1.03


def choose_layout(
    device: torch.device,
    dtype: torch.dtype,
    remembered: RememberedChoices,
    *,
    compiled: bool = False,
    clock: Clock = time.perf_counter,
) -> Choice:
    """How feature maps should lie on `device`: `CHANNELS_LAST` where that is clearly faster in `dtype`, else `USUAL`.

    What is timed is a convolution after a norm, as networks repeat them; where they run `compiled`, the convolution
    alone, for norms then take either order.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        return Choice(name=CHANNELS_LAST)
    if device.type != "cuda":
        return Choice(name=USUAL, refused={CHANNELS_LAST: f"it was not found faster on {device.type}"})
    key = f"layout on {describe(device)}, {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}"
    known = remembered.get(key)
    if known is None:
        seconds = time_layouts(device, dtype, compiled=compiled, clock=clock)
        wins = seconds[USUAL] > seconds[CHANNELS_LAST] * _CLEARLY_FASTER
        known = Choice(name=CHANNELS_LAST if wins else USUAL, seconds=seconds)
        remembered.put(key, known)
    return known


@torch.no_grad()
def time_layouts(device: torch.device, dtype: torch.dtype, *, compiled: bool, clock: Clock) -> dict[str, float]:
    """Seconds that the layers take in each order, in turn; the best of some runs."""
    channels = _SHAPE[1]
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    layers = convolution if compiled else nn.Sequential(nn.GroupNorm(_GROUPS, channels), nn.SiLU(), convolution)
    layers.to(device, dtype).requires_grad_(False)
    x = torch.ones(_SHAPE, dtype=dtype, device=device)
    seconds = dict.fromkeys(_FORMATS, float("inf"))
    for _ in range(_RUNS):
        for name, memory_format in _FORMATS.items():
            layers.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]  # torch's stub wants 4-D alone
            taken = _time(layers, x.to(memory_format=memory_format), device, clock)
            seconds[name] = min(seconds[name], taken)
    return seconds


def _time(layers: nn.Module, x: Tensor, device: torch.device, clock: Clock) -> float:
    for _ in range(_WARM_UP_CALLS):
        layers(x)
    wait_for(device)
    started = clock()
    for _ in range(_CALLS_A_RUN):
        layers(x)
    wait_for(device)
    return (clock() - started) / _CALLS_A_RUN


def lay(network: nn.Module, layout: Choice) -> None:
    """Has the convolutions of `network` lie as `layout` says, and so the maps between them; costs nothing if they do.

    Packed weights (`low_bits`) of fewer dimensions stay, and so do what is computed from them.
    """
    network.to(memory_format=_FORMATS[layout.name])  # pyright: ignore[reportCallIssue]  # as above
