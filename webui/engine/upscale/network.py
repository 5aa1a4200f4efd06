"""An upscaler file as a network: what spandrel recognises in it, checked for what we need, and run in its precision."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel, UserError
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

logger = logging.getLogger(__name__)

_RGB, _GREY = (3, 3), (1, 1)
# Made of convolutions alone, which are a fifth faster with the colours of a pixel side by side (measured on the CPU).
# Others may reshape what they compute in ways that this order does not allow.
_CHANNELS_LAST = ("Compact", "ESRGAN")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalerNetwork:
    """A network that enlarges RGB pictures by `scale`, 1 for one that only restores them.

    `tileable` is whether it may see a picture in parts. It works in half precision where that was chosen, until
    that is not enough for it.
    """

    name: str
    scale: int
    tileable: bool
    device: torch.device
    model: ImageModelDescriptor[Any]

    @property
    def weight_bytes(self) -> int:
        """What its weights take."""
        return sum(weight.nbytes for weight in self.model.model.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """The precision it works in."""
        return self.model.dtype

    def run(self, pixels: Tensor) -> Tensor:
        """(1, 3, h, w) in 0…1 on any device → (1, 3, h · scale, w · scale) in 0…1, float32 on the CPU.

        Sizes that the network cannot take are mirrored up to ones that it can. Numbers that are not finite in half
        precision make it work in full precision from then on; raises `UserError` where that does not help.
        """
        made = self._call(pixels)
        if not torch.isfinite(made).all() and self.dtype != torch.float32:
            with torch.inference_mode(False):  # weights made in it could not be changed outside it
                self.model.float()
            made = self._call(pixels)
        if not torch.isfinite(made).all():
            raise UserError(
                f"The upscaler {self.name} makes numbers that are not finite (NaN) of this picture; choose another."
            )
        return made

    def _call(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, self.dtype)
        if self.model.input_channels == 1:  # one for grey pictures sees the three colours one by one
            made = torch.cat([self.model(channel) for channel in pixels.split(1, dim=1)], dim=1)
        else:
            made = self.model(pixels)
        return made.float().cpu()


def load_upscaler(
    path: Path, device: torch.device, *, dtype: torch.dtype = torch.float32, conversions: Path | None = None
) -> UpscalerNetwork:
    """The network in `path` on `device`; see `webui.checkpoints.weights` for `conversions`.

    It works in `dtype`, float32 or float16, where spandrel says that the architecture bears the latter. Raises
    `UnsupportedModel` for damaged files, unknown architectures, and networks that do not make whole pictures of RGB or
    grey.
    """
    torchvision_operators.declare()
    from spandrel import ModelLoader, ModelTiling, UnsupportedModelError

    try:
        model = ModelLoader(device).load_from_state_dict(_read_weights(path, conversions))
    except UnsupportedModelError as error:
        raise UnsupportedModel(f"The upscaler {path.name} is of no architecture that spandrel knows.") from error
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise UnsupportedModel(f"The upscaler {path.name} could not be loaded ({error}); is the file whole?") from error
    model = _require_pictures(model, path)
    model.eval()
    if model.supports_half:
        model.to(dtype)
    if model.architecture.id in _CHANNELS_LAST:
        model.model.to(memory_format=torch.channels_last)
    return UpscalerNetwork(
        name=path.stem,
        scale=model.scale,
        tileable=model.tiling is not ModelTiling.INTERNAL,
        device=device,
        model=model,
    )


def _require_pictures(model: object, path: Path) -> ImageModelDescriptor[Any]:
    """`model` if it makes pictures of pictures; raises `UnsupportedModel`."""
    from spandrel import ImageModelDescriptor

    if not isinstance(model, ImageModelDescriptor):
        raise UnsupportedModel(f"The upscaler {path.name} needs a mask beside the picture, so it is no upscaler.")
    if model.purpose == "FaceSR":
        raise UnsupportedModel(
            f"The upscaler {path.name} restores faces and not whole pictures; it belongs among the face restorers."
        )
    if (model.input_channels, model.output_channels) not in (_RGB, _GREY):
        raise UnsupportedModel(
            f"The upscaler {path.name} takes {model.input_channels} channels and gives {model.output_channels};"
            " only networks for RGB or grey pictures can be used."
        )
    return model


def _read_weights(path: Path, conversions: Path | None) -> dict[str, Tensor]:
    from spandrel import canonicalize_state_dict

    try:
        with open_weights(path, conversions=conversions) as weights:
            # Copied, for the file is closed before the network takes its weights.
            return canonicalize_state_dict({name: weight.clone() for name, weight in weights.tensors()})
    except UnsupportedModel as error:
        raise UnsupportedModel(f"The upscaler {path.name} cannot be read: {error}") from error
