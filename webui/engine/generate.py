"""How a picture is made. Read this first: `generate` is the recipe, its numbered steps lead to every other module.

Txt2img, img2img and inpaint share it; what they start from is told apart in `canvas`, how they denoise is in `passes`,
how they are made larger and denoised again in `hires`. Upscaling is another recipe, in `upscale`. Nothing here owns a
model, a lock or a thread: that is `manager`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import ExitStack

import torch

from webui.core.events import Event, Finished, ImageReady, Started
from webui.core.infotext import format_infotext
from webui.core.ports import Control
from webui.core.requests import DiffusionRequest, Txt2Img, alone
from webui.engine.bench import Bench
from webui.engine.canvas import Canvas, make_canvas
from webui.engine.hires import TwoPasses
from webui.engine.img2img import walk_of
from webui.engine.ladder import Rung
from webui.engine.noise import settled_source
from webui.engine.notices import Notices
from webui.engine.passes import OnePass, Passes, Place, make_pass
from webui.engine.pixels import decode, to_images


@torch.inference_mode()
def generate(
    request: DiffusionRequest, bench: Bench, *, control: Control, start_batch: int = 0
) -> Generator[Event, None, None]:
    """The events of `request` from batch `start_batch` on; closing it stops within one step.

    Raises `UnreadableImage`, `InvalidRequest` and `UserError`; running out of memory comes through as torch says it.
    """
    checkpoint, notices = bench.checkpoint, Notices()
    notices.say(*bench.notices)

    # 1. The picture to start from, if there is one.
    with bench.vae_at_work(request.extras, "prepare"):
        canvas = make_canvas(request, checkpoint, bench.device, tile=bench.vae_tile)

    # 2. The noise levels to walk through: the schedule type's, from this model's own table, or the last of them.
    passes = _passes(request, bench, canvas)
    at_once = pictures_at_once(request, bench, one_by_one=passes.one_by_one)
    steps = passes.steps(at_once)
    total = steps * request.total_images // at_once
    yield Started(
        total_images=request.total_images,
        total_steps=total,
        checkpoint=checkpoint.info.name,
        attention=bench.attention,
    )
    yield from notices.take()

    # 3. The words.
    passes.encode()

    for first in range(start_batch * request.batch_size, request.total_images, at_once):
        # 4. From noise, a stream for each picture, to latents, step by step; with hires fix, once more and larger.
        singles = singles_of(request, range(first, first + at_once), bench.device)
        batch, before = first // request.batch_size, first // at_once * steps
        place = Place(batch=batch, before=before, total=total, control=control, notices=notices)
        with ExitStack() as stack:
            latents, last = yield from passes.run(singles, place, stack)
            if latents is None:
                continue

            # 5. From latents to pictures, each with the text that can make it again.
            with last.vae_at_work(request.extras, "decode"):
                vae, factor = last.checkpoint.vae, last.checkpoint.scaling_factor
                pictures = to_images(decode(vae, latents, factor, tile=bench.vae_tile, say=notices.say))
        yield from notices.take()
        for index, picture in enumerate(pictures):
            yield ImageReady(
                index=first + index,
                image=canvas.finish(picture, latents[index]),
                seed=singles[index].seed,
                infotext=infotext_of(singles[index], bench, last),
            )
        # A wish to skip that came too late was for this batch, not for the next.
        control.take_skip()

    # 6. What it took.
    yield Finished(seconds=dict(bench.phases.seconds))


def _passes(request: DiffusionRequest, bench: Bench, canvas: Canvas) -> Passes:
    """The walks of `request`: one from `canvas`, and with hires fix another, in which alone the refiner takes over."""
    hires = isinstance(request, Txt2Img) and request.hires.enabled
    first = OnePass(make_pass(request, bench, walk_of(request), refines=not hires), canvas)
    return TwoPasses(request, first) if isinstance(request, Txt2Img) and hires else first


def pictures_at_once(request: DiffusionRequest, bench: Bench, *, one_by_one: bool) -> int:
    """How many pictures of a batch are walked together: all, or one where the sampler or memory wants it."""
    return 1 if one_by_one or Rung.SINGLY in bench.economy else request.batch_size


def singles_of(request: DiffusionRequest, indices: range, device: torch.device) -> list[DiffusionRequest]:
    """For each of the pictures the request that makes it alone, with the noise source that it really has."""
    request = dataclasses.replace(request, noise_source=settled_source(request.noise_source, device))
    return [alone(request, index) for index in indices]


def infotext_of(single: DiffusionRequest, bench: Bench, last: Bench) -> str:
    """The text of the picture that `single` makes, decoded on `last`; waits for hashes still in the making."""
    vae = {"VAE": bench.vae_name, "VAE hash": bench.vae_hash()} if bench.vae_name else {}
    return format_infotext(
        single, model=bench.checkpoint.info.name, model_hash=bench.model_hash(), extra={**vae, **last.network_hashes()}
    )
