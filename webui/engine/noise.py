"""Random numbers, a stream for each picture, so that a picture is the same alone or in a batch.

Owns whose generator is used, how a variation is mixed in and how noise of another size is laid under it; all by
A1111's rules, so that its seeds give its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from webui.core.requests import DiffusionRequest, NoiseSource
from webui.engine.philox import PhiloxStream

LATENT_PIXELS = 8

# A shape → standard normal noise of that shape, float32, new at each call.
Stream = Callable[[tuple[int, ...]], Tensor]


def settled_source(source: NoiseSource, device: torch.device) -> NoiseSource:
    """`source`, with NV in place of GPU where `device` is no NVIDIA card: the stream that "GPU" most often meant."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return NoiseSource.NV if source is NoiseSource.GPU and not is_nvidia else source


def open_stream(seed: int, source: NoiseSource, device: torch.device) -> Stream:
    """The stream of `seed`; on the CPU, unless it is the card's own."""
    source = settled_source(source, device)
    if source is NoiseSource.NV:
        philox = PhiloxStream(seed)
        return lambda shape: torch.from_numpy(philox.randn(shape))
    place = device if source is NoiseSource.GPU else torch.device("cpu")
    generator = torch.Generator(place).manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator, device=place)


class Noise:
    """Standard normal noise for the pictures of one batch: `start` first, then a sampler's own by calling it.

    `requests` are those of the pictures alone (`webui.core.requests.alone`), with settled seeds; `shape` is one
    picture's (channels, h, w). With an eta noise seed delta (ENSD) the sampler's noise comes from streams of
    ``seed + delta``. `seeds` are what a Brownian tree of each picture begins with: A1111's take no delta.
    """

    def __init__(self, requests: Sequence[DiffusionRequest], shape: tuple[int, ...], device: torch.device) -> None:
        self.seeds = [request.seed for request in requests]
        self._requests = requests
        self._shape = shape
        self._device = device
        self._streams: list[Stream] = []

    def start(self) -> Tensor:
        """The noise that the pictures begin with: (N, channels, h, w) float32 on the device. Always the same."""
        self._streams = [self._open(request.seed, request) for request in self._requests]
        rows = [self._start(request, stream) for request, stream in zip(self._requests, self._streams, strict=True)]
        for index, request in enumerate(self._requests):
            if request.eta_noise_seed_delta:
                self._streams[index] = self._open(request.seed + request.eta_noise_seed_delta, request)
        return self._gathered(rows)

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:  # noqa: ARG002  # a stream knows no noise levels
        """The next noise for a sampler, (N, channels, h, w) float32 on the device, new at each call."""
        if not self._streams:
            raise RuntimeError("the starting noise comes before a sampler's")
        return self._gathered([stream(self._shape) for stream in self._streams])

    def _open(self, seed: int, request: DiffusionRequest) -> Stream:
        return open_stream(seed, request.noise_source, self._device)

    def _gathered(self, rows: list[Tensor]) -> Tensor:
        return brought(torch.stack(rows), self._device)

    def _start(self, request: DiffusionRequest, stream: Stream) -> Tensor:
        """One picture's starting noise: its seed's, with the variation's mixed in, at the size it was first drawn."""
        variation = request.variation
        channels, height, width = self._shape
        drawn = (
            channels,
            variation.height // LATENT_PIXELS or height,
            variation.width // LATENT_PIXELS or width,
        )
        resized = drawn != self._shape
        whole = stream(self._shape)
        noise = self._open(request.seed, request)(drawn) if resized else whole
        if variation.strength > 0:
            other = self._open(variation.seed, request)(drawn)
            noise = slerp(noise, other, variation.strength)
        return laid_over(whole, noise) if resized else noise


def brought(noise: Tensor, device: torch.device) -> Tensor:
    """`noise` on `device`, without making the host wait for what a card is at work on."""
    if device.type == "cuda" and noise.device.type == "cpu":
        # Pinned, so that the copy runs beside the host instead of stopping it.
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """`share` of the way from `start` to `end`, both (channels, h, w), on the sphere (Shoemake 1985).

    As in A1111 the angle is that between each pair of columns: a vector runs down one column of one channel.
    Columns that are nearly parallel everywhere are mixed in a straight line, where the formula would divide by zero.
    """
    cosine = (start / start.norm(dim=1, keepdim=True) * (end / end.norm(dim=1, keepdim=True))).sum(1, keepdim=True)
    if float(cosine.mean()) > 0.9995:
        return torch.lerp(start, end, share)
    angle = torch.acos(cosine.clamp(-1, 1))
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


def laid_over(whole: Tensor, part: Tensor) -> Tensor:
    """`whole` (channels, h, w) with `part`, of another height and width, over its middle; what juts out is cut off."""
    result = whole.clone()
    for_whole, for_part = [], []
    for length, other in zip(whole.shape[1:], part.shape[1:], strict=True):
        # Floor division also for negative differences: that is where A1111 puts the odd row.
        offset = (length - other) // 2
        covered = other if offset >= 0 else other + 2 * offset
        for_whole.append(slice(max(offset, 0), max(offset, 0) + covered))
        for_part.append(slice(max(-offset, 0), max(-offset, 0) + covered))
    result[:, for_whole[0], for_whole[1]] = part[:, for_part[0], for_part[1]]
    return result
