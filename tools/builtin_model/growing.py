"""Grows a trained model by an outer level: what it knows of words at one size is the start at twice the size.

The new outermost level halves a latent twice as wide, hands it to the old model and doubles what comes back, which is
all that it does at first; the detail in between is what training then adds. (After progressive growing, Karras et al.,
"Progressive Growing of GANs", 2018.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.builtin_model import networks
from tools.builtin_model.networks import Preset


def begin(model: nn.Module, path: Path, preset: Preset) -> None:
    """Starts `model` (``unet`` and ``text``) of `preset` from the average weights of the smaller model in `path`."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")["ema"]
    parts = {
        part: {key.partition(".")[2]: weight for key, weight in state.items() if key.startswith(f"{part}.")}
        for part in ("unet", "text")
    }
    model.load_state_dict(
        {
            **{f"unet.{key}": weight for key, weight in grown(parts["unet"], preset).items()},
            **{f"text.{key}": weight for key, weight in parts["text"].items()},
        }
    )


def grown(inner: Mapping[str, Tensor], preset: Preset) -> dict[str, Tensor]:
    """The weights of `preset`'s UNet around those of a UNet with its levels but the outermost.

    The two outermost levels must be equally wide. Raises ``ValueError`` where the old weights do not fit.
    """
    state = networks.make_unet(preset).state_dict()
    new = set(state)
    for key, weight in inner.items():
        # Levels are counted from the outside on the way down and from the inside on the way up.
        name = re.sub(r"^down_blocks\.(\d+)", lambda found: f"down_blocks.{int(found[1]) + 1}", key)
        if name not in state or state[name].shape != weight.shape:
            raise ValueError(f"The weight {key!r} of the smaller model has no place in the larger one.")
        state[name] = weight.clone()
        new.discard(name)
    width = preset.unet_channels[0]
    same = torch.eye(width)
    halve, double = torch.zeros(2, width, width, 3, 3)
    halve[:, :, 1:, 1:] = same[..., None, None] / 4
    double[:, :, 1, 1] = same
    for key in sorted(new):
        if "downsamplers" in key or "upsamplers" in key:
            weight = halve if "downsamplers" in key else double
            state[key] = weight if key.endswith("weight") else torch.zeros_like(state[key])
        elif "conv2" in key:
            # A residual block that adds nothing yet.
            state[key] = torch.zeros_like(state[key])
        elif "conv_shortcut" in key:
            state[key] = torch.zeros_like(state[key])
            if key.endswith("weight"):
                # What comes from within goes on; what skips the old model is not looked at yet.
                state[key][:, :width, 0, 0] = same
    return state
