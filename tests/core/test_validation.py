"""The sentences that a request out of bounds is answered with: what, the value, and what is allowed."""

from __future__ import annotations

import dataclasses

import pytest

from webui.core import catalogue
from webui.core.errors import AtelierError, InvalidRequest
from webui.core.requests import (
    FaceRestoration,
    Guidance,
    HiresFix,
    Img2Img,
    Inpaint,
    Loopback,
    Outpaint,
    SamplerOptions,
    ScheduleOptions,
    SdUpscale,
    SoftInpainting,
    StartOptions,
    TileBlend,
    TiledDiffusion,
    Txt2Img,
    Upscale,
)
from webui.core.validation import validate, with_seed

TXT2IMG = Txt2Img()
IMG2IMG = Img2Img(init_image=b"png")
INPAINT = Inpaint(init_image=b"png", mask=b"png")
UPSCALE = Upscale(image=b"png")


@pytest.mark.parametrize(
    "request_", [TXT2IMG, Img2Img(init_image=b"png"), INPAINT, UPSCALE], ids=lambda r: type(r).__name__
)
def test_the_defaults_are_valid(request_):
    validate(request_)


@pytest.mark.parametrize(
    ("request_", "changes", "sentence"),
    [
        (TXT2IMG, {"steps": 0}, "Steps is 0, outside 1 to 150; choose a value in that range."),
        (TXT2IMG, {"steps": 151}, "Steps is 151, outside 1 to 150; choose a value in that range."),
        (TXT2IMG, {"width": 56}, "Width is 56, outside 64 to 8192; choose a value in that range."),
        (TXT2IMG, {"height": 9000}, "Height is 9000, outside 64 to 8192; choose a value in that range."),
        (TXT2IMG, {"width": 513}, "Width is 513, not a multiple of 8; the nearest are 512 and 520."),
        (TXT2IMG, {"height": 100}, "Height is 100, not a multiple of 8; the nearest are 96 and 104."),
        (TXT2IMG, {"cfg_scale": 0.5}, "CFG scale is 0.5, outside 1 to 30; choose a value in that range."),
        (TXT2IMG, {"cfg_scale": float("nan")}, "CFG scale is nan, outside 1 to 30; choose a value in that range."),
        (TXT2IMG, {"batch_size": 9}, "Batch size is 9, outside 1 to 8; choose a value in that range."),
        (TXT2IMG, {"batch_count": 0}, "Batch count is 0, outside 1 to 100; choose a value in that range."),
        (TXT2IMG, {"seed": -2}, "Seed is -2, outside -1 to 4.29497e+09; choose a value in that range."),
        (
            TXT2IMG,
            {"sampler": "Magic"},
            f"Sampler 'Magic' is not known; choose one of {', '.join(catalogue.SAMPLERS)}.",
        ),
        (
            TXT2IMG,
            {"sampler_options": SamplerOptions(eta=1.5)},
            "Eta is 1.5, outside 0 to 1; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"sampler_options": SamplerOptions(order=0)},
            "UniPC order is 0, outside 1 to 6; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"sampler_options": SamplerOptions(s_churn=-1)},
            "Sigma churn is -1, outside 0 to 100; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"schedule_options": ScheduleOptions(sigma_min=0.0)},
            "Schedule min sigma is 0, outside 0.001 to 5000; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"schedule_options": ScheduleOptions(beta=float("nan"))},
            "Beta schedule beta is nan, outside 0.01 to 10; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"guidance": Guidance(rescale=1.2)},
            "CFG rescale is 1.2, outside 0 to 1; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"guidance": Guidance(skip_negative_below=20.0)},
            "NGMS is 20, outside 0 to 15; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"schedule_type": ""},
            f"Schedule type '' is not known; choose one of {', '.join(catalogue.SCHEDULE_TYPES)}.",
        ),
        (
            INPAINT,
            {"denoising_strength": 1.5},
            "Denoising strength is 1.5, outside 0 to 1; choose a value in that range.",
        ),
        (INPAINT, {"mask_blur": 65}, "Mask blur is 65, outside 0 to 64; choose a value in that range."),
        (INPAINT, {"padding": -1}, "Padding is -1, outside 0 to 256; choose a value in that range."),
        (INPAINT, {"init_image": b""}, "There is no picture to start from; add one and try again."),
        (INPAINT, {"mask": b""}, "There is no mask; add one and try again."),
        (UPSCALE, {"scale": 9.0}, "Scale is 9, outside 1 to 8; choose a value in that range."),
        (UPSCALE, {"tile": 16}, "Tile size is 16, outside 32 to 2048; choose a value in that range."),
        (UPSCALE, {"overlap": 97}, "Tile overlap is 97, outside 0 to 96; choose a value in that range."),
        (
            UPSCALE,
            {"width": 640, "height": 0},
            "Target height is 0, outside 1 to 8192; choose a value in that range.",
        ),
        (
            UPSCALE,
            {"faces": FaceRestoration(weight=2.0)},
            "CodeFormer weight is 2, outside 0 to 1; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"hires": HiresFix(enabled=True, scale=5.0)},
            "Hires scale is 5, outside 1 to 4; choose a value in that range.",
        ),
        (
            TXT2IMG,
            {"hires": HiresFix(enabled=True, width=1001)},
            "Hires width is 1001, not a multiple of 8; the nearest are 1000 and 1008.",
        ),
        (
            TXT2IMG,
            {"hires": HiresFix(enabled=True, sampler="Magic")},
            f"Hires sampler 'Magic' is not known; choose one of {', '.join(catalogue.SAMPLERS)}.",
        ),
        (
            TXT2IMG,
            {"width": 4096, "hires": HiresFix(enabled=True, scale=2.5)},
            "The width after hires fix is 10240, outside 64 to 8192; choose a value in that range.",
        ),
        (
            IMG2IMG,
            {"loopback": Loopback(loops=3), "sd_upscale": SdUpscale(upscaler="Lanczos")},
            "Loopback (3 loops) and SD upscale do not go together; turn one of them off.",
        ),
        (
            TXT2IMG,
            {"tiled": TiledDiffusion(method=TileBlend.MIXTURE, tile=256, overlap=192)},
            "Tile overlap is 192, outside 0 to 128; choose a value in that range.",
        ),
        (
            INPAINT,
            {"start": StartOptions(background="white")},
            "The background colour is 'white'; give it as #rrggbb, such as #ffffff.",
        ),
        (
            INPAINT,
            {"soft": SoftInpainting(transition_contrast=0.5)},
            "Transition contrast boost is 0.5, outside 1 to 32; choose a value in that range.",
        ),
        (
            INPAINT,
            {"outpaint": Outpaint(left=-8)},
            "Outpaint left is -8, outside 0 to 2048; choose a value in that range.",
        ),
        (UPSCALE, {"image": b""}, "There is no picture to upscale; add one and try again."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_out_of_bounds_is_said(request_, changes, sentence):
    with pytest.raises(InvalidRequest) as raised:
        validate(dataclasses.replace(request_, **changes))
    assert str(raised.value) == sentence
    assert isinstance(raised.value, AtelierError)


def test_the_bounds_themselves_are_allowed():
    for width in catalogue.DIMENSION_RANGE:
        for steps in catalogue.STEPS_RANGE:
            for seed in (-1, 0, catalogue.MAX_SEED):
                validate(Txt2Img(width=width, steps=steps, seed=seed))
    validate(dataclasses.replace(UPSCALE, tile=0, overlap=500))


def test_only_an_open_seed_is_chosen():
    assert with_seed(Txt2Img(seed=0)) == Txt2Img(seed=0)
    assert with_seed(UPSCALE) is UPSCALE
    seeds = {with_seed(dataclasses.replace(INPAINT, prompt="a")).seed for _ in range(20)}
    assert len(seeds) > 1
    assert all(0 <= seed <= catalogue.MAX_SEED for seed in seeds)
    assert dataclasses.replace(with_seed(INPAINT), seed=-1) == INPAINT


def test_growing_needs_no_mask_and_a_disabled_pass_is_not_looked_at():
    validate(dataclasses.replace(INPAINT, mask=b"", outpaint=Outpaint(right=64)))
    validate(dataclasses.replace(TXT2IMG, hires=HiresFix(scale=9.0)))
