"""A separate VAE file → a module that takes the place of a checkpoint's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from webui.checkpoints import keymap
from webui.checkpoints.header import Header
from webui.checkpoints.load import fill
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.checkpoints.vaes import ARCHITECTURE_KEY, declared_families, prefix_of
from webui.checkpoints.weights import Weights, open_weights
from webui.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

_SURPLUS = ("loss.", "model_ema.")


def load_vae(
    path: Path,
    checkpoint: LoadedCheckpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    conversions: Path | None = None,
) -> AutoencoderKL:
    """The VAE in the file at `path`, of the architecture of the one in `checkpoint`, in `dtype` on `device`.

    The original's and diffusers' names are known. A pickle is converted on the way, and kept in the folder
    `conversions` for the next time if there is one. Raises `UnsupportedModel` for a damaged file, or one of a family
    whose latents are others.
    """
    with torch.device("meta"):
        vae = cast("AutoencoderKL", type(checkpoint.vae).from_config(checkpoint.vae.config))
    with open_weights(path, conversions=conversions) as weights:
        prefix = prefix_of(weights.header)
        if prefix is None:
            raise UnsupportedModel(f"{path.name} holds no VAE; choose another one, or None for the checkpoint's own.")
        _check_family(weights.header, prefix, checkpoint)
        fill(vae, _own_names(weights, prefix, vae), dtype=dtype, device=device, what=f"VAE {path.name}")
    return vae


def _check_family(header: Header, prefix: str, checkpoint: LoadedCheckpoint) -> None:
    """Latents of another family are noise to a decoder: they differ in channels, or in scale, which is declared."""
    wanted = checkpoint.vae.config["latent_channels"]
    shape = header.shape(f"{prefix}decoder.conv_in.weight") or ()
    if len(shape) != 4 or shape[1] != wanted:
        found = f"{shape[1]} latent channels" if len(shape) == 4 else "another kind of decoder"
        raise UnsupportedModel(
            f"The VAE {header.path.name} has {found}, and {checkpoint.info.name} needs {wanted} latent channels; choose"
            " another VAE, or None for the checkpoint's own."
        )
    families = declared_families(header)
    if families and checkpoint.family not in families:
        raise UnsupportedModel(
            f"The VAE {header.path.name} is for {header.metadata[ARCHITECTURE_KEY][:80]}, and {checkpoint.info.name} is"
            f" of the family {checkpoint.family}; choose another VAE, or None for the checkpoint's own."
        )


def _own_names(weights: Weights, prefix: str, vae: AutoencoderKL) -> Iterator[tuple[str, Tensor]]:
    """The weights under the module's own names, whether the file has the original's, diffusers' old or new ones."""
    table = keymap.vae_table(keymap.VaeShape.from_config(vae.config))
    for name, weight in weights.tensors(prefix):
        short = name[len(prefix) :]
        if not short.startswith(_SURPLUS):
            yield keymap.translate(short, table) or keymap.modern_vae_key(short), weight
