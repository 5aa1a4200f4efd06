"""A request as the text that its pictures carry."""

from __future__ import annotations

from collections.abc import Mapping

import webui
from webui.core import catalogue
from webui.core.infotext.grammar import write_infotext
from webui.core.infotext.mapping import written
from webui.core.requests import DiffusionRequest, Txt2Img


def format_infotext(
    request: DiffusionRequest, *, model: str, model_hash: str, extra: Mapping[str, str] | None = None
) -> str:
    """The text of one picture; of a batch, `request` is `webui.core.requests.alone` of it, with its own seeds.

    `model_hash` is the first ten hex digits. `extra` adds what only the engine knows, such as "VAE hash", "Lora
    hashes" and "TI hashes" (a key of A1111's goes to its place), or replaces the request's. Empty values are left
    out. Raises ValueError for a key that could not be read back.
    """
    pairs = {
        "Sampler": request.sampler,
        "Schedule type": request.schedule_type,
        **written(request),
        "Model hash": model_hash,
        "Model": model,
        "VAE": "" if request.vae == catalogue.VAE_AUTOMATIC else request.vae,
        "Refiner": request.refiner,
        "Hires checkpoint": request.hires.checkpoint if isinstance(request, Txt2Img) and request.hires.enabled else "",
        "Version": f"Atelier {webui.__version__}",
        **(extra or {}),
    }
    return write_infotext(request.prompt, request.negative_prompt, pairs)
