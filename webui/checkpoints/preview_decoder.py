"""Small decoders that show a forming picture: TAESD and whatever has its layout, in models/VAE-approx.

The files are A1111's and Forge's, by their names: ``taesd_decoder`` for Stable Diffusion 1 and 2, ``taesdxl_decoder``
for XL, ``taesd3_decoder`` for 3, ``taef1_decoder`` for FLUX.1. A checkpoint's own one is called after it:
``NAME_decoder``. Nothing here decides when a preview is made.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderTiny

FOLDER = "VAE-approx"
SUFFIXES = (".safetensors", ".pth", ".pt")
# By the beginning of a family's name, or of a pipeline's of diffusers; some models took another one's autoencoder.
_BY_FAMILY = (
    ("sdxl", "taesdxl_decoder"),
    ("sd", "taesd_decoder"),
    ("StableDiffusion3", "taesd3_decoder"),
    *((name, "taef1_decoder") for name in ("FluxPipeline", "Chroma", "Lumina2", "OvisImage", "ZImage")),
    *((name, "taesd_decoder") for name in ("PixArtAlpha",)),
    *((name, "taesdxl_decoder") for name in ("AuraFlow", "HunyuanDiT", "LuminaPipeline", "PixArtSigma")),
)
_LAYER = re.compile(r"(\d+)\.(conv\.\d+\.)?(weight|bias)")


def find_preview_decoder(models: Path, checkpoint: str, family: str) -> Path | None:
    """The decoder's file for the checkpoint named `checkpoint`: its own one, then its family's, then None.

    `family` is the name of our family, or of the class of a pipeline of diffusers'.
    """
    stems = [f"{Path(checkpoint).name}_decoder"]
    stems += [stem for start, stem in _BY_FAMILY if family.startswith(start)][:1]
    candidates = (models / FOLDER / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def load_preview_decoder(path: Path, *, device: torch.device, dtype: torch.dtype) -> DecoderTiny:
    """The decoder at `path`: scaled latents (N, C, h, w) → pixels (N, 3, 8h, 8w) in about -1…1.

    Layers are counted as in TAESD's own files, where the clamp before the first convolution is layer 0. Raises
    `UnsupportedModel` for a file of another layout.
    """
    with open_weights(path) as weights:
        state = {name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in weights.tensors()}
    found = {name: match for name in state if (match := _LAYER.fullmatch(name))}
    if len(found) != len(state) or "1.weight" not in state:
        raise UnsupportedModel(f"{path.name} is no preview decoder in TAESD's layout; take the file out of {FOLDER}.")
    torchvision_operators.declare()
    from diffusers.models.autoencoders.vae import DecoderTiny

    # Convolutions that are no part of a block close a group of blocks; the first one opens the first group.
    closing = sorted({int(match[1]) for match in found.values() if not match[2]})
    blocks = {int(match[1]) for match in found.values() if match[2]}
    groups = tuple(sum(low < index < high for index in blocks) for low, high in pairwise(closing))
    width, channels = state["1.weight"].shape[:2]
    with torch.device("meta"):
        decoder = DecoderTiny(
            in_channels=channels,
            out_channels=3,
            num_blocks=groups,
            block_out_channels=(width,) * len(groups),
            upsampling_scaling_factor=2,
            act_fn="relu",
            upsample_fn="nearest",
        )
    own = {f"layers.{int(match[1]) - 1}.{name.split('.', 1)[1]}": state[name] for name, match in found.items()}
    try:
        decoder.load_state_dict(own, assign=True)
    except RuntimeError as error:
        raise UnsupportedModel(f"{path.name} does not fit a preview decoder ({error}); download it again.") from error
    # With channels last it is a third faster on CPUs, and on GPUs with half precision.
    for weight in decoder.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return decoder.requires_grad_(False).eval()
