"""Sigma tables and schedule types, against published values."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from webui.core.errors import InvalidRequest
from webui.core.requests import ScheduleOptions
from webui.engine.schedules import SCHEDULES, SigmaTable, karras_between, make_sigmas, stable_diffusion_table

PLAIN = ScheduleOptions()


@pytest.fixture(scope="module")
def table(alphas_cumprod):
    return SigmaTable.from_alphas(alphas_cumprod.tolist())


def sigmas_of(name, table, steps, automatic="Karras", **options):
    return make_sigmas(name, table, steps, ScheduleOptions(**options), automatic=automatic)


def test_stable_diffusions_table(table):
    # The ends that every SD1 tool prints: 0.0292 and 14.6146.
    assert table.sigma_min == pytest.approx(0.0292, abs=1e-4)
    assert table.sigma_max == pytest.approx(14.6146, abs=1e-3)
    assert stable_diffusion_table().sigmas == pytest.approx(table.sigmas)


def test_timestep_and_sigma_are_inverses(table):
    for timestep in (0.0, 0.25, 17.5, 500.0, 998.9, 999.0):
        assert table.timestep(table.sigma(timestep)) == pytest.approx(timestep, abs=1e-6)
    assert table.timestep(1e9) == 999
    assert table.timestep(0.0) == 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 150])
def test_every_schedule_falls_to_zero_in_as_many_steps(name, steps, table):
    for discard in (False, True):
        sigmas = sigmas_of(name, table, steps, discard_next_to_last=discard)
        assert len(sigmas) == steps + 1
        assert sigmas[-1] == 0
        assert all(a > b for a, b in itertools.pairwise(sigmas))
        # Align Your Steps' tables are rounded to three digits.
        assert sigmas[0] <= table.sigma_max * 1.0001


def test_known_values(table):
    assert sigmas_of("DDIM", table, 20)[0] == table.sigmas[951]
    assert sigmas_of("DDIM", table, 20)[-2] == table.sigmas[1]
    assert sigmas_of("Simple", table, 20)[:2] == [table.sigmas[999], table.sigmas[949]]
    assert sigmas_of("SGM Uniform", table, 20)[1] == pytest.approx(table.sigma(999 * 19 / 20))
    assert sigmas_of("Uniform", table, 20)[-2] == pytest.approx(table.sigma_min)
    assert sigmas_of("Normal", table, 20) == pytest.approx(sigmas_of("Uniform", table, 20))
    ratios = [a / b for a, b in itertools.pairwise(sigmas_of("Exponential", table, 9)[:-1])]
    assert max(ratios) == pytest.approx(min(ratios))
    assert sigmas_of("Polyexponential", table, 9) == pytest.approx(sigmas_of("Exponential", table, 9))
    # Sabour et al. 2024, theorem 3.1: tan of even angles from the noisy end, the clean end left out for 0.
    low, high = math.atan(table.sigma_min), math.atan(table.sigma_max)
    wanted = [math.tan(high + (low - high) * index / 8) for index in range(8)]
    assert sigmas_of("KL Optimal", table, 8) == pytest.approx([*wanted, 0.0])
    # A1111's Beta: quantiles between the ends of sigma, by scipy's distribution.
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, 11), 0.5, 0.9)
    wanted = [table.sigma_min + share * (table.sigma_max - table.sigma_min) for share in quantiles]
    assert sigmas_of("Beta", table, 11, alpha=0.5, beta=0.9) == pytest.approx([*wanted, 0.0])


@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_turbo_is_what_diffusers_calls_trailing(steps, table, betas, diffusers):
    # Reference: diffusers' timesteps, whole numbers, so equal.
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", **betas)
    scheduler.set_timesteps(steps)
    wanted = [table.sigmas[int(timestep)] for timestep in scheduler.timesteps]
    assert sigmas_of("Turbo", table, steps) == [*wanted, 0.0]


@pytest.mark.parametrize(("is_xl", "published"), [(False, "StableDiffusionSigmas"), (True, "StableDiffusionXLSigmas")])
def test_align_your_steps_are_the_published_tables(is_xl, published, table, alphas_cumprod, diffusers):
    # Reference: the tables of the how-to page as diffusers carries them, ten levels and 0; A1111's have 0.029 more.
    table = SigmaTable.from_alphas(alphas_cumprod.tolist(), is_xl=is_xl)
    wanted = list(diffusers.schedulers.AysSchedules[published])
    for name in ("Align Your Steps", "Align Your Steps 11"):
        assert sigmas_of(name, table, 11) == [*wanted[:-1], 0.029, 0.0]
    # At other numbers log-linear between them, as numpy does it: 1e-9.
    own = [*wanted[:-1], 0.029]
    logs = np.interp(np.linspace(0, 10, 24), np.arange(11), np.log(own))
    assert sigmas_of("Align Your Steps", table, 24) == pytest.approx([*np.exp(logs), 0.0])


def test_the_other_aligned_tables_have_their_length(table):
    assert sigmas_of("Align Your Steps 32", table, 32)[:3] == [14.615, 11.23951352, 8.64363081]
    assert sigmas_of("Align Your Steps 32", table, 32)[-2] == 0.015
    assert sigmas_of("Align Your Steps GITS", table, 11)[:3] == [14.615, 4.617, 2.507]


def test_lcms_own_is_even_between_its_timesteps(table):
    # A1111's LCM: from 999 to 19, the 50th of the timesteps that it was distilled on.
    wanted = [table.sigma(timestep) for timestep in (999, 999 - 980 / 3, 999 - 2 * 980 / 3, 19)]
    assert sigmas_of("Automatic", table, 4, automatic="LCM") == pytest.approx([*wanted, 0.0])
    with pytest.raises(InvalidRequest, match="'LCM'"):
        sigmas_of("LCM", table, 4)


@pytest.mark.parametrize(
    "name", ["Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Normal", "Beta"]
)
def test_ends_by_wish(name, table):
    sigmas = sigmas_of(name, table, 8, sigma_min=0.1, sigma_max=10.0)
    assert sigmas[0] == pytest.approx(10.0)
    if name in ("Karras", "Exponential", "Polyexponential", "Normal", "Beta"):
        assert sigmas[-2] == pytest.approx(0.1)
    with pytest.raises(InvalidRequest, match="from 1 down to 5"):
        sigmas_of(name, table, 8, sigma_min=5.0, sigma_max=1.0)


def test_rho_by_wish(table):
    assert sigmas_of("Karras", table, 9, rho=3.0) == karras_between(table.sigma_min, table.sigma_max, 9, rho=3.0)
    assert sigmas_of("Karras", table, 9, rho=7.0) == sigmas_of("Karras", table, 9)
    assert sigmas_of("Polyexponential", table, 9, rho=2.0)[4] < sigmas_of("Polyexponential", table, 9)[4]


def test_leaving_out_the_last_but_one(table):
    longer = sigmas_of("Karras", table, 10)
    assert sigmas_of("Karras", table, 9, discard_next_to_last=True) == [*longer[:9], 0.0]
    assert make_sigmas("Karras", table, 9, PLAIN, automatic="", discard_next_to_last=True) == [*longer[:9], 0.0]


def test_automatic_is_the_samplers_own(table):
    assert sigmas_of("Automatic", table, 9, automatic="DDIM") == sigmas_of("DDIM", table, 9)


def test_an_unknown_type_is_named(table):
    with pytest.raises(InvalidRequest, match="'Zigzag'"):
        sigmas_of("Zigzag", table, 9)


def test_zero_terminal_snr_has_a_finite_end():
    # A1111's value for the last level of such a model: 4518.8.
    table = SigmaTable.from_alphas([0.99, 0.5, 0.0])
    assert table.sigma_max == pytest.approx(4518.8, abs=0.1)
