"""Sigma tables and schedule types."""

import itertools
import math

import pytest
import torch

from webui.core.errors import InvalidRequest
from webui.engine.schedules import SCHEDULES, SigmaTable, make_sigmas


@pytest.fixture
def table(alphas_cumprod):
    return SigmaTable.from_alphas(alphas_cumprod.tolist())


def test_stable_diffusions_table(table):
    # The ends that every SD1 tool prints: 0.0292 and 14.6146.
    assert table.sigma_min == pytest.approx(0.0292, abs=1e-4)
    assert table.sigma_max == pytest.approx(14.6146, abs=1e-3)


def test_timestep_and_sigma_are_inverses(table):
    for timestep in (0.0, 0.25, 17.5, 500.0, 998.9, 999.0):
        assert table.timestep(table.sigma(timestep)) == pytest.approx(timestep, abs=1e-6)
    assert table.timestep(1e9) == 999
    assert table.timestep(0.0) == 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 150])
def test_every_schedule_falls_to_zero_in_as_many_steps(name, steps, table):
    sigmas = make_sigmas(name, table, steps, automatic="Karras")
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(sigmas))
    assert sigmas[0] <= table.sigma_max * (1 + 1e-9)


def test_known_values(table):
    # Karras at 10 steps on SD1, as k-diffusion's get_sigmas_karras(10, 0.0292, 14.6146) gives.
    rho = 7
    high, low = 14.6146 ** (1 / rho), 0.0292 ** (1 / rho)
    wanted = [(high + index / 9 * (low - high)) ** rho for index in range(10)]
    torch.testing.assert_close(
        torch.tensor(SCHEDULES["Karras"](table, 10)[:-1]), torch.tensor(wanted), rtol=2e-3, atol=0
    )
    assert SCHEDULES["DDIM"](table, 20)[0] == table.sigmas[951]
    assert SCHEDULES["DDIM"](table, 20)[-2] == table.sigmas[1]
    assert SCHEDULES["Simple"](table, 20)[:2] == [table.sigmas[999], table.sigmas[949]]
    assert SCHEDULES["SGM Uniform"](table, 20)[1] == pytest.approx(table.sigma(999 * 19 / 20))
    assert SCHEDULES["Uniform"](table, 20)[-2] == pytest.approx(table.sigma_min)
    ratios = [a / b for a, b in itertools.pairwise(SCHEDULES["Exponential"](table, 9)[:-1])]
    assert max(ratios) == pytest.approx(min(ratios))


def test_automatic_is_the_samplers_own(table):
    assert make_sigmas("Automatic", table, 9, automatic="DDIM") == make_sigmas("DDIM", table, 9, automatic="Karras")


def test_an_unknown_type_is_named(table):
    with pytest.raises(InvalidRequest, match="'Zigzag'"):
        make_sigmas("Zigzag", table, 9, automatic="Karras")


def test_zero_terminal_snr_has_a_finite_end():
    table = SigmaTable.from_alphas([0.99, 0.5, 0.0])
    assert math.isfinite(table.sigma_max)
    assert table.sigma_max > 1000
