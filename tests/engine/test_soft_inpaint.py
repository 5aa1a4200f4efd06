"""The arithmetic of soft inpainting."""

import dataclasses

import pytest
import torch

from webui.core.requests import SoftInpainting
from webui.engine.soft_inpaint import SoftlyMaskedDenoiser, blended, changed_share, new_share

OPTIONS = SoftInpainting(enabled=True)
MASK = torch.linspace(0, 1, 5).view(1, 1, 1, 5)


def options(**values):
    return dataclasses.replace(OPTIONS, **values)


def latents(seed, count=1):
    return torch.randn(count, 4, 1, 5, generator=torch.Generator().manual_seed(seed))


def test_the_new_share_is_the_masks_power():
    got = new_share(MASK, 3.0, options(schedule_bias=2.0, preservation_strength=0.5))
    torch.testing.assert_close(got, MASK ** (0.5 * 9))


@pytest.mark.parametrize("values", [{}, {"preservation_strength": 0.0}, {"schedule_bias": 0.0}, {"schedule_bias": 8.0}])
@pytest.mark.parametrize("sigma", [1e-3, 1.0, 14.6])
def test_black_never_changes_and_white_always_does(values, sigma):
    share = new_share(MASK, sigma, options(**values)).flatten()
    assert share[0] == 0
    assert share[-1] == 1
    assert bool((share.diff() >= 0).all())


def test_grey_is_let_go_as_the_noise_falls_and_kept_the_longer_the_stronger():
    greys = [new_share(MASK, sigma, OPTIONS)[..., 2].item() for sigma in (14.6, 3.0, 0.5, 0.01)]
    assert greys == sorted(greys)
    assert greys[0] < 0.01
    assert greys[-1] > 0.99
    kept = [new_share(MASK, 1.0, options(preservation_strength=s))[..., 2].item() for s in (0, 0.5, 2, 8)]
    assert kept == sorted(kept, reverse=True)
    # Above sigma 1 a higher bias keeps more, below it less.
    biased = options(schedule_bias=2.0)
    assert new_share(MASK, 3.0, biased)[..., 2] < new_share(MASK, 3.0, OPTIONS)[..., 2]
    assert new_share(MASK, 0.3, biased)[..., 2] > new_share(MASK, 0.3, OPTIONS)[..., 2]


def test_blending_ends_at_what_is_blended():
    kept, new = latents(1), latents(2, 3)
    torch.testing.assert_close(blended(kept, new, torch.zeros_like(MASK), 4.0), kept.expand_as(new))
    torch.testing.assert_close(blended(kept, new, torch.ones_like(MASK), 4.0), new)
    torch.testing.assert_close(blended(kept, kept, MASK, 4.0), kept)


@pytest.mark.parametrize("contrast", [1.0, 4.0, 32.0])
def test_the_blend_has_the_power_mean_of_the_lengths(contrast):
    kept, new = latents(1), latents(2)
    got = blended(kept, new, MASK, contrast).norm(dim=1, keepdim=True)
    a, b = (x.double().norm(dim=1, keepdim=True) for x in (kept, new))
    wanted = ((1 - MASK.double()) * a**contrast + MASK.double() * b**contrast) ** (1 / contrast)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
    assert bool((got >= torch.lerp(kept, new, MASK).norm(dim=1, keepdim=True) - 1e-5).all())


def test_large_latents_and_opposite_ones_stay_finite():
    assert blended(latents(1) * 1e4, latents(2) * 1e4, MASK, 32.0).isfinite().all()
    assert blended(latents(1), -latents(1), torch.full_like(MASK, 0.5), 4.0).isfinite().all()
    assert blended(torch.zeros(1, 4, 1, 5), torch.zeros(1, 4, 1, 5), MASK, 4.0).eq(0).all()


def test_the_denoiser_blends_both_of_its_answers():
    class Fixed:
        def __call__(self, x, sigma):
            return latents(2)

        def both(self, x, sigma):
            return latents(2), latents(3)

    kept = latents(1)
    denoiser = SoftlyMaskedDenoiser(Fixed(), kept, MASK, OPTIONS)
    wanted = [blended(kept, latents(seed), new_share(MASK, 2.0, OPTIONS), 4.0) for seed in (2, 3)]
    torch.testing.assert_close(denoiser(kept, 2.0), wanted[0])
    torch.testing.assert_close(list(denoiser.both(kept, 2.0)), wanted)


# ---- what changed ----------------------------------------------------------------------------------------------------


def changed(moved, mask=0.5, **values):
    """The share where every latent moved by `moved` (as a length)."""
    before = torch.zeros(1, 4, 3, 3)
    return changed_share(torch.full((1, 1, 3, 3), mask), before, before + moved / 2, options(**values))[
        0, 0, 1, 1
    ].item()


def test_nothing_changed_is_nothing_new_and_much_is_all_new():
    assert changed(0.0) == 0
    assert changed(0.5) == pytest.approx(0.5, abs=1e-4)  # at the threshold
    assert changed(5.0) > 0.99
    shares = [changed(moved / 10) for moved in range(20)]
    assert shares == sorted(shares)


def test_a_neighbours_change_counts():
    before = torch.zeros(1, 4, 7, 7)
    after = before.clone()
    after[..., 3, 3] = 5
    share = changed_share(torch.ones(1, 1, 7, 7), before, after, OPTIONS)[0, 0]
    assert bool((share[2:5, 2:5] > 0.99).all())
    assert share[0, 0] == 0


def test_thresholds_contrast_and_the_masks_influence_do_what_they_say():
    assert changed(0.6, difference_threshold=0.1) > changed(0.6) > changed(0.6, difference_threshold=4.0)
    assert changed(0.6, difference_contrast=8.0) > changed(0.6, difference_contrast=1.0) > 0.5
    assert changed(0.4, difference_contrast=8.0) < changed(0.4, difference_contrast=1.0) < 0.5
    # Without influence the mask does not matter; with all of it, white is new and black stays.
    assert changed(0.4, mask=0.1) == changed(0.4, mask=0.9)
    assert changed(0.4, mask=1.0, mask_influence=1.0) > 0.99
    assert changed(0.4, mask=0.0, mask_influence=1.0) < 0.01
    assert 0 <= changed(0.4, difference_threshold=0.0) <= 1
