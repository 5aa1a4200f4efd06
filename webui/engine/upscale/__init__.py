"""Enlarging a picture: the built-in filters, and networks that spandrel knows, in tiles."""

from webui.engine.upscale.network import UpscalerNetwork, load_upscaler
from webui.engine.upscale.recipe import upscale
from webui.engine.upscale.tiled import TiledNetwork
from webui.engine.upscale.upscalers import Upscaler, built_in, enlarge

__all__ = ["TiledNetwork", "Upscaler", "UpscalerNetwork", "built_in", "enlarge", "load_upscaler", "upscale"]
