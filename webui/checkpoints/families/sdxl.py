"""Stable Diffusion XL: base with two text encoders, refiner with one; both are told sizes and a pooled text.

Its inpainting and pix2pix models differ by the channels of the UNet's first convolution alone. Of both text encoders
the last layer but one is read, without the final norm.
"""

from __future__ import annotations

import dataclasses
import functools

from webui.checkpoints import keymap
from webui.checkpoints.families.base import Family, Folder, LatentToRgb
from webui.checkpoints.families.folders import folder_config, has_component, stable_diffusion_unet
from webui.checkpoints.families.single_file import file_config, file_layout
from webui.checkpoints.families.traits import TextTraits, Traits, heads_of_width
from webui.checkpoints.header import Header

_FIRST, _SECOND = "conditioner.embedders.0.", "conditioner.embedders.1.model."
_TOLD = keymap.UNET_PREFIX + "label_emb.0.0.weight"

# Vass' fit for SDXL's latents, https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space, which
# gives 0…255.
_COLOURS = LatentToRgb(
    weights=((0.471, 0.471, 0.471), (-0.471, -0.039, 0.078), (0.196, 0.118, -0.039), (-0.549, -0.392, -0.275)),
    bias=(0.176, 0.098, 0.020),
)

_VIT_L = TextTraits(
    component="text_encoder",
    name="clip_l",
    prefixes=(_FIRST + "transformer.text_model.", _FIRST + "transformer."),
    naming="clip",
    pad_token=49407,
    layer=2,
    final_norm=False,
    pooled=False,
)
_VIT_BIG_G = TextTraits(
    component="text_encoder_2",
    name="clip_g",
    prefixes=(_SECOND,),
    naming="open_clip",
    pad_token=0,
    layer=2,
    final_norm=False,
    pooled=True,
)

BASE = Traits(
    name="sdxl",
    title="Stable Diffusion XL",
    text_encoders=(_VIT_L, _VIT_BIG_G),
    heads=heads_of_width(64),
    prediction="epsilon",
    scaling_factor=0.13025,
    side=lambda prediction: 1024,  # noqa: ARG005  # one size, whatever is predicted
    colours=_COLOURS,
    conditioning="sdxl",
)
REFINER = dataclasses.replace(
    BASE,
    name="sdxl-refiner",
    title="Stable Diffusion XL's refiner",
    text_encoders=(dataclasses.replace(_VIT_BIG_G, prefixes=(_FIRST + "model.",)),),
    conditioning="refiner",
)


def _recognises_base(header: Header) -> bool:
    return _TOLD in header.tensors and header.has(_SECOND)


def _recognises_refiner(header: Header) -> bool:
    return _TOLD in header.tensors and header.has(_FIRST + "model.") and not header.has(_SECOND)


def _is_folder(folder: Folder, *, base: bool) -> bool:
    unet = stable_diffusion_unet(folder)
    return (
        unet is not None
        and unet.get("addition_embed_type") == "text_time"
        and has_component(folder, "text_encoder") == base
    )


SDXL = Family(
    name=BASE.name,
    title=BASE.title,
    recognises=_recognises_base,
    config=functools.partial(file_config, BASE),
    recognises_folder=functools.partial(_is_folder, base=True),
    folder_config=functools.partial(folder_config, BASE),
    layout=functools.partial(file_layout, BASE),
)
SDXL_REFINER = Family(
    name=REFINER.name,
    title=REFINER.title,
    recognises=_recognises_refiner,
    config=functools.partial(file_config, REFINER),
    recognises_folder=functools.partial(_is_folder, base=False),
    folder_config=functools.partial(folder_config, REFINER),
    layout=functools.partial(file_layout, REFINER),
)
