"""Masks from words with CLIPSeg (Lüddecke and Ecker 2021, arXiv 2112.10003), from a folder as transformers saves it.

Reads that folder and nothing else: no network, no pickles, no code that the folder brings. Words become tokens by our
own CLIP tokenizer, so the folder needs no vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from webui.checkpoints.tokenizer import ClipTokenizer
from webui.core.errors import UnsupportedModel
from webui.engine.masking.preparation import IMAGENET_DEVIATION, IMAGENET_MEAN, Preparation, as_mask
from webui.engine.placement import weight_bytes
from webui.hardware import torchvision_operators

# CLIPSeg is sure of nothing: inside what is named it gives about 0.5 to 0.9, elsewhere hardly 0.1. Its authors'
# evaluations take thresholds from 0.3 to 0.5.
_THRESHOLD = 0.4
_TRAINED_SIZE = 352  # the side of the pictures that it was trained with, where no preprocessor_config.json says so
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordMasker:
    """A loaded CLIPSeg on `device`."""

    network: nn.Module
    prepare: Preparation
    device: torch.device
    weight_bytes: int

    @torch.inference_mode()
    def mask(self, image: Image.Image, things: Sequence[str]) -> Image.Image:
        """Black and white, of `image`'s size: white where any of `things` is seen. Each is cut at 75 tokens."""
        pixels = self.prepare(image).to(self.device)
        shares = torch.stack([self._share(pixels, thing) for thing in things]).amax(0)
        return as_mask(shares, image.size).point([255 * (level > _THRESHOLD * 255) for level in range(256)])

    def _share(self, pixels: Tensor, thing: str) -> Tensor:
        # One after another, so that texts of different lengths need no padding.
        tokenizer = ClipTokenizer()
        ids = [tokenizer.start_token, *tokenizer.encode(thing)[: tokenizer.length - 2], tokenizer.end_token]
        logits = self.network(input_ids=torch.tensor([ids], device=self.device), pixel_values=pixels).logits
        return logits.reshape(logits.shape[-2:]).sigmoid()


def load_word_masker(folder: Path, device: torch.device) -> WordMasker:
    """The CLIPSeg in `folder` on `device`, in float32; raises `UnsupportedModel` for what is incomplete or damaged."""
    torchvision_operators.declare()
    from transformers import CLIPSegForImageSegmentation

    try:
        # The return of from_pretrained changes with what it is told, which its annotation does not say.
        loaded: Any = CLIPSegForImageSegmentation.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        prepare = _preparation(folder)
    except _UNREADABLE as error:
        told = " ".join(str(error).split())[:400]
        raise UnsupportedModel(f"The mask model {folder.name} cannot be loaded ({told}); copy its whole folder.") from (
            error
        )
    network, report = loaded
    if report["missing_keys"]:
        raise UnsupportedModel(
            f"The mask model {folder.name} lacks weights, such as {min(report['missing_keys'])!r}; download it again."
        )
    network = network.to(device).eval().requires_grad_(False)
    return WordMasker(network=network, prepare=prepare, device=device, weight_bytes=weight_bytes(network))


def _preparation(folder: Path) -> Preparation:
    """What the folder says about pictures; `size` is a side, or names sides, which are the same for CLIPSeg."""
    path = folder / "preprocessor_config.json"
    read: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    size = read.get("size", _TRAINED_SIZE)
    return Preparation(
        side=int(min(size.values()) if isinstance(size, dict) else size),
        mean=read.get("image_mean", IMAGENET_MEAN),
        deviation=read.get("image_std", IMAGENET_DEVIATION),
    )
