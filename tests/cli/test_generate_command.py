"""`generate`: flags become the request of the task that they ask for, or one sentence."""

from __future__ import annotations

import pytest
from PIL import Image

from webui.core.fields import get_field
from webui.core.geometry import Size
from webui.core.requests import Img2Img, Inpaint, InpaintArea, MaskedContent, Outpaint, ResizeMode, Txt2Img


@pytest.fixture
def generate(command, engine, tmp_path):
    """``generate(*flags)``: exit code, the request that reached the engine (None for none), standard error."""
    Image.new("RGB", (96, 64)).save(tmp_path / "picture.png")
    Image.new("L", (96, 64)).save(tmp_path / "mask.png")

    def run(*flags):
        named = [str(tmp_path / flag) if str(flag).endswith(".png") else flag for flag in flags]
        code, lines, said = command("generate", "--prompt", "a cat", "--out", tmp_path / "out.png", *named)
        assert len(lines) == (code == 0)
        return code, engine.requests[-1] if engine.requests else None, said

    return run


PICTURE = ("--init-image", "picture.png")
MASKED = (*PICTURE, "--mask", "mask.png")


@pytest.mark.parametrize(
    ("flags", "task", "fields"),
    [
        ((), Txt2Img, {"prompt": "a cat", "steps": 20, "size": Size(128, 64), "hires.enabled": False}),
        (
            ("--batch-count", "2", "--clip-skip", "2", "--vae", "None", "--width", "64", "--scheduler", "Karras"),
            Txt2Img,
            {"batch_count": 2, "clip_skip": 2, "vae": "None", "size": Size(64, 64), "schedule_type": "Karras"},
        ),
        (
            ("--hires-scale", "1.5", "--hires-upscaler", "net", "--hires-steps", "5", "--hires-prompt", "detail"),
            Txt2Img,
            {
                "hires.enabled": True,
                "hires.scale": 1.5,
                "hires.upscaler": "net",
                "hires.steps": 5,
                "hires.prompt": "detail",
            },
        ),
        (
            (*PICTURE, "--denoising-strength", "0.4", "--resize-mode", "crop", "--loops", "2", "--colour-correction"),
            Img2Img,
            {
                "denoising_strength": 0.4,
                "resize_mode": ResizeMode.CROP,
                "size": Size(96, 64),
                "loopback.loops": 2,
                "start.colour_correction": True,
            },
        ),
        (
            (
                *MASKED,
                "--mask-blur",
                "7",
                "--inpaint-area",
                "masked",
                "--inpaint-padding",
                "9",
                "--masked-content",
                "latent noise",
                "--invert-mask",
            ),
            Inpaint,
            {
                "mask_blur": 7,
                "area": InpaintArea.MASKED,
                "padding": 9,
                "masked_content": MaskedContent.LATENT_NOISE,
                "mask_inverted": True,
            },
        ),
        (
            (*PICTURE, "--outpaint", "0,0,32,0"),
            Inpaint,
            {"outpaint": Outpaint(right=32), "mask": b"", "size": Size(128, 64)},
        ),
    ],
)
def test_flags_become_a_request(generate, flags, task, fields):
    code, request, _ = generate(*flags)
    assert code == 0
    assert type(request) is task
    assert {name: get_field(request, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--mask", "mask.png"), "--mask is for a picture that is there; give it with --init-image"),
        (("--outpaint", "8,0,0,0"), "--outpaint is for a picture that is there"),
        ((*PICTURE, "--mask-blur", "3"), "--mask-blur is for inpainting; give --init-image with --mask or --outpaint"),
        ((*PICTURE, "--hires-scale", "2"), "--hires-scale is for hires fix; leave out --init-image"),
        (("--denoising-strength", "0.5"), "--denoising-strength is for img2img and inpainting; give --init-image"),
        ((*MASKED, "--loops", "2"), "--loops is for img2img; give --init-image, and neither --mask nor"),
        ((*PICTURE, "--denoising-strength", "2"), "Denoising strength is 2, outside 0 to 1"),
        ((*PICTURE, "--outpaint", "0,0,0,0"), "There is no mask"),
        (("--init-image", "none.png"), "'none.png' does not exist"),
        (("--model", "other"), "no checkpoint 'other'"),
    ],
)
def test_wrong_combinations_are_one_sentence(generate, flags, sentence):
    code, request, said = generate(*flags)
    assert (code, request) == (2, None)
    assert len(said.strip().splitlines()) == 1
    assert sentence in said


def test_four_sides_are_needed_to_grow(generate, capsys):
    with pytest.raises(SystemExit):
        generate(*PICTURE, "--outpaint", "8,8")
    assert "is not LEFT,TOP,RIGHT,BOTTOM in pixels" in capsys.readouterr().err


def test_a_database_that_cannot_be_opened_is_no_reason_to_fail(generate, tmp_path, caplog):
    (tmp_path / "data/atelier.sqlite3").mkdir(parents=True)
    code, request, _ = generate()
    assert code == 0
    assert request is not None
    assert "Hashes of models are made anew" in caplog.text
