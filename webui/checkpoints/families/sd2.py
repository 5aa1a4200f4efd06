"""Stable Diffusion 2: OpenCLIP ViT-H/14, its last layer but one under the final norm; linear transformer entries.

Base (epsilon, 512 pixels) and 768-v have the same weights' names and shapes: where nothing beside them tells which it
is, the loaded network does (`webui.checkpoints.prediction`). The inpainting and the depth model, both of epsilon, show
by the channels of the UNet's first convolution. The latter brings its depth network (`webui.checkpoints.load_depth`).
"""

from __future__ import annotations

import functools

from webui.checkpoints.families.base import Family, Folder
from webui.checkpoints.families.folders import folder_config, stable_diffusion_unet
from webui.checkpoints.families.sd1 import KL_F8_COLOURS
from webui.checkpoints.families.single_file import CONV_IN, file_config, file_layout, transformer_entries
from webui.checkpoints.families.traits import TextTraits, Traits, heads_of_width
from webui.checkpoints.header import Header

VIT_H = TextTraits(
    component="text_encoder",
    name="clip_h",
    prefixes=("cond_stage_model.model.",),
    naming="open_clip",
    pad_token=0,
    layer=1,
    final_norm=True,
    pooled=False,
    drops_last=True,
)

TRAITS = Traits(
    name="sd2",
    title="Stable Diffusion 2",
    text_encoders=(VIT_H,),
    heads=heads_of_width(64),
    prediction=None,
    scaling_factor=0.18215,
    side=lambda prediction: 512 if prediction == "epsilon" else 768,
    colours=KL_F8_COLOURS,  # the autoencoder is version 1's
)


def _recognises(header: Header) -> bool:
    entries = transformer_entries(header)
    return CONV_IN in header.tensors and bool(entries) and all(len(shape) == 2 for shape in entries)


def _recognises_folder(folder: Folder) -> bool:
    unet = stable_diffusion_unet(folder)
    return unet is not None and bool(unet.get("use_linear_projection")) and not unet.get("addition_embed_type")


SD2 = Family(
    name=TRAITS.name,
    title=TRAITS.title,
    recognises=_recognises,
    config=functools.partial(file_config, TRAITS),
    recognises_folder=_recognises_folder,
    folder_config=functools.partial(folder_config, TRAITS),
    layout=functools.partial(file_layout, TRAITS),
)
