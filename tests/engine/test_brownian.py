"""Brownian noise: torchsde's paths, whatever the order, the batch and the source of the numbers."""

import pytest
import torch
import torchsde

from webui.engine.brownian import BrownianNoise
from webui.engine.noise import brought

SHAPE = (4, 3, 5)
CPU = torch.device("cpu")


def draw(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def noise_of(*seeds, draw=draw):
    return BrownianNoise(seeds, draw, sigma_min=0.029, sigma_max=14.6, device=CPU)


@pytest.mark.parametrize(("sigma", "sigma_next"), [(14.6, 9.0), (9.0, 3.0), (0.5, 0.029)])
def test_it_is_torchsdes_own_path_from_the_same_generator(sigma, sigma_next):
    # Reference: torchsde's tree left alone, which draws from torch's CPU generator; the same numbers, so equal.
    tree = torchsde.BrownianTree(0.029, torch.zeros(SHAPE), 14.6, entropy=5)
    wanted = -tree(sigma_next, sigma) / (sigma - sigma_next) ** 0.5
    torch.testing.assert_close(noise_of(5)(sigma, sigma_next)[0], wanted)


def test_a_stretch_is_the_same_whatever_was_asked_before():
    once = noise_of(5)(3.0, 1.0)
    again = noise_of(5)
    for levels in ((14.6, 9.0), (3.0, 2.0), (9.0, 3.0)):
        again(*levels)
    assert torch.equal(once, again(3.0, 1.0))


def test_a_picture_is_the_same_alone_and_in_a_batch():
    together = noise_of(5, 6, 7)(3.0, 1.0)
    for row, seed in enumerate((5, 6, 7)):
        assert torch.equal(noise_of(seed)(3.0, 1.0)[0], together[row])


def test_stretches_add_up_and_numbers_are_standard_normal():
    noise = BrownianNoise(range(40), draw, sigma_min=0.029, sigma_max=14.6, device=CPU)
    whole = noise(4.0, 1.0) * 3**0.5
    parts = noise(4.0, 2.0) * 2**0.5 + noise(2.0, 1.0)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    # 2,400 numbers: a deviation is known to 1.5 %, three of them are allowed.
    assert whole.div(3**0.5).std().item() == pytest.approx(1, abs=0.05)


def test_the_numbers_come_from_the_given_source_and_torchsde_is_as_before():
    from torchsde._brownian import brownian_interval

    original = brownian_interval._randn
    flat = noise_of(5, draw=lambda seed: torch.zeros(SHAPE))(3.0, 1.0)
    assert torch.equal(flat, torch.zeros(1, *SHAPE))
    assert brownian_interval._randn is original


def test_the_ends_of_a_schedule_are_within_the_path():
    # torchsde rounds ends to six digits and would warn, which is an error here.
    noise = BrownianNoise([5], draw, sigma_min=0.02916737, sigma_max=14.614641229, device=CPU)
    assert torch.isfinite(noise(14.614641229, 0.02916737)).all()


def test_numbers_from_the_cpu_come_to_a_card_beside_its_work(monkeypatch):
    """A plain copy waits for all work before it, at each step of every sampler of the stochastic equation."""
    asked = []

    class Pinned:
        def to(self, device, *, non_blocking):
            asked.append((device, non_blocking))
            return torch.ones(1, *SHAPE)

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _: Pinned())
    card = torch.device("cuda", 0)
    BrownianNoise([5], draw, sigma_min=0.029, sigma_max=14.6, device=card)(3.0, 1.0)
    assert asked == [(card, True)]
    assert torch.equal(brought(torch.ones(SHAPE), CPU), torch.ones(SHAPE))
