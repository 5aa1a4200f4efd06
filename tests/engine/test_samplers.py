"""Samplers against what is known exactly: closed forms, orders of accuracy, distributions, batches."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from webui.core import catalogue
from webui.core.requests import SamplerOptions, ScheduleOptions
from webui.engine.denoiser import (
    MaskedDenoiser,
    NetworkDenoiser,
    Prediction,
    continuous_timestep,
    flow_timestep,
    scalings,
)
from webui.engine.samplers import SAMPLERS, find_sampler
from webui.engine.samplers.euler_ancestral import ancestral_step
from webui.engine.samplers.multistep import integrals
from webui.engine.samplers.restart import Segment, restart
from webui.engine.schedules import SCHEDULES, SigmaTable, make_sigmas

SPREAD = 0.7
MEAN = 0.3
CPU = torch.device("cpu")
PLAIN = ScheduleOptions()
# The solvers that choose their own levels and stop at the last level above 0.
CHOOSE_THEIR_OWN = ("DPM fast", "DPM adaptive")
# Those whose step to 0 extrapolates past slopes, so that they do not end on their last estimate.
EXTRAPOLATE_TO_ZERO = ("LMS", "PLMS")


class Exact:
    """A closed form as a denoiser, without any guidance."""

    def __init__(self, function):
        self._function = function

    def __call__(self, x, sigma):
        return self._function(x, sigma)

    def both(self, x, sigma):
        return (self._function(x, sigma),) * 2


@Exact
def gaussian(x, sigma):
    """The exact denoiser for clean data ~ N(MEAN, SPREAD²)."""
    return MEAN + (x - MEAN) * (SPREAD**2 / (SPREAD**2 + sigma**2))


def exact_end(x, sigma):
    """Where the probability-flow ODE takes x from noise level sigma to 0 for that data."""
    return MEAN + (x - MEAN) * (SPREAD / math.sqrt(SPREAD**2 + sigma**2))


@Exact
def mixture(x, sigma):
    """The exact denoiser for two equally likely clean values, -1 and 1."""
    return torch.tanh(x / sigma**2)


def no_noise(sigma, sigma_next):
    raise AssertionError("this sampler draws no noise")


def stream(shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(shape, generator=generator, dtype=torch.float64)


def walk(name, denoiser, x, sigmas, noise=no_noise, **options):
    return list(find_sampler(name).run(denoiser, x, sigmas, noise, SamplerOptions(**options)))


def last(*arguments, **options):
    return walk(*arguments, **options)[-1].x


@pytest.fixture(scope="module")
def table(alphas_cumprod):
    return SigmaTable.from_alphas(alphas_cumprod.tolist())


@pytest.fixture(scope="module")
def karras(table):
    return lambda steps: make_sigmas("Karras", table, steps, PLAIN, automatic="")


def test_the_registry_is_the_catalogue():
    assert tuple(SAMPLERS) == catalogue.SAMPLERS
    assert ("Automatic", *SCHEDULES) == catalogue.SCHEDULE_TYPES


@pytest.mark.parametrize("name", catalogue.SAMPLERS)
def test_every_samplers_own_schedule_exists(name, table):
    sampler = SAMPLERS[name]
    sigmas = make_sigmas(
        "Automatic", table, 4, PLAIN, automatic=sampler.automatic, discard_next_to_last=sampler.discards_next_to_last
    )
    assert len(sigmas) == 5


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in CHOOSE_THEIR_OWN])
@pytest.mark.parametrize("steps", [1, 2, 7, 21])
def test_a_step_for_each_pair_of_sigmas(name, steps, karras):
    sigmas = karras(steps)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    done = walk(name, gaussian, x, sigmas, stream(x.shape))
    assert [step.index for step in done] == list(range(steps))
    assert done[0].sigma == sigmas[0]
    if name != "Restart" or steps < 20:
        assert [step.sigma for step in done] == sigmas[:-1]
    if name not in EXTRAPOLATE_TO_ZERO or steps == 1:
        torch.testing.assert_close(done[-1].x, done[-1].denoised, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CHOOSE_THEIR_OWN)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 20])
def test_solvers_with_levels_of_their_own_count_the_given_ones(name, steps, karras):
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64) * 14.6
    done = walk(name, gaussian, x, karras(steps), stream(x.shape))
    assert all(a.index <= b.index for a, b in pairwise(done))
    assert done[-1].index == steps - 1
    assert all(a.sigma > b.sigma for a, b in pairwise(done))


def test_dpm_fast_makes_as_many_calls_as_steps(karras):
    for steps in range(1, 13):
        calls = []

        def counting(x, sigma, calls=calls):
            calls.append(sigma)
            return gaussian(x, sigma)

        walk("DPM fast", Exact(counting), torch.ones(1), karras(steps), stream(1), eta=0.0)
        assert len(calls) == steps


# Order of accuracy. IPNDM's and PLMS's weights are those of equal steps, IPNDM_V's are not exact where steps differ,
# HeunPP2's depend on the first sigma: on unequal levels all four are of order 1 in theory. DPM++ 3M weighs its second
# difference by half of what order 3 needs (so does diffusers); UniPC's corrector adds an order to its 3.
ORDERS = {
    "Euler": 1, "DDIM": 1, "DDIM CFG++": 1, "Euler CFG++": 1, "Heun": 2, "DPM2": 2, "DPM++ 2M": 2, "LMS": 4, "DEIS": 3,
    "DPM++ 2S a": 2, "DPM++ 2M SDE": 2, "DPM++ 2M SDE Heun": 2, "DPM++ 3M SDE": 2, "DPM++ SDE": 2, "DPM2 a": 2,
    "Euler a": 1, "Euler a CFG++": 1, "UniPC": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_on_a_gaussian(name):
    # The noise levels stop at 0.2 (the step to 0 is first order for all) and are even in log sigma, so that halving
    # the step divides the error by 2^order. Rules that remember past steps begin with lower orders, so the first step
    # is cut into 12 that double in length. Samplers of the SDE are run as ODE solvers, with eta 0. The slack is for
    # terms of higher order: a quarter, and a half upwards, where a wrong rule would be a whole order lower.
    low, high = 0.2, 5.0
    x = torch.linspace(-3, 3, 13, dtype=torch.float64) * high
    wanted = MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + low**2) / (SPREAD**2 + high**2))
    errors = []
    for steps in (64, 128):
        places = [0.0, *(2.0**-power for power in range(12, 0, -1)), *range(1, steps + 1)]
        sigmas = [high * (low / high) ** (place / steps) for place in places]
        # UniPC lowers its order towards the end, for the step to 0 that it expects; that one is cut off here.
        end = (
            walk(name, gaussian, x, [*sigmas, 1e-3, 1e-4, 0.0], eta=0.0)[len(sigmas) - 2].x
            if name == "UniPC"
            else last(name, gaussian, x, sigmas, eta=0.0)
        )
        errors.append((end - wanted).abs().max().item())
    measured = math.log2(errors[0] / errors[1])
    assert ORDERS[name] - 0.25 < measured < ORDERS[name] + 0.5


def test_multistep_with_equal_steps_has_its_order():
    # PLMS and IPNDM on levels that are even in sigma, where their weights are exact: 4th order, limited by the lower
    # orders of the first steps (2 for PLMS's improved Euler, whose error is of order 3 once; 1 for IPNDM, so 2 once).
    x = torch.linspace(-3, 3, 13, dtype=torch.float64) * 2
    low, high = 0.5, 2.0
    wanted = MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + low**2) / (SPREAD**2 + high**2))
    for name, order in (("PLMS", 3), ("IPNDM", 2), ("IPNDM_V", 2)):
        errors = []
        for steps in (64, 128):
            sigmas = [high + (low - high) * index / steps for index in range(steps + 1)]
            errors.append((last(name, gaussian, x, sigmas) - wanted).abs().max().item())
        assert math.log2(errors[0] / errors[1]) > order - 0.25, name


def test_dpm_solvers_reach_the_exact_solution(karras):
    # eta 0 makes both deterministic: third order in 60 calls; the adaptive one to its tolerance, 5 % of values up to 2.
    sigmas = karras(60)
    x = MEAN + torch.linspace(-2, 2, 9, dtype=torch.float64) * sigmas[0]
    wanted = MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + sigmas[-2] ** 2) / (SPREAD**2 + sigmas[0] ** 2))
    torch.testing.assert_close(last("DPM fast", gaussian, x, sigmas, eta=0.0), wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(last("DPM adaptive", gaussian, x, sigmas, eta=0.0), wanted, atol=0.1, rtol=0)


DETERMINISTIC = {
    "Euler": 0.03, "DDIM": 0.03, "DDIM CFG++": 0.03, "Euler CFG++": 0.03, "Heun": 0.003, "HeunPP2": 0.05, "DPM2": 0.003,
    "DPM++ 2M": 0.003, "LMS": 0.003, "PLMS": 0.03, "UniPC": 0.003, "IPNDM": 0.03, "IPNDM_V": 0.03, "DEIS": 0.003,
}  # fmt: skip


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_gaussian_ends_where_the_ode_does(name, karras):
    # 150 Karras steps; the tolerances are an order's expected error on values of size 1, and far under a wrong rule's.
    sigmas = karras(150)
    x = MEAN + torch.linspace(-2, 2, 9, dtype=torch.float64) * sigmas[0]
    got = last(name, gaussian, x, sigmas)
    torch.testing.assert_close(got, exact_end(x, sigmas[0]), atol=DETERMINISTIC[name], rtol=0)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in (*CHOOSE_THEIR_OWN, *EXTRAPOLATE_TO_ZERO)])
def test_a_mixture_ends_on_its_modes_in_equal_parts(name, karras):
    # 4,000 draws: the share of +1 deviates by 0.008, four deviations are allowed.
    sigmas = karras(40)
    noise = stream(4000)
    end = last(name, mixture, noise(0, 0) * sigmas[0], sigmas, noise)
    torch.testing.assert_close(end.abs(), torch.ones_like(end), atol=0.01, rtol=0)
    assert (end > 0).double().mean().item() == pytest.approx(0.5, abs=0.032)


@pytest.mark.parametrize("name", ["Euler a", "DDPM", "DPM++ 2M SDE", "DPM++ 3M SDE", "DPM2 a", "DPM++ 2S a", "Restart"])
def test_noise_makes_up_for_what_was_removed(name, karras):
    # A Gaussian keeps its spread: 20,000 draws know a deviation to 0.5 %; first-order steps shrink it by a share that
    # falls with their number, under 2 % at 240.
    sigmas = karras(240)
    noise = stream(20000, seed=5)
    end = last(name, gaussian, noise(0, 0) * sigmas[0], sigmas, noise)
    assert end.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert end.std().item() == pytest.approx(SPREAD, rel=0.025)


@pytest.mark.parametrize(("sigma", "sigma_next"), [(14.6, 9.0), (1.0, 0.9), (0.1, 0.0)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_variances_add_up(sigma, sigma_next, eta):
    down, up = ancestral_step(sigma, sigma_next, eta)
    assert down**2 + up**2 == pytest.approx(sigma_next**2)
    assert down <= sigma_next
    assert up == pytest.approx(eta * ancestral_step(sigma, sigma_next)[1])


# ---- what options do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE", "DDIM"]
)
def test_eta_zero_draws_nothing_and_another_eta_changes_the_picture(name, karras):
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64) * 14.6
    without = last(name, mixture, x, karras(6), eta=0.0)
    half = last(name, mixture, x, karras(6), stream(x.shape), eta=0.5)
    assert not torch.allclose(without, half)


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM2", "HeunPP2"])
def test_churn_stays_within_its_limits(name, karras):
    x = torch.full((1,), 10.0, dtype=torch.float64)
    plain = walk(name, gaussian, x, karras(6))
    churned = walk(name, gaussian, x, karras(6), stream(1), s_churn=3.0, s_tmin=0.05, s_tmax=2.0)
    first = next(i for i, step in enumerate(churned) if step.sigma <= 2.0)
    assert first > 0
    assert all(torch.equal(a.x, b.x) for a, b in zip(plain[:first], churned[:first], strict=True))
    assert not torch.equal(plain[first].x, churned[first].x)
    everywhere = walk(name, gaussian, x, karras(6), stream(1), s_churn=3.0)
    assert not torch.equal(plain[0].x, everywhere[0].x)


def test_unipcs_order_matters(karras):
    x = torch.linspace(-3, 3, 7, dtype=torch.float64) * 14.6
    ends = [last("UniPC", gaussian, x, karras(12), order=order) for order in (1, 2, 3)]
    assert not torch.allclose(ends[0], ends[1])
    assert not torch.allclose(ends[1], ends[2])


def test_restart_walks_its_segments():
    sigmas = [10.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.0]
    drawn = []

    def noise(sigma, sigma_next):
        drawn.append((sigma, sigma_next))
        return torch.ones(1, dtype=torch.float64)

    steps = list(
        restart(
            gaussian,
            torch.ones(1, dtype=torch.float64),
            sigmas,
            noise,
            SamplerOptions(),
            segments={0.48: Segment(steps=3, times=2, top=2.1)},
        )
    )
    visited = [step.sigma for step in steps]
    # Down to 0.5, twice up to 2 and down in three steps, then on.
    assert [visited[i] for i in (0, 1, 2, 3)] == [10.0, 5.0, 2.0, 1.0]
    assert visited[4] == visited[7] == pytest.approx(2.0)
    assert len(visited) == 6 + 2 * 3
    assert drawn == [(pytest.approx(0.5), pytest.approx(2.0))] * 2
    assert visited[-2:] == [0.5, 0.1]


def test_multistep_integrals_are_exact():
    # The Lagrange basis on three points reproduces quadratics: here t² from 1 to 3.
    points = [0.5, 1.0, 2.0]
    assert sum(w * p**2 for w, p in zip(integrals(points, 1.0, 3.0), points, strict=True)) == pytest.approx(26 / 3)
    assert integrals([5.0], 0.0, 1.0, density=np.exp)[0] == pytest.approx(math.e - 1)


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if not sampler.one_by_one])
def test_a_row_is_the_same_alone_and_in_a_batch(name, karras):
    starts = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 14.6

    def noise_of(rows):
        streams = [stream((2, 3, 3), seed=row) for row in rows]
        return lambda sigma, sigma_next: torch.stack([each(sigma, sigma_next) for each in streams])

    together = last(name, mixture, starts, karras(8), noise_of([0, 1, 2]))
    for row in range(3):
        alone = last(name, mixture, starts[row : row + 1], karras(8), noise_of([row]))
        assert torch.equal(alone[0], together[row])


# ---- denoisers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow"])
def test_scalings_undo_what_was_mixed(prediction_type, table):
    clean, noise = torch.randn(2, 50, dtype=torch.float64).unbind(0)
    sigma = 2.5
    alpha = 1 / (1 + sigma) if prediction_type == "flow" else 1 / math.sqrt(1 + sigma**2)
    right = {"epsilon": noise, "v_prediction": alpha * noise - sigma * alpha * clean, "flow": noise - clean}
    seen = []

    def predict(x, timestep, level):
        seen.append((x, timestep, level))
        return Prediction(right[prediction_type], torch.zeros_like(x))

    x = clean + sigma * noise
    timestep = flow_timestep if prediction_type == "flow" else table.timestep
    denoiser = NetworkDenoiser(predict, prediction_type, timestep=timestep, sigmas=[sigma, 0.0], device=CPU)
    torch.testing.assert_close(denoiser(x, sigma), clean)
    # The network sees latents of its own kind at the timestep of that noise level.
    torch.testing.assert_close(seen[0][0], alpha * clean + sigma * alpha * noise)
    assert seen[0][1].item() == pytest.approx(timestep(sigma))
    assert seen[0][2] == sigma
    guided, unguided = denoiser.both(x, sigma)
    torch.testing.assert_close(guided, clean)
    torch.testing.assert_close(unguided, scalings(sigma, prediction_type)[0] * x)
    assert scalings(0.0, prediction_type)[0] == 1.0


def test_timesteps_of_continuous_networks():
    assert continuous_timestep(math.e**2) == pytest.approx(0.5)
    assert flow_timestep(1.0) == 500
    assert flow_timestep(1e9) == pytest.approx(1000)


def test_a_level_that_was_not_prepared_works_too(table):
    seen = []

    def predict(x, timestep, sigma):
        seen.append(timestep.item())
        return Prediction(x, x)

    denoiser = NetworkDenoiser(predict, "epsilon", timestep=table.timestep, sigmas=[2.0], device=CPU)
    denoiser(torch.ones(1), 1.5)
    assert seen == [pytest.approx(table.timestep(1.5))]


@pytest.mark.parametrize("name", ["DPM++ 2M", "DDIM CFG++", "Heun"])
def test_a_mask_keeps_what_is_outside(name, karras):
    kept = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]], dtype=torch.float64)
    sigmas = karras(5)
    x = kept + torch.randn_like(kept) * sigmas[0]
    end = last(name, MaskedDenoiser(gaussian, kept, mask), x, sigmas)
    torch.testing.assert_close(end[..., 0, 1], kept[..., 0, 1], rtol=0, atol=1e-12)
    assert not torch.allclose(end[..., 0, 0], kept[..., 0, 0])
