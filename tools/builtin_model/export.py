"""Writes the trained networks as one checkpoint file in Stable Diffusion 1's original layout, fp16 safetensors.

The names come from `webui.checkpoints.keymap`, the same table that loading uses the other way. The networks'
configurations travel in the file's metadata, because their widths are not Stable Diffusion's.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from webui.checkpoints import keymap
from webui.checkpoints.families.markers import CONFIG_KEY, PREDICTION_KEY, RESOLUTION_KEY
from webui.hardware import torchvision_operators

logger = logging.getLogger(__name__)

LATENT_SCALE = 8
PICTURES_FOR_COLOURS = 64
TITLE = "Atelier first light"
DESCRIPTION = "Simple drawings from words: shapes, colours, counts and places. Trained by tools/builtin_model."


def original_layout(
    unet: nn.Module, vae: nn.Module, text_encoder: nn.Module, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The modules' weights under the original layout's names, fp16 and contiguous; `config` as in the metadata."""
    parts = (
        (keymap.UNET_PREFIX, unet, keymap.unet_table(keymap.UNetShape.from_config(config["unet"]))),
        (keymap.VAE_PREFIX, vae, keymap.vae_table(keymap.VaeShape.from_config(config["vae"]))),
        (keymap.TEXT_PREFIX, text_encoder, keymap.text_table()),
    )
    state: dict[str, Tensor] = {}
    for prefix, module, table in parts:
        names = keymap.inverse(table)
        for key, weight in module.state_dict().items():
            name = keymap.translate(key, names)
            if name is None:
                raise ValueError(f"The weight {key!r} of {type(module).__name__} has no name in the original layout.")
            if prefix == keymap.VAE_PREFIX and keymap.is_vae_attention_weight(key):
                weight = weight[..., None, None]
            state[prefix + name] = weight.detach().to("cpu", torch.float16).contiguous()
    return state


def metadata(config: Mapping[str, Any], *, prediction: str, side: int, title: str) -> dict[str, str]:
    """The file's metadata: ModelSpec entries (https://github.com/Stability-AI/ModelSpec) and our configuration."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": title,
        "modelspec.description": DESCRIPTION,
        "modelspec.license": "Apache-2.0",
        PREDICTION_KEY: prediction,
        RESOLUTION_KEY: f"{side}x{side}",
        CONFIG_KEY: json.dumps(config),
    }


def fit_latent_colours(latents: Tensor, pictures: Tensor) -> dict[str, Any]:
    """The linear map from latents to colours with the least squared error, for quick previews.

    `latents` (N, C, h, w) are scaled, `pictures` (N, 3, h, w) are in -1…1; gives "weights" (C rows of 3) and "bias".
    """
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    colours = pictures.permute(0, 2, 3, 1).flatten(0, 2).double()
    solution = torch.linalg.lstsq(torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1), colours)
    table = [[round(value, 5) for value in row] for row in solution.solution.tolist()]
    return {"weights": table[:-1], "bias": table[-1]}


@torch.no_grad()
def _drawn_latents(vae: Any, scaling_factor: float) -> tuple[Tensor, Tensor]:
    """Scaled latents of freshly drawn pictures, and those pictures at the latents' size."""
    from tools.builtin_model.networks import IMAGE_SIZE
    from tools.builtin_model.scenes import draw, random_scene
    from tools.builtin_model.train import to_tensor

    rng = random.Random(4000)
    images = [draw(random_scene(rng), IMAGE_SIZE, rng) for _ in range(PICTURES_FOR_COLOURS)]
    side = IMAGE_SIZE // LATENT_SCALE
    small = to_tensor([image.resize((side, side), Image.Resampling.BOX) for image in images])
    latents = torch.cat([vae.encode(pixels).latent_dist.mean for pixels in to_tensor(images).split(8)])
    return latents * scaling_factor, small


def write(path: Path, state: dict[str, Tensor], information: dict[str, str]) -> None:
    """Writes the safetensors file whole or not at all."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".partial")
    save_file(state, temporary, metadata=information)
    temporary.replace(path)


def export(folder: Path, out: Path) -> None:
    """Reads the training state in `folder` (vae.pt, unet.pt, latents.pt) and writes the checkpoint `out`."""
    torchvision_operators.declare()
    from tools.builtin_model import networks
    from tools.builtin_model.train import BETAS

    out.parent.mkdir(parents=True, exist_ok=True)
    model = nn.ModuleDict({"unet": networks.make_unet(), "text": networks.make_text_encoder()})
    model.load_state_dict(torch.load(folder / "unet.pt", weights_only=True, map_location="cpu")["ema"])
    vae = networks.make_vae()
    vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True, map_location="cpu")["ema"])
    vae.eval()
    cached = torch.load(folder / "latents.pt", weights_only=True, map_location="cpu", mmap=True)
    scaling_factor = float(cached["scaling_factor"])
    latents, small = _drawn_latents(vae, scaling_factor)
    config = {
        "unet": networks.UNET_CONFIG,
        "vae": {**networks.VAE_CONFIG, "scaling_factor": scaling_factor},
        "text_encoder": networks.TEXT_CONFIG,
        "scheduler": {key: BETAS[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")},
        "latent_to_rgb": fit_latent_colours(latents, small),
    }
    state = original_layout(model["unet"], vae, model["text"], config)
    write(out, state, metadata(config, prediction="v", side=networks.IMAGE_SIZE, title=TITLE))
    logger.info("wrote %s, %.1f MB", out, out.stat().st_size / 1e6)
