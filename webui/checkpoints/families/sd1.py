"""Stable Diffusion 1: OpenAI's CLIP ViT-L/14, its last layer; transformers that begin with a convolution.

Its inpainting model and instruct-pix2pix differ by the channels of the UNet's first convolution alone. The sizes are
those of the weights, so the built-in model and any other small one are of this family too.
"""

from __future__ import annotations

import functools

from webui.checkpoints import keymap
from webui.checkpoints.families.base import Family, Folder, LatentToRgb
from webui.checkpoints.families.folders import folder_config, stable_diffusion_unet
from webui.checkpoints.families.single_file import CONV_IN, file_config, file_layout, transformer_entries
from webui.checkpoints.families.traits import TextTraits, Traits, heads_in_all
from webui.checkpoints.header import Header

# Keturn's fit for version 1.4, https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204.
KL_F8_COLOURS = LatentToRgb(
    weights=((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
    bias=(0.0, 0.0, 0.0),
)

TRAITS = Traits(
    name="sd1",
    title="Stable Diffusion 1",
    text_encoders=(
        TextTraits(
            component="text_encoder",
            name="clip_l",
            # Some trainers leave out the last part of the prefix; both spellings are everywhere.
            prefixes=(keymap.TEXT_PREFIX, "cond_stage_model.transformer."),
            naming="clip",
            pad_token=49407,
            layer=1,
            final_norm=True,
            pooled=False,
        ),
    ),
    heads=heads_in_all(8),
    prediction="epsilon",
    scaling_factor=0.18215,
    side=lambda prediction: 512,  # noqa: ARG005  # one size, whatever is predicted
    colours=KL_F8_COLOURS,
)


def _recognises(header: Header) -> bool:
    return CONV_IN in header.tensors and all(len(shape) == 4 for shape in transformer_entries(header))


def _recognises_folder(folder: Folder) -> bool:
    unet = stable_diffusion_unet(folder)
    return unet is not None and not unet.get("use_linear_projection", False) and not unet.get("addition_embed_type")


SD1 = Family(
    name=TRAITS.name,
    title=TRAITS.title,
    recognises=_recognises,
    config=functools.partial(file_config, TRAITS),
    recognises_folder=_recognises_folder,
    folder_config=functools.partial(folder_config, TRAITS),
    layout=functools.partial(file_layout, TRAITS),
)
