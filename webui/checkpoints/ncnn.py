"""Real-ESRGAN's networks as ncnn keeps them (.param and .bin), read into the names that upscaler loaders know.

It exists because the package that carries these weights carries them in ncnn's form. Only the two shapes of Real-ESRGAN
are understood, RRDBNet (Wang et al. 2018, arXiv 1809.00219, figure 4) and SRVGGNetCompact; anything else is refused
with a sentence, never guessed at. Numbers only: no torch, no network, nothing written.

The form: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure. The .param file is text, a layer a line
(kind, name, counts of inputs and outputs, their names, then ``key=value``). The .bin file holds the layers' arrays in
the same order, little-endian: a convolution's weights behind a flag of four bytes that tells their type, padded to a
multiple of four, then its biases; a PReLU's slopes bare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from webui.core.errors import UnsupportedModel

Weights = dict[str, NDArray[np.generic]]
"""Arrays by name, as PyTorch has them: convolutions are (outputs, inputs, height, width)."""

_MAGIC = "7767517"
_WEIGHT_TYPES = {0: np.dtype("<f4"), 0x01306B47: np.dtype("<f2")}

# Options by ncnn's numbers. Of a convolution: 0 outputs, 1 kernel, 2 dilation, 3 stride, 4 padding, 5 has biases,
# 6 count of weights, 9 activation (2 is leaky ReLU, with its slope in -23310).
_CONVOLUTION = {"1": "3", "4": "1", "5": "1"}
_LEAKY_CONVOLUTION = {**_CONVOLUTION, "9": "2", "-23310": "1,2.000000e-01"}
_RESIDUAL = {"0": "1", "-23301": "2,2.000000e-01,1.000000e+00"}  # the sum of 0.2 times the first and the second
# What differs from network to network, and is checked where the weights are read.
_SIZES = {"Convolution": ("0", "6"), "PReLU": ("0",)}


@dataclass(frozen=True, slots=True)
class Layer:
    """A line of a .param file; `options` are its ``key=value`` pairs as they are written."""

    kind: str
    name: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Place:
    """What an architecture has at one place: a kind of layer, its options, and PyTorch's name if it has weights."""

    kind: str
    options: Mapping[str, str]
    module: str = ""


def read_upscaler(param: str, weights: bytes, name: str) -> Weights:
    """The weights of a Real-ESRGAN network, by the names of its PyTorch original; half precision stays what it is.

    `param` and `weights` are what the two files hold, `name` is for messages. Raises `UnsupportedModel` where the
    network is another one, or the files do not fit each other.
    """
    layers = [layer for layer in parse_param(param, name) if layer.kind != "Split"]
    places = _places(layers)
    if len(places) != len(layers) or not all(map(_fits, layers, places)):
        raise UnsupportedModel(
            f"{name} is neither an RRDBNet nor an SRVGGNetCompact of scale 4; others cannot be read."
        )
    reader = _Reader(weights, name)
    made: Weights = {}
    for layer, place in zip(layers, places, strict=True):
        if layer.kind == "Convolution":
            count = _whole(layer, "0", name)
            flat = reader.flagged(_whole(layer, "6", name))
            if flat.size % (count * 9):
                raise UnsupportedModel(f"{name} has a convolution {layer.name} whose sizes do not fit; is it whole?")
            made[f"{place.module}.weight"] = flat.reshape(count, -1, 3, 3)
            made[f"{place.module}.bias"] = reader.bare(count)
        elif layer.kind == "PReLU":
            made[f"{place.module}.weight"] = reader.bare(_whole(layer, "0", name))
    reader.end()
    return made


def parse_param(text: str, name: str) -> list[Layer]:
    """The layers of a .param file, in its order; raises `UnsupportedModel` where it is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or lines[0].strip() != _MAGIC:
        raise UnsupportedModel(f"{name} does not begin as an ncnn .param file does.")
    layers = []
    for line in lines[2:]:  # the second one says how many there are, which the weights say better
        try:
            kind, layer, inputs, outputs, *rest = line.split()
            options = dict(pair.split("=", 1) for pair in rest[int(inputs) + int(outputs) :])
        except ValueError as error:
            raise UnsupportedModel(f"{name} has a line that is no layer: {line.strip()[:80]!r}.") from error
        layers.append(Layer(kind, layer, options))
    return layers


def _places(layers: Sequence[Layer]) -> list[_Place]:
    """What the architecture of this many convolutions has, in order; which one is told by its PReLUs."""
    convolutions = sum(layer.kind == "Convolution" for layer in layers)
    if any(layer.kind == "PReLU" for layer in layers):
        return list(_compact(convolutions))
    return list(_rrdb((convolutions - 6) // 15))


def _compact(convolutions: int) -> Iterator[_Place]:
    """SRVGGNetCompact ×4: convolutions, a PReLU after all but the last, shuffled to pixels; the enlarged input added.

    https://github.com/xinntao/Real-ESRGAN, realesrgan/archs/srvgg_arch.py.
    """
    yield _Place("Input", {})
    for index in range(convolutions):
        yield _Place("Convolution", _CONVOLUTION, f"body.{2 * index}")
        if index < convolutions - 1:
            yield _Place("PReLU", {}, f"body.{2 * index + 1}")
    yield _Place("PixelShuffle", {"0": "4"})
    yield _Place("Interp", _nearest(4))
    yield _Place("BinaryOp", {})


def _rrdb(blocks: int) -> Iterator[_Place]:
    """RRDBNet ×4: blocks of three dense blocks of five convolutions, a trunk around them, two enlargements."""
    yield _Place("Input", {})
    yield _Place("Convolution", _CONVOLUTION, "conv_first")
    for block in range(blocks):
        for dense in (1, 2, 3):
            for index in (1, 2, 3, 4):
                yield _Place("Convolution", _LEAKY_CONVOLUTION, f"body.{block}.rdb{dense}.conv{index}")
                yield _Place("Concat", {})
            yield _Place("Convolution", _CONVOLUTION, f"body.{block}.rdb{dense}.conv5")
            yield _Place("Eltwise", _RESIDUAL)
        yield _Place("Eltwise", _RESIDUAL)
    yield _Place("Convolution", _CONVOLUTION, "conv_body")
    yield _Place("BinaryOp", {})
    for index in (1, 2):
        yield _Place("Interp", _nearest(2))
        yield _Place("Convolution", _LEAKY_CONVOLUTION, f"conv_up{index}")
    yield _Place("Convolution", _LEAKY_CONVOLUTION, "conv_hr")
    yield _Place("Convolution", _CONVOLUTION, "conv_last")


def _nearest(scale: int) -> dict[str, str]:
    """The options of an enlargement by `scale` that repeats pixels."""
    return {"0": "1", "1": f"{scale:.6e}", "2": f"{scale:.6e}"}


def _fits(layer: Layer, place: _Place) -> bool:
    """Whether the layer is of the place's kind and does what is done there, whatever its size."""
    behaviour = {key: value for key, value in layer.options.items() if key not in _SIZES.get(layer.kind, ())}
    return layer.kind == place.kind and behaviour == dict(place.options)


def _whole(layer: Layer, key: str, name: str) -> int:
    value = layer.options.get(key, "")
    if not value.isdecimal() or int(value) < 1:
        raise UnsupportedModel(f"{name} says of the layer {layer.name} that {key} is {value[:20]!r}, which is no size.")
    return int(value)


class _Reader:
    """Takes arrays off a .bin file, front to back."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._at = 0

    def flagged(self, count: int) -> NDArray[np.generic]:
        """`count` numbers of the type that the flag before them tells."""
        flag = int(self._take(1, np.dtype("<u4"))[0])
        if flag not in _WEIGHT_TYPES:
            raise UnsupportedModel(f"{self._name} keeps weights in a form that cannot be read (flag {flag:#x}).")
        return self._take(count, _WEIGHT_TYPES[flag])

    def bare(self, count: int) -> NDArray[np.generic]:
        """`count` numbers of 32 bits."""
        return self._take(count, np.dtype("<f4"))

    def end(self) -> None:
        """Raises `UnsupportedModel` where anything is left."""
        if self._at != len(self._data):
            raise UnsupportedModel(f"{self._name} holds {len(self._data) - self._at} bytes more than its layers need.")

    def _take(self, count: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        size = count * dtype.itemsize
        if self._at + size > len(self._data):
            raise UnsupportedModel(f"{self._name} is cut off after {len(self._data)} bytes; fetch it again.")
        taken = np.frombuffer(self._data, dtype, count, self._at)
        self._at += size + -size % 4
        return taken
