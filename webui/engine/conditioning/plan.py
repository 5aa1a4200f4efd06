"""Prompt and negative prompt → `PromptPlan`: every text that editing makes of them encoded, and when each holds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.geometry import Size
from webui.core.prompt.composition import parse_negative, parse_prompt
from webui.core.prompt.editing import Pass, Pieces, texts_by_step
from webui.core.requests import Emphasis
from webui.engine.conditioning.cache import EncodingKey, PromptCache
from webui.engine.conditioning.encode import Embeddings, Encoded, encode_text
from webui.engine.conditioning.words import Conditioning, PromptPlan, Until

# What the refiner was trained to read as a good picture and a bad one, on the scale of its aesthetic predictor, 0…10
# (Podell et al. 2023, arXiv 2307.01952; the numbers are those of Stability's own code and of A1111).
GOOD_AESTHETIC_SCORE, BAD_AESTHETIC_SCORE = 6.0, 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEncoder:
    """Makes plans for one checkpoint, at one size and one way of reading prompts.

    `weights`, `patches`, `clip_skip` and `emphasis` are what `EncodingKey` and `encode_text` say. `size` is that of
    the pictures in pixels, which SDXL is told.
    """

    checkpoint: LoadedCheckpoint
    weights: str
    device: torch.device
    cache: PromptCache
    size: Size
    clip_skip: int
    emphasis: Emphasis
    embeddings: Embeddings | None
    patches: Hashable

    def plan(self, prompt: str, negative: str, run: Pass) -> PromptPlan:
        """The words of a run of a sampler, LoRA tags already taken out of them. Raises as `encode_text` does.

        A text that comes back (alternation) is the same `Conditioning` object each time.
        """
        known: dict[tuple[str, bool], Conditioning] = {}
        return PromptPlan(
            prompts=tuple(
                (self._line(part.pieces, run, known, negative=False), part.weight) for part in parse_prompt(prompt)
            ),
            negative=self._line(parse_negative(negative), run, known, negative=True),
        )

    def _line(
        self, pieces: Pieces, run: Pass, known: dict[tuple[str, bool], Conditioning], *, negative: bool
    ) -> tuple[Until, ...]:
        line: list[Until] = []
        for last, text in texts_by_step(pieces, run):
            if (text, negative) not in known:
                known[text, negative] = self._conditioning(text, negative=negative)
            line.append(Until(last, known[text, negative]))
        return tuple(line)

    def _conditioning(self, text: str, *, negative: bool) -> Conditioning:
        encoded = self._encoded(text)
        if self.checkpoint.conditioning == "text":
            return Conditioning(states=encoded.states)
        states, pooled = encoded.states, encoded.pooled
        if negative and not text:
            # SDXL was trained with zeros for no words at all; what it makes of an empty text is something else.
            states, pooled = torch.zeros_like(states), None if pooled is None else torch.zeros_like(pooled)
        return Conditioning(states=states, pooled=pooled, time_ids=self._time_ids(negative=negative).to(states.device))

    def _time_ids(self, *, negative: bool) -> torch.Tensor:
        """(1, 6) original size, crop, target size; the refiner's (1, 5) has its aesthetic score for the last.

        Podell et al. 2023 (arXiv 2307.01952), section 2.2. Sizes are (height, width): a picture of the size that is
        made, cropped nowhere.
        """
        size = (float(self.size.height), float(self.size.width))
        if self.checkpoint.conditioning == "refiner":
            return torch.tensor([[*size, 0.0, 0.0, BAD_AESTHETIC_SCORE if negative else GOOD_AESTHETIC_SCORE]])
        return torch.tensor([[*size, 0.0, 0.0, *size]])

    def _encoded(self, text: str) -> Encoded:
        named = self.embeddings.split(text) if self.embeddings is not None else ()
        key = EncodingKey(
            text=text,
            weights=self.weights,
            patches=self.patches,
            clip_skip=self.clip_skip,
            emphasis=self.emphasis,
            embeddings=tuple((piece.name, piece.modified_ns) for piece in named if not isinstance(piece, str)),
        )
        return self.cache.get(
            key,
            lambda: encode_text(
                text,
                self.checkpoint.text_encoders,
                clip_skip=self.clip_skip,
                emphasis=self.emphasis,
                embeddings=self.embeddings,
                device=self.device,
            ),
        )
