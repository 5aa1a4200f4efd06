"""What a picture says once it was enlarged: all that it said before, then A1111's pairs for an upscale."""

from __future__ import annotations

import webui
from webui.core.infotext.grammar import format_pair, short_number
from webui.core.requests import Upscale


def extended(text: str, request: Upscale, *, restorer: str = "") -> str:
    """`text`, which may be empty, with the pairs of `request` at its end.

    `restorer` is the kind of network that restored faces, "" for none. A text of these pairs alone says the program's
    version too: it takes three pairs to be told from a prompt.
    """
    pairs = _pairs(request) | _faces(request, restorer)
    if not text:
        pairs["Version"] = f"Atelier {webui.__version__}"
    said = ", ".join(format_pair(key, value) for key, value in pairs.items())
    return f"{text}, {said}" if text else said


def _faces(request: Upscale, restorer: str) -> dict[str, str]:
    if not restorer:
        return {}
    pairs = {f"{restorer} visibility": short_number(request.faces.visibility)}
    if restorer == "CodeFormer":
        pairs["CodeFormer weight"] = short_number(request.faces.weight)
    return pairs


def _pairs(request: Upscale) -> dict[str, str]:
    if request.width:
        pairs = {"Postprocess upscale to": f"{request.width}x{request.height}"}
        if request.crop:
            pairs["Postprocess crop to"] = f"{request.width}x{request.height}"
    else:
        pairs = {"Postprocess upscale by": short_number(request.scale)}
    pairs["Postprocess upscaler"] = request.upscaler
    if request.upscaler_2 and request.upscaler_2_visibility > 0:
        pairs["Postprocess upscaler 2"] = request.upscaler_2
    return pairs
