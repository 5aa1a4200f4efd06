"""Token merging: places of the picture that look alike go through self attention as one.

Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion" (arXiv 2303.17604), with what A1111 chooses of it: self
attention only, at the latents' own resolution only, and the first place of each 2 × 2 cell as the one merged into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webui.hardware import torchvision_operators


class Merge:
    """Which tokens of `tokens` (N, h · w, C) are merged into which, for about `ratio` of them all."""

    def __init__(self, tokens: Tensor, height: int, width: int, ratio: float) -> None:
        kept = torch.zeros(height, width, dtype=torch.bool, device=tokens.device)
        kept[: height // 2 * 2 : 2, : width // 2 * 2 : 2] = True
        # The order of `sort` is stable: kept places first, each kind in the picture's order.
        order = (~kept).flatten().int().argsort(stable=True)
        self._targets, self._sources = order.tensor_split([(height // 2) * (width // 2)])
        direction = F.normalize(tokens, dim=-1)
        alike = direction[:, self._sources] @ direction[:, self._targets].transpose(1, 2)
        best, target = alike.max(-1)
        ranked = best.argsort(dim=-1, descending=True)
        merged = min(len(self._sources), int(height * width * ratio))
        self._gone, self._left = ranked.tensor_split([merged], dim=1)
        self._into = target.gather(1, self._gone)

    def merge(self, tokens: Tensor) -> Tensor:
        """(N, h · w, C) → (N, fewer, C): what is left, then the targets, each the mean of what it stands for."""
        sources, targets = tokens[:, self._sources], tokens[:, self._targets]
        means = targets.scatter_reduce(1, _wide(self._into, tokens), _taken(sources, self._gone), "mean")
        return torch.cat([_taken(sources, self._left), means], dim=1)

    def unmerge(self, tokens: Tensor) -> Tensor:
        """What `merge` gave, after attention → (N, h · w, C), each merged place with what its target has."""
        left, targets = tokens.tensor_split([self._left.shape[1]], dim=1)
        sources = tokens.new_empty(len(tokens), len(self._sources), tokens.shape[-1])
        sources.scatter_(1, _wide(self._left, tokens), left)
        sources.scatter_(1, _wide(self._gone, tokens), _taken(targets, self._into))
        whole = tokens.new_empty(len(tokens), len(self._sources) + len(self._targets), tokens.shape[-1])
        whole[:, self._targets], whole[:, self._sources] = targets, sources
        return whole


def _wide(indices: Tensor, tokens: Tensor) -> Tensor:
    return indices[..., None].expand(-1, -1, tokens.shape[-1])


def _taken(tokens: Tensor, indices: Tensor) -> Tensor:
    return tokens.gather(1, _wide(indices, tokens))


class _MergingBlock:
    """What one transformer block is given and gives, with its self attention in between on merged tokens."""

    def __init__(self, ratio: float, size: dict[str, int]) -> None:
        self._ratio = ratio
        self._size = size
        self._merge: Merge | None = None

    def enter(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Decides by the block's own input, before its norm, as the authors do."""
        tokens, height, width = arguments[0], self._size["height"], self._size["width"]
        at_full_size = tokens.shape[1] == height * width
        self._merge = Merge(tokens, height, width, self._ratio) if at_full_size else None

    def attend(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before self attention."""
        return arguments if self._merge is None else (self._merge.merge(arguments[0]), *arguments[1:])

    def leave(self, _: nn.Module, __: object, output: Tensor) -> Tensor:
        """After it."""
        merge, self._merge = self._merge, None
        return output if merge is None else merge.unmerge(output)


@contextlib.contextmanager
def merging(unet: Any, ratio: float) -> Iterator[None]:
    """Within the block, `unet` (a diffusers UNet2DConditionModel) merges about `ratio` (0…0.75) of the tokens."""
    torchvision_operators.declare()
    from diffusers.models.attention import BasicTransformerBlock

    size: dict[str, int] = {}

    def measure(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        size["height"], size["width"] = arguments[0].shape[-2:]

    handles = [unet.register_forward_pre_hook(measure)]
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            worker = _MergingBlock(ratio, size)
            handles.append(block.register_forward_pre_hook(worker.enter))
            handles.append(block.attn1.register_forward_pre_hook(worker.attend))
            handles.append(block.attn1.register_forward_hook(worker.leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
