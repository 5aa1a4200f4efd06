"""The latent upscalers: each is the mode of torch's that A1111 means by its name."""

import pytest
import torch
import torch.nn.functional as F

from webui.core.catalogue import LATENT_UPSCALERS
from webui.core.errors import InvalidRequest
from webui.engine.latent_resize import MODES, enlarge_latents

LATENTS = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))


def test_there_is_one_for_each_name():
    assert tuple(MODES) == LATENT_UPSCALERS


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Latent", {"mode": "bilinear"}),
        ("Latent (antialiased)", {"mode": "bilinear", "antialias": True}),
        ("Latent (bicubic)", {"mode": "bicubic"}),
        ("Latent (bicubic antialiased)", {"mode": "bicubic", "antialias": True}),
        ("Latent (nearest)", {"mode": "nearest"}),
        ("Latent (nearest-exact)", {"mode": "nearest-exact"}),
    ],
)
@pytest.mark.parametrize("size", [(9, 12), (3, 4)])
def test_they_are_torchs(name, options, size):
    got = enlarge_latents(LATENTS, size, name)
    assert got.shape == (2, 4, *size)
    assert torch.equal(got, F.interpolate(LATENTS, size=size, **options))


@pytest.mark.parametrize("name", LATENT_UPSCALERS)
def test_the_same_size_changes_nothing(name):
    assert torch.equal(enlarge_latents(LATENTS, (6, 8), name), LATENTS)


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidRequest, match="'Latent \\(magic\\)'"):
        enlarge_latents(LATENTS, (9, 12), "Latent (magic)")
