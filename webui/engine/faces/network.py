"""A face restorer's file as a network: GFPGAN, which spandrel knows, or CodeFormer, which a package beside it knows.

CodeFormer's program may be used for non-commercial purposes only, so it comes in `spandrel_extra_arches`, which people
install themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel
from webui.engine.placement import weight_bytes
from webui.hardware import torchvision_operators

if TYPE_CHECKING:
    from spandrel import ArchRegistry

_ARCHITECTURES = {"GFPGAN", "CodeFormer"}
_CODEFORMER_MARK = "idx_pred_layer.1.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceNetwork:
    """A loaded restorer on `device`, in float32; `kind` is "GFPGAN" or "CodeFormer"."""

    name: str
    kind: str
    network: nn.Module
    device: torch.device
    weight_bytes: int

    @torch.inference_mode()
    def restore(self, face: Tensor, weight: float) -> Tensor:
        """(1, 3, 512, 512) in 0…1 → the same face restored, 0…1, on the CPU.

        `weight` is CodeFormer's fidelity w (Zhou et al. 2022, arXiv 2206.11253, equation 5); GFPGAN has none. Neither
        draws noise, so the same face always comes out.
        """
        # Spandrel's own call knows no weight, and leaves out that both were trained on -1…1.
        made = self.network(face.to(self.device) * 2 - 1, weight=weight, return_rgb=False, randomize_noise=False)[0]
        return made.add(1).div(2).clamp(0, 1).float().cpu()


def load_face_network(path: Path, device: torch.device, *, conversions: Path | None = None) -> FaceNetwork:
    """The restorer in `path`; raises `UnsupportedModel` for others, and for CodeFormer without its package."""
    torchvision_operators.declare()
    from spandrel import MAIN_REGISTRY, ModelLoader, UnsupportedModelError, canonicalize_state_dict

    with open_weights(path, conversions=conversions) as weights:
        # Copied, for the file is closed before the network takes its weights.
        state = canonicalize_state_dict({name: weight.clone() for name, weight in weights.tensors()})
    registry = _codeformer(path) if _CODEFORMER_MARK in state else MAIN_REGISTRY
    try:
        found = ModelLoader(device, registry).load_from_state_dict(state)
    except UnsupportedModelError as error:
        raise UnsupportedModel(f"The face restorer {path.name} is neither GFPGAN nor CodeFormer.") from error
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        told = " ".join(str(error).split())[:400]
        raise UnsupportedModel(
            f"The face restorer {path.name} could not be loaded ({told}); is the file whole?"
        ) from error
    if found.architecture.id not in _ARCHITECTURES:
        raise UnsupportedModel(f"The face restorer {path.name} is neither GFPGAN nor CodeFormer.")
    network = found.model
    network.eval().requires_grad_(False)
    return FaceNetwork(
        name=path.stem,
        kind=found.architecture.id,
        network=network,
        device=device,
        weight_bytes=weight_bytes(network),
    )


def _codeformer(path: Path) -> ArchRegistry:
    try:
        from spandrel_extra_arches import EXTRA_REGISTRY  # pyright: ignore[reportMissingImports]  # is optional
    except ImportError as error:
        raise UnsupportedModel(
            f"{path.name} is a CodeFormer, whose program is for non-commercial use and does not come with Atelier; run"
            " “pip install spandrel_extra_arches” in its environment, or choose a GFPGAN model."
        ) from error
    return EXTRA_REGISTRY
