"""An upscaler file as a network: what spandrel recognises in it, checked for what we need."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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


def load_upscaler(path: Path, device: torch.device) -> UpscalerNetwork:
    """The network in `path` (.safetensors, or a pickle of nothing but tensors) on `device`, in float32.

    Raises `UnsupportedModel` for damaged files, unknown architectures, and networks that do not enlarge RGB pictures.
    """
    torchvision_operators.declare()
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    try:
        model = ModelLoader(device).load_from_state_dict(_read_weights(path))
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


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from spandrel import canonicalize_state_dict

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            # Only tensors: a pickle that wants to run anything is refused.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UnsupportedModel(f"The upscaler {path.name} cannot be read ({error}); download it again.") from error
    return canonicalize_state_dict(state)
