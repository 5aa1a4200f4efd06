"""Enlarging a picture: the built-in filters, and networks that spandrel knows, in tiles."""

from webui.engine.upscale.network import UpscalerNetwork, load_upscaler
from webui.engine.upscale.recipe import upscale

__all__ = ["UpscalerNetwork", "load_upscaler", "upscale"]
