"""U²-Net (Qin et al. 2020, "U²-Net: Going deeper with nested U-structure", arXiv 2005.09007): a U of small Us.

Written from the paper; modules are named as in the weights that the authors published (Apache-2.0), so that those load.
All widths are read from the shapes of the weights, so the full and the small network (and tests) share this code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Figure 5: the heights of the nested Us on the way down; on the way up they come again in reverse but for the last.
# Height 0 stands for RSU-4F, which widens its view by dilation instead of pooling.
_HEIGHTS = (7, 6, 5, 4, 0, 0)
_DILATIONS = (1, 2, 4, 8)


class _Convolution(nn.Module):
    """3 x 3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_s1(self.conv_s1(x)))


class _NestedU(nn.Module):
    """A residual U-block (section 3.1, figure 2e) of `height` levels, or the dilated one (RSU-4F) for height 0."""

    def __init__(self, height: int, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self._pools = height > 0
        levels = height or len(_DILATIONS)
        dilations = [1] * (levels - 1) + [2] if self._pools else list(_DILATIONS)
        self.rebnconvin = _Convolution(inputs, outputs)
        for level, dilation in enumerate(dilations, start=1):
            down = _Convolution(outputs if level == 1 else middle, middle, dilation)
            self.add_module(f"rebnconv{level}", down)
        for level, dilation in enumerate(dilations[:-1], start=1):
            up = _Convolution(2 * middle, outputs if level == 1 else middle, dilation)
            self.add_module(f"rebnconv{level}d", up)
        self._levels = levels

    def forward(self, x: Tensor) -> Tensor:
        entered = self.rebnconvin(x)
        seen: list[Tensor] = []
        x = entered
        for level in range(1, self._levels):
            # The two lowest levels have one size: the last sees further by dilation.
            x = _halved(x) if self._pools and level > 1 else x
            x = self.get_submodule(f"rebnconv{level}")(x)
            seen.append(x)
        x = self.get_submodule(f"rebnconv{self._levels}")(x)
        for level in range(self._levels - 1, 0, -1):
            x = torch.cat((_like(x, seen[level - 1]), seen[level - 1]), 1)
            x = self.get_submodule(f"rebnconv{level}d")(x)
        return x + entered


class U2Net(nn.Module):
    """The whole network: (N, 3, h, w) → (N, 1, h, w), how much each place belongs to what stands out, 0…1."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        """`shapes` are those of the weights it is to take; raises `KeyError` where a width is missing."""
        super().__init__()
        for stage, height in enumerate(_HEIGHTS, start=1):
            self.add_module(f"stage{stage}", _stage(height, f"stage{stage}", shapes))
        for stage, height in enumerate(_HEIGHTS[:-1], start=1):
            self.add_module(f"stage{stage}d", _stage(height, f"stage{stage}d", shapes))
        for stage in range(1, len(_HEIGHTS) + 1):
            self.add_module(f"side{stage}", nn.Conv2d(shapes[f"side{stage}.weight"][1], 1, 3, padding=1))
        self.outconv = nn.Conv2d(len(_HEIGHTS), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Section 3.2: down, up, and the side outputs of all heights joined into one."""
        picture = x
        down: list[Tensor] = []
        for stage in range(1, len(_HEIGHTS) + 1):
            x = self.get_submodule(f"stage{stage}")(x if stage == 1 else _halved(x))
            down.append(x)
        sides = [self._side(len(_HEIGHTS), x, picture)]
        for stage in range(len(_HEIGHTS) - 1, 0, -1):
            beside = down[stage - 1]
            x = self.get_submodule(f"stage{stage}d")(torch.cat((_like(x, beside), beside), 1))
            sides.insert(0, self._side(stage, x, picture))
        return self.outconv(torch.cat(sides, 1)).sigmoid()

    def _side(self, stage: int, x: Tensor, picture: Tensor) -> Tensor:
        return _like(self.get_submodule(f"side{stage}")(x), picture)


def _stage(height: int, name: str, shapes: Mapping[str, torch.Size]) -> _NestedU:
    outputs, inputs = shapes[f"{name}.rebnconvin.conv_s1.weight"][:2]
    return _NestedU(height, inputs, shapes[f"{name}.rebnconv1.conv_s1.weight"][0], outputs)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """`x` enlarged to the size of `other`, bilinearly."""
    if x.shape[-2:] == other.shape[-2:]:
        return x
    return F.interpolate(x, other.shape[-2:], mode="bilinear", align_corners=False)
