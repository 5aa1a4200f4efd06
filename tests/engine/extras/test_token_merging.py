"""Token merging against its authors' package, and where merging loses nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from webui.core.events import ImageReady
from webui.core.requests import Extras, Txt2Img
from webui.engine.extras import patched_unet
from webui.engine.extras.token_merging import Merge

REQUEST = Txt2Img(prompt="a circle", steps=2, width=64, height=64, seed=7)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width", "ratio"), [(8, 8, 0.5), (6, 10, 0.3), (7, 5, 0.5), (4, 4, 0.9)])
def test_it_merges_what_the_authors_package_merges(height, width, ratio):
    from tomesd.merge import bipartite_soft_matching_random2d

    tokens, other = noise(3, height * width, 6), noise(3, height * width, 6).flip(1)
    merge, unmerge = bipartite_soft_matching_random2d(
        tokens, width, height, 2, 2, int(height * width * ratio), no_rand=True
    )
    ours = Merge(tokens, height, width, ratio)
    # The order of tokens means nothing to attention, so only the way back must agree place by place.
    torch.testing.assert_close(ours.unmerge(ours.merge(other)), unmerge(merge(other)))
    assert ours.merge(other).shape == merge(other).shape
    torch.testing.assert_close(ours.merge(other).sum(1), merge(other).sum(1))


def test_attention_over_equal_cells_loses_nothing():
    cells = noise(2, 4, 4, 6)
    tokens = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    merge = Merge(tokens, 8, 8, 0.75)
    merged = merge.merge(tokens)
    assert merged.shape == (2, 16, 6)

    def attend(x):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    torch.testing.assert_close(merge.unmerge(attend(merged)), attend(tokens))


def test_only_self_attention_at_full_size_is_shortened(tiny):
    lengths = []
    handles = [
        module.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
        for name, module in tiny.unet.named_modules()
        if name.endswith(("attn1.to_q", "attn2.to_q"))
    ]
    with patched_unet(tiny.unet, Extras(token_merging=0.5)):
        tiny.unet(noise(1, 4, 8, 6), torch.tensor([5.0]), noise(1, 77, 16))
    for handle in handles:
        handle.remove()
    # Down and up at 8 × 6, the middle at 4 × 3: only the former's self attention sees half of them.
    assert sorted(lengths) == [12, 12, 24, 24, 24, 48, 48, 48]


def test_it_changes_the_picture_and_leaves_no_trace(run, tiny):
    def picture(extras):
        (made,) = [e for e in run(dataclasses.replace(REQUEST, extras=extras)) if isinstance(e, ImageReady)]
        return made.image.tobytes()

    before = picture(Extras())
    assert picture(Extras(token_merging=0.5)) != before
    assert picture(Extras()) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.unet.modules())
