"""SD upscale: a picture enlarged by a pixel upscaler, then gone over by img2img tile by tile.

The recipe of `webui.engine.generate` runs once a tile, on a request of the tile's size; here is only what is cut,
counted and joined. Nothing here knows models.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from PIL import Image

from webui.core.events import Event, Finished, ImageReady, Notice, Started, Step
from webui.core.geometry import Size
from webui.core.pictures import flattened
from webui.core.ports import Control
from webui.core.requests import Img2Img, ResizeMode, SdUpscale
from webui.engine.bench import Bench
from webui.engine.generate import generate, infotext_of, pictures_at_once, singles_of
from webui.engine.img2img import walk_of
from webui.engine.passes import make_pass
from webui.engine.pixels import read_image
from webui.engine.upscale.recipe import require_room
from webui.engine.upscale.tiling import Strip, strips
from webui.engine.upscale.upscalers import Upscaler

Picture = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile's place in the enlarged picture, and its own place in the order of tiles."""

    index: int
    row: Strip
    column: Strip

    def cut(self, picture: Image.Image) -> bytes:
        """The tile as PNG."""
        buffer = io.BytesIO()
        box = (self.column.start, self.row.start, self.column.end, self.row.end)
        picture.crop(box).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def join(self, whole: Picture, made: Image.Image) -> None:
        """Adds `made`, the finished tile, to `whole` (height, width, 3), by its weights."""
        weights = (self.row.weights[:, None] * self.column.weights).numpy()[..., None]
        whole[self.row.start : self.row.end, self.column.start : self.column.end] += np.asarray(made) * weights


def sd_upscale(request: Img2Img, bench: Bench, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
    """The events of `request` from batch `start_batch` on; closing it stops within one step.

    Steps are the upscaler's, then those of every tile of every batch. A batch that is skipped makes no pictures.
    Raises as `generate` and the upscaler do, and `OutOfMemory` for a result that main memory cannot hold.
    """
    # 1. The picture and where it goes.
    with bench.phases("prepare"):
        picture = flattened(read_image(request.init_image, "picture to start from"), request.start.background)
        size = Size(*picture.size)
        target = size.scaled(request.sd_upscale.scale)
        require_room(target)
    upscaler = bench.upscaler(request.sd_upscale.upscaler)
    tiles = _tiles(target, request.size, request.sd_upscale.overlap)
    count = _Count(request, bench, enlarging=upscaler.steps(size, target), tiles=len(tiles))
    yield Started(
        total_images=request.total_images,
        total_steps=count.total,
        checkpoint=bench.checkpoint.info.name,
        attention=bench.attention,
    )

    # 2. Larger, and as large as a tile at least.
    with bench.phases("upscale"):
        enlarged = yield from _enlarged(upscaler, picture, target, count)
        enlarged = _padded(enlarged, request.size)

    # 3. Each batch: tile after tile, joined.
    for batch in range(start_batch, request.batch_count):
        made = yield from _gone_over(request, bench, control, enlarged, tiles, batch, count)
        first = batch * request.batch_size
        singles = singles_of(request, range(first, first + len(made)), bench.device)
        for index, (whole, single) in enumerate(zip(made, singles, strict=True)):
            image = Image.fromarray(whole.round().clip(0, 255).astype(np.uint8))
            yield ImageReady(
                index=first + index,
                image=image.crop((0, 0, target.width, target.height)),
                seed=single.seed,
                infotext=infotext_of(single, bench, bench),
            )
        control.take_skip()

    # 4. What it took.
    yield Finished(seconds=dict(bench.phases.seconds))


class _Count:
    """Steps over the whole request: first those of enlarging, then `per_tile` for each tile of each batch."""

    def __init__(self, request: Img2Img, bench: Bench, *, enlarging: int, tiles: int) -> None:
        walk = make_pass(request, bench, walk_of(request))
        at_once = pictures_at_once(request, bench, one_by_one=walk.sampler.one_by_one)
        self.per_tile = walk.steps * request.batch_size // at_once
        self.enlarging = enlarging
        self._tiles = tiles
        self.total = enlarging + self.per_tile * tiles * request.batch_count

    def of(self, step: Step, batch: int, tile: _Tile) -> Step:
        """`step` of a tile's own request, as one of all."""
        before = self.enlarging + (batch * self._tiles + tile.index) * self.per_tile
        return dataclasses.replace(step, index=before + step.index, total=self.total, batch=batch)


def _tiles(size: Size, tile: Size, overlap: int) -> list[_Tile]:
    rows = strips(max(size.height, tile.height), tile.height, overlap, 1)
    columns = strips(max(size.width, tile.width), tile.width, overlap, 1)
    places = [(row, column) for row in rows for column in columns]
    return [_Tile(index, row, column) for index, (row, column) in enumerate(places)]


def _enlarged(
    upscaler: Upscaler, picture: Image.Image, target: Size, count: _Count
) -> Generator[Event, None, Image.Image]:
    done = 0
    going = upscaler.enlarge(picture, target)
    while True:
        try:
            notice = next(going)
        except StopIteration as end:
            return end.value
        if notice is not None:
            yield notice
            continue
        done += 1
        yield Step(index=done, total=count.total, batch=0)


def _padded(picture: Image.Image, least: Size) -> Image.Image:
    """`picture` with its last row and column repeated until it has the size of a tile."""
    below, right = max(0, least.height - picture.height), max(0, least.width - picture.width)
    if not below and not right:
        return picture
    return Image.fromarray(np.pad(np.asarray(picture), ((0, below), (0, right), (0, 0)), "edge"))


def _gone_over(
    request: Img2Img,
    bench: Bench,
    control: Control,
    enlarged: Image.Image,
    tiles: Sequence[_Tile],
    batch: int,
    count: _Count,
) -> Generator[Event, None, list[Picture]]:
    """The steps of `batch`, and its pictures (height, width, 3) in 0…255; none if it was skipped."""
    made: list[Picture] = [
        np.zeros((enlarged.height, enlarged.width, 3), dtype=np.float32) for _ in range(request.batch_size)
    ]
    for tile in tiles:
        asked = _for_tile(request, tile.cut(enlarged), batch, tile)
        ready = 0
        with closing(generate(asked, bench, control=control)) as events:
            for event in events:
                if isinstance(event, Step):
                    yield count.of(event, batch, tile)
                elif isinstance(event, Notice):
                    yield event
                elif isinstance(event, ImageReady):
                    tile.join(made[event.index], event.image)
                    ready += 1
        if ready < request.batch_size:
            return []
    return made


def _for_tile(request: Img2Img, png: bytes, batch: int, tile: _Tile) -> Img2Img:
    """What makes one tile of the pictures of `batch`, each with the seed of its picture plus the tile's place.

    With one noise for all tiles, what it suggests would come back in each of them.
    """
    first = batch * request.batch_size
    variation = request.variation
    if variation.strength > 0:
        variation = dataclasses.replace(variation, seed=variation.seed + first)
        first = 0
    return dataclasses.replace(
        request,
        init_image=png,
        resize_mode=ResizeMode.STRETCH,
        batch_count=1,
        seed=request.seed + first + tile.index,
        variation=variation,
        sd_upscale=SdUpscale(),
    )
