"""Stable Diffusion's x4 upscaler: a UNet that sees a small picture beside the latents, told how noisy that is.

Facts from x4-upscaling.yaml in https://github.com/Stability-AI/stablediffusion: self-attention only at the last level,
8 heads, an autoencoder with a quarter of the picture's side, its own schedule, v-prediction.
"""

from __future__ import annotations

import dataclasses

from webui.checkpoints import keymap
from webui.checkpoints.families.base import ComponentLayout, Family, Folder, ModelConfig
from webui.checkpoints.families.folders import folder_config, stable_diffusion_unet
from webui.checkpoints.families.sd2 import VIT_H
from webui.checkpoints.families.single_file import file_config, file_layout
from webui.checkpoints.families.traits import Traits, heads_in_all, published_schedule
from webui.checkpoints.header import Header

TRAITS = Traits(
    name="x4-upscaler",
    title="Stable Diffusion's x4 upscaler",
    text_encoders=(VIT_H,),
    heads=heads_in_all(8),
    prediction="v_prediction",
    scaling_factor=0.08333,
    side=lambda prediction: 512,  # noqa: ARG005  # one size, whatever is predicted
    colours=None,
    schedule={**published_schedule(), "beta_start": 0.0001, "beta_end": 0.02},
)


def _recognises(header: Header) -> bool:
    return keymap.UNET_PREFIX + "label_emb.weight" in header.tensors


def _config(header: Header) -> ModelConfig:
    """Whether a level attends to itself does not show where the text is as wide as the level, as at the last one."""
    config = file_config(TRAITS, header)
    levels = len(config.unet["block_out_channels"])
    only_text = [True] * (levels - 1) + [False]
    return dataclasses.replace(config, unet={"only_cross_attention": only_text, **config.unet})


def _recognises_folder(folder: Folder) -> bool:
    unet = stable_diffusion_unet(folder)
    return unet is not None and bool(unet.get("num_class_embeds"))


def _folder_config(folder: Folder) -> ModelConfig:
    return folder_config(TRAITS, folder)


def _layout(config: ModelConfig) -> dict[str, ComponentLayout]:
    return file_layout(TRAITS, config)


X4_UPSCALER = Family(
    name=TRAITS.name,
    title=TRAITS.title,
    recognises=_recognises,
    config=_config,
    recognises_folder=_recognises_folder,
    folder_config=_folder_config,
    layout=_layout,
)
