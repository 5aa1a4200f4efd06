"""Weights in few bits: how near they stay, what they take, and what stays as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from webui.hardware.gguf_blocks import Blocks
from webui.hardware.low_bits import (
    FORMATS,
    FULL,
    LowBitConv2d,
    LowBitLinear,
    can_be_packed,
    dense_shapes,
    keep_blocks,
    main_kind,
    pack_weights,
    why_not,
)

# How far a weight may be from what it was, as a share of its row's (or block's) greatest: half a step of each format.
STEP = {"fp8": 2**-4, "int8": 0.5 / 127 + 1e-3, "nf4": 0.16}
# The least correlation of a network's answers with those of the same weights in float32.
NEAR = {"fp8": 0.995, "int8": 0.9995, "nf4": 0.95}


def taken(module):
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@torch.inference_mode()
def answer(unet):
    generator = torch.Generator().manual_seed(1)
    x, states = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 7, 32)))
    return unet(x.to(unet.dtype), 500, states.to(unet.dtype)).sample.float()


@pytest.fixture(scope="module")
def full(make_unet):
    unet = make_unet(width=32)
    return answer(unet), taken(unet)


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_in_few_bits_is_small_and_answers_nearly_the_same(name, full, make_unet):
    wanted, before = full
    unet = make_unet(width=32)
    shapes = dict(dense_shapes(unet))
    pack_weights(unet, name)
    assert main_kind(unet) == name
    assert unet.dtype == torch.float32
    assert dict(dense_shapes(unet)) == shapes
    got = answer(unet)
    assert torch.corrcoef(torch.stack([got.flatten(), wanted.flatten()]))[0, 1] > NEAR[name]
    # Edges, norms and biases of so small a network weigh more than a real one's.
    assert taken(unet) / before < FORMATS[name].bytes_per_weight / 4 + 0.1


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_stays_within_a_step_of_its_rows_greatest(name, dtype):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(-2, 2, 64)[:, None]
    blocks = nn.ModuleDict({"blocks": nn.Linear(64, 64, bias=False).requires_grad_(False)})
    layer = blocks["blocks"]
    layer.weight.copy_(weight)
    blocks.to(dtype)
    stored = layer.weight.float()
    pack_weights(blocks, name)
    assert isinstance(layer, LowBitLinear)
    error = (layer.dense_weight().float() - stored).abs().amax(1) / stored.abs().amax(1)
    assert layer.dense_weight().dtype == dtype
    assert error.max() <= STEP[name] + torch.finfo(dtype).eps


def test_what_was_fp8_already_loses_nothing():
    stored = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    stored = stored[stored.isfinite()].view(-1, 2)
    blocks = nn.ModuleDict({"blocks": nn.Linear(2, len(stored), bias=False).requires_grad_(False)})
    blocks["blocks"].weight.copy_(stored)
    pack_weights(blocks, "fp8")
    assert torch.equal(blocks["blocks"].dense_weight(), stored)


def test_empty_rows_and_convolutions_of_every_padding():
    blocks = nn.ModuleDict({"blocks": nn.Conv2d(4, 16, 3, padding=1).requires_grad_(False)})
    layer = blocks["blocks"]
    layer.weight[0] = 0
    x = torch.randn(1, 4, 8, 8)
    layer.padding_mode = "circular"
    wanted = layer(x)
    pack_weights(blocks, "int8")
    assert isinstance(layer, LowBitConv2d)
    assert torch.allclose(layer(x), wanted, atol=0.05)
    assert not torch.allclose(_plain(layer)(x), wanted, atol=0.05)


def _plain(layer):
    plain = nn.Conv2d(4, 16, 3, padding=1)
    plain.weight.data, plain.bias.data = layer.dense_weight(), layer.bias
    return plain


def test_full_weights_stay_as_they_are(full, make_unet):
    unet = make_unet(width=32)
    pack_weights(unet, FULL)
    assert torch.equal(answer(unet), full[0])
    assert main_kind(unet) == FULL
    assert not any(isinstance(layer, LowBitLinear | LowBitConv2d) for layer in unet.modules())


def test_a_layer_that_a_format_does_not_fit_stays_as_it_is():
    blocks = nn.ModuleDict({"blocks": nn.Linear(3, 5)})
    pack_weights(blocks, "nf4")
    assert type(blocks["blocks"]) is nn.Linear


def test_where_a_format_is_unknown_it_is_said():
    assert "int8" in why_not("fp8", torch.device("mps"))
    assert why_not("int8", torch.device("mps")) == why_not("fp8", torch.device("cuda")) == ""


def test_the_catalogue_names_them_all():
    from webui.core.catalogue import WEIGHT_FORMATS

    assert (FULL, *FORMATS) == WEIGHT_FORMATS


@pytest.fixture
def make_blocks():
    """A weight in blocks of Q4_0, whose numbers are the same for each shape of as many."""

    def make(shape):
        random = torch.Generator().manual_seed(4)
        numbers = torch.randint(-128, 128, (math.prod(shape) // 32, 18), generator=random, dtype=torch.int8)
        numbers[:, :2] = torch.tensor([0.01], dtype=torch.float16).view(torch.int8)
        return Blocks(numbers=numbers, kind="Q4_0", shape=shape)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_a_file_stay_as_they_are(dtype, make_blocks):
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(64, 8), nn.Conv2d(4, 8, 3)])}).requires_grad_(False)
    network.to(dtype)
    linear, conv = network["blocks"]
    for name, shape in (("blocks.0.weight", (8, 64)), ("blocks.1.weight", (8, 4, 3, 3))):
        assert can_be_packed(network, name)
        keep_blocks(network, name, make_blocks(shape), dtype=dtype)
    assert torch.equal(linear.weight, make_blocks((8, 64)).numbers)
    assert torch.equal(linear.dense_weight(), make_blocks((8, 64)).dense().to(dtype))
    assert torch.equal(conv.dense_weight(), make_blocks((8, 4, 3, 3)).dense().to(dtype))
    x = torch.randn(2, 64).to(dtype)
    assert torch.equal(linear(x), nn.functional.linear(x, make_blocks((8, 64)).dense().to(dtype), linear.bias))
    assert conv(torch.randn(1, 4, 8, 8).to(dtype)).dtype == dtype
    assert main_kind(network) == "Q4_0"
    assert dict(dense_shapes(network))["blocks.1.weight"] == (8, 4, 3, 3)


def test_another_weight_lies_in_eight_bits_until_the_blocks_come_back(make_blocks):
    network = nn.ModuleDict({"blocks": nn.Linear(64, 8)}).requires_grad_(False)
    keep_blocks(network, "blocks.weight", make_blocks((8, 64)), dtype=torch.float32)
    layer = network["blocks"]
    kept = layer.packed().to(torch.device("cpu"), copy=True)
    other = layer.dense_weight() + 1e-4
    assert not layer.hold(other), "it is larger"
    assert (layer.dense_weight() - other).abs().max() < 0.5 * 0.081 / 127
    place = layer.weight.data_ptr()
    assert layer.hold(other * 2)
    assert layer.weight.data_ptr() == place
    assert not layer.hold(kept)
    assert torch.equal(layer.weight, kept.numbers)
    assert torch.equal(layer.widened(kept), layer.dense_weight())


def test_packed_layers_can_be_traced_by_torch_compile(make_blocks):
    layer = nn.Linear(64, 8).requires_grad_(False)
    blocks = nn.ModuleDict({"blocks": layer})
    keep_blocks(blocks, "blocks.weight", make_blocks((8, 64)), dtype=torch.float32)
    x = torch.randn(2, 64)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
