"""What hires fix asks for: the size of its second pass, and that pass as a request of its own. Pure.

Sizes are A1111's: cut to whole latent pixels (8 pixels of the picture), never rounded up.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from webui.core.catalogue import DIMENSION_STEP
from webui.core.geometry import Size
from webui.core.requests import DiffusionRequest, HiresFix, Txt2Img


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlargement:
    """How a first pass becomes larger: it is enlarged to `cover`, of which the middle of size `target` remains.

    Both are whole latent pixels; they differ only where a width and a height of another shape were asked for.
    """

    cover: Size
    target: Size

    @property
    def offset(self) -> tuple[int, int]:
        """(left, top) of what remains, in pixels, whole latent pixels; an odd one more is cut off at the end."""
        return _middle(self.cover.width, self.target.width), _middle(self.cover.height, self.target.height)


def enlargement(request: Txt2Img) -> Enlargement:
    """The size of the second pass, by scale or by width and height; one side of 0 follows the other."""
    hires, first = request.hires, request.size
    if not hires.width and not hires.height:
        size = Size(_whole(first.width * hires.scale), _whole(first.height * hires.scale))
        return Enlargement(cover=size, target=size)
    by_width = Size(_whole(hires.width), _whole(hires.width * first.height / first.width))
    by_height = Size(_whole(hires.height * first.width / first.height), _whole(hires.height))
    if not hires.height:
        return Enlargement(cover=by_width, target=by_width)
    if not hires.width:
        return Enlargement(cover=by_height, target=by_height)
    wider = first.width * hires.height < hires.width * first.height
    target = Size(_whole(hires.width), _whole(hires.height))
    return Enlargement(cover=by_width if wider else by_height, target=target)


def second_pass(request: Txt2Img) -> Txt2Img:
    """The second pass alone: what `request.hires` leaves open is the first pass's."""
    hires, target = request.hires, enlargement(request).target
    extras = request.extras
    if hires.token_merging is not None:
        extras = dataclasses.replace(extras, token_merging=hires.token_merging)
    return dataclasses.replace(
        request,
        prompt=hires.prompt or request.prompt,
        negative_prompt=hires.negative_prompt or request.negative_prompt,
        checkpoint=hires.checkpoint or request.checkpoint,
        sampler=hires.sampler or request.sampler,
        schedule_type=hires.schedule_type or request.schedule_type,
        steps=hires.steps or request.steps,
        cfg_scale=hires.cfg_scale or request.cfg_scale,
        width=target.width,
        height=target.height,
        extras=extras,
        hires=HiresFix(),
    )


def largest_size(request: DiffusionRequest) -> Size:
    """The size that the request's work takes most memory at."""
    if isinstance(request, Txt2Img) and request.hires.enabled:
        target = enlargement(request).target
        return max(request.size, target, key=lambda size: size.area)
    return request.size


def _whole(length: float) -> int:
    """`length` cut to whole latent pixels; a thousandth of a pixel is a rounding error of the scale."""
    return int(length + 1e-3) // DIMENSION_STEP * DIMENSION_STEP


def _middle(length: int, kept: int) -> int:
    return (length - kept) // DIMENSION_STEP // 2 * DIMENSION_STEP
