"""The weights of tiles."""

import pytest
import torch

from webui.engine.upscale.tiling import strips


@pytest.mark.parametrize("overlap", [0, 1, 8, 16])
@pytest.mark.parametrize("length", [20, 32, 33, 40, 63, 64, 100, 257])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_weights_sum_to_one_everywhere(length, overlap, scale):
    total = torch.zeros(length * scale)
    made = strips(length, 32, overlap, scale)
    for strip in made:
        assert strip.end - strip.start <= 32
        assert (strip.weights >= 0).all()
        total[strip.start * scale : strip.end * scale] += strip.weights
    torch.testing.assert_close(total, torch.ones_like(total))
