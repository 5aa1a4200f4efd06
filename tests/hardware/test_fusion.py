"""Projections in one product: the same answers, no second copy, and LoRAs merged in place are in them."""

from __future__ import annotations

import pytest
import torch

from webui.hardware.attention import chunked, sdpa
from webui.hardware.attention.fusion import set_fused
from webui.hardware.attention.processor import FUSED, attention_layers, patched
from webui.hardware.attention.selector import AttentionChoice
from webui.hardware.attention.split import SPLIT
from webui.hardware.low_bits import pack_weights

KERNELS = {"sdpa": sdpa.attend, "chunked": chunked.attend, "split": SPLIT.load()}


@pytest.fixture
def unet(make_unet):
    return make_unet()


@torch.inference_mode()
def answer(unet, kernel="sdpa"):
    generator = torch.Generator().manual_seed(1)
    x, states = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 7, 16)))
    with patched(unet, AttentionChoice(name=kernel, attend=KERNELS[kernel], refused={}, seconds={})):
        return unet(x, 500, states).sample


def self_attention(unet):
    return [layer for layer in attention_layers(unet) if not layer.is_cross_attention]


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_product_answers_as_three_do_and_nothing_is_there_twice(unet, kernel):
    wanted = answer(unet, kernel)
    assert set_fused(unet, wanted=True) == len(self_attention(unet)) > 0
    assert torch.allclose(answer(unet, kernel), wanted, atol=1e-5)
    for layer in self_attention(unet):
        whole = getattr(layer, FUSED)
        storage = whole.untyped_storage().data_ptr()
        assert {each.weight.untyped_storage().data_ptr() for each in (layer.to_q, layer.to_k, layer.to_v)} == {storage}
    before = [getattr(layer, FUSED).data_ptr() for layer in self_attention(unet)]
    set_fused(unet, wanted=True)
    assert [getattr(layer, FUSED).data_ptr() for layer in self_attention(unet)] == before


def test_what_is_merged_in_place_counts_at_once(unet):
    set_fused(unet, wanted=True)
    before = answer(unet)
    layer = self_attention(unet)[0]
    original = layer.to_v.weight.clone()
    layer.to_v.weight.copy_(original * 3)
    merged = answer(unet)
    set_fused(unet, wanted=False)
    assert not hasattr(layer, FUSED)
    assert torch.allclose(answer(unet), merged, atol=1e-5)
    assert not torch.allclose(merged, before, atol=1e-3)
    layer.to_v.weight.copy_(original)
    assert torch.allclose(answer(unet), before, atol=1e-5)


def test_weights_that_were_replaced_are_laid_together_anew(unet):
    set_fused(unet, wanted=True)
    before = answer(unet)
    for weight in unet.parameters():
        weight.data = weight.data.clone() * 1.1
    set_fused(unet, wanted=True)
    fused = answer(unet)
    set_fused(unet, wanted=False)
    assert torch.allclose(answer(unet), fused, atol=1e-5)
    assert not torch.allclose(fused, before, atol=1e-3)


def test_packed_weights_stay_apart(unet):
    pack_weights(unet, "int8")
    assert set_fused(unet, wanted=True) == 0


def test_a_network_that_moves_comes_apart(unet):
    from webui.engine.placement import move

    set_fused(unet, wanted=True)
    move(unet, torch.device("meta"))
    assert not any(hasattr(layer, FUSED) for layer in attention_layers(unet))
