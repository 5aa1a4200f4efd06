"""The networks of a configuration, made without memory ("meta" device), ready to be given their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from webui.checkpoints.families.base import ModelConfig, TextEncoderConfig
from webui.core.errors import UnsupportedModel
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection


def empty_modules(config: ModelConfig, source: str) -> dict[str, nn.Module]:
    """Text encoders, UNet and autoencoder by the names that a diffusers folder gives them.

    Raises `UnsupportedModel`, naming `source`, for a configuration that makes no network.
    """
    torchvision_operators.declare()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    try:
        with torch.device("meta"):
            texts = {text.component: _text_encoder(text) for text in config.text_encoders}
            unet = cast("nn.Module", UNet2DConditionModel.from_config(dict(config.unet)))
            vae = cast("nn.Module", AutoencoderKL.from_config(dict(config.vae)))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(f"{source} has a configuration that makes no model: {error}.") from error
    for text in texts.values():
        _count_positions(text)
    return {**texts, "unet": unet, "vae": vae}


def _text_encoder(text: TextEncoderConfig) -> CLIPTextModel | CLIPTextModelWithProjection:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(**text.config)
    return CLIPTextModelWithProjection(config) if text.pooled else CLIPTextModel(config)


def _count_positions(text: nn.Module) -> None:
    """Gives a text encoder its positions: not a weight but a count, which no file has to bring."""
    for name, buffer in list(text.named_buffers()):
        positions = torch.arange(buffer.shape[-1]).unsqueeze(0)
        text.get_submodule(name.rpartition(".")[0]).register_buffer("position_ids", positions, persistent=False)
