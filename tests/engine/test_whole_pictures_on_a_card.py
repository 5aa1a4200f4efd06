"""Whole pictures on a card of paper: tensors there compute on the CPU, and refuse to be mixed with those that lie here.

A real card refuses as well, and nowhere else would it be seen: on the CPU all tensors are in one place. The card's
device is called "meta", for which torch starts nothing. Its pictures must be those of the CPU, bit for bit.
"""

import copy
import dataclasses
import io

import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from webui.core.events import ImageReady
from webui.core.ports import Control
from webui.core.requests import (
    DiffusionUpscaler,
    Extras,
    Guidance,
    HiresFix,
    Img2Img,
    Inpaint,
    InpaintArea,
    Loopback,
    MaskedContent,
    NoiseSource,
    Outpaint,
    ResizeMode,
    SdUpscale,
    SoftInpainting,
    StartOptions,
    TileBlend,
    TiledDiffusion,
    Txt2Img,
    Variation,
)
from webui.engine.conditioning import PromptCache
from webui.engine.generate import generate
from webui.engine.img2img import walk_of
from webui.engine.loopback import loopback
from webui.engine.passes import make_pass
from webui.engine.sd_upscale import sd_upscale
from webui.engine.upscale.diffusion import upscale_by_diffusion
from webui.hardware.low_bits import FORMATS, pack_weights

CARD = torch.device("meta")
CPU = torch.device("cpu")
# What may take a tensor from one place to the other.
COPIES = {"aten::_to_copy", "aten::copy_", "aten::to"}


class OnCard(Tensor):
    """A tensor on the card; `here` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        return Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=CARD,
        )

    def __init__(self, here):
        self.here = here

    def __repr__(self, **_):
        return f"OnCard({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    """Runs `func` on the CPU; what it makes is on the card if its inputs were, or if it was told to make it there."""
    name = func._schema.name
    leaves, structure = tree_flatten((args, kwargs))
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
    if there and name not in COPIES and any(not isinstance(each, OnCard) and each.ndim > 0 for each in tensors):
        raise RuntimeError(f"{name}: tensors on the card are mixed with tensors in main memory")
    inner_args, inner_kwargs = tree_unflatten([_here(leaf) for leaf in leaves], structure)
    made = func(*inner_args, **inner_kwargs)
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    on_card = devices[0] == CARD if devices else bool(there)
    with torch.inference_mode(False):  # views of tensors of inference cannot be wrapped
        return tree_map_only(Tensor, OnCard, made) if on_card else made


def _here(leaf):
    if isinstance(leaf, OnCard):
        return leaf.here
    return CPU if isinstance(leaf, torch.device) else leaf


class Factories(TorchDispatchMode):
    """Has tensors that are made on the card's device be on the card."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def moved(module):
    """A copy of `module` on the card."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(OnCard(weight.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnCard(buffer)
    return module


def on_card(checkpoint):
    """`checkpoint` with all of its networks on the card."""
    encoders = [dataclasses.replace(each, module=moved(each.module)) for each in checkpoint.text_encoders]
    depth = None if checkpoint.depth is None else moved(checkpoint.depth)
    networks = {"unet": moved(checkpoint.unet), "vae": moved(checkpoint.vae), "depth": depth}
    return dataclasses.replace(checkpoint, text_encoders=tuple(encoders), **networks)


@pytest.fixture(scope="module")
def tiny_on_card(tiny):
    return on_card(tiny)


@pytest.fixture
def card(monkeypatch):
    """A function: what `work` makes on the card."""
    real = torch.tensor

    def tensor(data, *, device=None, **options):  # it fills tensors where nobody can look
        made = real(data, **options)
        return made if device is None else made.to(device)

    def run(work):
        with monkeypatch.context() as patch, Factories():
            patch.setattr(torch, "tensor", tensor)
            return work()

    return run


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = png(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
MASK = Image.new("L", (64, 64))
MASK.paste(255, (8, 8, 40, 56))
TASK = {"prompt": "a (red:1.3) [circle:square:2] AND a cat", "negative_prompt": "blue", "seed": 3, "steps": 3}
SIZE = {"width": 64, "height": 64}
MASKED = {"init_image": PHOTO, "mask": png(MASK), **TASK, **SIZE}
WIDE = {**TASK, "width": 96, "height": 64}
REQUESTS = {
    "batch": Txt2Img(**TASK, **SIZE, batch_size=2),
    "variation": Txt2Img(**TASK, **SIZE, variation=Variation(seed=5, strength=0.3, width=48, height=80)),
    "other noise": Txt2Img(**TASK, **SIZE, noise_source=NoiseSource.NV, sampler="Euler a", eta_noise_seed_delta=7),
    "guidance": Txt2Img(**TASK, **SIZE, guidance=Guidance(rescale=0.7, skip_early=0.4)),
    "hires": Txt2Img(**TASK, **SIZE, hires=HiresFix(enabled=True, scale=1.5)),
    "hires by pixels": Txt2Img(**TASK, **SIZE, hires=HiresFix(enabled=True, scale=1.5, upscaler="Lanczos")),
    "tiled": Txt2Img(**WIDE, tiled=TiledDiffusion(method=TileBlend.MIXTURE, tile=64, overlap=32)),
    "perturbed": Txt2Img(**TASK, **SIZE, extras=Extras(pag_scale=2.0, sag_scale=0.5)),
    "extras": Txt2Img(
        **TASK, **SIZE, extras=Extras(tiling=True, mimic_scale=5.0, threshold_percentile=99.0, token_merging=0.5)
    ),
    "img2img": Img2Img(**TASK, **SIZE, init_image=PHOTO, start=StartOptions(extra_noise=0.1, colour_correction=True)),
    "latent resize": Img2Img(**WIDE, init_image=PHOTO, resize_mode=ResizeMode.LATENT),
    "inpaint": Inpaint(**MASKED, masked_content=MaskedContent.LATENT_NOISE),
    "only masked": Inpaint(**MASKED, area=InpaintArea.MASKED, masked_content=MaskedContent.FILL),
    "soft": Inpaint(**MASKED, soft=SoftInpainting(enabled=True)),
    "outpaint": Inpaint(**MASKED, outpaint=Outpaint(left=32)),
    "Brownian noise": Txt2Img(**TASK, **SIZE, sampler="DPM++ SDE"),
}


def pictures(request, bench, recipe):
    return [event.image for event in recipe(request, bench, control=Control()) if isinstance(event, ImageReady)]


def check(request, bench, card, checkpoint, *, recipe=generate):
    """That the pictures of `request` are the same on the card."""
    wanted = pictures(request, bench, recipe)
    there = dataclasses.replace(bench, checkpoint=checkpoint, device=CARD, prompts=PromptCache())
    made = card(lambda: pictures(request, there, recipe))
    assert len(made) == len(wanted) > 0
    assert all(ImageChops.difference(one, other).getbbox() is None for one, other in zip(made, wanted, strict=True))


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_pictures_are_those_of_the_cpu(request_, bench, card, tiny_on_card):
    check(request_, bench, card, tiny_on_card)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (loopback, {"loopback": Loopback(loops=2)}),
        (sd_upscale, {"sd_upscale": SdUpscale(upscaler="Lanczos", scale=1.5, overlap=32)}),
    ],
    ids=["loopback", "SD upscale"],
)
def test_recipes_of_several_walks_are_those_of_the_cpu(recipe, options, bench, card, tiny_on_card):
    check(Img2Img(**TASK, **SIZE, init_image=PHOTO, **options), bench, card, tiny_on_card, recipe=recipe)


def other_input(tiny, diffusers, channels, **changes):
    """`tiny` with a UNet of so many input channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        unet = diffusers.UNet2DConditionModel(**{**tiny.unet.config, "in_channels": channels})
    return dataclasses.replace(tiny, unet=unet.eval().requires_grad_(False), **changes)


@pytest.mark.parametrize(
    ("kind", "channels", "request_"),
    [
        ("inpaint", 9, Inpaint(**MASKED)),
        ("edit", 8, Img2Img(**TASK, **SIZE, init_image=PHOTO)),
        ("depth", 5, Img2Img(**TASK, **SIZE, init_image=PHOTO)),
    ],
    ids=["inpaint", "edit", "depth"],
)
def test_models_that_see_more_are_those_of_the_cpu(
    kind, channels, request_, bench, card, tiny, diffusers, make_depth_network
):
    depth = make_depth_network() if kind == "depth" else None
    checkpoint = other_input(tiny, diffusers, channels, input=kind, depth=depth)
    check(request_, dataclasses.replace(bench, checkpoint=checkpoint), card, on_card(checkpoint))


@pytest.mark.parametrize("weights", FORMATS)
def test_networks_in_few_bits_are_those_of_the_cpu(weights, bench, card, tiny):
    checkpoint = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
    pack_weights(checkpoint.unet, weights)
    request = Txt2Img(prompt="a cat", seed=3, steps=1, **SIZE)
    check(request, dataclasses.replace(bench, checkpoint=checkpoint), card, on_card(checkpoint))


@torch.inference_mode()
def test_upscaling_by_diffusion_is_that_of_the_cpu(bench, card, tiny, diffusers):
    with torch.inference_mode(False):
        checkpoint = other_input(tiny, diffusers, 7, input="low_res")
    wish = DiffusionUpscaler(steps=2, seed=5)
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    asked = Txt2Img(steps=2)

    def enlarged(bench):
        plan = make_pass(asked, bench, walk_of(asked)).words()
        walk = upscale_by_diffusion(bench, plan, pixels, wish, tile=0, overlap=0)
        while True:
            try:
                next(walk)
            except StopIteration as end:
                return end.value.cpu()

    wanted = enlarged(dataclasses.replace(bench, checkpoint=checkpoint))
    there = dataclasses.replace(bench, checkpoint=on_card(checkpoint), device=CARD, prompts=PromptCache())
    assert torch.equal(card(lambda: enlarged(there)), wanted)


@torch.inference_mode()
def test_mixing_places_is_refused(card):
    def mixed():
        return torch.zeros(2, device=CARD) + torch.zeros(2)

    with pytest.raises(RuntimeError, match="mixed"):
        card(mixed)
