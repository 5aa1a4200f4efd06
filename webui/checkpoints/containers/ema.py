"""Averaged weights (EMA) of training checkpoints, which CompVis' `LitEma` stores under names without their points.

``model.diffusion_model.input_blocks.1.0.in_layers.0.weight`` is kept as
``model_ema.diffusion_modelinput_blocks10in_layers0weight`` (ldm/modules/ema.py). A file that has only these, as pruned
ones may, gets its names back here; where both are there, the plain ones are meant and nothing changes.
"""

from __future__ import annotations

import dataclasses
import re

from webui.checkpoints.containers.base import Header

_EMA_PREFIX = "model_ema."
_PLAIN_PREFIX = "model."

# The modules of openaimodel.py, a longer name before one that it begins with. Numbers stand alone, except that a block
# has two: its place, and one digit for the part inside it.
_PART = re.compile(
    r"(?P<block>input_blocks|output_blocks|label_emb)(?P<place>\d+)(?P<inner>\d)"
    r"|(?P<word>diffusion_model|middle_block|time_embed|transformer_blocks|in_layers|out_layers|emb_layers"
    r"|cond_proj|skip_connection|attn1|attn2|to_q|to_k|to_v|to_out|norm1|norm2|norm3|norm|proj_in|proj_out|proj|ff|net|qkv|op|conv"
    r"|out|weight|bias|\d+)"
)


def dotted(name: str) -> str | None:
    """The module path that `name` was before its points were taken out, None where it is no UNet weight."""
    parts: list[str] = []
    place = 0
    while place < len(name):
        match = _PART.match(name, place)
        if match is None:
            return None
        parts += [match["word"]] if match["word"] else [match["block"], match["place"], match["inner"]]
        place = match.end()
    return ".".join(parts)


def with_plain_names(header: Header) -> Header:
    """`header` with the averaged weights under their plain names, where the plain weights themselves are not there."""
    if header.has("model.diffusion_model.") or not header.has(_EMA_PREFIX + "diffusion_model"):
        return header
    tensors = dict(header.tensors)
    stored = dict(header.stored)
    for name in header.tensors:
        plain = dotted(name[len(_EMA_PREFIX) :]) if name.startswith(_EMA_PREFIX) else None
        if plain is not None:
            tensors[_PLAIN_PREFIX + plain] = tensors.pop(name)
            stored[_PLAIN_PREFIX + plain] = name
    return dataclasses.replace(header, tensors=tensors, stored=stored)
