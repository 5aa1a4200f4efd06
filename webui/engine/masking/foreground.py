"""What stands in front in a picture, by a file of U²-Net's weights: the mask for taking a background away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel
from webui.engine.masking.preparation import Preparation, as_mask
from webui.engine.masking.u2net import U2Net
from webui.engine.placement import weight_bytes

_SIDE = 320  # section 4.2: pictures are stretched to 320 x 320 for the network


@dataclass(frozen=True, slots=True, kw_only=True)
class ForegroundFinder:
    """A loaded U²-Net on `device`."""

    network: U2Net
    device: torch.device
    weight_bytes: int

    @torch.inference_mode()
    def mask(self, image: Image.Image) -> Image.Image:
        """How much each place of `image` stands out, of its size, white for wholly.

        Stretched over the whole range, as the authors do, for the network answers relatively to the picture.
        """
        prepare = Preparation(side=_SIDE)
        shares = self.network(prepare(image).to(self.device))[0, 0]
        low, high = shares.amin(), shares.amax()
        return as_mask((shares - low) / (high - low).clamp(min=1e-6), image.size)


def load_foreground_finder(path: Path, device: torch.device, *, conversions: Path | None = None) -> ForegroundFinder:
    """The U²-Net in `path` on `device`, in float32; raises `UnsupportedModel` where weights are missing or wrong."""
    with open_weights(path, conversions=conversions) as weights:
        state = {name: weight.float().clone() for name, weight in weights.tensors()}
    try:
        network = U2Net({name: weight.shape for name, weight in state.items()})
        network.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        told = " ".join(str(error).split())[:400]
        raise UnsupportedModel(f"The mask model {path.name} is no whole U²-Net ({told}); download it again.") from error
    network = network.to(device).eval().requires_grad_(False)
    return ForegroundFinder(network=network, device=device, weight_bytes=weight_bytes(network))
