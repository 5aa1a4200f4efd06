"""Samplers against what is known exactly, and against diffusers' schedulers."""

import math

import pytest
import torch

from webui.core import catalogue
from webui.engine.denoiser import DiscreteDenoiser, masked, scalings
from webui.engine.samplers import SAMPLERS, find_sampler
from webui.engine.samplers.euler_ancestral import ancestral_step
from webui.engine.schedules import SCHEDULES, SigmaTable, make_sigmas

SPREAD = 0.7
MEAN = 0.3


def gaussian(x, sigma):
    """The exact denoiser for clean data ~ N(MEAN, SPREAD²)."""
    return MEAN + (x - MEAN) * (SPREAD**2 / (SPREAD**2 + sigma**2))


def exact_end(x, sigma):
    """Where the probability-flow ODE takes x from noise level sigma to 0 for that data."""
    return MEAN + (x - MEAN) * (SPREAD / math.sqrt(SPREAD**2 + sigma**2))


def mixture(x, sigma):
    """The exact denoiser for two equally likely clean values, -1 and 1."""
    return torch.tanh(x / sigma**2)


def no_noise():
    raise AssertionError("this sampler draws no noise")


def last(name, denoiser, x, sigmas, noise=no_noise):
    return list(find_sampler(name).run(denoiser, x, sigmas, noise))[-1].x


@pytest.fixture
def table(alphas_cumprod):
    return SigmaTable.from_alphas(alphas_cumprod.tolist())


def test_the_registry_is_the_catalogue():
    assert tuple(SAMPLERS) == catalogue.SAMPLERS
    assert ("Automatic", *SCHEDULES) == catalogue.SCHEDULE_TYPES
    assert all(sampler.automatic in SCHEDULES for sampler in SAMPLERS.values())


@pytest.mark.parametrize("name", catalogue.SAMPLERS)
def test_a_step_for_each_pair_of_sigmas(name, table):
    sigmas = make_sigmas("Karras", table, 7, automatic="Karras")
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    steps = list(find_sampler(name).run(gaussian, x, sigmas, lambda: torch.randn_like(x)))
    assert [step.index for step in steps] == list(range(7))
    assert [step.sigma for step in steps] == sigmas[:-1]
    torch.testing.assert_close(steps[-1].x, steps[-1].denoised)


@pytest.mark.parametrize(("name", "order"), [("Euler", 1), ("DDIM", 1), ("DPM++ 2M", 2)])
def test_order_of_convergence_on_a_gaussian(name, order):
    # The noise levels stop at 0.05 (the step to 0 is first order for all) and are even in log sigma, so that halving
    # the step divides the error by 2^order; a quarter of slack for the terms of higher order.
    x = torch.linspace(-3, 3, 13, dtype=torch.float64) * 5
    wanted = MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + 0.05**2) / (SPREAD**2 + 5.0**2))
    errors = []
    for steps in (64, 128):
        sigmas = [5.0 * (0.05 / 5.0) ** (index / steps) for index in range(steps + 1)]
        errors.append((last(name, gaussian, x, sigmas) - wanted).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("name", "tolerance"), [("Euler", 0.03), ("DDIM", 0.03), ("DPM++ 2M", 0.003)])
def test_a_gaussian_ends_where_the_ode_does(name, tolerance, table):
    # 150 Karras steps; the tolerances are an order's expected error on values of size 1, and far under a wrong rule's.
    sigmas = make_sigmas("Karras", table, 150, automatic="Karras")
    x = MEAN + torch.linspace(-2, 2, 9, dtype=torch.float64) * sigmas[0]
    torch.testing.assert_close(last(name, gaussian, x, sigmas), exact_end(x, sigmas[0]), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", catalogue.SAMPLERS)
def test_a_mixture_ends_on_its_modes_in_equal_parts(name, table):
    # 4,000 draws: the share of +1 deviates by 0.008, four deviations are allowed.
    generator = torch.Generator().manual_seed(3)
    sigmas = make_sigmas("Karras", table, 40, automatic="Karras")

    def noise():
        return torch.randn(4000, generator=generator, dtype=torch.float64)

    end = last(name, mixture, noise() * sigmas[0], sigmas, noise)
    torch.testing.assert_close(end.abs(), torch.ones_like(end), atol=0.01, rtol=0)
    assert (end > 0).double().mean().item() == pytest.approx(0.5, abs=0.032)


def test_euler_a_keeps_a_gaussians_spread(table):
    # What Euler a adds makes up for what it removed: 20,000 draws know a deviation to 0.5 %; first-order
    # steps shrink it by a share that falls with their number: 5.5 % at 60 steps, under 2 % at 240.
    generator = torch.Generator().manual_seed(5)
    sigmas = make_sigmas("Karras", table, 240, automatic="Karras")

    def noise():
        return torch.randn(20000, generator=generator, dtype=torch.float64)

    end = last("Euler a", gaussian, noise() * sigmas[0], sigmas, noise)
    assert end.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert end.std().item() == pytest.approx(SPREAD, rel=0.025)


@pytest.mark.parametrize(("sigma", "sigma_next"), [(14.6, 9.0), (1.0, 0.9), (0.1, 0.0)])
def test_ancestral_variances_add_up(sigma, sigma_next):
    down, up = ancestral_step(sigma, sigma_next)
    assert down**2 + up**2 == pytest.approx(sigma_next**2)
    assert down <= sigma_next


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_scalings_undo_what_was_mixed(prediction_type, table):
    clean, noise = torch.randn(2, 50, dtype=torch.float64).unbind(0)
    sigma = 2.5
    alpha = 1 / math.sqrt(1 + sigma**2)
    right = noise if prediction_type == "epsilon" else alpha * noise - sigma * alpha * clean
    seen = []

    def predict(x, timestep):
        seen.append((x, timestep))
        return right

    x = clean + sigma * noise
    denoiser = DiscreteDenoiser(predict, table, prediction_type, sigmas=[sigma], device=torch.device("cpu"))
    torch.testing.assert_close(denoiser(x, sigma), clean)
    # The network sees variance-preserving latents at the timestep of that noise level.
    torch.testing.assert_close(seen[0][0], alpha * clean + sigma * alpha * noise)
    assert seen[0][1].item() == pytest.approx(table.timestep(sigma))
    assert scalings(0.0, prediction_type)[0] == 1.0


def test_a_mask_keeps_what_is_outside(table):
    kept = torch.randn(1, 4, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    sigmas = make_sigmas("Uniform", table, 5, automatic="Uniform")
    x = kept + torch.randn_like(kept) * sigmas[0]
    end = last("DPM++ 2M", masked(gaussian, kept, mask), x, sigmas)
    torch.testing.assert_close(end[..., 0, 1], kept[..., 0, 1], rtol=0, atol=0)
    assert not torch.allclose(end[..., 0, 0], kept[..., 0, 0])


# ---- diffusers as the reference -------------------------------------------------------------------------------------


# diffusers hands tensors to numpy in a way that numpy 2 asks to be changed.
FROM_DIFFUSERS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def random_network(seed):
    """A smooth made-up epsilon prediction of (latents, timestep), float64."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.4

    def network(x, timestep):
        return torch.einsum("oc,nchw->nohw", weight, torch.tanh(x)) + 0.6 * x * (0.5 + timestep / 2000)

    return network


def by_diffusers(scheduler, network, noise, steps):
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        prediction = network(scheduler.scale_model_input(x, timestep), timestep.double())
        x = scheduler.step(prediction, timestep, x).prev_sample
    return x


@FROM_DIFFUSERS
@pytest.mark.parametrize(
    ("name", "schedule_type", "scheduler_name", "options", "prediction_type"),
    [
        ("Euler", "Uniform", "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, "epsilon"),
        ("Euler", "Uniform", "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, "v_prediction"),
        ("DDIM", "DDIM", "DDIMScheduler", {"clip_sample": False, "steps_offset": 1}, "epsilon"),
        ("DDIM", "DDIM", "DDIMScheduler", {"clip_sample": False, "steps_offset": 1}, "v_prediction"),
    ],
)
def test_first_order_samplers_agree_with_diffusers(
    name, schedule_type, scheduler_name, options, prediction_type, table, betas, diffusers
):
    # diffusers keeps its tables in float32 and interpolates sigmas linearly where the timesteps lie between two:
    # 21 steps of Euler put none of its timesteps on a table entry, 1e-3 of relative difference each at most.
    steps = 20
    network = random_network(1)
    noise = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scheduler = getattr(diffusers, scheduler_name)(prediction_type=prediction_type, **betas, **options)
    wanted = by_diffusers(scheduler, network, noise, steps)
    sigmas = make_sigmas(schedule_type, table, steps, automatic="")
    denoiser = DiscreteDenoiser(network, table, prediction_type, sigmas=sigmas, device=torch.device("cpu"))
    got = last(name, denoiser, find_sampler(name).start(noise, sigmas[0]), sigmas)
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)


@FROM_DIFFUSERS
def test_dpmpp_2m_karras_agrees_with_diffusers(table, betas, diffusers):
    # diffusers runs it on variance-preserving latents and rounds each timestep to a whole one: the network here
    # ignores the timestep, so that the rules alone are compared; its float32 tables leave 1e-4.
    steps = 20
    base = random_network(4)

    def network(x, timestep):
        return base(x, 500.0)

    noise = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **betas, use_karras_sigmas=True, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    sigmas = make_sigmas("Karras", table, steps, automatic="")
    torch.testing.assert_close(scheduler.sigmas.double(), torch.tensor(sigmas, dtype=torch.float64), rtol=1e-4, atol=0)
    z = noise
    for timestep in scheduler.timesteps:
        z = scheduler.step(network(z, timestep), timestep, z).prev_sample
    denoiser = DiscreteDenoiser(network, table, "epsilon", sigmas=sigmas, device=torch.device("cpu"))
    got = last("DPM++ 2M", denoiser, noise * math.sqrt(1 + sigmas[0] ** 2), sigmas)
    torch.testing.assert_close(got, z, rtol=1e-3, atol=1e-3)
