"""The samplers by A1111's names; one file each, all of the shape of `contract.SamplerFunction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from webui.core.errors import InvalidRequest
from webui.engine.samplers.contract import NoiseSource, SamplerFunction, SamplerStep
from webui.engine.samplers.ddim import ddim, unit_variance_start
from webui.engine.samplers.dpmpp_2m import dpmpp_2m
from webui.engine.samplers.euler import euler
from webui.engine.samplers.euler_ancestral import euler_ancestral


def scaled_start(noise: Tensor, sigma: float) -> Tensor:
    """Latents to start from: pure noise of deviation `sigma`, as k-diffusion starts."""
    return noise * sigma


@dataclass(frozen=True, slots=True)
class Sampler:
    """An integration rule, the schedule type that "Automatic" means for it, and how it starts from noise alone."""

    run: SamplerFunction
    automatic: str
    start: Callable[[Tensor, float], Tensor] = scaled_start


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "DPM++ 2M": Sampler(dpmpp_2m, "Karras"),
        "Euler a": Sampler(euler_ancestral, "Uniform"),
        "Euler": Sampler(euler, "Uniform"),
        "DDIM": Sampler(ddim, "DDIM", unit_variance_start),
    }
)


def find_sampler(name: str) -> Sampler:
    """The sampler of that name; raises `InvalidRequest`."""
    if name not in SAMPLERS:
        raise InvalidRequest(f"Sampler {name!r} is not known; choose one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


__all__ = ["SAMPLERS", "NoiseSource", "Sampler", "SamplerFunction", "SamplerStep", "find_sampler"]
