"""What each kind of LoRA file means: the change of one weight that its tensors describe, one pure function a kind.

Every function takes the tensors of one module under their canonical names (see `KINDS`) and the checkpoint's own
weight, all in one float dtype on one device, and gives the change at full strength in the weight's shape. A strength
multiplies the change: all kinds are linear in it, so strengths mean the same everywhere and changes can be added up.
Tensors on the meta device work as well, which checks that a file fits without computing anything. Tensors that do not
fit raise `ValueError` or torch's `RuntimeError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LATENT_CHANNELS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """One module's tensors by canonical name, and `alpha`, by which files scale them (None: not scaled).

    `rank` keeps only that many of the first ranks of a LoRA; None keeps all. Other kinds have no such order.
    """

    tensors: Mapping[str, Tensor]
    alpha: float | None = None
    rank: int | None = None

    def scale(self, rank: int) -> float:
        """Alpha / rank, by which a factorised change is multiplied (LoRA, section 4.1); 1 without an alpha."""
        return 1.0 if self.alpha is None else self.alpha / rank

    def get(self, name: str) -> Tensor | None:
        """The tensor of that name, None when the file has none."""
        return self.tensors.get(name)


def low_rank(parts: Parts, weight: Tensor) -> Tensor:
    """LoRA: ΔW = (α/r) B A. Hu et al. 2021, arXiv 2106.09685, equation 3.

    On a convolution (LoCon; Yeh et al. 2023, arXiv 2309.14859, section 3.2) A has the kernel's size and B 1×1, or, with
    a middle tensor, the kernel is a Tucker decomposition of core `mid` between the two.
    """
    up, down, mid = parts.tensors["up"], parts.tensors["down"], parts.get("mid")
    scale = parts.scale(down.shape[0])
    up, down = up.flatten(1)[:, : parts.rank], down[: parts.rank]
    if mid is None:
        delta = (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
    else:
        delta = _tucker(mid[: parts.rank, : parts.rank], up.T, down.flatten(1))
    return _decomposed(parts, weight, _shaped(delta, weight) * scale)


def hadamard(parts: Parts, weight: Tensor) -> Tensor:
    """LoHa: ΔW = (α/r) (B₁A₁) ⊙ (B₂A₂). Hyeon-Woo et al. 2022 (FedPara), arXiv 2108.06098, proposition 1.

    For convolutions each factor may be a Tucker decomposition with the cores `hada_t1` and `hada_t2` (proposition 3).
    """
    factors: list[Tensor] = []
    for number in (1, 2):
        a, b, core = (
            parts.tensors[f"hada_w{number}_a"],
            parts.tensors[f"hada_w{number}_b"],
            parts.get(f"hada_t{number}"),
        )
        factors.append(a @ b if core is None else _tucker(core, a, b))
    scale = parts.scale(parts.tensors["hada_w1_b"].shape[0])
    return _decomposed(parts, weight, _shaped(factors[0] * factors[1], weight) * scale)


def kronecker(parts: Parts, weight: Tensor) -> Tensor:
    """LoKr: ΔW = (α/r) C ⊗ (B A). Yeh et al. 2023, arXiv 2309.14859, section 3.3.

    Each side of the product is stored whole or factorised, the right one on convolutions with a Tucker core as well.
    Where both are whole there is no rank, and nothing to scale by.
    """
    ranks: list[int] = []

    def side(whole: str, core: Tensor | None) -> Tensor:
        if whole in parts.tensors:
            return parts.tensors[whole]
        a, b = parts.tensors[f"{whole}_a"], parts.tensors[f"{whole}_b"]
        ranks.append(b.shape[0])
        return a @ b if core is None else _tucker(core, a, b)

    left, right = side("lokr_w1", None), side("lokr_w2", parts.get("lokr_t2"))
    left = left.reshape(*left.shape, *[1] * (right.ndim - left.ndim))
    delta = _shaped(torch.kron(left, right.contiguous()), weight)
    return _decomposed(parts, weight, delta * parts.scale(ranks[0]) if ranks else delta)


def scaled(parts: Parts, weight: Tensor) -> Tensor:
    """IA3: each output (or input) of the layer is multiplied. Liu et al. 2022, arXiv 2205.05638, section 3.3.

    LyCORIS stores l − 1, here `outputs` or `inputs` by what it multiplies: ΔW = W ⊙ (l − 1).
    """
    axis, name = (0, "outputs") if "outputs" in parts.tensors else (1, "inputs")
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    return weight * parts.tensors[name].reshape(shape)


def orthogonal(parts: Parts, weight: Tensor) -> Tensor:
    """OFT: W' = R W, R block-diagonal and orthogonal. Qiu et al. 2023, arXiv 2306.07280, section 3.

    R = (I + Q)(I − Q)⁻¹ (Cayley) with skew Q = P − Pᵀ from the stored blocks P (n, b, b); n·b is the layer's outputs.
    `alpha` limits Q's norm to alpha · outputs (COFT). `rescale` then multiplies each output.
    """
    blocks, rescale = parts.tensors["blocks"], parts.get("rescale")
    if blocks.ndim != 3:
        raise ValueError(f"blocks of {blocks.ndim} dimensions (BOFT), where OFT has 3")
    skew = blocks - blocks.transpose(1, 2)
    if parts.alpha:
        limit = parts.alpha * weight.shape[0]
        skew = skew * (limit / (skew.norm() + 1e-8)).clamp(max=1.0)
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    rotation = torch.linalg.solve(identity - skew, identity + skew)  # (I − Q)⁻¹ and (I + Q) commute
    rows = weight.reshape(*blocks.shape[:2], -1)
    turned = (rotation.transpose(1, 2) @ rows).reshape(weight.shape)
    return (turned if rescale is None else turned * rescale.reshape(-1, *[1] * (weight.ndim - 1))) - weight


def difference(parts: Parts, weight: Tensor) -> Tensor:
    """The change itself, stored whole: an extracted fine-tune, a bias, or a norm."""
    return _shaped(parts.tensors["diff"], weight)


def _decomposed(parts: Parts, weight: Tensor, delta: Tensor) -> Tensor:
    """DoRA, where the file has magnitudes m: W' = m (W + ΔW) / ‖W + ΔW‖. Liu et al. 2024, arXiv 2402.09353, eq. 5.

    The norm is taken over each output, or, as older LyCORIS files do, over each input; the shape of m says which.
    """
    magnitude = parts.get("dora_scale")
    if magnitude is None:
        return delta
    moved = weight + delta
    axis = 0 if magnitude.shape[0] == weight.shape[0] else 1
    over = [other for other in range(weight.ndim) if other != axis]
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    norm = torch.linalg.vector_norm(moved, dim=over, keepdim=True) + torch.finfo(moved.dtype).eps
    return moved * (magnitude.reshape(shape) / norm) - weight


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The kernel (out, in, …) of core (r, s, …), `a` (r, out) and `b` (s, in)."""
    return torch.einsum("rs...,ro,si->oi...", core, a, b)


def _shaped(delta: Tensor, weight: Tensor) -> Tensor:
    """`delta` in the shape of `weight`: a 1×1 convolution is a linear layer. Raises ValueError where it cannot be.

    A change of the first convolution is made for 4 channels; models with more (inpainting) take it in their first 4.
    """
    inputs = delta.shape[1] if delta.ndim == 4 else 0
    if inputs == LATENT_CHANNELS < (weight.shape[1] if weight.ndim == 4 else 0):
        delta = F.pad(delta, (0, 0, 0, 0, 0, weight.shape[1] - inputs))
    if delta.shape[0] != weight.shape[0] or delta.numel() != weight.numel():
        raise ValueError(f"a change of {tuple(delta.shape)} for a weight of {tuple(weight.shape)}")
    return delta.reshape(weight.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of change: what artists call it, any of the sets of tensors it `needs`, its function."""

    title: str
    needs: tuple[frozenset[str], ...]
    delta: Callable[[Parts, Tensor], Tensor]


# In this order: the first whose tensors are all there.
KINDS = (
    Kind(title="LoRA", needs=(frozenset({"up", "down"}),), delta=low_rank),
    Kind(title="LoHa", needs=(frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),), delta=hadamard),
    Kind(
        title="LoKr",
        needs=tuple(
            frozenset({*left, *right})
            for left in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
            for right in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
        ),
        delta=kronecker,
    ),
    Kind(title="OFT", needs=(frozenset({"blocks"}),), delta=orthogonal),
    Kind(title="full difference", needs=(frozenset({"diff"}),), delta=difference),
    Kind(title="IA3", needs=(frozenset({"outputs"}), frozenset({"inputs"})), delta=scaled),
)


def kind_of(names: frozenset[str]) -> Kind | None:
    """The kind that tensors of these names make, None when they make none."""
    return next((kind for kind in KINDS if any(needs <= names for needs in kind.needs)), None)
