"""Each tab turns its form into one request; numbers that are none get a sentence with the field's name."""

from __future__ import annotations

import dataclasses

import pytest

from webui.core.errors import InvalidRequest
from webui.core.geometry import Size
from webui.core.requests import (
    Emphasis,
    Img2Img,
    Inpaint,
    InpaintArea,
    Loopback,
    MaskedContent,
    Outpaint,
    ResizeMode,
    SdUpscale,
    SoftInpainting,
    StartOptions,
    StrengthCurve,
    Txt2Img,
    Variation,
)
from webui.core.validation import validate
from webui.ui.kinds import number, whole
from webui.ui.more import BASES, more_fields
from webui.ui.pictures import Drawn
from webui.ui.tabs.img2img import for_a_folder, img2img_request
from webui.ui.tabs.inpaint import inpaint_request, with_something_to_change
from webui.ui.tabs.txt2img import txt2img_request

COMMON = {
    "prompt": "a star",
    "negative_prompt": None,
    "checkpoint": "drawn",
    "sampler": "Euler a",
    "schedule_type": "Karras",
    "steps": 12.0,
    "width": 128,
    "height": 64,
    "cfg_scale": 5,
    "seed": 7,
    "batch_count": 2,
    "batch_size": 1,
}
MADE = {**COMMON, "negative_prompt": "", "steps": 12, "cfg_scale": 5.0}


def test_txt2img():
    request = txt2img_request(COMMON)
    assert request == Txt2Img(**MADE)
    assert isinstance(request.steps, int)
    assert isinstance(request.cfg_scale, float)


DRAWN = Drawn(picture=b"png", mask=b"mask", size=Size(100, 60))
IMG2IMG = {**COMMON, "denoising_strength": 0.4, "resize_mode": "Crop and resize"}
INPAINT = {
    **COMMON,
    "denoising_strength": 1,
    "resize_mode": "Just resize",
    "mask_blur": 8,
    "padding": 16,
    "mask_inverted": True,
    "area": "Only masked",
    "masked_content": "latent noise",
}


def test_img2img():
    made = img2img_request(IMG2IMG, DRAWN)
    assert made == Img2Img(**MADE, init_image=b"png", denoising_strength=0.4, resize_mode=ResizeMode.CROP)


def test_resize_by_takes_the_picture_s_size_times_a_factor_in_steps_of_8():
    made = img2img_request({**IMG2IMG, "resize_by": 1.5}, DRAWN)
    assert (made.width, made.height) == (152, 88)
    tiny = img2img_request({**IMG2IMG, "resize_by": 0.05}, DRAWN)
    assert (tiny.width, tiny.height) == (8, 8), "the validation says that this is too small, not the form"


def test_what_only_img2img_has():
    made = img2img_request(
        {
            **IMG2IMG,
            "start.exact_steps": True,
            "start.extra_noise": 0.1,
            "start.background": " #102030 ",
            "loopback.loops": 3,
            "loopback.curve": "Lazy",
            "sd_upscale.upscaler": "Lanczos",
            "sd_upscale.overlap": 32,
        },
        DRAWN,
    )
    assert made.start == StartOptions(exact_steps=True, extra_noise=0.1, background="#102030")
    assert made.loopback == Loopback(loops=3, curve=StrengthCurve.LAZY)
    assert made.sd_upscale == SdUpscale(upscaler="Lanczos", overlap=32)


def test_what_only_inpaint_has():
    made = inpaint_request(
        {
            **INPAINT,
            "mask_blur_y": "3",
            "conditional_mask_weight": 0.5,
            "soft.enabled": True,
            "soft.transition_contrast": 8,
            "outpaint.right": 64,
        },
        DRAWN,
    )
    assert made.mask_blur_y == 3
    assert isinstance(made.mask_blur_y, int)
    assert made.conditional_mask_weight == 0.5
    assert made.soft == SoftInpainting(enabled=True, transition_contrast=8.0)
    assert made.outpaint == Outpaint(right=64)
    assert inpaint_request({**INPAINT, "mask_blur_y": ""}, DRAWN).mask_blur_y is None
    with pytest.raises(InvalidRequest, match=r"Mask blur, vertical is 2\.5"):
        inpaint_request({**INPAINT, "mask_blur_y": "2.5"}, DRAWN)


def test_without_a_mask_a_picture_can_only_grow():
    unmasked = dataclasses.replace(DRAWN, mask=b"")
    with pytest.raises(InvalidRequest, match="Nothing is masked"):
        with_something_to_change(inpaint_request(INPAINT, unmasked))
    grown = inpaint_request({**INPAINT, "outpaint.top": 8, "resize_by": 2}, unmasked)
    assert with_something_to_change(grown).mask == b""
    assert (grown.width, grown.height) == (208, 144), "twice 104x72, which is what the picture grows to"


def test_a_folder_knows_no_one_size_to_resize_by():
    assert for_a_folder({**IMG2IMG, "resize_by": 0})
    with pytest.raises(InvalidRequest, match="Resize by follows the size of one picture"):
        for_a_folder({**IMG2IMG, "resize_by": 2})


def test_inpaint():
    assert inpaint_request(INPAINT, DRAWN) == Inpaint(
        **MADE,
        init_image=b"png",
        mask=b"mask",
        denoising_strength=1.0,
        mask_blur=8,
        padding=16,
        mask_inverted=True,
        area=InpaintArea.MASKED,
        masked_content=MaskedContent.LATENT_NOISE,
    )


def test_what_is_out_of_range_reaches_the_validation():
    request = txt2img_request({**COMMON, "width": 130})
    with pytest.raises(InvalidRequest, match="Width is 130, not a multiple of 8"):
        validate(request)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("width", None, "Width is empty"), ("steps", 2.5, "Sampling steps is 2.5"), ("seed", "many", "Seed is 'many'")],
)
def test_what_is_no_number_is_named(field, value, words):
    with pytest.raises(InvalidRequest, match=words):
        txt2img_request({**COMMON, field: value})


def test_unknown_choices_are_named():
    values = {**COMMON, "denoising_strength": 0.4, "resize_mode": "Fold"}
    with pytest.raises(InvalidRequest, match="Resize mode is 'Fold'"):
        img2img_request(values, DRAWN)


def test_the_defaults_of_the_section_more_are_the_request_s():
    values = {**COMMON, **{field.name: field.default for field in more_fields("txt2img")}}
    assert txt2img_request(values) == txt2img_request(COMMON)


@pytest.mark.parametrize("tab", BASES)
def test_the_section_more_has_every_field_that_the_form_does_not(tab):
    told = {name for field in more_fields(tab) for name in [field.name]}
    groups = {name.partition(".")[0] for name in told if "." in name}
    made = BASES[tab]
    for group in groups:
        assert {f"{group}.{part.name}" for part in dataclasses.fields(getattr(made, group))} <= told
    sections_of_their_own = {"hires"}
    whole_names = {part.name for part in dataclasses.fields(made)} - groups - sections_of_their_own
    in_the_form = {"txt2img": COMMON, "img2img": IMG2IMG, "inpaint": INPAINT}[tab]
    drawn = {"init_image", "mask", "outpaint"}
    assert whole_names - {name for name in told if "." not in name} <= {*in_the_form} | drawn


def test_the_section_more_is_read():
    request = txt2img_request(
        {
            **COMMON,
            "variation.seed": 5,
            "variation.strength": 0.5,
            "sampler_options.eta": "",
            "schedule_options.sigma_min": " 0.1",
            "schedule_options.discard_next_to_last": True,
            "emphasis": "No norm",
            "refiner": None,
        }
    )
    assert request.variation == Variation(seed=5, strength=0.5)
    assert request.sampler_options.eta is None
    assert (request.schedule_options.sigma_min, request.schedule_options.discard_next_to_last) == (0.1, True)
    assert request.emphasis is Emphasis.NO_NORM
    assert request.refiner == ""
    for field, value, words in (
        ("sampler_options.s_noise", None, "Sigma noise is empty"),
        ("sampler_options.eta", "half", "Eta is 'half'"),
        ("clip_skip", 1.5, "Clip skip is 1.5"),
        ("noise_source", "TPU", "Noise drawn on is 'TPU'"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            txt2img_request({**COMMON, field: value})


def test_numbers():
    assert whole("Seed", 4294967295.0) == 4294967295
    for bad in (True, float("nan"), float("inf"), "3", None):
        with pytest.raises(InvalidRequest, match="Scale"):
            number("Scale", bad)
