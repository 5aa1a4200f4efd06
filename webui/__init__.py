"""Atelier, a browser studio for Stable Diffusion. `webui.bootstrap` is the one place that wires its parts."""

__version__ = "0.1.0"
