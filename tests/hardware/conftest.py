from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., Any]:
    """make_unet(width=16) gives the same small UNet of random weights each time, as one is when it is to be used."""
    import torch

    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    from diffusers import UNet2DConditionModel

    def make(width: int = 16) -> UNet2DConditionModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(width, 2 * width),
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=width,
                attention_head_dim=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            )
        return unet.eval().requires_grad_(False)

    return make


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small lose more time than they win when threads wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
