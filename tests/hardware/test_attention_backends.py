"""Each backend against equation 1 of "Attention Is All You Need" in float64."""

import pytest
import torch

from webui.hardware.attention import chunked, sdpa, split
from webui.hardware.attention.flash_attn_backend import FLASH_ATTN
from webui.hardware.attention.sage_backend import SAGE
from webui.hardware.attention.xformers_backend import XFORMERS

# An average of 77 to 5000 numbers of unit deviation: float32 rounds to 1e-6 of it, half precisions to their last bit.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = {
    "self": (2, 3, 64, 64, 32),
    "cross": (2, 8, 256, 77, 40),
    "odd sizes": (1, 2, 513, 5, 7),
    "many blocks of keys": (1, 1, 700, 5000, 16),
    "one": (1, 1, 1, 1, 8),
}
ON_CPU = {
    backend.name: backend.load()
    for backend in (sdpa.SDPA, sdpa.SDPA_FLASH, sdpa.SDPA_MATH, chunked.CHUNKED, split.SPLIT)
}


def random_inputs(shape, dtype):
    batch, heads, length, keys, size = shape
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(batch, heads, tokens, size, generator=generator, dtype=torch.float64).to(dtype)
        for tokens in (length, keys, keys)
    )


def reference(query, key, value, mask=None):
    query, key, value = query.double(), key.double(), value.double()
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ value


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_exact_attention(attend, dtype, shape):
    inputs = random_inputs(shape, dtype)

    got = attend(*inputs)

    assert got.dtype == dtype
    assert (got.double() - reference(*inputs)).abs().max() <= TOLERANCES[dtype]


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize("mask_shape", [(2, 3, 64, 3000), (2, 1, 1, 3000), (64, 3000)], ids=str)
def test_a_mask_is_added_to_the_scores(attend, mask_shape):
    inputs = random_inputs((2, 3, 64, 3000, 16), torch.float64)
    mask = torch.randn(mask_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    assert (attend(*inputs, mask) - reference(*inputs, mask)).abs().max() <= TOLERANCES[torch.float64]


def test_blocks_that_are_wholly_masked_weigh_nothing():
    inputs = random_inputs((1, 1, 4, 5000, 16), torch.float64)
    mask = torch.zeros(4, 5000, dtype=torch.float64)
    mask[:, :4500] = float("-inf")

    got = chunked.attend(*inputs, mask)

    assert (got - reference(*inputs, mask)).abs().max() <= TOLERANCES[torch.float64]


@pytest.mark.parametrize("attend", [chunked.attend, split.attend], ids=["chunked", "split"])
def test_scores_that_overflow_half_precision_are_survived(attend):
    query, key, value = random_inputs((1, 1, 8, 8, 64), torch.float16)

    assert torch.isfinite(attend(query * 90, key * 90, value)).all()


def test_chunked_takes_fewer_rows_where_there_are_many_heads(monkeypatch):
    rows = []
    real = chunked.attend_rows
    monkeypatch.setattr(chunked, "SCORE_BYTES", 4 * 2 * 3 * 77 * 20)
    monkeypatch.setattr(chunked, "attend_rows", lambda query, *rest: rows.append(query.shape[2]) or real(query, *rest))
    inputs = random_inputs((2, 3, 64, 77, 16), torch.float64)

    assert (chunked.attend(*inputs) - reference(*inputs)).abs().max() <= TOLERANCES[torch.float64]
    assert rows == [20, 20, 20, 4]


def test_split_makes_no_more_scores_at_once_than_it_may(monkeypatch):
    rows = []
    real = split.attend_rows
    monkeypatch.setattr(split, "SCORE_BYTES", 8 * 2 * 3 * 77 * 10)
    monkeypatch.setattr(split, "attend_rows", lambda query, *rest: rows.append(query.shape[2]) or real(query, *rest))
    inputs = random_inputs((2, 3, 64, 77, 16), torch.float64)

    assert (split.attend(*inputs) - reference(*inputs)).abs().max() <= TOLERANCES[torch.float64]
    assert rows == [10, 10, 10, 10, 10, 10, 4]


def test_xformers_gets_its_own_order_of_axes_and_no_masks(monkeypatch):
    """xformers needs a GPU, so its function stands in: inputs (B, N, H, d)."""
    import sys
    import types

    calls = []

    def memory_efficient_attention(query, key, value):
        calls.append(query.shape)
        return reference(*(tensor.transpose(1, 2) for tensor in (query, key, value))).transpose(1, 2)

    operators = types.ModuleType("xformers.ops")
    operators.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)
    _check_with_and_without_a_mask(XFORMERS.load())
    assert calls == [(2, 64, 3, 16)]


def test_flash_attn_gets_its_own_order_of_axes_and_no_masks(monkeypatch):
    import sys
    import types

    calls = []

    def flash_attn_func(query, key, value):
        calls.append(query.shape)
        return reference(*(tensor.transpose(1, 2) for tensor in (query, key, value))).transpose(1, 2)

    library = types.ModuleType("flash_attn")
    library.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", library)
    _check_with_and_without_a_mask(FLASH_ATTN.load())
    assert calls == [(2, 64, 3, 16)]


def test_sage_is_told_the_order_of_axes_and_gets_no_masks(monkeypatch):
    import sys
    import types

    calls = []

    def sageattn(query, key, value, *, tensor_layout, is_causal):
        calls.append((tensor_layout, is_causal))
        return reference(query, key, value)

    library = types.ModuleType("sageattention")
    library.sageattn = sageattn
    monkeypatch.setitem(sys.modules, "sageattention", library)
    _check_with_and_without_a_mask(SAGE.load())
    assert calls == [("HND", False)]


def _check_with_and_without_a_mask(attend):
    inputs = random_inputs((2, 3, 64, 77, 16), torch.float64)
    mask = torch.randn(77, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (attend(*inputs) - reference(*inputs)).abs().max() <= TOLERANCES[torch.float64]
    assert (attend(*inputs, mask.expand(1, 1, 64, 77)) - reference(*inputs, mask)).abs().max() <= 1e-9
