"""How a picture is made. Read this first: `generate` is the recipe, its numbered steps lead to every other module.

Txt2img, img2img and inpaint share it; what they start from is told apart in `canvas`, how they denoise is in `passes`.
Upscaling is another recipe, in `upscale`. Nothing here owns a model, a lock or a thread: that is `manager`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from webui.core.events import Event, Finished, ImageReady, Started
from webui.core.infotext import format_infotext
from webui.core.ports import Control
from webui.core.requests import DiffusionRequest, alone
from webui.engine.bench import Bench
from webui.engine.canvas import make_canvas
from webui.engine.img2img import walk_of
from webui.engine.noise import settled_source
from webui.engine.notices import Notices
from webui.engine.passes import Place, make_pass
from webui.engine.pixels import decode, to_images


@torch.inference_mode()
def generate(request: DiffusionRequest, bench: Bench, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
    """The events of `request` from batch `start_batch` on; closing it stops within one step.

    Raises `UnreadableImage`, `InvalidRequest` and `UserError`; running out of memory comes through as torch says it.
    """
    checkpoint, notices = bench.checkpoint, Notices()
    notices.say(*bench.notices)

    # 1. The noise levels to walk through: the schedule type's, from this model's own table, or the last of them.
    walk = make_pass(request, bench, walk_of(request))

    # 2. The picture to start from, if there is one.
    with bench.vae_at_work(request.extras, "prepare"):
        canvas = make_canvas(request, checkpoint, bench.device)

    at_once = 1 if walk.sampler.one_by_one else request.batch_size
    total = walk.steps * request.total_images // at_once
    yield Started(
        total_images=request.total_images,
        total_steps=total,
        checkpoint=checkpoint.info.name,
        attention=bench.attention,
    )
    yield from notices.take()

    # 3. The words.
    with bench.phases("encode"):
        plan = walk.words()

    for first in range(start_batch * request.batch_size, request.total_images, at_once):
        # 4. From noise, a stream for each picture, to latents, step by step.
        singles = _singles(request, range(first, first + at_once), bench.device)
        place = Place(batch=first // request.batch_size, before=first // at_once * walk.steps, total=total)
        latents = yield from walk.walk(canvas, plan, singles, place=place, control=control, notices=notices)
        if latents is None:
            continue

        # 5. From latents to pictures, each with the text that can make it again.
        with bench.vae_at_work(request.extras, "decode"):
            pictures = to_images(decode(checkpoint.vae, latents, checkpoint.scaling_factor, say=notices.say))
        yield from notices.take()
        for index, picture in enumerate(pictures):
            yield ImageReady(
                index=first + index,
                image=canvas.finish(picture, latents[index]),
                seed=singles[index].seed,
                infotext=_infotext(singles[index], bench),
            )
        # A wish to skip that came too late was for this batch, not for the next.
        control.take_skip()

    # 6. What it took.
    yield Finished(seconds=dict(bench.phases.seconds))


def _singles(request: DiffusionRequest, indices: range, device: torch.device) -> list[DiffusionRequest]:
    """For each of the pictures the request that makes it alone, with the noise source that it really has."""
    request = dataclasses.replace(request, noise_source=settled_source(request.noise_source, device))
    return [alone(request, index) for index in indices]


def _infotext(single: DiffusionRequest, bench: Bench) -> str:
    """The text of the picture that `single` makes; waits for hashes that are still in the making."""
    vae = {"VAE": bench.vae_name, "VAE hash": bench.vae_hash()} if bench.vae_name else {}
    return format_infotext(
        single,
        model=bench.checkpoint.info.name,
        model_hash=bench.model_hash(),
        extra={**vae, **bench.network_hashes()},
    )
