"""The hires section: its fields become a `HiresFix`, its line says the size, and a picture is upscaled by itself."""

from __future__ import annotations

import pytest
from PIL import Image

from webui.core.errors import InvalidRequest
from webui.core.infotext import KnownModels
from webui.core.requests import HiresFix, Txt2Img
from webui.core.validation import validate
from webui.gallery import png_bytes
from webui.ui.components.hires import hires_of, size_line, upscaled_again
from webui.ui.components.studio import pasted_values
from webui.ui.more import hires_fields, more_fields
from webui.ui.tabs.txt2img import txt2img_request

FRESH = {field.name: field.default for field in hires_fields()}
COMMON = {
    "prompt": "a star", "checkpoint": "drawn", "sampler": "Euler", "schedule_type": "Karras", "steps": 4, "width": 64,
    "height": 64, "cfg_scale": 5, "seed": 7, "batch_count": 1, "batch_size": 1,
}  # fmt: skip
ASKED = {
    **FRESH, "hires.enabled": True, "hires.upscaler": "Latent (nearest)", "hires.scale": 1.5, "hires.steps": 3,
    "hires.denoising_strength": 0.4, "hires.sampler": "Euler a", "hires.cfg_scale": 3, "hires.token_merging": "0.5",
    "hires.prompt": "a sharp star",
}  # fmt: skip
MADE = HiresFix(
    enabled=True, upscaler="Latent (nearest)", scale=1.5, steps=3, denoising_strength=0.4, sampler="Euler a",
    cfg_scale=3.0, token_merging=0.5, prompt="a sharp star",
)  # fmt: skip


def test_the_section_has_every_field_and_its_defaults_are_the_request_s():
    assert {f"hires.{name}" for name in HiresFix.__dataclass_fields__} == set(FRESH) | {"hires.first_pass"}
    assert hires_of(FRESH) == HiresFix(enabled=True)
    assert txt2img_request({**COMMON, **FRESH}) == txt2img_request(COMMON)


def test_the_section_is_read():
    request = txt2img_request({**COMMON, **ASKED})
    assert request.hires == MADE
    validate(request)


def test_while_it_is_off_nothing_of_it_counts():
    off = {**ASKED, "hires.enabled": False, "hires.scale": None}
    assert txt2img_request({**COMMON, **off}).hires == HiresFix()
    with pytest.raises(InvalidRequest, match="Upscale by is empty"):
        hires_of(off)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "512x512 → 1024x1024"),
        ({"hires.width": 768.0}, "512x512 → 768x768"),
        ({"width": 64, "hires.scale": 1.5}, "64x512 → 96x768"),
        ({"width": None}, ""),
        ({"hires.scale": "x"}, ""),
        ({"hires.height": 700}, ""),
    ],
)
def test_the_line_says_the_size(changes, line):
    values = {"width": 512, "height": 512, "hires.scale": 2, "hires.width": 0, "hires.height": 0}
    assert size_line({**values, **changes}) == line


def test_pasting_opens_the_section_and_closes_it():
    text = (
        "a star\nSteps: 4, Sampler: Euler, Seed: 3, Denoising strength: 0.4, Hires upscale: 1.5, Hires steps: 3, "
        "Hires upscaler: Latent (nearest)"
    )
    changed = pasted_values("txt2img", text, dict(FRESH), KnownModels())
    assert changed == {
        "hires.enabled": True, "hires.upscaler": "Latent (nearest)", "hires.scale": 1.5, "hires.steps": 3,
        "hires.denoising_strength": 0.4,
    }  # fmt: skip
    plain = "a star\nSteps: 4, Sampler: Euler, Seed: 3"
    assert pasted_values("txt2img", plain, dict(ASKED), KnownModels())["hires.enabled"] is False


def test_a_picture_is_upscaled_with_its_own_parameters_and_the_form_s_hires():
    png = png_bytes(Image.new("RGB", (72, 80)))
    text = "a moon\nSteps: 9, Sampler: Heun, CFG scale: 3, Seed: 41, Size: 64x64, Model: gone, Batch size: 4"
    told: list[str] = []
    known = KnownModels(checkpoints={"mine": ""})
    request = upscaled_again(Txt2Img(checkpoint="mine"), hires_of(ASKED), text, png, known, told.append)
    assert (request.prompt, request.seed, request.steps, request.sampler) == ("a moon", 41, 9, "Heun")
    assert (request.width, request.height, request.total_images, request.checkpoint) == (72, 80, 1, "mine")
    assert (request.hires.enabled, request.hires.scale, request.hires.first_pass) == (True, 1.5, png)
    assert len(told) == 1
    validate(request)


@pytest.mark.parametrize("tab", ["txt2img", "img2img", "inpaint"])
def test_large_pictures_are_in_every_tab(tab):
    assert {"tiled.method", "tiled.tile", "tiled.overlap"} <= {field.name for field in more_fields(tab)}
