"""The built-in model's three networks, in Stable Diffusion's architecture and much narrower.

The configurations below travel inside the exported file, so this module is needed to train and never to load.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

IMAGE_SIZE = 128
TEXT_WIDTH = 64
TOKENS = 77
START_TOKEN, END_TOKEN = 49406, 49407

VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [32, 64, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    # Eight groups, where Stable Diffusion has 32: with 32 channels that would be one channel a group, and
    # normalising a channel by itself erases the flat tones that drawings are made of.
    "norm_num_groups": 8,
    "sample_size": IMAGE_SIZE,
}

UNET_CONFIG: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": IMAGE_SIZE // 8,
    "block_out_channels": [64, 96, 160],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    # diffusers' name notwithstanding this is the number of heads at each level: 32 channels a head.
    "attention_head_dim": [2, 3, 5],
    "norm_num_groups": 32,
}

TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": TEXT_WIDTH * 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": TOKENS,
    "projection_dim": TEXT_WIDTH,
    "hidden_act": "quick_gelu",
    "bos_token_id": START_TOKEN,
    "eos_token_id": END_TOKEN,
}


def make_vae() -> AutoencoderKL:
    """An untrained autoencoder: (N, 3, H, W) in -1…1 ↔ (N, 4, H/8, W/8)."""
    return AutoencoderKL(**VAE_CONFIG)


def make_unet() -> UNet2DConditionModel:
    """An untrained UNet: noisy latents, timestep, (N, 77, `TEXT_WIDTH`) text states → v-prediction."""
    return UNet2DConditionModel(**UNET_CONFIG)


def make_text_encoder() -> CLIPTextModel:
    """An untrained CLIP text encoder: (N, 77) token ids → (N, 77, `TEXT_WIDTH`)."""
    return CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
