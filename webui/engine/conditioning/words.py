"""What the words of a request are to the UNet: the conditioning of one text, and which of them guide which step.

Only types: how a text becomes a `Conditioning` is in `encode`, how a plan is made in `plan`, what guidance makes of it
in `webui.engine.guidance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What the UNet is told beside the noisy latents, for one picture; guidance repeats it over a batch.

    `states` (1, 77 · chunks, width) float32 are attended to. `pooled` (1, width) and `time_ids` (1, 6; 1, 5 for the
    refiner) are there where the family's UNet takes them: diffusers' "text_embeds" and "time_ids". Two conditionings
    of one step may differ in length; nothing is padded to make them equal.
    """

    states: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None


class Weighted(NamedTuple):
    """One of the prompts that "AND" joins, and how much it counts beside the CFG scale."""

    conditioning: Conditioning
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Words:
    """What guides one step: at least one prompt, and the negative prompt."""

    prompts: tuple[Weighted, ...]
    negative: Conditioning


class Until(NamedTuple):
    """A conditioning that holds up to and including step `last`, counted from 0."""

    last: int
    conditioning: Conditioning


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptPlan:
    """Which words guide which step, for one run of a sampler.

    Each prompt (with its weight) and the negative prompt is a line of `Until` in rising order, at least one each; the
    last one holds for ever.
    """

    prompts: tuple[tuple[tuple[Until, ...], float], ...]
    negative: tuple[Until, ...]

    def at(self, step: int) -> Words:
        """The words of evaluation `step` of the network, counted from 0 over one run.

        As in A1111, evaluations are counted (samplers of second order make two a step).
        """
        return Words(
            prompts=tuple(Weighted(_holding(line, step), weight) for line, weight in self.prompts),
            negative=_holding(self.negative, step),
        )


def _holding(line: tuple[Until, ...], step: int) -> Conditioning:
    return next((until.conditioning for until in line if step <= until.last), line[-1].conditioning)
