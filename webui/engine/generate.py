"""How a picture is made. Read this first: `generate` is the recipe, its numbered steps lead to every other module.

Txt2img, img2img and inpaint share it; what they start from is told apart in `canvas`. Upscaling is another recipe,
in `upscale`. Nothing here owns a model, a lock or a thread: that is `manager`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from webui.checkpoints.hash import PendingHash
from webui.checkpoints.loaded import LoadedCheckpoint
from webui.core.events import Event, Finished, ImageReady, Notice, Started, Step
from webui.core.infotext import format_infotext
from webui.core.ports import Control
from webui.core.requests import DiffusionRequest, alone
from webui.engine.canvas import Canvas, make_canvas
from webui.engine.conditioning import PromptCache, encode_prompts
from webui.engine.denoise import denoise
from webui.engine.denoiser import Denoiser, DiscreteDenoiser, Predict, masked
from webui.engine.guidance import guided
from webui.engine.noise import Noise, settled_source
from webui.engine.phases import Phases
from webui.engine.pixels import decode, to_images
from webui.engine.placement import placed
from webui.engine.previews import preview_of
from webui.engine.samplers import SamplerStep, find_sampler
from webui.engine.schedules import SigmaTable, make_sigmas

LATENT_CHANNELS = 4
LATENT_PIXELS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the manager lays out for one request: the checkpoint, where it runs and with which attention.

    `prompts` outlives the request; `phases` already holds what loading took. `weights` tells the checkpoint's from any
    others, also from those of a file that took its name. `vae_name` is that of a VAE in place of the checkpoint's own,
    "" without one. The hashes may still be in the making.
    """

    checkpoint: LoadedCheckpoint
    weights: str
    model_hash: PendingHash
    device: torch.device
    attention: str
    vae_name: str = ""
    vae_hash: PendingHash = str
    prompts: PromptCache = field(default_factory=PromptCache)
    phases: Phases = field(default_factory=Phases)


@torch.inference_mode()
def generate(request: DiffusionRequest, bench: Bench, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
    """The events of `request` from batch `start_batch` on; closing it stops within one step.

    Raises `UnreadableImage`, `InvalidRequest` and `UserError`; running out of memory comes through as torch says it.
    """
    checkpoint, phases = bench.checkpoint, bench.phases

    # 1. The noise levels to walk through: the schedule type's, from this model's own table.
    table = SigmaTable.from_alphas(checkpoint.alphas_cumprod.tolist())
    sampler = find_sampler(request.sampler)
    sigmas = make_sigmas(request.schedule_type, table, request.steps, automatic=sampler.automatic)

    # 2. The picture to start from, if there is one; it decides how many of those levels are left.
    with phases("prepare"), placed(checkpoint.vae, bench.device):
        canvas = make_canvas(request, checkpoint, bench.device)
    sigmas = sigmas[canvas.first_step :]
    steps = len(sigmas) - 1
    total = steps * request.batch_count
    yield Started(
        total_images=request.total_images,
        total_steps=total,
        checkpoint=checkpoint.info.name,
        attention=bench.attention,
    )

    # 3. The words.
    with phases("encode"):
        prompt, negative = _encode(request, bench)

    for batch in range(start_batch, request.batch_count):
        # 4. Noise, a stream for each picture, and a denoiser that knows prompt, guidance and mask.
        singles = _singles(request, batch, bench.device)
        noise = Noise(singles, (LATENT_CHANNELS, *_latent_size(request)), bench.device)
        start = noise.start()
        x = canvas.under_noise(start, sigmas[0]) if canvas.latents is not None else sampler.start(start, sigmas[0])
        predict = guided(checkpoint.unet, prompt, negative, request.cfg_scale, request.batch_size)
        denoiser = _denoiser(predict, table, sigmas, bench, canvas)

        # 5. From noise to latents, step by step.
        with phases("denoise"), placed(checkpoint.unet, bench.device):
            walk = denoise(sampler, denoiser, x, sigmas, noise, control)
            latents = yield from _as_events(walk, checkpoint, batch, steps, total)
        if latents is None:
            continue

        # 6. From latents to pictures, each with the text that can make it again.
        notices: list[str] = []
        with phases("decode"), placed(checkpoint.vae, bench.device):
            pictures = to_images(decode(checkpoint.vae, latents, checkpoint.scaling_factor, say=notices.append))
        yield from [Notice(text=sentence) for sentence in notices]
        for index, picture in enumerate(pictures):
            yield ImageReady(
                index=batch * request.batch_size + index,
                image=canvas.finish(picture),
                seed=singles[index].seed,
                infotext=format_infotext(
                    singles[index],
                    model=checkpoint.info.name,
                    model_hash=bench.model_hash(),
                    extra={"VAE": bench.vae_name, "VAE hash": bench.vae_hash()} if bench.vae_name else {},
                ),
            )
        # A wish to skip that came too late was for this batch, not for the next.
        control.take_skip()

    # 7. What it took.
    yield Finished(seconds=dict(phases.seconds))


def _singles(request: DiffusionRequest, batch: int, device: torch.device) -> list[DiffusionRequest]:
    """For each picture of the batch the request that makes it alone, with the noise source that it really has."""
    request = dataclasses.replace(request, noise_source=settled_source(request.noise_source, device))
    first = batch * request.batch_size
    return [alone(request, first + index) for index in range(request.batch_size)]


def _latent_size(request: DiffusionRequest) -> tuple[int, int]:
    """(h, w) of the latents."""
    return request.height // LATENT_PIXELS, request.width // LATENT_PIXELS


def _encode(request: DiffusionRequest, bench: Bench) -> tuple[Tensor, Tensor]:
    """Prompt and negative prompt as (1, tokens, width) of one length, from the cache where they were seen before."""
    checkpoint = bench.checkpoint
    encoder = checkpoint.text_encoders[0]

    def encode() -> tuple[Tensor, Tensor]:
        with placed(encoder.module, bench.device):
            prompt, negative = encode_prompts(
                (request.prompt, request.negative_prompt),
                tokenizer=encoder.tokenizer,
                text_encoder=encoder.module,
            )
        return prompt, negative

    return bench.prompts.get(bench.weights, request.prompt, request.negative_prompt, encode)


def _denoiser(predict: Predict, table: SigmaTable, sigmas: Sequence[float], bench: Bench, canvas: Canvas) -> Denoiser:
    """`predict` as a denoiser on `sigmas`; with a mask, one that keeps the canvas's picture outside it."""
    denoiser = DiscreteDenoiser(predict, table, bench.checkpoint.prediction_type, sigmas=sigmas, device=bench.device)
    if canvas.mask is None or canvas.latents is None:
        return denoiser
    return masked(denoiser, canvas.latents, canvas.mask)


def _as_events(
    walk: Generator[SamplerStep, None, Tensor | None], checkpoint: LoadedCheckpoint, batch: int, steps: int, total: int
) -> Generator[Step, None, Tensor | None]:
    """The steps of one batch as events, counted over the whole request; returns what `walk` returns."""
    while True:
        try:
            step = next(walk)
        except StopIteration as end:
            return end.value
        yield Step(
            index=batch * steps + step.index + 1,
            total=total,
            batch=batch,
            sigma=step.sigma,
            preview=preview_of(step.denoised, checkpoint.latent_to_rgb),
        )
