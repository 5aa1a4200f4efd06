"""Single parts of a Stable Diffusion in files of their own: their weights under the names of a whole original file.

A UNet, an autoencoder or a CLIP text encoder that was saved alone has lost its prefix, or has diffusers' names. What
comes back says for each name in the whole file which weight of the part it is; {} where the file holds no such part.
No torch, and no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from webui.checkpoints import keymap
from webui.checkpoints.header import Header

_UNET_MODULES = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_CLIP_PART = "text_model."
_PROJECTION = "text_projection"


def unet_names(header: Header) -> dict[str, str]:
    """The UNet's weights below `keymap.UNET_PREFIX`: whole files' own, bare ones, or diffusers'."""
    if header.has(keymap.UNET_PREFIX):
        return {key: key for key in header.tensors if key.startswith(keymap.UNET_PREFIX)}
    if {"input_blocks.0.0.weight", "out.2.weight"} <= header.tensors.keys():
        return {keymap.UNET_PREFIX + key: key for key in header.tensors if key.startswith(_UNET_MODULES)}
    if not {"conv_in.weight", "conv_out.weight"} <= header.tensors.keys() or not header.has("up_blocks.0."):
        return {}
    layers = _counted(header, r"down_blocks\.(\d+)\.resnets\.(\d+)\.")
    attention = _counted(header, r"down_blocks\.(\d+)\.attentions\.(\d+)\.")
    shape = keymap.UNetShape(
        layers=tuple(layers.get(level, 0) for level in range(len(layers))),
        attention=tuple(level in attention for level in range(len(layers))),
    )
    return _renamed(header.tensors, keymap.inverse(keymap.unet_table(shape)), keymap.UNET_PREFIX)


def vae_names(header: Header) -> dict[str, str]:
    """The autoencoder's weights below `keymap.VAE_PREFIX`: whole files' own, bare ones, or diffusers' old and new."""
    if header.has(keymap.VAE_PREFIX):
        return {key: key for key in header.tensors if key.startswith(keymap.VAE_PREFIX)}
    if "decoder.conv_in.weight" not in header.tensors:
        return {}
    if header.has("encoder.down."):
        return {keymap.VAE_PREFIX + key: key for key in header.tensors}
    layers = _counted(header, r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.")
    if not layers:
        return {}
    table = keymap.inverse(keymap.vae_table(keymap.VaeShape(levels=len(layers), layers=layers[0])))
    return _renamed(header.tensors, table, keymap.VAE_PREFIX, modern=keymap.modern_vae_key)


def text_names(header: Header, prefix: str) -> dict[str, str]:
    """A CLIP text encoder's weights below `prefix`, as transformers or open_clip name them; alone in its file."""
    if f"{_CLIP_PART}embeddings.token_embedding.weight" in header.tensors:
        kept = (key for key in header.tensors if key.startswith((_CLIP_PART, _PROJECTION)))
        return {prefix + key.removeprefix(_CLIP_PART): key for key in kept}
    if {"token_embedding.weight", "positional_embedding"} <= header.tensors.keys():
        return {prefix + key: key for key in header.tensors}
    return {}


def _counted(header: Header, pattern: str) -> dict[int, int]:
    """How many different second numbers `pattern` finds with each first one at the start of a name."""
    found: dict[int, set[str]] = {}
    for match in filter(None, (re.match(pattern, key) for key in header.tensors)):
        found.setdefault(int(match[1]), set()).add(match[2])
    return {level: len(numbers) for level, numbers in sorted(found.items())}


def _renamed(
    keys: Iterable[str], table: Mapping[str, str], prefix: str, *, modern: Callable[[str], str] = str
) -> dict[str, str]:
    """`keys` by their names in `table`, {} where it lacks one: then it is another kind of network."""
    names = {key: keymap.translate(modern(key), table) for key in keys}
    return {} if None in names.values() else {f"{prefix}{name}": key for key, name in names.items()}
