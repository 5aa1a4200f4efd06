"""What a picture says once it was enlarged: all that it said before, then A1111's pairs for an upscale."""

from __future__ import annotations

from webui.core.infotext.grammar import format_pair, short_number
from webui.core.requests import Upscale


def extended(text: str, request: Upscale) -> str:
    """`text`, which may be empty, with the pairs of `request` at its end."""
    said = ", ".join(format_pair(key, value) for key, value in _pairs(request).items())
    return f"{text}, {said}" if text else said


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
