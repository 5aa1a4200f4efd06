"""Weights that lie in memory in eight or four bits, and are widened layer by layer as the network runs.

Owns how a weight is packed and what a packed layer computes; which networks are packed is the stock's to say. Any
device that knows the format can do it, in plain torch: what is saved is memory, and a weight that streams to the device
travels in its packed form, while the sums are those of the dtype that the network computes in.

A packed layer is the layer it was, of a class of its own: it keeps its place, its name and whoever refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FULL = "full"

_FP8 = torch.float8_e4m3fn
_FP8_GREATEST = 448.0
_FP8_LEAST_EXPONENT = -14  # scales stay normal numbers in float16
_INT8_GREATEST = 127.0
_NF4_BLOCK = 64
# The quantiles of a normal distribution that "NormalFloat" has (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
_NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# Of a network's parts, those that hold nearly all weights; what enters and leaves it is a few small layers that
# everything goes through, and stays as it is.
_BLOCKS = "block"


class Packed(NamedTuple):
    """A weight in few bits: `numbers`, and the factors of its rows or blocks in the dtype that it had."""

    numbers: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How weights are packed. `widen` gives numbers of any shape that hold as many as the weight did, in its order.

    `bytes_per_weight` counts the scales of blocks, not those of rows, of which there are few.
    """

    bytes_per_weight: float
    pack: Callable[[Tensor], Packed]
    widen: Callable[[Packed, Tensor | None], Tensor]
    fits: Callable[[Tensor], bool] = lambda _: True
    table: tuple[float, ...] = ()


class _LowBitLayer:
    """What packed layers have in common; `weight` holds the numbers, `scales` and `table` go with the module."""

    weight: Tensor
    scales: Tensor
    table: Tensor | None
    format: Format
    dense_shape: tuple[int, ...]

    def dense_weight(self) -> Tensor:
        """The weight as the layer computes with it."""
        return self.widened(self.weight, self.scales)

    def widened(self, numbers: Tensor, scales: Tensor) -> Tensor:
        """The weight that `numbers` and `scales` are, on the device where those are."""
        return self.format.widen(Packed(numbers, scales), self.table).view(self.dense_shape)


class LowBitLinear(nn.Linear, _LowBitLayer):
    """A linear layer whose weight is packed."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return F.linear(input, self.dense_weight(), self.bias)


class LowBitConv2d(nn.Conv2d, _LowBitLayer):
    """A convolution whose weight is packed."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Conv2d`."""
        return self._conv_forward(input, self.dense_weight(), self.bias)


LowBitLayer = LowBitLinear | LowBitConv2d
_CLASSES: Mapping[type[nn.Module], type[LowBitLayer]] = MappingProxyType(
    {nn.Linear: LowBitLinear, nn.Conv2d: LowBitConv2d}
)


def why_not(name: str, device: torch.device) -> str:
    """Why weights cannot lie in the format `name` on `device`, as a sentence; "" where they can."""
    if name == "fp8" and device.type == "mps":
        return "Apple's GPU knows no fp8; choose int8."
    return ""


@torch.no_grad()
def pack_weights(network: nn.Module, name: str) -> None:
    """Packs the linear layers and convolutions of `network`, which must be on its device, in the format `name`.

    What lies outside its blocks stays, and norms and biases do, so that its first weight tells its dtype as before.
    `FULL` changes nothing.
    """
    if name == FULL:
        return
    packing = FORMATS[name]
    for path, layer in list(network.named_modules()):
        made = _CLASSES.get(type(layer))
        if made is not None and _BLOCKS in path.partition(".")[0]:
            _pack_layer(layer, made, packing)


def _pack_layer(layer: nn.Module, made: type[LowBitLayer], packing: Format) -> None:
    dense = layer.get_parameter("weight")
    if not packing.fits(dense):
        return
    packed = packing.pack(dense)
    layer.__class__ = made
    layer.register_buffer("scales", packed.scales)
    table = torch.tensor(packing.table, dtype=dense.dtype, device=dense.device).view(-1, 2) if packing.table else None
    layer.register_buffer("table", table)
    small = cast("LowBitLayer", layer)
    small.weight = nn.Parameter(packed.numbers, requires_grad=False)
    small.format, small.dense_shape = packing, tuple(dense.shape)


def packed_layer(network: nn.Module, parameter: str) -> LowBitLayer | None:
    """The layer whose weight is `parameter` of `network`, if that is packed."""
    path, _, name = parameter.rpartition(".")
    layer = network.get_submodule(path)
    return layer if name == "weight" and isinstance(layer, LowBitLayer) else None


def dense_shapes(network: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of each parameter of `network`, as it is or as it was before it was packed."""
    for name, weight in network.named_parameters():
        layer = packed_layer(network, name)
        yield name, tuple(weight.shape) if layer is None else layer.dense_shape


# --- formats


def _row_peaks(weight: Tensor) -> Tensor:
    """The greatest magnitude of each output's weights, float32, in a shape that broadcasts over `weight`."""
    return weight.float().abs().amax(tuple(range(1, weight.ndim)), keepdim=True)


def _pack_fp8(weight: Tensor) -> Packed:
    """Rows divided by a power of two that brings them to the top of e4m3's range.

    So no number of a checkpoint that is stored in fp8 itself is rounded, and widening rounds nothing either.
    """
    _, exponent = torch.frexp(_row_peaks(weight) / _FP8_GREATEST)
    scales = torch.exp2(exponent.clamp(min=_FP8_LEAST_EXPONENT).float())
    return Packed((weight.float() / scales).to(_FP8), scales.to(weight.dtype))


def _pack_int8(weight: Tensor) -> Packed:
    least = torch.finfo(weight.dtype).tiny
    scales = (_row_peaks(weight) / _INT8_GREATEST).clamp(min=least).to(weight.dtype)
    numbers = (weight.float() / scales.float()).round().clamp(-_INT8_GREATEST, _INT8_GREATEST)
    return Packed(numbers.to(torch.int8), scales)


def _widen_rows(packed: Packed, _table: Tensor | None) -> Tensor:
    return packed.numbers.to(packed.scales.dtype) * packed.scales


def _pack_nf4(weight: Tensor) -> Packed:
    """Blocks of 64 weights, each the nearest of 16 levels times the block's greatest magnitude; two to a byte."""
    blocks = weight.float().reshape(-1, _NF4_BLOCK)
    least = torch.finfo(weight.dtype).tiny
    scales = blocks.abs().amax(1, keepdim=True).clamp(min=least).to(weight.dtype)
    levels = torch.tensor(_NF4_LEVELS, device=weight.device)
    nearest = torch.bucketize(blocks / scales.float(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return Packed((nearest[:, ::2] << 4) | nearest[:, 1::2], scales)


def _widen_nf4(packed: Packed, table: Tensor | None) -> Tensor:
    """A byte's two levels are looked up together in `table` (256, 2)."""
    assert table is not None, "registered with the layer"
    levels = table.to(packed.numbers.device).index_select(0, packed.numbers.flatten().int())
    return levels.view(-1, _NF4_BLOCK) * packed.scales


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "fp8": Format(bytes_per_weight=1, pack=_pack_fp8, widen=_widen_rows),
        "int8": Format(bytes_per_weight=1, pack=_pack_int8, widen=_widen_rows),
        "nf4": Format(
            bytes_per_weight=0.5 + 2 / _NF4_BLOCK,
            pack=_pack_nf4,
            widen=_widen_nf4,
            fits=lambda weight: weight.numel() % _NF4_BLOCK == 0,
            table=tuple(level for high in _NF4_LEVELS for low in _NF4_LEVELS for level in (high, low)),
        ),
    }
)
