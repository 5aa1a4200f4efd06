"""The built-in model's three networks, in Stable Diffusion's architecture and much narrower, at two sizes.

The configurations below travel inside the exported file, so this module is needed to train and never to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tools.builtin_model.art import FAVOURITES, STYLES

LATENT_PIXELS = 8
TOKENS = 77
START_TOKEN, END_TOKEN = 49406, 49407


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What is trained: the networks' widths, and the subjects (none means all that the pack has) and styles shown.

    The UNet learns at `sides` (pixels) in turn: what words mean at the first, for a quarter of the cost, then at its
    own, the last.
    """

    sides: tuple[int, ...]
    vae_channels: tuple[int, ...]
    unet_channels: tuple[int, ...]
    # Whether each level of the UNet has cross attention.
    unet_attends: tuple[bool, ...]
    layers: int
    text_width: int
    subjects: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def side(self) -> int:
        """The pictures' own width and height, in pixels."""
        return self.sides[-1]


PRESETS = {
    # For a CPU core and two hours: small pictures of few subjects.
    "tiny": Preset(
        sides=(128,),
        vae_channels=(32, 64, 64, 64),
        unet_channels=(64, 96, 160),
        unet_attends=(True, True, False),
        layers=1,
        text_width=64,
        subjects=FAVOURITES,
        styles=("3d", "flat"),
    ),
    # The same by twice the size, around what "tiny" has learnt (growing.py).
    "small": Preset(
        sides=(256,),
        vae_channels=(32, 64, 64, 64),
        unet_channels=(64, 64, 96, 160),
        unet_attends=(False, True, True, False),
        layers=1,
        text_width=64,
        subjects=FAVOURITES,
        styles=("3d", "flat"),
    ),
    # For a GPU: everything in the pack.
    "full": Preset(
        sides=(128, 256),
        vae_channels=(48, 96, 96, 96),
        unet_channels=(96, 128, 192),
        unet_attends=(False, True, True),
        layers=1,
        text_width=64,
        subjects=(),
        styles=STYLES,
    ),
}


def vae_config(preset: Preset) -> dict[str, Any]:
    """The arguments of `AutoencoderKL`."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": list(preset.vae_channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(preset.vae_channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(preset.vae_channels),
        "layers_per_block": 1,
        # Eight groups, where Stable Diffusion has 32: with 32 channels that would be one channel a group, and
        # normalising a channel by itself erases the flat tones that drawings are made of.
        "norm_num_groups": 8,
        "sample_size": preset.side,
    }


def unet_config(preset: Preset) -> dict[str, Any]:
    """The arguments of `UNet2DConditionModel`."""
    attends = preset.unet_attends
    return {
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": preset.side // LATENT_PIXELS,
        "block_out_channels": list(preset.unet_channels),
        "down_block_types": ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attends)],
        "layers_per_block": preset.layers,
        "cross_attention_dim": preset.text_width,
        # diffusers' name notwithstanding this is the number of heads at each level: 32 channels a head.
        "attention_head_dim": [channels // 32 for channels in preset.unet_channels],
        "norm_num_groups": 32,
    }


def text_config(preset: Preset) -> dict[str, Any]:
    """The arguments of `CLIPTextConfig`."""
    return {
        "vocab_size": 49408,
        "hidden_size": preset.text_width,
        "intermediate_size": preset.text_width * 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "projection_dim": preset.text_width,
        "hidden_act": "quick_gelu",
        "bos_token_id": START_TOKEN,
        "eos_token_id": END_TOKEN,
    }


def make_vae(preset: Preset) -> AutoencoderKL:
    """An untrained autoencoder: (N, 3, H, W) in -1…1 ↔ (N, 4, H/8, W/8)."""
    return AutoencoderKL(**vae_config(preset))


def make_unet(preset: Preset) -> UNet2DConditionModel:
    """An untrained UNet: noisy latents, timestep, (N, 77, text width) text states → v-prediction."""
    return UNet2DConditionModel(**unet_config(preset))


def make_text_encoder(preset: Preset) -> CLIPTextModel:
    """An untrained CLIP text encoder: (N, 77) token ids → (N, 77, text width)."""
    return CLIPTextModel(CLIPTextConfig(**text_config(preset)))
