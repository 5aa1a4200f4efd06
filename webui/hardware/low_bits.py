"""Weights that lie in memory in eight or four bits, and are widened layer by layer as the network runs.

Owns how a weight is packed and what a packed layer computes; which networks are packed is the loader's to say. Any
device that knows the format can do it, in plain torch: what is saved is memory, and a weight that streams to the device
travels in its packed form, while the sums are those of the dtype that the network computes in. A GGUF file's weights
stay in that file's blocks (`webui.hardware.gguf_blocks`).

A packed layer is the layer it was, of a class of its own: it keeps its place, its name and whoever refers to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webui.hardware.gguf_blocks import KINDS, Blocks, pack_q8, widened

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
    """A weight in few bits: the name of its format, its `numbers`, and factors in the dtype that it is widened to.

    Numbers are of int8, whatever their bits mean: no cast of a module to another dtype changes that, and transformers'
    T5 knows it for packed where it would have its layers' inputs follow their weights' dtype.
    """

    kind: str
    numbers: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return self.numbers.nbytes + self.scales.nbytes

    def to(self, device: torch.device, *, copy: bool = False) -> Packed:
        """Itself on `device`, a copy in any case if `copy`."""
        return Packed(self.kind, self.numbers.to(device, copy=copy), self.scales.to(device, copy=copy))


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How weights are packed. `widen` gives numbers of any shape that hold as many as the weight did, in its order.

    `bytes_per_weight` counts the scales of blocks, not those of rows, of which there are few. What `pack` gives may be
    of another format: GGUF's are read, and of them only Q8_0 is written.
    """

    bytes_per_weight: float
    pack: Callable[[Tensor], Packed]
    widen: Callable[[Packed, Tensor | None], Tensor]
    fits: Callable[[Tensor], bool] = lambda _: True
    table: tuple[float, ...] = ()


class _LowBitLayer(nn.Module):
    """What packed layers have in common; `weight` holds the numbers, `scales` and `table` go with the module."""

    weight: Tensor
    scales: Tensor
    table: Tensor | None
    kind: str
    dense_shape: tuple[int, ...]

    def packed(self) -> Packed:
        """The weight as it lies here: not a copy."""
        return Packed(self.kind, self.weight, self.scales)

    def dense_weight(self) -> Tensor:
        """The weight as the layer computes with it."""
        return self.widened(self.packed())

    def widened(self, packed: Packed) -> Tensor:
        """The weight that `packed` is, which was this layer's or takes its place, on the device where that is."""
        return _FORMATS[packed.kind].widen(packed, self.table).view(self.dense_shape)

    @torch.no_grad()
    def hold(self, weight: Tensor | Packed) -> bool:
        """Takes `weight`, packed first if it is not, in place if it takes as much; returns whether it did.

        A new place is on the layer's device.
        """
        here = self.packed()
        packed = weight if isinstance(weight, Packed) else _FORMATS[self.kind].pack(weight.to(self.scales.dtype))
        if packed.kind == here.kind:
            self.weight.copy_(packed.numbers)
            self.scales.copy_(packed.scales)
            return True
        # Not in inference mode: tensors made in it may not be changed outside it.
        with torch.inference_mode(False):
            packed = packed.to(self.weight.device, copy=True)
            self.weight = nn.Parameter(packed.numbers, requires_grad=False)
            self.scales, self.kind = packed.scales, packed.kind
        return False


class LowBitLinear(_LowBitLayer, nn.Linear):
    """A linear layer whose weight is packed."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`; the result is in the dtype of the layer, as T5 wants it of layers that it keeps wide."""
        weight = self.dense_weight()
        return F.linear(input.to(weight.dtype), weight, self.bias)


class LowBitConv2d(_LowBitLayer, nn.Conv2d):
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


def pack_weights(network: nn.Module, name: str) -> None:
    """Packs the linear layers and convolutions of `network`, which must be on its device, in the format `name`.

    What lies outside its blocks stays, and norms and biases do, so that its first weight tells its dtype as before;
    what is packed already stays too. `FULL` changes nothing.
    """
    for path, layer in list(network.named_modules()):
        if path and can_be_packed(network, f"{path}.weight"):
            pack_layer(network, f"{path}.weight", layer.get_parameter("weight"), name)


def can_be_packed(network: nn.Module, parameter: str) -> bool:
    """Whether `parameter` of `network` is the weight of a layer that a packed one could take the place of."""
    path, _, name = parameter.rpartition(".")
    return name == "weight" and _BLOCKS in path and type(network.get_submodule(path)) in _CLASSES


@torch.no_grad()
def pack_layer(network: nn.Module, parameter: str, weight: Tensor, name: str) -> bool:
    """Makes the layer of `parameter`, see `can_be_packed`, one that holds `weight` in the format `name`.

    Returns whether it did: `FULL` is no packing, and some weights do not fit a format.
    """
    if name == FULL or not FORMATS[name].fits(weight):
        return False
    _change(network, parameter, FORMATS[name].pack(weight), tuple(weight.shape))
    return True


@torch.no_grad()
def keep_blocks(network: nn.Module, parameter: str, blocks: Blocks, *, dtype: torch.dtype) -> None:
    """Makes the layer of `parameter`, see `can_be_packed`, one that holds `blocks` as they are, widened to `dtype`."""
    _change(network, parameter, _unscaled(blocks.kind, blocks.numbers, dtype), blocks.shape)


def _change(network: nn.Module, parameter: str, packed: Packed, shape: tuple[int, ...]) -> None:
    layer = network.get_submodule(parameter.rpartition(".")[0])
    layer.__class__ = _CLASSES[type(layer)]
    small = cast("LowBitLayer", layer)
    small.kind, small.dense_shape = packed.kind, shape
    small.weight = nn.Parameter(packed.numbers, requires_grad=False)
    small.register_buffer("scales", packed.scales)
    levels = _FORMATS[packed.kind].table
    table = packed.scales.new_tensor(levels).view(-1, 2) if levels else None
    small.register_buffer("table", table)


def packed_layer(network: nn.Module, parameter: str) -> LowBitLayer | None:
    """The layer whose weight is `parameter` of `network`, if that is packed."""
    path, _, name = parameter.rpartition(".")
    layer = network.get_submodule(path)
    return layer if name == "weight" and isinstance(layer, LowBitLayer) else None


def main_kind(network: nn.Module) -> str:
    """The format in which most bytes of packed weights of `network` lie, `FULL` where none is packed."""
    taken: Counter[str] = Counter()
    for layer in network.modules():
        if isinstance(layer, LowBitLayer):
            taken[layer.kind] += layer.packed().nbytes
    return max(taken, key=lambda kind: taken[kind], default=FULL)


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
    return Packed("fp8", (weight.float() / scales).to(_FP8).view(torch.int8), scales.to(weight.dtype))


def _pack_int8(weight: Tensor) -> Packed:
    least = torch.finfo(weight.dtype).tiny
    scales = (_row_peaks(weight) / _INT8_GREATEST).clamp(min=least).to(weight.dtype)
    numbers = (weight.float() / scales.float()).round().clamp(-_INT8_GREATEST, _INT8_GREATEST)
    return Packed("int8", numbers.to(torch.int8), scales)


def _widen_fp8(packed: Packed, _table: Tensor | None) -> Tensor:
    return packed.numbers.view(_FP8).to(packed.scales.dtype) * packed.scales


def _widen_int8(packed: Packed, _table: Tensor | None) -> Tensor:
    return packed.numbers.to(packed.scales.dtype) * packed.scales


def _pack_nf4(weight: Tensor) -> Packed:
    """Blocks of 64 weights, each the nearest of 16 levels times the block's greatest magnitude; two to a byte."""
    blocks = weight.float().reshape(-1, _NF4_BLOCK)
    least = torch.finfo(weight.dtype).tiny
    scales = blocks.abs().amax(1, keepdim=True).clamp(min=least).to(weight.dtype)
    levels = torch.tensor(_NF4_LEVELS, device=weight.device)
    nearest = torch.bucketize(blocks / scales.float(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return Packed("nf4", ((nearest[:, ::2] << 4) | nearest[:, 1::2]).view(torch.int8), scales)


def _widen_nf4(packed: Packed, table: Tensor | None) -> Tensor:
    """A byte's two levels are looked up together in `table` (256, 2)."""
    assert table is not None, "registered with the layer"
    levels = table.to(packed.numbers.device).index_select(0, packed.numbers.view(torch.uint8).flatten().int())
    return levels.view(-1, _NF4_BLOCK) * packed.scales


def _unscaled(kind: str, numbers: Tensor, dtype: torch.dtype) -> Packed:
    """GGUF's blocks, which have their factors among their numbers; the one scale tells the dtype."""
    return Packed(kind, numbers, torch.ones(1, dtype=dtype, device=numbers.device))


def _pack_q8(weight: Tensor) -> Packed:
    return _unscaled("Q8_0", pack_q8(weight), weight.dtype)


def _widen_blocks(packed: Packed, _table: Tensor | None) -> Tensor:
    return widened(packed.numbers, packed.kind, packed.scales.dtype)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "fp8": Format(bytes_per_weight=1, pack=_pack_fp8, widen=_widen_fp8),
        "int8": Format(bytes_per_weight=1, pack=_pack_int8, widen=_widen_int8),
        "nf4": Format(
            bytes_per_weight=0.5 + 2 / _NF4_BLOCK,
            pack=_pack_nf4,
            widen=_widen_nf4,
            fits=lambda weight: weight.numel() % _NF4_BLOCK == 0,
            table=tuple(level for high in _NF4_LEVELS for low in _NF4_LEVELS for level in (high, low)),
        ),
    }
)
# Those that people choose, and those that come in files.
_FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        **FORMATS,
        **{
            name: Format(bytes_per_weight=kind.bytes / kind.numbers, pack=_pack_q8, widen=_widen_blocks)
            for name, kind in KINDS.items()
        },
    }
)
