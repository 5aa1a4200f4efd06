"""Blocks of GGUF files against the `gguf` package, which says what their bytes mean."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from webui.hardware import gguf_blocks
from webui.hardware.gguf_blocks import KINDS, Blocks, pack_q8, widened


@pytest.fixture
def blocks():
    """Makes so many blocks of a kind: any bytes are one, but for factors that are no numbers."""

    def make(kind, count, shape=None):
        random, made = np.random.default_rng(5), KINDS[kind]
        data = random.integers(0, 256, (count, made.bytes), dtype=np.uint8)
        for at in made.factors:
            data[:, at : at + 2] = random.normal(size=(count, 1)).astype(np.float16).view(np.uint8)
        numbers = torch.from_numpy(data).view(torch.int8)
        return Blocks(numbers=numbers, kind=kind, shape=shape or (count, made.numbers))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_bit_for_bit_those_of_the_gguf_package(kind, blocks, monkeypatch):
    monkeypatch.setattr(gguf_blocks, "_AT_ONCE", 4 * KINDS[kind].numbers)
    some = blocks(kind, 10)
    wanted = gguf.quants.dequantize(some.numbers.numpy().view(np.uint8), GGMLQuantizationType[kind])
    assert gguf.constants.GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (KINDS[kind].numbers, KINDS[kind].bytes)
    assert np.array_equal(some.dense().numpy().view(np.uint32), wanted.view(np.uint32))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(widened(some.numbers, kind, dtype), torch.from_numpy(wanted).to(dtype))
    # As a graphics card is asked: all at once.
    assert torch.equal(KINDS[kind].widen(some.numbers.view(torch.uint8)), torch.from_numpy(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_that_is_no_number_is_found(kind, blocks):
    some = blocks(kind, 3)
    assert some.is_finite()
    for at in KINDS[kind].factors:
        bad = some.numbers.clone()
        bad[2, at : at + 2] = torch.tensor([float("nan")], dtype=torch.float16).view(torch.int8)
        assert not Blocks(numbers=bad, kind=kind, shape=some.shape).is_finite()


def test_what_is_packed_anew_is_as_near_as_the_gguf_package_comes():
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    weight[0] = 0
    theirs = gguf.quants.quantize(weight.numpy(), GGMLQuantizationType.Q8_0)
    wanted = torch.from_numpy(gguf.quants.dequantize(theirs, GGMLQuantizationType.Q8_0))
    ours = widened(pack_q8(weight), "Q8_0", torch.float32).view(weight.shape)
    assert torch.isfinite(ours).all()
    assert (ours - weight).abs().max() <= (wanted - weight).abs().max() + 1e-3


def test_rows_are_split_in_blocks_where_none_is_shared(blocks):
    whole = blocks("Q4_0", 12, shape=(6, 64))
    apart = whole.split([1, 2, 3])
    assert all(isinstance(piece, Blocks) for piece in apart)
    assert torch.equal(torch.cat([piece.dense() for piece in apart]), whole.dense())

    narrow = blocks("Q4_0", 3, shape=(6, 16))
    apart = narrow.split([2, 4])
    assert all(isinstance(piece, Blocks) for piece in apart)
    apart = narrow.split([1, 5])
    assert not any(isinstance(piece, Blocks) for piece in apart)
    assert torch.equal(torch.cat(list(apart)), narrow.dense())
