"""An upscaler file as a network: what spandrel recognises in it, checked for what we need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel
from webui.hardware import torchvision_operators


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalerNetwork:
    """A network that enlarges by `scale`: ``run`` takes (1, 3, h, w) in 0…1 to (1, 3, h · scale, w · scale)."""

    name: str
    scale: int
    run: Callable[[Tensor], Tensor]
    device: torch.device
    weight_bytes: int


def load_upscaler(path: Path, device: torch.device, *, conversions: Path | None = None) -> UpscalerNetwork:
    """The network in `path` on `device`, in float32; see `webui.checkpoints.weights` for `conversions`.

    Raises `UnsupportedModel` for damaged files, unknown architectures, and networks that do not enlarge RGB pictures.
    """
    torchvision_operators.declare()
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    try:
        model = ModelLoader(device).load_from_state_dict(_read_weights(path, conversions))
    except UnsupportedModelError as error:
        raise UnsupportedModel(f"The upscaler {path.name} is of no architecture that spandrel knows.") from error
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise UnsupportedModel(f"The upscaler {path.name} could not be loaded ({error}); is the file whole?") from error
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3 or model.output_channels != 3:
        raise UnsupportedModel(f"The upscaler {path.name} does not turn RGB pictures into RGB pictures.")
    model.eval()
    return UpscalerNetwork(
        name=path.stem,
        scale=model.scale,
        run=model,
        device=device,
        weight_bytes=sum(weight.nbytes for weight in model.model.parameters()),
    )


def _read_weights(path: Path, conversions: Path | None) -> dict[str, Tensor]:
    from spandrel import canonicalize_state_dict

    try:
        with open_weights(path, conversions=conversions) as weights:
            # Copied, for the file is closed before the network takes its weights.
            return canonicalize_state_dict({name: weight.clone() for name, weight in weights.tensors()})
    except UnsupportedModel as error:
        raise UnsupportedModel(f"The upscaler {path.name} cannot be read: {error}") from error
