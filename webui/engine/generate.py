"""How a picture is made. Read this first: `generate` is the recipe, its numbered steps lead to every other module.

Txt2img, img2img and inpaint share it; what they start from is told apart in `canvas`. Upscaling is another recipe,
in `upscale`. Nothing here owns a model, a lock or a thread: that is `manager`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from webui.checkpoints.hash import PendingHash
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.errors import UserError
from webui.core.events import Event, Finished, ImageReady, Notice, Started, Step
from webui.core.extra_networks import take_loras
from webui.core.infotext import format_infotext
from webui.core.ports import Control
from webui.core.prompt.editing import Pass
from webui.core.requests import DiffusionRequest, alone
from webui.engine.brownian import BrownianNoise
from webui.engine.canvas import Canvas, make_canvas
from webui.engine.conditioning import Embeddings, PromptCache, PromptEncoder, PromptPlan
from webui.engine.denoise import denoise
from webui.engine.denoiser import Denoiser, MaskedDenoiser, NetworkDenoiser
from webui.engine.extras import adjusted, patched_unet, patched_vae
from webui.engine.guidance import Guided
from webui.engine.noise import Noise, open_stream, settled_source
from webui.engine.phases import Phases
from webui.engine.pixels import decode, to_images
from webui.engine.placement import placed
from webui.engine.previews import Render, preview_of
from webui.engine.refiner import RefinedDenoiser, evaluations_before
from webui.engine.samplers import NoiseSource, Sampler, SamplerStep, find_sampler, unit_variance_start
from webui.engine.schedules import SigmaTable, make_sigmas

LATENT_CHANNELS = 4
LATENT_PIXELS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the manager lays out for one request: the checkpoint, where it runs and with which attention.

    `prompts` outlives the request; `phases` already holds what loading took. `weights` tells the checkpoint's from any
    others, also from those of a file that took its name. `vae_name` is that of a VAE in place of the checkpoint's own,
    "" without one. The hashes may still be in the making. `embeddings` may be named in prompts; `patches` tells what
    LoRAs change in the text encoders from any other such change; `network_hashes` are A1111's pairs about both, and
    `notices` what the person at the page should know about them. `refine` lays out the refiner's own bench, where one
    is asked for; `render` makes previews.
    """

    checkpoint: LoadedCheckpoint
    weights: str
    model_hash: PendingHash
    device: torch.device
    attention: str
    vae_name: str = ""
    vae_hash: PendingHash = str
    embeddings: Embeddings | None = None
    patches: Hashable = ()
    network_hashes: Callable[[], Mapping[str, str]] = dict
    notices: tuple[str, ...] = ()
    refine: Callable[[], AbstractContextManager[Bench]] | None = None
    render: Render | None = None
    prompts: PromptCache = field(default_factory=PromptCache)
    phases: Phases = field(default_factory=Phases)


@torch.inference_mode()
def generate(request: DiffusionRequest, bench: Bench, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
    """The events of `request` from batch `start_batch` on; closing it stops within one step.

    Raises `UnreadableImage`, `InvalidRequest` and `UserError`; running out of memory comes through as torch says it.
    """
    checkpoint, phases = bench.checkpoint, bench.phases

    # 1. The noise levels to walk through: the schedule type's, from this model's own table.
    table = _sigma_table(checkpoint)
    sampler = find_sampler(request.sampler)
    schedule = make_sigmas(
        request.schedule_type,
        table,
        request.steps,
        request.schedule_options,
        automatic=sampler.automatic,
        discard_next_to_last=sampler.discards_next_to_last,
    )

    # 2. The picture to start from, if there is one; it decides how many of those levels are left.
    with phases("prepare"), placed(checkpoint.vae, bench.device), patched_vae(checkpoint.vae, request.extras):
        canvas = make_canvas(request, checkpoint, bench.device)
    sigmas = schedule[canvas.first_step :]
    steps = len(sigmas) - 1
    at_once = 1 if sampler.one_by_one else request.batch_size
    total = steps * request.total_images // at_once
    yield Started(
        total_images=request.total_images,
        total_steps=total,
        checkpoint=checkpoint.info.name,
        attention=bench.attention,
    )

    yield from [Notice(text=sentence) for sentence in bench.notices]

    # 3. The words.
    with phases("encode"):
        plan = _plan(request, sampler, bench)

    for first in range(start_batch * request.batch_size, request.total_images, at_once):
        # 4. Noise, a stream for each picture, and a denoiser that knows prompt, guidance and mask.
        singles = _singles(request, range(first, first + at_once), bench.device)
        shape = (LATENT_CHANNELS, *_latent_size(request))
        noise = Noise(singles, shape, bench.device)
        start = noise.start()
        if canvas.latents is not None:
            x = canvas.under_noise(start, sigmas[0])
        elif request.schedule_options.sgm_noise_multiplier:
            x = unit_variance_start(start, sigmas[0])
        else:
            x = sampler.start(start, sigmas[0])
        drawn = _walk_noise(sampler, noise, singles[0], schedule, shape, bench.device)

        # 5. From noise to latents, step by step.
        with phases("denoise"), ExitStack() as stack, placed(checkpoint.unet, bench.device):
            denoiser = _denoiser(request, plan, sampler, sigmas, bench, canvas, stack)
            walk = denoise(sampler, denoiser, x, sigmas, drawn, request.sampler_options, control)
            latents = yield from _as_events(
                walk, bench.render, batch=first // request.batch_size, before=first // at_once * steps, total=total
            )
        if latents is None:
            continue

        # 6. From latents to pictures, each with the text that can make it again.
        notices: list[str] = []
        with phases("decode"), placed(checkpoint.vae, bench.device), patched_vae(checkpoint.vae, request.extras):
            pictures = to_images(decode(checkpoint.vae, latents, checkpoint.scaling_factor, say=notices.append))
        yield from [Notice(text=sentence) for sentence in notices]
        for index, picture in enumerate(pictures):
            yield ImageReady(
                index=first + index,
                image=canvas.finish(picture),
                seed=singles[index].seed,
                infotext=format_infotext(
                    singles[index],
                    model=checkpoint.info.name,
                    model_hash=bench.model_hash(),
                    extra={
                        **({"VAE": bench.vae_name, "VAE hash": bench.vae_hash()} if bench.vae_name else {}),
                        **bench.network_hashes(),
                    },
                ),
            )
        # A wish to skip that came too late was for this batch, not for the next.
        control.take_skip()

    # 7. What it took.
    yield Finished(seconds=dict(phases.seconds))


def _singles(request: DiffusionRequest, indices: range, device: torch.device) -> list[DiffusionRequest]:
    """For each of the pictures the request that makes it alone, with the noise source that it really has."""
    request = dataclasses.replace(request, noise_source=settled_source(request.noise_source, device))
    return [alone(request, index) for index in indices]


def _latent_size(request: DiffusionRequest) -> tuple[int, int]:
    """(h, w) of the latents."""
    return request.height // LATENT_PIXELS, request.width // LATENT_PIXELS


def _plan(request: DiffusionRequest, sampler: Sampler, bench: Bench) -> PromptPlan:
    """The words of one walk of `sampler`, from the cache where they were encoded before.

    A1111 counts evaluations of the network where it says steps, and finds LoRA tags in the prompt only.
    """
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
    return encoder.plan(prompt, request.negative_prompt, Pass(steps=request.steps * sampler.evaluations))


def _sigma_table(checkpoint: LoadedCheckpoint) -> SigmaTable:
    """The noise levels that the checkpoint was trained on."""
    return SigmaTable.from_alphas(checkpoint.alphas_cumprod.tolist(), is_xl=checkpoint.family == "sdxl")


def _denoiser(
    request: DiffusionRequest,
    plan: PromptPlan,
    sampler: Sampler,
    sigmas: Sequence[float],
    bench: Bench,
    canvas: Canvas,
    stack: ExitStack,
) -> Denoiser:
    """The network under guidance as a denoiser for one walk down `sigmas`, and after it the refiner's.

    With a mask, it keeps the canvas's picture outside it. The refiner stays loaded until `stack` is closed.
    """
    denoiser: Denoiser = _network(request, plan, sampler, sigmas, bench, stack, beside=canvas.beside)
    if bench.refine is not None:
        refine, latents = bench.refine, bench.checkpoint.scaling_factor

        def take_over(made: int) -> Denoiser:
            # Its weights outlive this request, so they must not be made as tensors of inference alone.
            with torch.inference_mode(mode=False):
                refined = stack.enter_context(refine())
            if refined.checkpoint.scaling_factor != latents or refined.checkpoint.input != "latents":
                raise UserError(
                    f"The refiner {refined.checkpoint.info.name!r} works on latents of another kind than"
                    f" {bench.checkpoint.info.name!r}; choose a refiner of the same family."
                )
            stack.enter_context(placed(refined.checkpoint.unet, refined.device))
            return _network(request, _plan(request, sampler, refined), sampler, sigmas, refined, stack, made=made)

        evaluations = sampler.evaluations * (len(sigmas) - 1)
        before = evaluations_before(request.refiner_switch_at, evaluations)
        denoiser = RefinedDenoiser(denoiser, take_over, before=before)
    if canvas.mask is None or canvas.latents is None:
        return denoiser
    return MaskedDenoiser(denoiser, canvas.latents, canvas.mask)


def _network(
    request: DiffusionRequest,
    plan: PromptPlan,
    sampler: Sampler,
    sigmas: Sequence[float],
    bench: Bench,
    stack: ExitStack,
    *,
    beside: Tensor | None = None,
    made: int = 0,
) -> Denoiser:
    """The bench's network under guidance, for a walk of which `made` evaluations are past; see `Canvas.beside`.

    The network has the request's extras until `stack` is closed.
    """
    stack.enter_context(patched_unet(bench.checkpoint.unet, request.extras))
    predict = Guided(
        bench.checkpoint.unet,
        plan,
        cfg_scale=sampler.scale(request.cfg_scale),
        guidance=request.guidance,
        evaluations=sampler.evaluations * (len(sigmas) - 1),
        beside=beside,
        edits=bench.checkpoint.input == "edit",
        needs_negative=sampler.plus_plus,
        pag_scale=request.extras.pag_scale,
        sag_scale=request.extras.sag_scale,
        prediction_type=bench.checkpoint.prediction_type,
        made=made,
    )
    denoiser = NetworkDenoiser(
        predict,
        bench.checkpoint.prediction_type,
        timestep=_sigma_table(bench.checkpoint).timestep,
        sigmas=sigmas,
        device=bench.device,
    )
    return adjusted(denoiser, request.extras, request.cfg_scale)


def _walk_noise(
    sampler: Sampler,
    noise: Noise,
    picture: DiffusionRequest,
    schedule: Sequence[float],
    shape: tuple[int, ...],
    device: torch.device,
) -> NoiseSource:
    """What the sampler draws on the way: the streams of `noise`, or a Brownian path over the whole schedule."""
    levels = schedule[:-1]
    if not sampler.brownian or len(levels) < 2:
        return noise
    return BrownianNoise(
        noise.seeds,
        lambda seed: open_stream(seed, picture.noise_source, device)(shape),
        sigma_min=levels[-1],
        sigma_max=levels[0],
        device=device,
    )


def _as_events(
    walk: Generator[SamplerStep, None, Tensor | None],
    render: Render | None,
    *,
    batch: int,
    before: int,
    total: int,
) -> Generator[Step, None, Tensor | None]:
    """The steps of one walk as events, counted on from `before`; returns what `walk` returns."""
    while True:
        try:
            step = next(walk)
        except StopIteration as end:
            return end.value
        yield Step(
            index=before + step.index + 1,
            total=total,
            batch=batch,
            sigma=step.sigma,
            preview=preview_of(step.denoised, render),
        )
