"""One walk of a sampler, from the latents that a canvas holds to latents without noise.

Every recipe's part that denoises is a `Pass`: txt2img, img2img, inpaint and the second pass of hires fix; `Passes` are
all of a request's. They know no VAE and make no pictures. `Pass._network` is where a network comes under guidance;
what changes how the network is asked belongs there, or in `guidance`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.errors import UserError
from webui.core.events import Notice, Step
from webui.core.extra_networks import take_loras
from webui.core.ports import Control
from webui.core.prompt import editing
from webui.core.requests import DiffusionRequest
from webui.engine.bench import Bench
from webui.engine.brownian import BrownianNoise
from webui.engine.canvas import Canvas
from webui.engine.conditioning import PromptEncoder, PromptPlan
from webui.engine.denoise import denoise
from webui.engine.denoiser import Denoiser, NetworkDenoiser
from webui.engine.extras import adjusted, patched_unet
from webui.engine.guidance import Guided
from webui.engine.img2img import Walk
from webui.engine.ladder import Rung
from webui.engine.noise import Noise, open_stream
from webui.engine.notices import Notices
from webui.engine.previews import preview_of
from webui.engine.refiner import RefinedDenoiser, evaluations_before
from webui.engine.samplers import NoiseSource, Sampler, SamplerStep, find_sampler, unit_variance_start
from webui.engine.schedules import SigmaTable, make_sigmas
from webui.engine.tiled.diffusion import in_tiles

LATENT_CHANNELS = 4
LATENT_PIXELS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in its request a walk stands: its `batch`, and how many of the request's `total` steps come before it.

    `control` is asked whether the batch is skipped; `notices` are passed on between the steps.
    """

    batch: int
    before: int
    total: int
    control: Control
    notices: Notices

    def step(self, index: int, *, sigma: float = 0.0, preview: Callable[[], bytes] | None = None) -> Step:
        """The event for step `index` (from 0) of the walk."""
        made = self.before + index + 1
        return Step(index=made, total=self.total, batch=self.batch, sigma=sigma, preview=preview)

    def later(self, steps: int) -> Place:
        """The place `steps` further on."""
        return dataclasses.replace(self, before=self.before + steps)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """A walk as `request` asks for it, on `bench`; the same for all pictures of the request.

    `schedule` are the noise levels of all steps, `sigmas` those that are walked. `earlier` is how many evaluations of
    the network prompt editing counts in a pass before this one, None where this is the first. With `refines` the
    bench's refiner takes over on the way.
    """

    request: DiffusionRequest
    bench: Bench
    sampler: Sampler
    schedule: Sequence[float]
    sigmas: Sequence[float]
    earlier: int | None = None
    refines: bool = True

    @property
    def steps(self) -> int:
        """How many steps are walked."""
        return len(self.sigmas) - 1

    @property
    def evaluations(self) -> int:
        """About how often the network is asked."""
        return self.sampler.evaluations * self.steps

    @property
    def counted(self) -> editing.Pass:
        """The walk as prompt editing counts it: A1111 counts evaluations of the network where it says steps."""
        return editing.Pass(steps=self.request.steps * self.sampler.evaluations, earlier=self.earlier)

    def words(self, bench: Bench | None = None) -> PromptPlan:
        """The words of the walk for `bench`'s checkpoint (None: the pass's), from the cache where they were encoded.

        A1111 finds LoRA tags in the prompt only.
        """
        request, bench = self.request, bench or self.bench
        encoder = PromptEncoder(
            checkpoint=bench.checkpoint,
            weights=bench.weights,
            device=bench.device,
            cache=bench.prompts,
            size=request.size,
            clip_skip=request.clip_skip,
            emphasis=request.emphasis,
            embeddings=bench.embeddings,
            patches=bench.patches,
        )
        prompt, _ = take_loras(request.prompt)
        return encoder.plan(prompt, request.negative_prompt, self.counted)

    def walk(
        self, canvas: Canvas, plan: PromptPlan, singles: Sequence[DiffusionRequest], place: Place
    ) -> Generator[Step | Notice, None, Tensor | None]:
        """The steps from `canvas` to latents (N, 4, h, w), which it returns, or None if they were skipped.

        `singles` are the N pictures' own requests: their seeds say what noise is drawn, anew for this walk. `plan` are
        the `words`. Raises `UserError` for numbers that are not finite, and for a refiner of other latents.
        """
        bench, request = self.bench, self.request
        shape = (LATENT_CHANNELS, request.height // LATENT_PIXELS, request.width // LATENT_PIXELS)
        noise = Noise(singles, shape, bench.device)
        x = self._start(canvas, noise)
        drawn = self._noise_on_the_way(noise, singles[0], shape)
        with bench.phases("denoise"), ExitStack() as stack, bench.unet_at_work():
            denoiser = canvas.masked(self._denoiser(plan, canvas.beside, stack, place.notices))
            steps = denoise(self.sampler, denoiser, x, self.sigmas, drawn, request.sampler_options, place.control)
            return (yield from self._as_events(steps, place))

    def _start(self, canvas: Canvas, noise: Noise) -> Tensor:
        """The latents at the first noise level; drawing them opens the streams of `noise`."""
        start = noise.start()
        if canvas.latents is not None:
            return canvas.under_noise(start, self.sigmas[0])
        if self.request.schedule_options.sgm_noise_multiplier:
            return unit_variance_start(start, self.sigmas[0])
        return self.sampler.start(start, self.sigmas[0])

    def _noise_on_the_way(self, noise: Noise, picture: DiffusionRequest, shape: tuple[int, ...]) -> NoiseSource:
        """What the sampler draws on the way: the streams of `noise`, or a Brownian path over the whole schedule."""
        levels, device = self.schedule[:-1], self.bench.device
        if not self.sampler.brownian or len(levels) < 2:
            return noise
        return BrownianNoise(
            noise.seeds,
            lambda seed: open_stream(seed, picture.noise_source, device)(shape),
            sigma_min=levels[-1],
            sigma_max=levels[0],
            device=device,
        )

    def _denoiser(self, plan: PromptPlan, beside: Tensor | None, stack: ExitStack, notices: Notices) -> Denoiser:
        """The network under guidance, and after it the refiner's, which stays loaded until `stack` is closed."""
        base = self._network(self.bench, plan, stack, beside=beside)
        refine = self.bench.refine
        if refine is None or not self.refines:
            return base

        def take_over(made: int) -> Denoiser:
            # Its weights outlive this request, so they must not be made as tensors of inference alone.
            with torch.inference_mode(mode=False):
                refined = stack.enter_context(refine())
            notices.say(*refined.notices)
            if not same_latents(refined.checkpoint, self.bench.checkpoint) or refined.checkpoint.input != "latents":
                raise UserError(
                    f"The refiner {refined.checkpoint.info.name!r} works on latents of another kind than"
                    f" {self.bench.checkpoint.info.name!r}; choose a refiner of the same family."
                )
            stack.enter_context(refined.unet_at_work())
            return self._network(refined, self.words(refined), stack, made=made)

        before = evaluations_before(self.request.refiner_switch_at, self.evaluations)
        return RefinedDenoiser(base, take_over, before=before)

    def _network(
        self, bench: Bench, plan: PromptPlan, stack: ExitStack, *, beside: Tensor | None = None, made: int = 0
    ) -> Denoiser:
        """The network of `bench` under guidance, when `made` evaluations are past; for `beside` see `Canvas`.

        It has the request's extras until `stack` is closed.
        """
        request, checkpoint = self.request, bench.checkpoint
        stack.enter_context(patched_unet(checkpoint.unet, request.extras))
        predict = Guided(
            in_tiles(checkpoint.unet, request.tiled),
            plan,
            cfg_scale=self.sampler.scale(request.cfg_scale),
            guidance=request.guidance,
            evaluations=self.evaluations,
            beside=beside,
            edits=checkpoint.input == "edit",
            needs_negative=self.sampler.plus_plus,
            pag_scale=request.extras.pag_scale,
            sag_scale=request.extras.sag_scale,
            prediction_type=checkpoint.prediction_type,
            made=made,
            split=Rung.SPLIT in bench.economy,
            scale_width=checkpoint.unet.config.get("time_cond_proj_dim") or 0,
        )
        denoiser = NetworkDenoiser(
            predict,
            checkpoint.prediction_type,
            timestep=sigma_table(checkpoint).timestep,
            sigmas=self.sigmas,
            device=bench.device,
        )
        return adjusted(denoiser, request.extras, request.cfg_scale)

    def _as_events(
        self, steps: Generator[SamplerStep, None, Tensor | None], place: Place
    ) -> Generator[Step | Notice, None, Tensor | None]:
        """The steps of the walk as events, with what was said on the way; returns what `steps` returns."""
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                yield from place.notices.take()
                return end.value
            yield from place.notices.take()
            yield place.step(step.index, sigma=step.sigma, preview=preview_of(step.denoised, self.bench.render))


class Passes(Protocol):
    """All the walks of a request: one, or hires fix's two."""

    @property
    def one_by_one(self) -> bool:
        """Whether pictures must be made one at a time."""
        ...

    def steps(self, pictures: int) -> int:
        """How many steps are walked for a batch of `pictures`."""
        ...

    def encode(self) -> None:
        """Encodes the words of the first walk; once, before `run`."""
        ...

    def run(
        self, singles: Sequence[DiffusionRequest], place: Place, stack: ExitStack
    ) -> Generator[Step | Notice, None, tuple[Tensor | None, Bench]]:
        """The steps to finished latents (N, 4, h, w), None if they were skipped, and the bench on which to decode them.

        `singles` are the N pictures' own requests. The bench is laid out until `stack` is closed.
        """
        ...


class OnePass:
    """`walk` from `canvas`, and that is all: `Passes` without hires fix."""

    def __init__(self, walk: Pass, canvas: Canvas) -> None:
        self.walk = walk
        self._canvas = canvas
        self._plan: PromptPlan | None = None

    @property
    def one_by_one(self) -> bool:
        """See `Passes`."""
        return self.walk.sampler.one_by_one

    def steps(self, pictures: int) -> int:  # noqa: ARG002  # the batch goes through the network together
        """See `Passes`."""
        return self.walk.steps

    def encode(self) -> None:
        """See `Passes`."""
        with self.walk.bench.phases("encode"):
            self._plan = self.walk.words()

    def run(
        self,
        singles: Sequence[DiffusionRequest],
        place: Place,
        stack: ExitStack,  # noqa: ARG002  # nothing is laid out
    ) -> Generator[Step | Notice, None, tuple[Tensor | None, Bench]]:
        """See `Passes`."""
        if self._plan is None:
            raise RuntimeError("the words are encoded before the first step")
        return (yield from self.walk.walk(self._canvas, self._plan, singles, place)), self.walk.bench


def make_pass(
    request: DiffusionRequest, bench: Bench, walk: Walk, *, earlier: int | None = None, refines: bool = True
) -> Pass:
    """The pass that takes `walk` down the schedule that `request` names, with the noise levels of `bench`'s checkpoint.

    Raises `InvalidRequest` for a sampler that is not known and for noise levels in no order.
    """
    sampler = find_sampler(request.sampler)
    schedule = make_sigmas(
        request.schedule_type,
        sigma_table(bench.checkpoint),
        walk.steps,
        request.schedule_options,
        automatic=sampler.automatic,
        discard_next_to_last=sampler.discards_next_to_last,
    )
    return Pass(
        request=request,
        bench=bench,
        sampler=sampler,
        schedule=schedule,
        sigmas=schedule[walk.first :],
        earlier=earlier,
        refines=refines,
    )


def sigma_table(checkpoint: LoadedCheckpoint) -> SigmaTable:
    """The noise levels that the checkpoint was trained on."""
    return SigmaTable.from_alphas(checkpoint.alphas_cumprod.tolist(), is_xl=checkpoint.family == "sdxl")


def same_latents(one: LoadedCheckpoint, other: LoadedCheckpoint) -> bool:
    """Whether what one makes of noise means the same picture to the other."""
    return one.scaling_factor == other.scaling_factor
