"""Feature maps kept row by row outside the device, and outside memory if need be, with each channel's mean and spread.

Where main memory has room they lie there, else in a temporary file, which the system drops when it is closed. Nothing
here knows what a network does with them.
"""

from __future__ import annotations

import tempfile
from typing import IO

import torch
from torch import Tensor, nn

from webui.core.errors import DiskFull


class Scratch:
    """Makes feature maps: in main memory while those alive take at most `memory_bytes`, then in temporary files."""

    def __init__(self, memory_bytes: int) -> None:
        self._left = memory_bytes

    def make(self, channels: int, height: int, width: int, dtype: torch.dtype) -> FeatureMap:
        """An empty map; raises `DiskFull` later where its file finds no room."""
        size = channels * height * width * dtype.itemsize
        if size > self._left:
            return _FileMap(channels, height, width, dtype)
        self._left -= size
        return _MemoryMap(channels, height, width, dtype, self)

    def returned(self, size: int) -> None:
        """Counts `size` bytes as free again."""
        self._left += size


class FeatureMap:
    """(channels, height, width) numbers of `dtype`, written once in strips of whole rows from the first to the last.

    They are kept row by row, each row channel by channel, so that a strip is one piece of a file.
    """

    def __init__(self, channels: int, height: int, width: int, dtype: torch.dtype) -> None:
        self.channels, self.height, self.width, self.dtype = channels, height, width, dtype
        self._count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def append(self, strip: Tensor) -> None:
        """Adds the rows of `strip` (1, channels, rows, width), and what they say of each channel.

        Means and sums of squared distances are joined pairwise (Chan, Golub & LeVeque 1979, equation 2.1), which loses
        no digits to large means, as sums of squares would.
        """
        self._write(strip[0].transpose(0, 1).contiguous().cpu())
        values = strip[0].flatten(1).float()
        count = values.shape[1]
        means = values.mean(1, keepdim=True)
        # Not `var_mean`, which takes three times as long on the CPU.
        squares = (values - means).square_().sum(1).cpu().double()
        apart = means[:, 0].cpu().double() - self._mean
        total = self._count + count
        self._squares += squares + apart**2 * (self._count * count / total)
        self._mean += apart * (count / total)
        self._count = total

    def rows(self, start: int, end: int, device: torch.device) -> Tensor:
        """Rows `start` to `end`, (1, channels, rows, width) on `device`."""
        return self._read(start, end).to(device).transpose(0, 1).contiguous().unsqueeze(0)

    def around(self, start: int, end: int, halo: tuple[int, int], device: torch.device, *, wraps: bool) -> Tensor:
        """As `rows`, with `halo` more rows before and after: as many as there are, or from the other side."""
        before, after = halo
        if not wraps:
            return self.rows(max(0, start - before), min(self.height, end + after), device)
        parts = [self.rows(start, end, device)]
        for row in range(start - 1, start - before - 1, -1):
            parts.insert(0, self.rows(row % self.height, row % self.height + 1, device))
        for row in range(end, end + after):
            parts.append(self.rows(row % self.height, row % self.height + 1, device))
        return torch.cat(parts, dim=2)

    def normed(self, strip: Tensor, norm: nn.GroupNorm) -> Tensor:
        """`strip` of this map, which must be whole by now, as `norm` makes it with the whole map before it."""
        means = self._mean.unflatten(0, (norm.num_groups, -1))
        mean = means.mean(1, keepdim=True)
        variance = (self._squares.unflatten(0, means.shape) / self._count + (means - mean) ** 2).mean(1, keepdim=True)
        spread = (variance + norm.eps).rsqrt().expand_as(means).flatten()
        scale = norm.weight.detach().cpu().double() * spread
        shift = norm.bias.detach().cpu().double() - mean.expand_as(means).flatten() * scale
        scale, shift = (each.float().to(strip.device)[:, None, None] for each in (scale, shift))
        return torch.addcmul(shift, strip.float(), scale).to(strip.dtype)

    def close(self) -> None:
        """Gives back the room; the map cannot be read any more."""
        raise NotImplementedError

    def _write(self, rows: Tensor) -> None:
        raise NotImplementedError

    def _read(self, start: int, end: int) -> Tensor:
        raise NotImplementedError


class _MemoryMap(FeatureMap):
    def __init__(self, channels: int, height: int, width: int, dtype: torch.dtype, scratch: Scratch) -> None:
        super().__init__(channels, height, width, dtype)
        self._rows: Tensor | None = torch.empty(height, channels, width, dtype=dtype)
        self._written = 0
        self._scratch = scratch

    def _write(self, rows: Tensor) -> None:
        assert self._rows is not None  # not closed
        self._rows[self._written : self._written + len(rows)] = rows
        self._written += len(rows)

    def _read(self, start: int, end: int) -> Tensor:
        assert self._rows is not None  # not closed
        return self._rows[start:end]

    def close(self) -> None:
        if self._rows is not None:
            self._scratch.returned(self._rows.nbytes)
            self._rows = None


class _FileMap(FeatureMap):
    """Read and written, not mapped: the pages of a mapped file count as resident."""

    def __init__(self, channels: int, height: int, width: int, dtype: torch.dtype) -> None:
        super().__init__(channels, height, width, dtype)
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="atelier-")  # noqa: SIM115  # `close` closes it
        self._row_bytes = channels * width * dtype.itemsize

    def _write(self, rows: Tensor) -> None:
        try:
            self._file.seek(0, 2)
            self._file.write(rows.view(torch.uint8).numpy().data.cast("B"))
        except OSError as error:
            raise DiskFull(
                f"The picture is worked on in {tempfile.gettempdir()}, where {len(rows) * self._row_bytes:,} bytes"
                f" could not be written ({error}); make room there, or set TMPDIR to another folder."
            ) from error

    def _read(self, start: int, end: int) -> Tensor:
        rows = torch.empty(end - start, self.channels, self.width, dtype=self.dtype)
        self._file.seek(start * self._row_bytes)
        self._file.readinto(rows.view(torch.uint8).numpy().data.cast("B"))  # type: ignore[attr-defined]
        return rows

    def close(self) -> None:
        self._file.close()
