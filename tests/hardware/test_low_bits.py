"""Weights in few bits: how near they stay, what they take, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from webui.hardware.low_bits import FORMATS, FULL, LowBitConv2d, LowBitLinear, dense_shapes, pack_weights, why_not

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
