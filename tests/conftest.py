"""Fixtures that every room may use: models small enough to run in a test, in real files, and pictures in theirs."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY_NAME = "tiny-random"
TINY_CONFIG: dict[str, Any] = {
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 8,
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": [2, 4],
        "norm_num_groups": 8,
    },
    "vae": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [8, 8, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.9,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "projection_dim": 16,
        "hidden_act": "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "scheduler": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
    },
    "latent_to_rgb": {
        "weights": [[0.3, 0.2, 0.2], [0.2, 0.3, 0.2], [-0.2, 0.2, 0.3], [-0.2, -0.3, -0.5]],
        "bias": [0.0, 0.1, -0.1],
    },
}


@pytest.fixture(scope="session", autouse=True)
def exact_arithmetic() -> Iterator[None]:
    """Tests compare numbers that float32 makes, also on processors that would compute in bfloat16 by themselves."""
    from webui.hardware import device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the network fails."""

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder whose one checkpoint, "tiny-random", has random weights: v-prediction, native 64x64 pixels.

    Shared by all tests of a run: copy it before changing anything in it.
    """
    import torch

    from tools.builtin_model.export import metadata, original_layout, write
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    models = tmp_path_factory.mktemp("models")
    folder = models / "Stable-diffusion"
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**TINY_CONFIG["unet"])
        vae = AutoencoderKL(**TINY_CONFIG["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**TINY_CONFIG["text_encoder"]))
    information = metadata(TINY_CONFIG, prediction="v", side=64, title="Tiny random")
    write(folder / f"{TINY_NAME}.safetensors", original_layout(unet, vae, text_encoder, TINY_CONFIG), information)
    return models


@pytest.fixture
def picture() -> Image.Image:
    """A 48x32 picture with every pixel different from its neighbours, so that turning it shows."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (32, 48, 3), dtype=np.uint8))


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """A function that encodes a picture: `encoded(image, "JPEG", quality=90)`."""

    def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, file_format, **options)
        return buffer.getvalue()

    return encode
