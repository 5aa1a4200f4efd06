"""Depth beside the latents, against diffusers' StableDiffusionDepth2ImgPipeline, and through the whole recipe."""

import dataclasses
import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from webui.core.errors import UserError
from webui.core.events import ImageReady
from webui.core.ports import Control
from webui.core.requests import Img2Img, Inpaint, Txt2Img
from webui.engine.depth import depth_map
from webui.engine.generate import generate
from webui.engine.pixels import to_pixels

CPU = torch.device("cpu")
TASK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 1}


@pytest.fixture(scope="module")
def network(make_depth_network):
    """A depth network without MiDaS' convolutions before it: the sizes of pictures are what matters here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        network = make_depth_network()
        # As they are made, its weights make the same depth everywhere.
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    # The last of its layers is followed by a ReLU.
    torch.nn.init.constant_(network.head.head[4].bias, 1000.0)
    return network


@pytest.fixture(scope="module")
def model(tiny, diffusers, network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        unet = diffusers.UNet2DConditionModel(**{**tiny.unet.config, "in_channels": 5})
    return dataclasses.replace(tiny, input="depth", unet=unet.eval().requires_grad_(False), depth=network)


@pytest.fixture(scope="module")
def photo():
    noise = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(3)).mul(255).byte()
    return Image.fromarray(noise.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # the pipeline asks for it in float32 too
def test_the_map_is_that_of_diffusers_pipeline(diffusers, network, photo):
    """The processor of the picture, which is of the network's size, only puts it between -1 and 1."""
    pipeline = diffusers.StableDiffusionDepth2ImgPipeline
    stand_in = SimpleNamespace(
        feature_extractor=lambda images, return_tensors: SimpleNamespace(pixel_values=to_pixels(images[0])),
        depth_estimator=network,
        vae_scale_factor=8,
    )
    wanted = pipeline.prepare_depth_map(stand_in, photo, None, 1, False, torch.float32, CPU)

    got = depth_map(network, to_pixels(photo), CPU)

    assert got.shape == (1, 1, 8, 8)
    assert (got.min(), got.max()) == (-1, 1)
    assert (got - wanted).abs().max() <= 1e-5


def test_any_size_has_a_map_and_no_depth_is_all_far(network):
    wide = torch.rand(1, 3, 40, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert depth_map(network, wide, CPU).shape == (1, 1, 5, 12)

    class Flat(torch.nn.Module):
        config = SimpleNamespace(image_size=64)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixels):
            return SimpleNamespace(predicted_depth=torch.full((1, 64, 64), 3.0))

    assert (depth_map(Flat(), wide, CPU) + 1).abs().max() < 0.01


def encoded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_pictures_are_made_from_pictures(bench, model, photo):
    laid_out = dataclasses.replace(bench, checkpoint=model)
    start = encoded(photo)
    requests = (Img2Img(init_image=start, **TASK), Inpaint(init_image=start, mask=encoded(photo.convert("L")), **TASK))
    for request in requests:
        events = list(generate(request, laid_out, control=Control()))
        assert [event.image.size for event in events if isinstance(event, ImageReady)] == [(64, 64)]


def test_what_is_missing_is_told(bench, model, photo):
    with pytest.raises(UserError, match="give it one to start from, in img2img"):
        list(generate(Txt2Img(**TASK), dataclasses.replace(bench, checkpoint=model), control=Control()))
    bare = dataclasses.replace(bench, checkpoint=dataclasses.replace(model, depth=None))
    with pytest.raises(UserError, match="without its depth network"):
        list(generate(Img2Img(init_image=encoded(photo), **TASK), bare, control=Control()))
