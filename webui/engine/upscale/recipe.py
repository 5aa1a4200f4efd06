"""How a picture is enlarged: filter or network, tile by tile, then exactly to the size asked for."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webui.core.events import Event, Finished, ImageReady, Started, Step
from webui.core.geometry import Size
from webui.core.ports import Control
from webui.core.requests import Upscale
from webui.engine.phases import Phases
from webui.engine.pixels import read_image
from webui.engine.upscale.network import UpscalerNetwork
from webui.engine.upscale.tiling import strips

FILTERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


@torch.inference_mode()
def upscale(request: Upscale, network: UpscalerNetwork | None, *, control: Control) -> Iterator[Event]:
    """The events of `request`; one `Step` a tile. `network` is None for the built-in filters.

    Transparency is kept (enlarged by Lanczos, or by the filter). Raises `UnreadableImage`.
    """
    phases = Phases()

    # 1. The picture, its transparency apart.
    with phases("prepare"):
        source = read_image(request.image, "picture to upscale")
        text = str(source.info.get("parameters", ""))
        alpha = source.getchannel("A") if source.mode == "RGBA" else None
        colours = source.convert("RGB")
    target = Size(*source.size).scaled(request.scale)

    # 2. The colours, by tiles if a network does it.
    resample = FILTERS.get(request.upscaler, Image.Resampling.LANCZOS)
    total = 1 if network is None else _tile_count(source.size, request)
    yield Started(total_images=1, total_steps=total)
    if network is None:
        yield Step(index=1, total=1, batch=0)
    else:
        with phases("upscale"):
            made = yield from _by_network(colours, network, request, total, control)
        if made is None:
            yield Finished(seconds=dict(phases.seconds))
            return
        colours = made

    # 3. Exactly the size asked for, the transparency back, and a text that says what was done.
    with phases("resize"):
        image = _resized(colours, target, resample)
        if alpha is not None:
            image.putalpha(_resized(alpha, target, resample))
    yield ImageReady(index=0, image=image, seed=0, infotext=_infotext(text, request))
    yield Finished(seconds=dict(phases.seconds))


def _resized(image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    return image.resize((size.width, size.height), resample)


def _tile_count(size: tuple[int, int], request: Upscale) -> int:
    columns, rows = (len(strips(length, request.tile, request.overlap, 1)) for length in size)
    return columns * rows


def _by_network(
    image: Image.Image, network: UpscalerNetwork, request: Upscale, total: int, control: Control
) -> Generator[Step, None, Image.Image | None]:
    """`image` enlarged by the network's own scale, or None if it was skipped."""
    # (3, h, w) in 0…1; tiles go to the device one by one and the sum stays in main memory.
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1).div_(255)
    scale = network.scale
    result = torch.zeros(3, image.height * scale, image.width * scale)
    index = 0
    for row in strips(image.height, request.tile, request.overlap, scale):
        for column in strips(image.width, request.tile, request.overlap, scale):
            if control.take_skip():
                return None
            tile = pixels[:, row.start : row.end, column.start : column.end].unsqueeze(0).contiguous()
            made: Tensor = network.run(tile.to(network.device))[0].float().cpu()
            where = result[:, row.start * scale : row.end * scale, column.start * scale : column.end * scale]
            where += made * row.weights[:, None] * column.weights
            index += 1
            yield Step(index=index, total=total, batch=0)
    array = result.mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array)


def _infotext(text: str, request: Upscale) -> str:
    """What the picture said before, with A1111's pairs for an upscale after it."""
    pairs = f"Postprocess upscale by: {request.scale:g}, Postprocess upscaler: {request.upscaler}"
    return f"{text}, {pairs}" if text else pairs
