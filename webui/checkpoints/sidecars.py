"""What lies beside a checkpoint under its name, as A1111 has it: a .yaml with what it predicts, and its own VAE.

Only finds them. The .yaml is read by `webui.checkpoints.families.markers`, the VAE by `webui.checkpoints.load_vae`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

VAE_SUFFIXES = (".vae.safetensors", ".vae.pt", ".vae.ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecars:
    """The files beside a checkpoint, each None where there is none."""

    config: Path | None
    vae: Path | None


def find_sidecars(path: Path) -> Sidecars:
    """What lies beside the checkpoint file at `path`."""
    config = path.with_suffix(".yaml")
    vaes = (path.with_suffix(suffix) for suffix in VAE_SUFFIXES)
    return Sidecars(config=config if config.is_file() else None, vae=next((vae for vae in vaes if vae.is_file()), None))
