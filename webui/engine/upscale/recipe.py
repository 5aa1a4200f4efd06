"""How a picture is enlarged: by one upscaler or two, exactly to the size asked for, with its transparency and faces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from webui.core.errors import OutOfMemory
from webui.core.events import Event, Finished, ImageReady, Notice, Started, Step
from webui.core.geometry import Box, Size
from webui.core.ports import Control
from webui.core.requests import Upscale
from webui.engine.phases import Phases
from webui.engine.pixels import read_image
from webui.engine.upscale.infotext import extended
from webui.engine.upscale.transparency import as_colours, enlarged_alpha, visible_colours
from webui.engine.upscale.upscalers import Enlarging, Upscaler
from webui.hardware.memory import free_ram_bytes

# What an enlarged picture takes in main memory: twice its bytes while it is cut to size, and once as the result before.
_BYTES_PER_PIXEL = 9


class Restorer(Protocol):
    """What restores faces; see `webui.engine.faces`."""

    @property
    def kind(self) -> str:
        """GFPGAN or CodeFormer."""
        ...

    def __call__(self, image: Image.Image) -> tuple[Image.Image, int]:
        """The RGB picture with its faces restored, and how many they are."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an upscale ends: the picture is enlarged to `size`, then cut to `box`."""

    size: Size
    box: Box


@dataclass(frozen=True, slots=True)
class _Blend:
    """Two upscalers as one: `visibility` is the second's share. Implements `Upscaler`."""

    first: Upscaler
    second: Upscaler
    visibility: float

    def steps(self, size: Size, target: Size) -> int:
        return self.first.steps(size, target) + self.second.steps(size, target)

    def enlarge(self, image: Image.Image, target: Size) -> Enlarging:
        one = yield from self.first.enlarge(image, target)
        other = yield from self.second.enlarge(image, target)
        return Image.blend(one, other, self.visibility)


@dataclass(slots=True)
class _Counter:
    """Makes a request's `Step`s; `skipped` once it was asked to leave the picture."""

    total: int
    control: Control
    index: int = 0
    skipped: bool = False

    def follow(self, going: Enlarging) -> Generator[Event, None, Image.Image | None]:
        """The events of an upscale, and the picture at its end; None where that was skipped."""
        while not self._skip():
            try:
                notice = next(going)
            except StopIteration as end:
                return end.value
            yield self.step() if notice is None else notice
        going.close()
        return None

    def step(self) -> Step:
        self.index += 1
        return Step(index=self.index, total=self.total, batch=0)

    def _skip(self) -> bool:
        self.skipped = self.skipped or self.control.take_skip()
        return self.skipped


def upscale(
    request: Upscale,
    find: Callable[[str], Upscaler],
    *,
    control: Control,
    restore: Restorer | None = None,
) -> Iterator[Event]:
    """The events of `request`; one `Step` a tile, and one for faces.

    `find` gives the upscaler of a name; `restore`, where the request asks for it, a picture whose faces were restored
    and how many they are. Raises `UnreadableImage`, what `find` and `restore` raise, and `OutOfMemory` for results that
    main memory cannot hold.
    """
    phases = Phases()

    # 1. The picture, its transparency apart, and where it is to end.
    with phases("prepare"):
        source = read_image(request.image, "picture to upscale")
        text = str(source.info.get("parameters", ""))
        alpha = source.getchannel("A") if source.mode == "RGBA" else None
        colours = source.convert("RGB") if alpha is None else visible_colours(source)
        size = Size(*source.size)
        frame = frame_of(request, size)
        require_room(frame.size)
    with phases("load"):
        upscaler = _upscaler(request, find)

    # 2. Colours and alpha, each enlarged and cut to the frame.
    layers = [colours] if alpha is None else [colours, as_colours(alpha)]
    counter = _Counter(upscaler.steps(size, frame.size) * len(layers) + (restore is not None), control)
    yield Started(total_images=1, total_steps=counter.total)
    made: list[Image.Image] = []
    with phases("upscale"):
        for layer in layers:
            enlarged = yield from counter.follow(upscaler.enlarge(layer, frame.size))
            if enlarged is not None:
                made.append(enlarged)
    if counter.skipped:
        yield Finished(seconds=dict(phases.seconds))
        return
    image = made[0].crop(frame.box.corners)

    # 3. Faces, once they are large.
    if restore is not None:
        with phases("faces"):
            image, faces = restore(image)
        yield counter.step()
        if faces == 0:
            yield Notice(text="No face was found in the picture, so none was restored.")

    # 4. The transparency back, and a text that says what was done.
    if alpha is not None:
        image.putalpha(enlarged_alpha(alpha, made[1]).crop(frame.box.corners))
    said = extended(text, request, restorer="" if restore is None else restore.kind)
    yield ImageReady(index=0, image=image, seed=0, infotext=said)
    yield Finished(seconds=dict(phases.seconds))


def frame_of(request: Upscale, size: Size) -> Frame:
    """Where `request` takes a picture of `size`: by its scale, or to its width and height, cut or fitted into them."""
    if not request.width:
        target = size.scaled(request.scale)
        return Frame(target, Box(0, 0, target.width, target.height))
    factors = request.width / size.width, request.height / size.height
    if not request.crop:
        target = size.scaled(min(factors))
        return Frame(target, Box(0, 0, target.width, target.height))
    covering = size.scaled(max(factors))
    target = Size(max(covering.width, request.width), max(covering.height, request.height))
    left, top = (target.width - request.width) // 2, (target.height - request.height) // 2
    return Frame(target, Box(left, top, left + request.width, top + request.height))


def require_room(size: Size) -> None:
    """Raises `OutOfMemory` where main memory cannot hold an upscale to `size`: asking for it would end the process."""
    needed, free = size.area * _BYTES_PER_PIXEL, free_ram_bytes()
    if needed > free:
        raise OutOfMemory(
            f"A picture of {size} needs about {needed / 2**30:.1f} GiB of main memory and {free / 2**30:.1f} GiB are"
            " free; choose a smaller scale, or close other programs."
        )


def _upscaler(request: Upscale, find: Callable[[str], Upscaler]) -> Upscaler:
    first = find(request.upscaler)
    if not request.upscaler_2 or request.upscaler_2_visibility == 0:
        return first
    return _Blend(first, find(request.upscaler_2), request.upscaler_2_visibility)
