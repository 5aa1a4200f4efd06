"""Loopback: img2img of its own result, again and again, as A1111's script of that name does it.

The recipe of `webui.engine.generate` runs once a loop, on a request of its own; here is only what each loop is asked
and how all of them count. Nothing here knows models.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Generator
from contextlib import closing

from PIL import Image

from webui.core.events import Event, Finished, ImageReady, Notice, Started, Step
from webui.core.ports import Control
from webui.core.requests import Img2Img, Loopback, StrengthCurve, alone
from webui.engine.bench import Bench
from webui.engine.generate import generate
from webui.engine.img2img import walk_of
from webui.engine.notices import Notices


def loopback(request: Img2Img, bench: Bench, *, control: Control, start_batch: int = 0) -> Generator[Event, None, None]:
    """The events of `request` from batch `start_batch` on; closing it stops within one step.

    Each picture of a batch is a chain of its own that begins with the request's picture. Every loop's result is a
    picture, whose text is that of the img2img which made it from the one before. A skip ends the chain. Raises as
    `generate` does.
    """
    loops, notices = request.loopback.loops, Notices()
    lengths = [_steps(_loop(request, request.init_image, loop)) for loop in range(loops)]
    before = [0, *itertools.accumulate(lengths)]
    chains = request.batch_size * request.batch_count
    total = before[-1] * chains
    yield Started(
        total_images=request.total_images,
        total_steps=total,
        checkpoint=bench.checkpoint.info.name,
        attention=bench.attention,
    )
    picture: bytes | None = None
    for index in range(start_batch * request.images_per_batch, request.total_images):
        chain, loop = divmod(index, loops)
        start = request.init_image if loop == 0 else picture
        if start is None:
            continue
        asked, picture = _loop(request, start, index), None
        with closing(generate(asked, bench, control=control)) as events:
            for event in events:
                if isinstance(event, Step):
                    here = chain * before[-1] + before[loop] + event.index
                    yield dataclasses.replace(event, index=here, total=total, batch=chain // request.batch_size)
                elif isinstance(event, Notice):
                    notices.say(event.text)
                    yield from notices.take()
                elif isinstance(event, ImageReady):
                    picture = _png(event.image)
                    yield dataclasses.replace(event, index=index)
    yield Finished(seconds=dict(bench.phases.seconds))


def strength_at(loopback: Loopback, first: float, loop: int) -> float:
    """The denoising strength of `loop` (from 0), on its way from `first` to the final one.

    A1111's curves over the share of loops that are past: Aggressive is a quarter of a sine, Lazy of a cosine.
    """
    if loopback.loops == 1:
        return first
    share = loop / (loopback.loops - 1)
    if loopback.curve is StrengthCurve.AGGRESSIVE:
        share = math.sin(share * math.pi / 2)
    elif loopback.curve is StrengthCurve.LAZY:
        share = 1 - math.cos(share * math.pi / 2)
    return first + (loopback.final_strength - first) * share


def _loop(request: Img2Img, picture: bytes, index: int) -> Img2Img:
    """What makes picture `index` (from 0) of the request from `picture`; its seed is one more with each."""
    strength = strength_at(request.loopback, request.denoising_strength, index % request.loopback.loops)
    return dataclasses.replace(
        alone(request, index), init_image=picture, denoising_strength=strength, loopback=Loopback()
    )


def _steps(request: Img2Img) -> int:
    walk = walk_of(request)
    return walk.steps - walk.first


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
