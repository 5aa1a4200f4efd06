"""Samplers against the programs that define them: k-diffusion in float64, diffusers where k-diffusion has none."""

import importlib
import importlib.util
import math
import sys
import types
from itertools import pairwise

import pytest
import torch

from webui.core.requests import SamplerOptions, ScheduleOptions
from webui.engine.brownian import BrownianNoise
from webui.engine.samplers import find_sampler
from webui.engine.schedules import SigmaTable, make_sigmas

STEPS = 9
SHAPE = (2, 4, 5, 5)

# A mixture of Gaussians in four channels: centres, weights, deviation.
CENTRES = torch.randn(5, 4, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
WEIGHTS = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
DEVIATION = 0.3


def mixture(x, sigma):
    """The exact denoiser of that mixture, at each place of (N, 4, h, w) by itself."""
    variance = DEVIATION**2 + sigma**2
    away = x[:, None] - CENTRES[None, :, :, None, None]
    weights = torch.softmax(WEIGHTS.log()[None, :, None, None] - (away**2).sum(2) / (2 * variance), dim=1)
    towards = CENTRES[None, :, :, None, None] + away * (DEVIATION**2 / variance)
    return (weights[:, :, None] * towards).sum(1)


@pytest.fixture(scope="module")
def kd():
    """k_diffusion.sampling, without the package's own __init__, which imports what trains models.

    In float64 throughout: its DPM-Solvers make tensors of the default type.
    """
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
    before = sys.modules.get("k_diffusion")
    sys.modules["k_diffusion"] = package
    try:
        yield importlib.import_module("k_diffusion.sampling")
    finally:
        for name in [name for name in sys.modules if name.startswith("k_diffusion")]:
            del sys.modules[name]
        if before is not None:
            sys.modules["k_diffusion"] = before


@pytest.fixture
def in_double(tiny):  # made before, for every test of the session has it in single
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def table(alphas_cumprod):
    return SigmaTable.from_alphas(alphas_cumprod.tolist())


@pytest.fixture(scope="module")
def tiny_denoiser(tiny, table):
    """The tiny UNet in float64, predicting v, with a random text."""
    import copy

    unet = copy.deepcopy(tiny.unet).double()
    text = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def denoise(x, sigma):
        root = math.sqrt(1 + sigma**2)
        timestep = torch.tensor(table.timestep(sigma), dtype=torch.float64)
        with torch.no_grad():
            v = unet(x / root, timestep, text.expand(len(x), -1, -1), return_dict=False)[0]
        return x / root**2 - v * (sigma / root)

    return denoise


def draws(shape=SHAPE):
    """New noise at each call from torch's own generator, where k-diffusion's ``randn_like`` takes it from too."""
    return lambda sigma, sigma_next: torch.randn(shape, dtype=torch.float64)


def brownian(sigmas, shape=SHAPE):
    def draw(seed):
        return torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    ends = {"sigma_min": min(s for s in sigmas if s > 0), "sigma_max": max(sigmas)}
    return BrownianNoise([7, 8], draw, **ends, device=torch.device("cpu"))


def ours(name, denoiser, x, sigmas, options):
    sampler = find_sampler(name)
    torch.manual_seed(3)
    noise = brownian(sigmas) if sampler.brownian else draws()
    return list(sampler.run(denoiser, x, sigmas, noise, SamplerOptions(**options)))[-1].x


def theirs(kd, name, denoiser, x, sigmas, options):
    """k-diffusion's function of `name` with the same noise; `options` under its own names."""
    options = {key: value for key, value in options.items() if value is not None}

    def model(x, sigma):
        return denoiser(x, float(sigma[0]))

    torch.manual_seed(3)
    function = getattr(kd, f"sample_{name}")
    if name in ("dpm_fast", "dpm_adaptive"):
        ends = {"sigma_min": sigmas[-2], "sigma_max": sigmas[0]}
        if name == "dpm_fast":
            ends["n"] = len(sigmas) - 1
        return function(model, x, **ends, **options, disable=True)
    levels = torch.tensor(sigmas, dtype=torch.float64)
    if name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"):
        ends = levels[levels > 0]
        options["noise_sampler"] = kd.BrownianTreeNoiseSampler(x, ends.min(), ends.max(), seed=[7, 8])
    return function(model, x, levels, **options, disable=True)


CHURN = {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 8.0, "s_noise": 1.01}
CASES = [
    ("Euler", "euler", {}, {}),
    ("Euler", "euler", CHURN, CHURN),
    ("Heun", "heun", {}, {}),
    ("Heun", "heun", CHURN, CHURN),
    ("DPM2", "dpm_2", {}, {}),
    ("DPM2", "dpm_2", CHURN, CHURN),
    ("LMS", "lms", {}, {}),
    ("DPM++ 2M", "dpmpp_2m", {}, {}),
    ("DPM fast", "dpm_fast", {"eta": 0.0}, {}),
    ("DPM fast", "dpm_fast", {"s_noise": 0.99}, {"eta": 1.0, "s_noise": 0.99}),
    ("DPM adaptive", "dpm_adaptive", {"eta": 0.0}, {}),
    ("DPM adaptive", "dpm_adaptive", {}, {"eta": 1.0}),
    *[
        (name, function, options, {**options, **solver})
        for name, function, solver in (
            ("Euler a", "euler_ancestral", {}),
            ("DPM2 a", "dpm_2_ancestral", {}),
            ("DPM++ 2S a", "dpmpp_2s_ancestral", {}),
            ("DPM++ SDE", "dpmpp_sde", {}),
            ("DPM++ 2M SDE", "dpmpp_2m_sde", {"solver_type": "midpoint"}),
            ("DPM++ 2M SDE Heun", "dpmpp_2m_sde", {"solver_type": "heun"}),
            ("DPM++ 3M SDE", "dpmpp_3m_sde", {}),
        )
        for options in ({}, {"eta": 0.6, "s_noise": 0.98})
    ],
]


@pytest.mark.usefixtures("in_double")
# torchsde rounds the ends of a path to six digits and then finds k-diffusion's levels outside it.
@pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning")
@pytest.mark.parametrize("denoiser", ["mixture", "tiny model"])
@pytest.mark.parametrize(("name", "function", "options", "reference_options"), CASES)
def test_k_diffusion_makes_the_same(kd, name, function, options, reference_options, denoiser, table, request):
    # Reference: k-diffusion 0.1.1, the same levels, the same noise, float64. Tolerance 1e-5 of the largest value: what
    # differs is the order of the arithmetic (1e-12 here), the quadrature of LMS and torchsde's rounding of levels.
    denoise = mixture if denoiser == "mixture" else request.getfixturevalue("tiny_denoiser")
    sigmas = make_sigmas("Karras", table, STEPS, ScheduleOptions(), automatic="")
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * sigmas[0]
    got = ours(name, denoise, x, sigmas, options)
    wanted = theirs(kd, function, denoise, x, sigmas, reference_options)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("Karras", "get_sigmas_karras"),
        ("Exponential", "get_sigmas_exponential"),
        ("Polyexponential", "get_sigmas_polyexponential"),
    ],
)
@pytest.mark.parametrize("rho", [0.0, 3.0])
def test_k_diffusion_spaces_the_same(kd, table, ours, theirs, rho):
    # Reference: k-diffusion's functions, in float32: 1e-5.
    options = {"rho": rho} if rho and ours != "Exponential" else {}
    got = make_sigmas(ours, table, 13, ScheduleOptions(rho=rho, sigma_min=0.05, sigma_max=11.0), automatic="")
    wanted = getattr(kd, theirs)(13, 0.05, 11.0, **options)
    torch.testing.assert_close(torch.tensor(got), wanted, rtol=1e-5, atol=0)


# ---- diffusers -----------------------------------------------------------------------------------------------------

# diffusers hands tensors to numpy in a way that numpy 2 asks to be changed.
FROM_DIFFUSERS = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def network(x, timestep):
    """A smooth made-up epsilon prediction of (variance-preserving latents, timestep), float64."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.4
    return torch.einsum("oc,nchw->nohw", weight, torch.tanh(x)) + 0.6 * x * (0.5 + float(timestep) / 2000)


def denoiser_of(timestep_of):
    def denoise(x, sigma):
        return x - sigma * network(x / math.sqrt(1 + sigma**2), timestep_of(sigma))

    return denoise


def by_diffusers(scheduler, z, network, calls, **options):
    """z, variance-preserving, after the first `calls` steps of the scheduler."""
    for timestep in scheduler.timesteps[:calls]:
        answer = network(scheduler.scale_model_input(z, timestep), timestep)
        z = scheduler.step(answer, timestep, z, **options).prev_sample
    return z


def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def close(got, wanted, tolerance):
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@FROM_DIFFUSERS
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_euler_on_uniform_levels(table, betas, diffusers, prediction_type):
    # diffusers interpolates sigmas linearly where timesteps lie between two of the table, k-diffusion and we their
    # logarithms: 1e-3 of relative difference in sigma at most.
    from webui.engine.denoiser import NetworkDenoiser, Prediction

    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction_type, timestep_spacing="linspace", **betas)
    scheduler.set_timesteps(20)
    wanted = by_diffusers(scheduler, start() * scheduler.init_noise_sigma, network, 20)
    sigmas = make_sigmas("Uniform", table, 20, ScheduleOptions(), automatic="")
    denoiser = NetworkDenoiser(
        lambda x, timestep, sigma: Prediction(network(x, timestep), x),
        prediction_type,
        timestep=table.timestep,
        sigmas=sigmas,
        device=torch.device("cpu"),
    )
    got = ours("Euler", denoiser, find_sampler("Euler").start(start(), sigmas[0]), sigmas, {})
    close(got, wanted, 2e-3)


@FROM_DIFFUSERS
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(table, betas, diffusers, eta):
    # The same levels, the same noise; diffusers' tables are float32: 1e-5 each, added up over 20 steps.
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **betas)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(9)
    wanted = by_diffusers(scheduler, start(), network, 20, eta=eta, generator=generator)
    generator = torch.Generator().manual_seed(9)
    sigmas = make_sigmas("DDIM", table, 20, ScheduleOptions(), automatic="")
    sampler = find_sampler("DDIM")
    noise = lambda sigma, sigma_next: torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    x = sampler.start(start(), sigmas[0])
    got = list(sampler.run(denoiser_of(table.timestep), x, sigmas, noise, SamplerOptions(eta=eta)))[-1].x
    close(got, wanted, 1e-4)


@FROM_DIFFUSERS
def test_plms(table, betas, diffusers):
    # diffusers' PNDM without Runge-Kutta steps is CompVis' PLMS; float32 tables: 1e-4.
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=True, **betas)
    scheduler.set_timesteps(20)
    wanted = by_diffusers(scheduler, start(), network, 21)
    sigmas = make_sigmas("DDIM", table, 20, ScheduleOptions(), automatic="")
    got = ours("PLMS", denoiser_of(table.timestep), find_sampler("PLMS").start(start(), sigmas[0]), sigmas, {})
    close(got, wanted, 1e-4)


@FROM_DIFFUSERS
@pytest.mark.parametrize(
    ("name", "scheduler_name", "settings", "options"),
    [
        ("UniPC", "UniPCMultistepScheduler", {"solver_type": "bh1", "solver_order": 2}, {"order": 2}),
        ("UniPC", "UniPCMultistepScheduler", {"solver_type": "bh1", "solver_order": 3}, {"order": 3}),
        ("DEIS", "DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}, {}),
        ("DPM++ 2M", "DPMSolverMultistepScheduler", {"solver_order": 2, "lower_order_final": False}, {}),
    ],
)
def test_multistep_solvers(table, betas, diffusers, name, scheduler_name, settings, options):
    # diffusers rounds each timestep to a whole one: the network here does not look at it, so that the rules alone are
    # compared. Two of the three do not take a last level of 0: all steps but that one, on float32 tables: 1e-4.
    scheduler = getattr(diffusers, scheduler_name)(**betas, use_karras_sigmas=True, **settings)
    scheduler.set_timesteps(20)
    blind = lambda z, timestep: network(z, 500)  # noqa: E731
    wanted = by_diffusers(scheduler, start(), blind, 19)
    sigmas = make_sigmas("Karras", table, 20, ScheduleOptions(), automatic="")
    torch.testing.assert_close(
        scheduler.sigmas[:20].double(), torch.tensor(sigmas[:20], dtype=torch.float64), rtol=1e-4, atol=0
    )
    x = start() * math.sqrt(1 + sigmas[0] ** 2)
    run = find_sampler(name).run(denoiser_of(lambda _: 500), x, sigmas, draws(), SamplerOptions(**options))
    got = list(run)[18].x / math.sqrt(1 + sigmas[19] ** 2)
    close(got, wanted, 1e-4)


def test_ipndm(diffusers):
    # diffusers' IPNDM knows levels by beta = sigma / sqrt(1 + sigma²), float32, and mixes ``eps = beta z + alpha v``.
    sigmas = [14.0, 9.0, 6.5, 4.0, 2.5, 1.5, 1.0, 0.6, 0.3, 0.1, 0.0]
    betas = [sigma / math.sqrt(1 + sigma**2) for sigma in sigmas]
    scheduler = diffusers.IPNDMScheduler(trained_betas=betas)
    scheduler.set_timesteps(10)
    z = start()
    for index, timestep in enumerate(scheduler.timesteps[:9]):
        epsilon = network(z, 500)
        v = (epsilon - scheduler.betas[index] * z) / scheduler.alphas[index]
        z = scheduler.step(v, timestep, z).prev_sample
    x = start() * math.sqrt(1 + sigmas[0] ** 2)
    run = find_sampler("IPNDM").run(denoiser_of(lambda _: 500), x, sigmas, draws(), SamplerOptions())
    close(list(run)[8].x / math.sqrt(1 + sigmas[9] ** 2), z, 1e-4)


def test_ipndm_v_has_its_published_weights():
    # zju-pi/diff-sampler's formulas by hand for equal steps: 1 + 1/2 + 10/24 + 11/24 and so on. For two slopes they
    # are Adams-Bashforth's, so the second step is LMS's.
    from webui.engine.samplers.multistep import _unequal_steps

    assert _unequal_steps(-1, [-1, -1, -1]) == pytest.approx([57 / 24, -65 / 24, 43 / 24, -11 / 24])
    sigmas, x = [5.0, 3.0, 2.0, 1.5, 0.0], start()
    lms = list(find_sampler("LMS").run(mixture, x, sigmas, draws(), SamplerOptions()))
    got = list(find_sampler("IPNDM_V").run(mixture, x, sigmas, draws(), SamplerOptions()))
    close(got[1].x, lms[1].x, 1e-9)


@FROM_DIFFUSERS
def test_ddpm(table, betas, diffusers):
    # The posterior's variance ("fixed_small"), the same noise; float32 tables: 1e-4.
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type="fixed_small", **betas)
    scheduler.set_timesteps(20)
    wanted = by_diffusers(scheduler, start(), network, 20, generator=torch.Generator().manual_seed(9))
    sigmas = [*(table.sigmas[int(timestep)] for timestep in scheduler.timesteps), 0.0]
    generator = torch.Generator().manual_seed(9)
    noise = lambda sigma, sigma_next: torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    x = start() * math.sqrt(1 + sigmas[0] ** 2)
    run = find_sampler("DDPM").run(denoiser_of(table.timestep), x, sigmas, noise, SamplerOptions())
    close(list(run)[-1].x, wanted, 1e-4)


@FROM_DIFFUSERS
@pytest.mark.parametrize(
    ("name", "scheduler_name", "ours", "theirs"),
    [
        ("LCM", "LCMScheduler", {}, {}),
        ("TCD", "TCDScheduler", {}, {"eta": 0.3}),
        ("TCD", "TCDScheduler", {"eta": 0.0}, {"eta": 0.0}),
    ],
)
def test_few_step_samplers(table, betas, diffusers, name, scheduler_name, ours, theirs):
    # All steps but the last, which theirs ends at timestep 0 and ours at sigma 0; the same noise, float32 tables and
    # LCM's boundary coefficients, which we leave out: 1e-4.
    scheduler = getattr(diffusers, scheduler_name)(clip_sample=False, original_inference_steps=50, **betas)
    scheduler.set_timesteps(4)
    wanted = by_diffusers(scheduler, start(), network, 3, generator=torch.Generator().manual_seed(9), **theirs)
    sigmas = [*(table.sigmas[int(timestep)] for timestep in scheduler.timesteps), 0.0]
    generator = torch.Generator().manual_seed(9)
    noise = lambda sigma, sigma_next: torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    x = start() * math.sqrt(1 + sigmas[0] ** 2)
    run = find_sampler(name).run(denoiser_of(table.timestep), x, sigmas, noise, SamplerOptions(**ours))
    close(list(run)[2].x / math.sqrt(1 + sigmas[3] ** 2), wanted, 1e-4)


# ---- written out by hand, for want of a reference ------------------------------------------------------------------


class Guided:
    """Two closed-form estimates, of a prompt and of the negative prompt."""

    def __call__(self, x, sigma):
        return mixture(x, sigma)

    def both(self, x, sigma):
        return mixture(x, sigma), 0.4 * mixture(x, sigma) - 0.1


@pytest.mark.parametrize("name", ["DDIM CFG++", "Euler CFG++"])
def test_cfg_plus_plus_on_variance_preserving_latents(table, name):
    # Chung et al. 2024, algorithm 2: z' = sqrt(a') D + sqrt(1 - a') e_negative, on z = x sqrt(a).
    sigmas = make_sigmas("DDIM", table, 12, ScheduleOptions(), automatic="")
    x = start() * sigmas[0]
    z = x / math.sqrt(1 + sigmas[0] ** 2)
    for sigma, sigma_next in pairwise(sigmas):
        a, a_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        guided, negative = Guided().both(z / math.sqrt(a), sigma)
        noise = (z - math.sqrt(a) * negative) / math.sqrt(1 - a)
        z = math.sqrt(a_next) * guided + math.sqrt(1 - a_next) * noise
    got = list(find_sampler(name).run(Guided(), x, sigmas, draws(), SamplerOptions()))[-1].x
    close(got, z, 1e-9)


def test_cfg_plus_plus_ancestral_adds_what_euler_a_adds():
    # With one estimate for both prompts, Euler a CFG++ is Euler a, and Euler CFG++ is Euler.
    class Same(Guided):
        def both(self, x, sigma):
            return (mixture(x, sigma),) * 2

    sigmas, x = [10.0, 4.0, 1.5, 0.5, 0.0], start() * 10
    for name, plain in (("Euler a CFG++", "Euler a"), ("Euler CFG++", "Euler")):
        close(ours(name, Same(), x, sigmas, {}), ours(plain, mixture, x, sigmas, {}), 1e-9)


def test_heunpp2_by_hand():
    # Denoised is 0, so the slope is x / sigma, the same at all three looks: each step is then exact, x ∝ sigma. With
    # denoised c · sigma the slopes differ; the second step but one weighs (s', s'') by 3 S, the next s' by 2 S.
    sampler = find_sampler("HeunPP2").run
    x = torch.full((1,), 6.0, dtype=torch.float64)
    flat = list(sampler(lambda x, sigma: x * 0, x, [6.0, 3.0, 1.5, 0.0], draws((1,)), SamplerOptions()))
    assert [step.x.item() for step in flat] == pytest.approx([3.0, 1.5, 0.0])

    def slope(x, sigma):
        return sigma**2

    def denoiser(x, sigma):
        return x - sigma * slope(x, sigma)

    steps = list(sampler(denoiser, x, [6.0, 3.0, 1.5, 0.0], draws((1,)), SamplerOptions()))
    weighted = (1 - 3 / 18 - 1.5 / 18) * 36 + 3 / 18 * 9 + 1.5 / 18 * 2.25
    assert steps[0].x.item() == pytest.approx(6 - 3 * weighted)
    weighted = (1 - 1.5 / 12) * 9 + 1.5 / 12 * 2.25
    assert steps[1].x.item() == pytest.approx(steps[0].x.item() - 1.5 * weighted)
    assert steps[2].x.item() == pytest.approx(steps[1].x.item() - 1.5 * 2.25)


@pytest.mark.parametrize(("steps", "again", "climbs"), [(19, 0, 0), (20, 9, 1), (35, 9, 1), (36, 9, 2), (40, 10, 2)])
def test_restart_by_default_goes_over_the_lowest_levels_again(table, steps, again, climbs):
    # A1111's rule: Karras for the steps that are left, then up from 0.1 to 2, as often as there are climbs.
    sigmas = make_sigmas("Karras", table, steps, ScheduleOptions(), automatic="")
    drawn = []

    def noise(sigma, sigma_next):
        drawn.append((sigma, sigma_next))
        return torch.zeros(1, dtype=torch.float64)

    run = find_sampler("Restart").run(
        mixture_of_one, torch.ones(1, dtype=torch.float64), sigmas, noise, SamplerOptions()
    )
    visited = [step.sigma for step in run]
    assert len(visited) == steps
    assert len(drawn) == climbs
    for low, high in drawn:
        assert 0.05 < low < 0.2
        assert 1.5 < high < 2.6
        assert sum(sigma == pytest.approx(high) for sigma in visited) == climbs + 1
    assert sum(b >= a for a, b in pairwise(visited)) == climbs
    assert visited[0] == pytest.approx(sigmas[0])


def mixture_of_one(x, sigma):
    return x / (1 + sigma**2)
