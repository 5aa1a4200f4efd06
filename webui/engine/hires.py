"""Hires fix: the first pass's pictures made larger, and denoised once more from the noise that its strength says.

How large, and what the second pass is asked, is in `webui.core.hires`; the walk itself is a `webui.engine.passes.Pass`
like any other. As in A1111 it walks exactly as many steps as are asked for, its noise is drawn anew from the same seeds
at its own size, prompt editing goes on counting, and a refiner takes over in the second pass alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing

import torch
from PIL import Image
from torch import Tensor

from webui.core.catalogue import LATENT_UPSCALERS
from webui.core.errors import InvalidRequest, UserError
from webui.core.events import Notice, Step
from webui.core.geometry import Size
from webui.core.hires import enlargement, second_pass
from webui.core.pictures import WHITE, flattened
from webui.core.requests import DiffusionRequest, Txt2Img
from webui.engine.bench import Bench
from webui.engine.canvas import Canvas
from webui.engine.img2img import walk
from webui.engine.latent_resize import enlarge_latents
from webui.engine.notices import Notices
from webui.engine.passes import LATENT_PIXELS, OnePass, Pass, Place, make_pass, same_latents
from webui.engine.pixels import decode, encode, read_image, to_images, to_pixels
from webui.engine.unet_input import beside_latents
from webui.engine.upscale.upscalers import Enlarging

# The pictures of a batch: as latents (N, 4, h, w), or decoded.
Made = Tensor | list[Image.Image]


class TwoPasses:
    """`first`, the first pass of `request`, and after it the second: `webui.engine.passes.Passes` with hires fix.

    Raises `UpscalerNotFound` or `UnsupportedModel` for the upscaler, and `UnreadableImage` or `InvalidRequest` for a
    finished picture that cannot be the first pass.
    """

    def __init__(self, request: Txt2Img, first: OnePass) -> None:
        self._request = second_pass(request)
        self._asked = request.hires
        self._first_size = request.size
        self._sizes = enlargement(request)
        self._first = first
        self._bench = first.walk.bench
        self._finished = _finished_picture(request)
        latent = self._asked.upscaler in LATENT_UPSCALERS
        self._upscaler = None if latent else self._bench.upscaler(self._asked.upscaler)
        self._expected = self._walk_on(self._bench)

    @property
    def one_by_one(self) -> bool:
        """See `Passes`."""
        return self._first.one_by_one or self._expected.sampler.one_by_one

    def steps(self, pictures: int) -> int:
        """See `Passes`: those of the first pass, the upscaler's for each picture, those of the second pass."""
        first = self._first.steps(pictures) if self._finished is None else 0
        return first + self._tiles * pictures + self._expected.steps

    def encode(self) -> None:
        """See `Passes`."""
        if self._finished is None:
            self._first.encode()

    def run(
        self, singles: Sequence[DiffusionRequest], place: Place, stack: ExitStack
    ) -> Generator[Step | Notice, None, tuple[Tensor | None, Bench]]:
        """See `Passes`. Raises `UserError` for a hires checkpoint whose latents are of another kind."""
        pictures = len(singles)
        if self._finished is not None:
            made: Made | None = [self._finished] * pictures
        else:
            made, _ = yield from self._first.run(singles, place, stack)
            place = place.later(self._first.steps(pictures))
        large = None if made is None else (yield from self._enlarged(made, place))
        if large is None:
            return None, self._bench
        bench = self._laid_out(stack, place.notices)
        with bench.vae_at_work(self._request.extras, "prepare"):
            latents = (large if isinstance(large, Tensor) else _encoded(large, bench, place.notices)).to(bench.device)
            canvas = Canvas(latents=latents, beside=self._beside(latents, bench))
        again = self._walk_on(bench)
        with bench.phases("encode"):
            plan = again.words()
        return (yield from again.walk(canvas, plan, singles, place.later(self._tiles * pictures))), bench

    def _enlarged(self, made: Made, place: Place) -> Generator[Step | Notice, None, Made | None]:
        """`made` at the second pass's size: latents by a latent upscaler, else pictures; None if it was skipped.

        An upscaler's tiles are steps without a preview.
        """
        bench, upscaler = self._bench, self._upscaler
        if upscaler is None:
            if not isinstance(made, Tensor):
                with bench.vae_at_work(self._request.extras, "prepare"):
                    made = _encoded(made, bench, place.notices)
            return self._middle(enlarge_latents(made, _latent(self._sizes.cover), self._asked.upscaler))
        if isinstance(made, Tensor):
            with bench.vae_at_work(self._request.extras, "decode"):
                vae, factor = bench.checkpoint.vae, bench.checkpoint.scaling_factor
                pixels = decode(vae, made, factor, tile=bench.vae_tile, say=place.notices.say)
                made = to_images(pixels)
        (left, top), size = self._sizes.offset, self._sizes.target
        large: list[Image.Image] = []
        with bench.phases("upscale"):
            for index, picture in enumerate(made):
                tiles = upscaler.enlarge(picture, self._sizes.cover)
                enlarged = yield from _as_events(tiles, place.later(self._tiles * index))
                if enlarged is None:
                    return None
                large.append(enlarged.crop((left, top, left + size.width, top + size.height)))
        return large

    def _laid_out(self, stack: ExitStack, notices: Notices) -> Bench:
        if self._bench.hires is None:
            return self._bench
        # Its weights outlive this request, so they must not be made as tensors of inference alone.
        with torch.inference_mode(mode=False), self._bench.phases("load"):
            bench = stack.enter_context(self._bench.hires())
        if not same_latents(bench.checkpoint, self._bench.checkpoint):
            raise UserError(
                f"The hires checkpoint {bench.checkpoint.info.name!r} works on latents of another kind than"
                f" {self._bench.checkpoint.info.name!r}; choose one of the same family."
            )
        notices.say(*bench.notices)
        return dataclasses.replace(bench, phases=self._bench.phases)

    @property
    def _tiles(self) -> int:
        return 0 if self._upscaler is None else self._upscaler.steps(self._first_size, self._sizes.cover)

    def _walk_on(self, bench: Bench) -> Pass:
        steps = walk(self._request.steps, self._asked.denoising_strength, exact=True)
        return make_pass(self._request, bench, steps, earlier=self._first.walk.counted.steps)

    def _middle(self, latents: Tensor) -> Tensor:
        left, top = (offset // LATENT_PIXELS for offset in self._sizes.offset)
        height, width = _latent(self._sizes.target)
        return latents[:, :, top : top + height, left : left + width]

    def _beside(self, latents: Tensor, bench: Bench) -> Tensor | None:
        """What the second pass's UNet takes beside the latents; for an edit model, the picture that is enlarged."""
        if bench.checkpoint.input == "edit":
            return latents / bench.checkpoint.scaling_factor
        beside = beside_latents(bench.checkpoint, self._sizes.target, tile=bench.vae_tile)
        return None if beside is None else beside.to(bench.device)


def _as_events(tiles: Enlarging, place: Place) -> Generator[Step | Notice, None, Image.Image | None]:
    """The steps of an upscaler as those of the request; returns its picture, or None if it was skipped."""
    index = 0
    with closing(tiles):
        while True:
            try:
                notice = next(tiles)
            except StopIteration as end:
                return end.value
            if notice is not None:
                place.notices.say(notice.text)
                yield from place.notices.take()
                continue
            yield place.step(index)
            index += 1
            if place.control.take_skip():
                return None


def _finished_picture(request: Txt2Img) -> Image.Image | None:
    if not request.hires.first_pass:
        return None
    picture = read_image(request.hires.first_pass, "picture to upscale")
    if picture.size != (request.width, request.height):
        raise InvalidRequest(
            f"The picture to upscale is {picture.width}x{picture.height} and the request says {request.size};"
            " give the picture's own size."
        )
    return flattened(picture, WHITE)


def _encoded(pictures: Sequence[Image.Image], bench: Bench, notices: Notices) -> Tensor:
    """(N, 4, h, w); one picture at a time, so that each is the same alone and in a batch."""
    vae, factor = bench.checkpoint.vae, bench.checkpoint.scaling_factor
    tile, say = bench.vae_tile, notices.say
    rows = [encode(vae, to_pixels(picture), factor, tile=tile, say=say) for picture in pictures]
    return torch.cat(rows)


def _latent(size: Size) -> tuple[int, int]:
    """(h, w) of latents for `size`."""
    return size.height // LATENT_PIXELS, size.width // LATENT_PIXELS
