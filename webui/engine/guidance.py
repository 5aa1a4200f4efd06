"""Classifier-free guidance: all texts of a step through the UNet together, then towards the prompts, past the negative.

Owns what a step feeds the UNet and how its answers are weighed; it must not know how noise levels are spaced or walked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from webui.core.requests import Guidance
from webui.engine.conditioning.words import Conditioning, PromptPlan, Words
from webui.engine.denoiser import Prediction, PredictionType
from webui.engine.extras.perturbed_attention import perturbed
from webui.engine.extras.self_attention import degraded, watched
from webui.engine.placement import weight_of


class Guided:
    """The guided prediction of `unet` (a diffusers UNet2DConditionModel), as a `webui.engine.denoiser.Predict`.

    For one run of a sampler, since it counts the evaluations: `plan` says which words guide which, and `guidance` which
    go without the negative prompt, of `evaluations` in all. `beside` (1 or N, channels, h, w) goes to the UNet's first
    convolution with the latents, where a model takes that; with `edits`, it is the picture that an edit model edits,
    and guided by as well. With `needs_negative` the negative prompt is worked on even where it cancels out.
    A network that takes over on the way is told how many evaluations were `made` before. With a `pag_scale`, each
    evaluation asks the network once more, perturbed; with a `sag_scale`, once more about a degraded input, for which it
    must be known what the network predicts. With `split` the texts go through the network one after the other, which
    takes half of the memory and gives the same up to the last bits.

    A network distilled from a guided one, as LCMs are, is told the scale itself, as `scale_width` numbers: it then goes
    without the negative prompt, and its answers are not guided again.
    """

    def __init__(
        self,
        unet: Any,
        plan: PromptPlan,
        *,
        cfg_scale: float,
        guidance: Guidance,
        evaluations: int,
        beside: Tensor | None = None,
        edits: bool = False,
        needs_negative: bool = False,
        made: int = 0,
        pag_scale: float = 0.0,
        sag_scale: float = 0.0,
        prediction_type: PredictionType = "epsilon",
        split: bool = False,
        scale_width: int = 0,
    ) -> None:
        self._unet = unet
        self._plan = plan
        self._told_scale = scale_embedding(cfg_scale, scale_width) if scale_width else None
        self._cfg_scale = 1.0 if scale_width else cfg_scale
        self._guidance = guidance
        self._evaluations = evaluations
        self._beside = beside
        self._edits = edits
        self._needs_negative = needs_negative
        self._pag_scale = pag_scale
        self._sag_scale = sag_scale
        self._prediction_type: PredictionType = prediction_type
        self._grouped = _one_by_one if split else _by_length
        self._looked: dict[Conditioning, Tensor] = {}
        self._dtype = weight_of(unet).dtype
        self._evaluation = made
        self._arguments: dict[tuple[object, ...], tuple[Tensor, dict[str, Any]]] = {}

    def __call__(self, x: Tensor, timestep: Tensor, sigma: float) -> Prediction:
        """`x` (N, channels, h, w) as the network wants it → float32 predictions of the same shape."""
        words = self._plan.at(self._evaluation)
        skips = self._skips_negative(sigma)
        self._evaluation += 1
        if self._edits and self._beside is not None:
            return self._edit(x, timestep, sigma, words, self._beside)
        texts = [prompt.conditioning for prompt in words.prompts]
        if skips or self._negative_cancels(words):
            answers = self._ask(x, timestep, texts, self._beside)
            negative, plain = answers[0], texts[0]
        else:
            *answers, negative = self._ask(x, timestep, [*texts, words.negative], self._beside)
            plain = words.negative
        if len(answers) == 1 and negative is answers[0]:
            guided = self._away_from_degraded(negative, negative, plain, x, timestep, sigma)
            return Prediction(self._away_from_perturbed(guided, answers, x, timestep, words), negative)
        guided = combined(answers, [prompt.weight for prompt in words.prompts], negative, self._cfg_scale)
        guided = self._away_from_degraded(guided, negative, plain, x, timestep, sigma)
        guided = self._away_from_perturbed(guided, answers, x, timestep, words)
        return Prediction(self._rescaled(guided, answers[0]), negative)

    def _rescaled(self, guided: Tensor, answer: Tensor) -> Tensor:
        return rescaled(guided, answer, self._guidance.rescale) if self._guidance.rescale > 0 else guided

    def _skips_negative(self, sigma: float) -> bool:
        """Whether this evaluation goes without the negative prompt, by A1111's rules for early steps and for NGMS.

        A network that is told the scale always does.
        """
        if self._told_scale is not None:
            return True
        early, below = self._guidance.skip_early, self._guidance.skip_negative_below
        if early > 0 and self._evaluation / self._evaluations <= early:
            return True
        return self._evaluation % 2 == 1 and sigma < below and not self._edits

    def _negative_cancels(self, words: Words) -> bool:
        weight = sum(prompt.weight for prompt in words.prompts)
        return self._cfg_scale * weight == 1.0 and len(words.prompts) == 1 and not self._needs_negative

    def _edit(self, x: Tensor, timestep: Tensor, sigma: float, words: Words, picture: Tensor) -> Prediction:
        """Guided by text and picture: Brooks et al. 2022 (arXiv 2211.09800), equation 3.

        ``e(0, 0) + s_I (e(I, 0) - e(0, 0)) + s_T (e(I, T) - e(I, 0))``; without the picture means a picture of zeros.
        """
        texts = [prompt.conditioning for prompt in words.prompts]
        *answers, without_text = self._ask(x, timestep, [*texts, words.negative], picture)
        guided = combined(answers, [prompt.weight for prompt in words.prompts], without_text, self._cfg_scale)
        guided = self._away_from_degraded(guided, without_text, words.negative, x, timestep, sigma)
        guided = self._away_from_perturbed(guided, answers, x, timestep, words)
        (without_both,) = self._ask(x, timestep, [words.negative], torch.zeros_like(picture))
        towards_picture = without_text - without_both
        guided = torch.add(guided, towards_picture, alpha=self._guidance.image_scale - 1)
        negative = torch.add(without_both, towards_picture, alpha=self._guidance.image_scale)
        return Prediction(self._rescaled(guided, answers[0]), negative)

    def _away_from_degraded(
        self, guided: Tensor, answer: Tensor, text: Conditioning, x: Tensor, timestep: Tensor, sigma: float
    ) -> Tensor:
        """`guided` plus the scale times the `answer` to `text` less that to the degraded `x`.

        Hong et al. 2023 (arXiv 2210.00939); the text is the negative prompt's, as in diffusers.
        """
        if self._sag_scale == 0:
            return guided
        worse_x = degraded(x.float(), answer, self._looked[text], sigma, self._prediction_type)
        (worse,) = self._ask(worse_x, timestep, [text], self._beside)
        return torch.add(guided, answer - worse, alpha=self._sag_scale)

    def _away_from_perturbed(
        self, guided: Tensor, answers: Sequence[Tensor], x: Tensor, timestep: Tensor, words: Words
    ) -> Tensor:
        """`guided` plus the scale times each answer less the perturbed one (Ahn et al. 2024, arXiv 2403.17377)."""
        if self._pag_scale == 0:
            return guided
        with perturbed(self._unet):
            worse = self._ask(x, timestep, [prompt.conditioning for prompt in words.prompts], self._beside)
        for prompt, answer, perturbed_answer in zip(words.prompts, answers, worse, strict=True):
            guided = torch.add(guided, answer - perturbed_answer, alpha=self._pag_scale * prompt.weight)
        return guided

    def _ask(self, x: Tensor, timestep: Tensor, texts: Sequence[Conditioning], beside: Tensor | None) -> list[Tensor]:
        """The UNet's answer to each text, (N, channels, h, w) float32; each group of texts shares a call."""
        batch = x.shape[0]
        rows = x.to(self._dtype)
        if beside is not None:
            rows = torch.cat([rows, beside.to(self._dtype).expand(batch, -1, -1, -1)], dim=1)
        answers: dict[Conditioning, Tensor] = {}
        for group in self._grouped(texts):
            states, added = self._prepared(group, batch)
            repeated = rows if len(group) == 1 else rows.repeat(len(group), 1, 1, 1)
            with watched(self._unet) if self._sag_scale > 0 else nullcontext() as looks:
                answer = self._unet(repeated, timestep, states, return_dict=False, **added)[0].float()
            if looks is not None:
                self._looked |= dict(zip(group, looks.mask().chunk(len(group)), strict=True))
            answers |= dict(zip(group, answer.chunk(len(group)), strict=True))
        return [answers[text] for text in texts]

    def _prepared(self, texts: Sequence[Conditioning], batch: int) -> tuple[Tensor, dict[str, Any]]:
        """The UNet's arguments for `texts`, each repeated over the batch; made once for as long as the words stay."""
        key = (*texts, batch)
        if key not in self._arguments:
            states = torch.cat([text.states.repeat(batch, 1, 1) for text in texts]).to(self._dtype)
            self._arguments[key] = states, self._added(texts, batch)
        return self._arguments[key]

    def _added(self, texts: Sequence[Conditioning], batch: int) -> dict[str, Any]:
        """What else the network is told, under diffusers' names: the scale, and SDXL's further conditions."""
        rows = len(texts) * batch
        device = texts[0].states.device
        told = self._told_scale
        scale = {} if told is None else {"timestep_cond": told.to(device, self._dtype).expand(rows, -1)}
        pooled = [text.pooled.repeat(batch, 1) for text in texts if text.pooled is not None]
        sizes = [text.time_ids.repeat(batch, 1) for text in texts if text.time_ids is not None]
        if not pooled or not sizes:
            return scale
        added = {"text_embeds": torch.cat(pooled).to(self._dtype), "time_ids": torch.cat(sizes).to(self._dtype)}
        return {**scale, "added_cond_kwargs": added}


def scale_embedding(cfg_scale: float, width: int) -> Tensor:
    """What a distilled network is told of ``w = cfg_scale - 1``, (1, width) float32.

    Sines and cosines of 1000 w, as timesteps have them (Luo et al. 2023, arXiv 2310.04378, section 4.2; the embedding
    is the one of Kingma et al. 2021, arXiv 2107.00630, in google-research/vdm).
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000) / (half - 1)))
    angles = 1000 * (cfg_scale - 1) * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


def _by_length(texts: Sequence[Conditioning]) -> list[list[Conditioning]]:
    """`texts` in groups whose states have one length, each text once, in their order."""
    groups: dict[int, dict[Conditioning, None]] = {}
    for text in texts:
        groups.setdefault(text.states.shape[1], {})[text] = None
    return [list(group) for group in groups.values()]


def _one_by_one(texts: Sequence[Conditioning]) -> list[list[Conditioning]]:
    """Each text once, alone, in their order."""
    return [[text] for text in dict.fromkeys(texts)]


def combined(answers: Sequence[Tensor], weights: Sequence[float], negative: Tensor, cfg_scale: float) -> Tensor:
    """``negative + cfg_scale · sum(weight · (answer - negative))``.

    For one answer: Ho & Salimans 2022 (arXiv 2207.12598), equation 6, with A1111's scale (theirs plus one). For several
    ("AND"): Liu et al. 2022 (arXiv 2206.01714), equation 11.
    """
    guided = torch.lerp(negative, answers[0], cfg_scale * weights[0])
    for answer, weight in zip(answers[1:], weights[1:], strict=True):
        guided = torch.add(guided, answer - negative, alpha=cfg_scale * weight)
    return guided


def rescaled(guided: Tensor, answer: Tensor, share: float) -> Tensor:
    """`guided` (N, channels, h, w) brought `share` of the way to the deviation, picture by picture, of `answer`.

    Lin et al. 2023 (arXiv 2305.08891), equations 15 and 16: against the over-exposure of high scales.
    """
    dimensions = tuple(range(1, guided.ndim))
    factor = answer.std(dimensions, keepdim=True) / guided.std(dimensions, keepdim=True)
    return guided * torch.lerp(torch.ones_like(factor), factor, share)
