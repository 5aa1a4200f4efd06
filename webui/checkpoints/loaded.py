"""What a checkpoint is once it is in memory: the modules, and the numbers that the engine needs to run them.

Made by `webui.checkpoints.load.load_checkpoint`, owned and released by the engine's manager. Nothing here loads,
moves or changes a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from webui.checkpoints.families.base import Conditioning, LatentToRgb, PredictionType, TextEncoderName, UNetInput
from webui.checkpoints.tokenizer import ClipTokenizer
from webui.core.ports import CheckpointInfo

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, DPTForDepthEstimation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextEncoder:
    """One text encoder of a checkpoint, and what its family reads from it.

    `layer` is the hidden state, counted from the end, that the family uses at clip skip 1: 1 is the last, 2 the last
    but one. `final_norm` says whether the final layer norm is applied to it, `pooled` whether the family also takes the
    projected vector of the end token (`module` is then a CLIPTextModelWithProjection). Texts are filled up to the
    tokenizer's length with `pad_token`.
    """

    name: TextEncoderName
    module: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: ClipTokenizer
    pad_token: int
    layer: int
    final_norm: bool
    pooled: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedCheckpoint:
    """A checkpoint's modules, in evaluation mode and without gradients, all on one device and in one dtype.

    The diffusion latents are ``vae.encode(pixels) * scaling_factor`` with pixels in -1…1. `text_encoders` are in the
    order in which the family joins their states: one for Stable Diffusion 1 and 2 and the SDXL refiner, two for SDXL.
    `conditioning` says what the UNet takes beside those states, `input` what its first convolution takes beside the
    noisy latents. Where `zero_terminal_snr`, the last timestep is pure noise. `notices` are sentences for the
    person at the page about its files. `depth` is the network of a depth model that makes its maps, in float32 and on
    the CPU until it is asked.
    """

    info: CheckpointInfo
    family: str
    prediction_type: PredictionType
    alphas_cumprod: Tensor  # (1000,) float64 on the CPU, ᾱ_t of DDPM (arXiv 2006.11239, equation 4)
    zero_terminal_snr: bool
    conditioning: Conditioning
    input: UNetInput
    text_encoders: tuple[TextEncoder, ...]
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scaling_factor: float
    latent_to_rgb: LatentToRgb | None
    bytes_by_component: Mapping[str, int]  # "text_encoder", "text_encoder_2", "unet", "vae" → bytes
    notices: tuple[str, ...] = ()
    depth: DPTForDepthEstimation | None = None
