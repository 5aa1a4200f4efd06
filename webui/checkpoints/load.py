"""A file on disk → modules with weights: the only place where weights are read.

Modules are made without memory ("meta" device) and take their weights from memory-mapped safetensors, so that loading
needs the size of the weights once. Nothing is ever downloaded and no pickle is opened. What does not fit exactly is
refused: a model with a missing or a surplus weight paints pictures that nobody meant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from webui.checkpoints import keymap
from webui.checkpoints.detect import identify
from webui.checkpoints.families.base import ComponentLayout, Family, ModelConfig, read_json
from webui.checkpoints.header import read_header
from webui.checkpoints.loaded import LoadedCheckpoint, TextEncoder
from webui.checkpoints.tokenizer import ClipTokenizer
from webui.core.errors import CheckpointNotFound, UnsupportedModel
from webui.core.ports import CheckpointInfo
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

logger = logging.getLogger(__name__)

# The names under which diffusers and transformers save weights, best first; ".index.json" lists the shards.
_FOLDER_WEIGHTS = ("diffusion_pytorch_model", "model")
_VARIANTS = ("", ".fp16")


def load_checkpoint(path: Path, info: CheckpointInfo, *, dtype: torch.dtype, device: torch.device) -> LoadedCheckpoint:
    """Loads the single file or diffusers folder at `path` in `dtype` on `device`.

    Raises `UnsupportedModel` when the weights are damaged or do not fit the architecture, `CheckpointNotFound` when
    the file is gone.
    """
    started = time.monotonic()
    if not path.exists():
        raise CheckpointNotFound(f"The checkpoint {info.name!r} is no longer at {path}; reload the list of models.")
    family, config = identify(path)
    modules = _empty_modules(config, path.name)
    for component, module in modules.items():
        weights = _folder_weights(path, component) if path.is_dir() else _file_weights(path, component, family, config)
        fill(module, weights, dtype=dtype, device=device, what=f"{component.replace('_', ' ')} of {path.name}")
    logger.info("Loaded %s (%s) in %.1f s", info.name, family.title, time.monotonic() - started)
    return LoadedCheckpoint(
        info=info,
        family=family.name,
        prediction_type=config.prediction_type,
        alphas_cumprod=alphas_cumprod(config.scheduler),
        zero_terminal_snr=False,
        conditioning="text",
        input="latents",
        text_encoders=(
            TextEncoder(
                name="clip_l",
                module=cast("CLIPTextModel", modules["text_encoder"]),
                tokenizer=ClipTokenizer(),
                pad_token=ClipTokenizer.end_token,
                layer=1,
                final_norm=True,
                pooled=False,
            ),
        ),
        unet=cast("UNet2DConditionModel", modules["unet"]),
        vae=cast("AutoencoderKL", modules["vae"]),
        scaling_factor=config.scaling_factor,
        latent_to_rgb=config.latent_to_rgb,
        bytes_by_component={
            component: sum(weight.nbytes for weight in module.parameters()) for component, module in modules.items()
        },
    )


def alphas_cumprod(scheduler: Mapping[str, Any]) -> Tensor:
    """The products ᾱ_t of DDPM's 1 - β_t (arXiv 2006.11239, section 2): (T,) float64 on the CPU, falling with t.

    "scaled_linear" is Stable Diffusion's schedule, linear in the square root of β. Raises `UnsupportedModel` for a
    schedule that is neither that nor "linear".
    """
    kind = scheduler.get("beta_schedule", "scaled_linear")
    start, end = float(scheduler.get("beta_start", 0.00085)), float(scheduler.get("beta_end", 0.012))
    steps = int(scheduler.get("num_train_timesteps", 1000))
    if kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise UnsupportedModel(f"The noise schedule {kind!r} is not known; Atelier knows scaled_linear and linear.")
    return (1 - betas).cumprod(0)


def _empty_modules(config: ModelConfig, source: str) -> dict[str, nn.Module]:
    torchvision_operators.declare()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        with torch.device("meta"):
            unet = cast("nn.Module", UNet2DConditionModel.from_config(dict(config.unet)))
            vae = cast("nn.Module", AutoencoderKL.from_config(dict(config.vae)))
            text_encoder = CLIPTextModel(CLIPTextConfig(**config.text_encoder))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(f"{source} has a configuration that makes no model: {error}.") from error
    # Not a weight but a count, which no file has to bring.
    positions = torch.arange(text_encoder.config.max_position_embeddings).unsqueeze(0)
    text_encoder.embeddings.register_buffer("position_ids", positions, persistent=False)
    return {"text_encoder": text_encoder, "unet": unet, "vae": vae}


def fill(
    module: nn.Module, weights: Iterator[tuple[str, Tensor]], *, dtype: torch.dtype, device: torch.device, what: str
) -> None:
    """Gives `module` its weights, in `dtype` on `device`, and makes it ready to run; names what does not fit."""
    expected = {name: weight.shape for name, weight in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    try:
        for name, weight in weights:
            if name not in expected:
                raise UnsupportedModel(f"The {what} has the weight {name!r}, which the architecture lacks.")
            if keymap.is_vae_attention_weight(name) and weight.ndim > 2 and weight.shape[:2] == expected[name]:
                weight = weight.flatten(1)  # the original's 1×1 convolution
            if weight.shape != expected[name]:
                sizes = f"{tuple(weight.shape)} instead of {tuple(expected[name])}"
                raise UnsupportedModel(f"The {what} has the weight {name!r} in the size {sizes}.")
            # A copy even where nothing changes: a mapped file that is overwritten would take the program with it.
            state[name] = weight.to(device=device, dtype=dtype, copy=True)
    except (SafetensorError, OSError) as error:
        raise UnsupportedModel(f"The {what} cannot be read: {error}; download it again.") from error
    missing = [name for name in expected if name not in state]
    if missing:
        raise UnsupportedModel(f"The {what} lacks {len(missing)} weights, {missing[0]!r} first; download it again.")
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval().to(device)


def _file_weights(path: Path, component: str, family: Family, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """One component's weights in a single file, under the module's own names."""
    layout = family.layout(config)[component]
    header = read_header(path)
    prefix = next(prefix for prefix in layout.prefixes if header.has(prefix))
    with safe_open(path, framework="pt", device="cpu") as file:
        for key in header.tensors:
            if key.startswith(prefix) and not key.startswith(layout.surplus, len(prefix)):
                yield _own_name(key, prefix, layout), file.get_tensor(key)


def _own_name(key: str, prefix: str, layout: ComponentLayout) -> str:
    own = keymap.translate(key[len(prefix) :], layout.table)
    return key if own is None else own  # an unknown key goes on under its whole name, to be refused by it


def _folder_weights(path: Path, component: str) -> Iterator[tuple[str, Tensor]]:
    """One component's weights in a diffusers folder, under the module's own names of today."""
    for file_path in _weight_files(path, component):
        with safe_open(file_path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118  # safe_open is no dictionary
                name = keymap.modern_vae_key(key) if component == "vae" else key.removeprefix("text_model.")
                if name != "embeddings.position_ids":
                    yield name, file.get_tensor(key)


def _weight_files(path: Path, component: str) -> list[Path]:
    folder = path / component
    for stem in (name + variant for variant in _VARIANTS for name in _FOLDER_WEIGHTS):
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            names = sorted({str(name) for name in read_json(index, path).get("weight_map", {}).values()})
            return [folder / Path(name).name for name in names]
    raise UnsupportedModel(
        f"The folder {path.name} has no safetensors weights in {component}; convert it to safetensors, pickles (.bin)"
        " are not opened."
    )
