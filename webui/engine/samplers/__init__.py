"""The samplers by A1111's names; one file an algorithm or a family, all of the shape of `contract.SamplerFunction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from webui.core.errors import InvalidRequest
from webui.engine.samplers.cfgpp import SCALE_DIVISOR, cfgpp, cfgpp_ancestral
from webui.engine.samplers.contract import NoiseSource, SamplerFunction, SamplerStep
from webui.engine.samplers.ddim import ddim, unit_variance_start
from webui.engine.samplers.ddpm import ddpm
from webui.engine.samplers.dpm2 import dpm2, dpm2_ancestral
from webui.engine.samplers.dpm_solver import dpm_adaptive, dpm_fast
from webui.engine.samplers.dpmpp_2m import dpmpp_2m
from webui.engine.samplers.dpmpp_2s_ancestral import dpmpp_2s_ancestral
from webui.engine.samplers.dpmpp_multistep_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde
from webui.engine.samplers.dpmpp_sde import dpmpp_sde
from webui.engine.samplers.euler import euler
from webui.engine.samplers.euler_ancestral import euler_ancestral
from webui.engine.samplers.few_step import lcm, tcd
from webui.engine.samplers.heun import heun
from webui.engine.samplers.heunpp2 import heunpp2
from webui.engine.samplers.multistep import deis, ipndm, ipndm_v, lms, plms
from webui.engine.samplers.restart import restart
from webui.engine.samplers.unipc import unipc


def scaled_start(noise: Tensor, sigma: float) -> Tensor:
    """Latents to start from: pure noise of deviation `sigma`, as k-diffusion starts."""
    return noise * sigma


@dataclass(frozen=True, slots=True)
class Sampler:
    """An integration rule and what belongs to it.

    `automatic` is the schedule type that "Automatic" means for it, `start` how it starts from noise alone. It calls the
    network about `evaluations` times a step. `brownian` ones take their noise from a Brownian path. With
    `discards_next_to_last` its schedule leaves out the last sigma before 0, where these rules amplify noise.
    `one_by_one` ones choose their steps by looking at the whole batch, so they are given one picture at a time.
    `plus_plus` is CFG++: the CFG scale is divided by `SCALE_DIVISOR`, and the negative prompt is always worked on.
    """

    run: SamplerFunction
    automatic: str = "Uniform"
    start: Callable[[Tensor, float], Tensor] = scaled_start
    evaluations: int = 1
    brownian: bool = False
    discards_next_to_last: bool = False
    one_by_one: bool = False
    plus_plus: bool = False

    def scale(self, cfg_scale: float) -> float:
        """The guidance scale that an artist's `cfg_scale` means to this sampler."""
        return cfg_scale / SCALE_DIVISOR if self.plus_plus else cfg_scale


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "DPM++ 2M": Sampler(dpmpp_2m, "Karras"),
        "DPM++ SDE": Sampler(dpmpp_sde, "Karras", evaluations=2, brownian=True),
        "DPM++ 2M SDE": Sampler(dpmpp_2m_sde, "Exponential", brownian=True),
        "DPM++ 2M SDE Heun": Sampler(dpmpp_2m_sde_heun, "Exponential", brownian=True),
        "DPM++ 2S a": Sampler(dpmpp_2s_ancestral, "Karras", evaluations=2),
        "DPM++ 3M SDE": Sampler(dpmpp_3m_sde, "Exponential", brownian=True, discards_next_to_last=True),
        "Euler a": Sampler(euler_ancestral),
        "Euler": Sampler(euler),
        "LMS": Sampler(lms),
        "Heun": Sampler(heun, evaluations=2),
        "DPM2": Sampler(dpm2, "Karras", evaluations=2, discards_next_to_last=True),
        "DPM2 a": Sampler(dpm2_ancestral, "Karras", evaluations=2, discards_next_to_last=True),
        "DPM fast": Sampler(dpm_fast),
        "DPM adaptive": Sampler(dpm_adaptive, one_by_one=True),
        "Restart": Sampler(restart, "Karras", evaluations=2),
        "DDIM": Sampler(ddim, "DDIM", unit_variance_start),
        "DDIM CFG++": Sampler(cfgpp, "DDIM", unit_variance_start, plus_plus=True),
        "PLMS": Sampler(plms, "DDIM", unit_variance_start),
        "UniPC": Sampler(unipc, "SGM Uniform", unit_variance_start),
        "LCM": Sampler(lcm, "LCM"),
        "TCD": Sampler(tcd, "Turbo"),
        "HeunPP2": Sampler(heunpp2, evaluations=3),
        "IPNDM": Sampler(ipndm),
        "IPNDM_V": Sampler(ipndm_v),
        "DEIS": Sampler(deis),
        "DDPM": Sampler(ddpm),
        "Euler CFG++": Sampler(cfgpp, plus_plus=True),
        "Euler a CFG++": Sampler(cfgpp_ancestral, plus_plus=True),
    }
)


def find_sampler(name: str) -> Sampler:
    """The sampler of that name; raises `InvalidRequest`."""
    if name not in SAMPLERS:
        raise InvalidRequest(f"Sampler {name!r} is not known; choose one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


__all__ = [
    "SAMPLERS",
    "NoiseSource",
    "Sampler",
    "SamplerFunction",
    "SamplerStep",
    "find_sampler",
    "unit_variance_start",
]
