"""What a checkpoint is once it is in memory: the modules, and the numbers that the engine needs to run them.

Made by `webui.checkpoints.load.load_checkpoint`, owned and released by the engine's manager. Nothing here loads,
moves or changes a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from webui.checkpoints.families.base import LatentToRgb, PredictionType
from webui.checkpoints.tokenizer import ClipTokenizer
from webui.core.ports import CheckpointInfo

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedCheckpoint:
    """A checkpoint's modules, in evaluation mode and without gradients, all on one device and in one dtype.

    The diffusion latents are ``vae.encode(pixels) * scaling_factor`` with pixels in -1…1.
    """

    info: CheckpointInfo
    family: str
    prediction_type: PredictionType
    alphas_cumprod: Tensor  # (1000,) float64 on the CPU, ᾱ_t of DDPM (arXiv 2006.11239, equation 4)
    tokenizer: ClipTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scaling_factor: float
    latent_to_rgb: LatentToRgb | None
    model_hash: str  # the first ten hexadecimal digits of the file's SHA-256, as A1111 writes "Model hash"
    bytes_by_component: Mapping[str, int]  # "text_encoder", "unet", "vae" → bytes of weights
