"""ncnn files read back into the names of PyTorch: tiny networks written as ncnn writes them, and damaged files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from webui.checkpoints.ncnn import parse_param, read_upscaler
from webui.core.errors import UnsupportedModel
from webui.hardware import torchvision_operators

FEATURES = 5  # odd, so that the first convolution has an odd count of weights, which half precision must pad
GROWTH = 32  # spandrel takes no other


class Writer:
    """Writes layers as ncnn does, and notes what PyTorch calls their weights."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.state, self.lines, self.data = {}, [], b""
        self.rng = np.random.default_rng(0)

    def layer(self, kind, options="", inputs=1):
        blobs = " ".join(f"b{len(self.lines)}_{index}" for index in range(inputs + 1))
        self.lines.append(f"{kind:<24} layer{len(self.lines)} {inputs} 1 {blobs} {options}")

    def convolution(self, name, inputs, outputs, *, leaky=False):
        weight = (self.rng.standard_normal((outputs, inputs, 3, 3)) * 0.2).astype(self.dtype)
        bias = self.rng.standard_normal(outputs).astype(np.float32)
        self.state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        flat = weight.tobytes()
        flag = 0 if self.dtype == np.float32 else 0x01306B47
        self.data += struct.pack("<I", flag) + flat + bytes(-len(flat) % 4) + bias.tobytes()
        tail = " 9=2 -23310=1,2.000000e-01" if leaky else ""
        self.layer("Convolution", f"0={outputs} 1=3 4=1 5=1 6={weight.size}{tail}")

    def prelu(self, name):
        slope = self.rng.standard_normal(FEATURES).astype(np.float32)
        self.state[f"{name}.weight"] = slope
        self.data += slope.tobytes()
        self.layer("PReLU", f"0={FEATURES}")

    def made(self):
        param = "\n".join(["7767517", f"{len(self.lines)} 99", *self.lines]) + "\n"
        return self.state, param, self.data


def compact_files(dtype=np.float16):
    """A SRVGGNetCompact x4 of three convolutions: its weights, and what its two files hold."""
    writer = Writer(dtype)
    writer.layer("Input", inputs=0)
    writer.layer("Split")
    for index, (inputs, outputs) in enumerate(((3, FEATURES), (FEATURES, FEATURES))):
        writer.convolution(f"body.{2 * index}", inputs, outputs)
        writer.prelu(f"body.{2 * index + 1}")
    writer.convolution("body.4", FEATURES, 48)
    writer.layer("PixelShuffle", "0=4")
    writer.layer("Interp", "0=1 1=4.000000e+00 2=4.000000e+00")
    writer.layer("BinaryOp", inputs=2)
    return writer.made()


def rrdb_files():
    """An RRDBNet x4 of one block: its weights, and what its two files hold."""
    writer, residual = Writer(np.float16), "0=1 -23301=2,2.000000e-01,1.000000e+00"
    writer.layer("Input", inputs=0)
    writer.convolution("conv_first", 3, FEATURES)
    for dense in (1, 2, 3):
        for index in (1, 2, 3, 4):
            writer.convolution(f"body.0.rdb{dense}.conv{index}", FEATURES + GROWTH * (index - 1), GROWTH, leaky=True)
            writer.layer("Concat", inputs=index + 1)
        writer.convolution(f"body.0.rdb{dense}.conv5", FEATURES + 4 * GROWTH, FEATURES)
        writer.layer("Eltwise", residual, inputs=2)
    writer.layer("Eltwise", residual, inputs=2)
    writer.convolution("conv_body", FEATURES, FEATURES)
    writer.layer("BinaryOp", inputs=2)
    for index in (1, 2):
        writer.layer("Interp", "0=1 1=2.000000e+00 2=2.000000e+00")
        writer.convolution(f"conv_up{index}", FEATURES, FEATURES, leaky=True)
    writer.convolution("conv_hr", FEATURES, FEATURES, leaky=True)
    writer.convolution("conv_last", FEATURES, 3)
    return writer.made()


@pytest.fixture(scope="module")
def spandrel():
    torchvision_operators.declare()
    import spandrel

    return spandrel


@pytest.mark.parametrize(
    ("files", "architecture", "convolutions"), [(compact_files, "Compact", 3), (rrdb_files, "ESRGAN", 21)]
)
def test_weights_come_back_under_the_names_that_spandrel_loads(spandrel, files, architecture, convolutions):
    state, param, weights = files()
    read = read_upscaler(param, weights, "tiny")
    assert list(read) == list(state)
    for name, wanted in state.items():
        np.testing.assert_array_equal(read[name], wanted)
        half = name.endswith(".weight") and wanted.ndim == 4
        assert read[name].dtype == (np.float16 if half else np.float32)
    assert sum(name.endswith(".bias") for name in read) == convolutions

    model = spandrel.ModelLoader().load_from_state_dict({k: torch.from_numpy(v.copy()) for k, v in read.items()})
    assert (model.architecture.id, model.scale) == (architecture, 4)


def test_weights_in_single_precision_are_read_too():
    state, param, weights = compact_files(dtype=np.float32)
    read = read_upscaler(param, weights, "tiny")
    np.testing.assert_array_equal(read["body.0.weight"], state["body.0.weight"])
    assert read["body.0.weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda param, weights: ("", weights), "does not begin as"),
        (lambda param, weights: (param.replace("7767517", "7767516"), weights), "does not begin as"),
        (lambda param, weights: (param + "\nPReLU\n", weights), "no layer: 'PReLU'"),
        (lambda param, weights: (param + "\nConvolution a one 1 in out\n", weights), "no layer"),
        (lambda param, weights: (param, weights[:-4]), "cut off"),
        (lambda param, weights: (param, b""), "cut off"),
        (lambda param, weights: (param, weights + b"more"), "4 bytes more"),
        (lambda param, weights: (param, b"\x38\x4b\x0d\x00" + weights[4:]), "flag 0xd4b38"),
        (lambda param, weights: (param.replace("0=5 ", "0=4 "), weights), "do not fit"),
        (lambda param, weights: (param.replace("0=5 ", "0=five "), weights), "'five'"),
        (lambda param, weights: (param.replace("PixelShuffle", "DeconvolutionX"), weights), "neither"),
        (lambda param, weights: (param.replace("4=1", "4=0"), weights), "neither"),
        (lambda param, weights: (param.replace("1=4.0", "1=2.0"), weights), "neither"),
        (lambda param, weights: ("7767517\n0 0\n", weights), "neither"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(change, sentence):
    _, param, weights = compact_files()
    with pytest.raises(UnsupportedModel, match=sentence) as raised:
        read_upscaler(*change(param, weights), "tiny")
    assert "tiny" in str(raised.value)


def test_another_slope_or_residual_is_another_network():
    _, param, weights = rrdb_files()
    for old, new in (("-23310=1,2.0", "-23310=1,1.0"), ("-23301=2,2.0", "-23301=2,3.0")):
        with pytest.raises(UnsupportedModel, match="neither"):
            read_upscaler(param.replace(old, new, 1), weights, "tiny")


def test_layers_are_parsed_with_their_options():
    layers = parse_param("7767517\n2 2\nInput in 0 1 data\nConvolution c 1 1 data out 0=4 -23310=1,2e-1\n", "x")
    assert [(layer.kind, layer.name) for layer in layers] == [("Input", "in"), ("Convolution", "c")]
    assert layers[1].options == {"0": "4", "-23310": "1,2e-1"}
