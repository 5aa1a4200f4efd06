"""What an upscaler is to whoever needs a larger picture: upscale tab, hires fix, SD upscale. And the built-in filters.

An upscaler reaches any size in one call; how many passes and tiles that takes is its own business. Networks are in
`tiled`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from webui.core.catalogue import BUILT_IN_UPSCALERS
from webui.core.events import Notice
from webui.core.geometry import Size

# An upscale under way: it yields None after each of its steps, a `Notice` for what went otherwise than asked, and
# returns the picture. Closing it ends it within one step.
Enlarging = Generator[Notice | None, None, Image.Image]

_FILTERS: dict[str, Image.Resampling] = dict(
    zip(BUILT_IN_UPSCALERS, (Image.Resampling.LANCZOS, Image.Resampling.NEAREST), strict=True)
)


class Upscaler(Protocol):
    """One way to make a picture larger. One thread uses it, for one picture at a time."""

    def steps(self, size: Size, target: Size) -> int:
        """How many steps `enlarge` takes from `size` to `target`; at least one."""
        ...

    def enlarge(self, image: Image.Image, target: Size) -> Enlarging:
        """The RGB picture `image` at exactly the size `target`, as RGB."""
        ...


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of Pillow's: any size in one step. Implements `Upscaler`; takes pictures of any mode."""

    resample: Image.Resampling

    def steps(self, size: Size, target: Size) -> int:  # noqa: ARG002  # the protocol's arguments
        """Always one."""
        return 1

    def enlarge(self, image: Image.Image, target: Size) -> Enlarging:
        """`image` resampled; equal to Pillow's own `resize`."""
        made = resized(image, target, self.resample)
        yield None
        return made


def built_in(name: str) -> Filter | None:
    """The filter of that name, None where it is no filter's."""
    resample = _FILTERS.get(name)
    return None if resample is None else Filter(resample)


def enlarge(image: Image.Image, target: Size, upscaler: Upscaler, *, say: Callable[[str], None]) -> Image.Image:
    """The RGB picture at the size `target` in one go, for whoever shows no steps; `say` is told notices."""
    going = upscaler.enlarge(image, target)
    while True:
        try:
            notice = next(going)
        except StopIteration as end:
            return end.value
        if notice is not None:
            say(notice.text)


def pass_sizes(size: Size, target: Size, scale: int) -> list[Size]:
    """The sizes at which the passes of a network that enlarges by `scale` begin, on the way from `size` to `target`.

    The last of several passes begins where it ends at the target, so a picture is made smaller before it: beginning at
    all that the pass before made looks no better (drawings at x5 and x8, by eye and by error) and takes several times
    as long. A network that keeps the size runs once; others run at least once for a picture that stays as large as it
    is, and not at all for one that becomes smaller.
    """
    if scale > 1 and size != target and size.width >= target.width and size.height >= target.height:
        return []
    sizes = [size]
    while scale > 1 and (size.width * scale < target.width or size.height * scale < target.height):
        size = Size(
            min(size.width * scale, math.ceil(target.width / scale)),
            min(size.height * scale, math.ceil(target.height / scale)),
        )
        sizes.append(size)
    return sizes


def resized(image: Image.Image, size: Size, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """`image` at `size`; itself where it has that size."""
    return image if image.size == (size.width, size.height) else image.resize((size.width, size.height), resample)
