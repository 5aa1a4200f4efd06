"""Writes the trained networks as one checkpoint file in Stable Diffusion 1's original layout, fp16 safetensors.

The names come from `webui.checkpoints.keymap`, the same table that loading uses the other way. The networks'
configurations travel in the file's metadata, because their widths are not Stable Diffusion's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from webui.checkpoints import keymap
from webui.checkpoints.families.markers import CONFIG_KEY, PREDICTION_KEY, RESOLUTION_KEY
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from tools.builtin_model.networks import Preset

logger = logging.getLogger(__name__)

LATENT_SCALE = 8
PICTURES_FOR_COLOURS = 64
TITLE = "Atelier sketchbook"
DESCRIPTION = "Little drawings from words: animals, food, things and plain shapes. Trained by tools/builtin_model."


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
def _latents_and_colours(vae: Any, scaling_factor: float, pack: Path, preset: Preset) -> tuple[Tensor, Tensor]:
    """Scaled latents of freshly made pictures, and those pictures at the latents' size."""
    from tools.builtin_model.training import as_pixels, picture_batches

    arrays, _ = next(picture_batches(pack, preset, batch=PICTURES_FOR_COLOURS, seed=4000))
    pixels = as_pixels(arrays, torch.device("cpu"))
    latents = torch.cat([vae.encode(few).latent_dist.mean for few in pixels.split(8)])
    return latents * scaling_factor, torch.nn.functional.avg_pool2d(pixels, LATENT_SCALE)


def write(path: Path, state: dict[str, Tensor], information: dict[str, str]) -> None:
    """Writes the safetensors file whole or not at all."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".partial")
    save_file(state, temporary, metadata=information)
    temporary.replace(path)


def export(folder: Path, pack: Path, preset_name: str, out: Path) -> None:
    """Reads the training state in `folder` (vae.pt, unet.pt, the latents) and writes the checkpoint `out`."""
    torchvision_operators.declare()
    from tools.builtin_model import autoencoder, networks
    from tools.builtin_model.diffusion import BETAS

    preset = networks.PRESETS[preset_name]
    out.parent.mkdir(parents=True, exist_ok=True)
    model = nn.ModuleDict({"unet": networks.make_unet(preset), "text": networks.make_text_encoder(preset)})
    model.load_state_dict(torch.load(folder / "unet.pt", weights_only=True, map_location="cpu")["ema"])
    vae = autoencoder.load(folder, preset)
    scaling_factor = autoencoder.scaling_factor(folder, preset)
    config = {
        "unet": networks.unet_config(preset),
        "vae": {**networks.vae_config(preset), "scaling_factor": scaling_factor},
        "text_encoder": networks.text_config(preset),
        "scheduler": {key: BETAS[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")},
        "latent_to_rgb": fit_latent_colours(*_latents_and_colours(vae, scaling_factor, pack, preset)),
    }
    state = original_layout(model["unet"], vae, model["text"], config)
    write(out, state, metadata(config, prediction="v", side=preset.side, title=TITLE))
    logger.info("wrote %s, %.1f MB", out, out.stat().st_size / 1e6)
