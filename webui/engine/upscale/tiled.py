"""A network over a whole picture: mirrored at the edges, tile by tile, by as many passes as the size asked for takes.

Where memory runs out on a tile, that tile is cut again and the work goes on with smaller ones.
"""

from __future__ import annotations

import itertools
import logging

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webui.core.geometry import Size
from webui.engine.notices import Notices
from webui.engine.upscale.network import UpscalerNetwork
from webui.engine.upscale.tiling import Strip, strips
from webui.engine.upscale.upscalers import Enlarging, pass_sizes, resized
from webui.hardware.memory import give_back, is_out_of_memory

logger = logging.getLogger(__name__)

# So many pixels are mirrored around a picture, and cut off again from what becomes of them: as a network sees nothing
# beyond an edge, the outermost pixels would come out worse than the others. Real-ESRGAN's own program takes ten too.
BORDER = 10
# Tiles are not cut below this; memory that does not hold a tile of this size holds nothing.
SMALLEST_TILE = 32


class TiledNetwork:
    """Enlarges by `network` in tiles of at most `tile` pixels that share `overlap`; tile 0 takes a picture whole.

    Implements `webui.engine.upscale.upscalers.Upscaler`. Made for one job: it keeps to the tile size that memory
    turned out to hold.
    """

    def __init__(self, network: UpscalerNetwork, *, tile: int, overlap: int) -> None:
        self._network = network
        self._tile = tile if network.tileable else 0
        self._overlap = overlap
        self._limit = 0  # what memory holds, once it ran out; 0 before
        self._notices = Notices()

    def steps(self, size: Size, target: Size) -> int:
        """One for each tile of each pass; one where nothing has to be enlarged."""
        passes = pass_sizes(size, target, self._network.scale)
        return max(1, sum(len(self._rows(each)) * len(self._columns(each)) for each in passes))

    def enlarge(self, image: Image.Image, target: Size) -> Enlarging:
        """`image` through the network until it is large enough, then by Lanczos to exactly `target`.

        Raises torch's or Python's own errors where memory does not hold even the smallest tile.
        """
        passes = pass_sizes(Size(*image.size), target, self._network.scale)
        for start in passes:
            image = yield from self._one_pass(resized(image, start))
        if not passes:
            yield None
        return resized(image, target)

    def _rows(self, size: Size) -> list[Strip]:
        return self._strips(size.height)

    def _columns(self, size: Size) -> list[Strip]:
        return self._strips(size.width)

    def _strips(self, length: int) -> list[Strip]:
        """Over an axis with its mirrored borders, which do not make a picture that fits into one tile need two."""
        tile = 0 if length <= self._tile else self._tile
        return strips(length + 2 * BORDER, tile, self._overlap, self._network.scale)

    @torch.inference_mode()
    def _one_pass(self, image: Image.Image) -> Enlarging:
        size, scale = Size(*image.size), self._network.scale
        pixels = np.pad(np.asarray(image), ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), "reflect")
        rows, columns = self._rows(size), self._columns(size)
        result = np.empty((pixels.shape[0] * scale, pixels.shape[1] * scale, 3), dtype=np.uint8)
        # Only the tiles of one row are held as numbers: lines that no later row changes become pixels at once.
        band = torch.zeros(3, 0, result.shape[1])
        for row, below in itertools.zip_longest(rows, rows[1:]):
            fresh = (row.end - row.start) * scale - band.shape[1]
            band = torch.cat([band, torch.zeros(3, fresh, result.shape[1])], dim=1)
            for column in columns:
                tile = torch.from_numpy(pixels[row.start : row.end, column.start : column.end])
                _add(band, self._run(tile.permute(2, 0, 1)), row, column, scale)
                yield from self._notices.take()
                yield None
            done = ((row.end if below is None else below.start) - row.start) * scale
            result[row.start * scale : row.start * scale + done] = _as_bytes(band[:, :done])
            band = band[:, done:]
        inside = slice(BORDER * scale, -BORDER * scale)
        return Image.fromarray(np.ascontiguousarray(result[inside, inside]))

    def _run(self, pixels: Tensor) -> Tensor:
        """(3, h, w) uint8 → (3, h · scale, w · scale) in 0…1 by the network, in parts where memory runs out."""
        longest = max(pixels.shape[1:])
        if 0 < self._limit < longest:
            return self._in_parts(pixels)
        precision = self._network.dtype
        try:
            # Contiguous, or the network would work in the order that pictures have, in which some kernels are slow.
            made = self._network.run(pixels.unsqueeze(0).contiguous().float().div_(255))[0]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or longest <= SMALLEST_TILE:
                raise
        else:
            if self._network.dtype != precision:
                self._say(f"The upscaler {self._network.name} overflowed in half precision; it goes on in full.")
            return made
        # Here, outside the except clause, nothing holds what the network had made before it failed.
        give_back(self._network.device)
        self._limit = max(SMALLEST_TILE, longest // 2)
        self._say(f"Memory ran out on a tile of {longest} pixels; the upscale goes on in tiles of {self._limit}.")
        return self._in_parts(pixels)

    def _in_parts(self, pixels: Tensor) -> Tensor:
        scale = self._network.scale
        overlap = min(self._overlap, self._limit // 2)
        rows, columns = (strips(length, self._limit, overlap, scale) for length in pixels.shape[1:])
        total = torch.zeros(3, pixels.shape[1] * scale, pixels.shape[2] * scale)
        for row in rows:
            for column in columns:
                made = self._run(pixels[:, row.start : row.end, column.start : column.end])
                _add(total[:, row.start * scale :], made, row, column, scale)
        return total

    def _say(self, text: str) -> None:
        logger.warning("%s", text)
        self._notices.say(text)


def _add(band: Tensor, made: Tensor, row: Strip, column: Strip, scale: int) -> None:
    """Adds a tile's pixels by their weights to `band`, whose first line is the tile's."""
    place = band[:, : made.shape[1], column.start * scale : column.end * scale]
    place += made * row.weights[:, None] * column.weights


def _as_bytes(pixels: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(3, h, w) in 0…1 → (h, w, 3) uint8."""
    return pixels.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
