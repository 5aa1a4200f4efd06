"""`upscale`: a line for each picture; what is there is skipped, what fails does not stop the others."""

from __future__ import annotations

import pytest
from PIL import Image

from webui.core.requests import DiffusionUpscaler, FaceRestoration
from webui.gallery.pictures import png_bytes, read_infotext


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    (place / "a.png").write_bytes(png_bytes(Image.new("RGB", (6, 4)), "a cat"))
    Image.new("RGB", (6, 4)).save(place / "b.jpg")
    return place


def test_a_folder_is_enlarged_and_an_interrupted_batch_goes_on(command, engine, folder, tmp_path):
    code, lines, _ = command("upscale", folder, "--upscaler", "net", "--scale", "2", "--out", tmp_path / "out")
    assert code == 0
    assert [(line["input"], line["file"]) for line in lines] == [
        (str(folder / "a.png"), str(tmp_path / "out/a.png")),
        (str(folder / "b.jpg"), str(tmp_path / "out/b.png")),
    ]
    assert {"width": 8, "height": 8, "notices": ["the VAE overflowed"]}.items() <= lines[0].items()
    assert lines[0]["seconds"] >= 0
    assert read_infotext(tmp_path / "out/a.png") == "larger"
    assert [(request.upscaler, request.scale) for request in engine.requests] == [("net", 2.0)] * 2
    assert read_infotext(engine.requests[0].image) == "a cat"

    (tmp_path / "out/b.png").unlink()
    code, lines, _ = command("upscale", folder, "--upscaler", "net", "--out", tmp_path / "out")
    assert code == 0
    assert lines[0] == {"input": str(folder / "a.png"), "file": str(tmp_path / "out/a.png"), "skipped": True}
    assert "skipped" not in lines[1]
    assert len(engine.requests) == 3

    _, lines, _ = command("upscale", folder, "--out", tmp_path / "out", "--overwrite")
    assert len(engine.requests) == 5


def test_what_fails_is_a_line_and_the_rest_goes_on(command, folder, tmp_path):
    (folder / "a.png").write_bytes(b"no picture")
    missing = tmp_path / "none.png"
    code, lines, _ = command("upscale", missing, folder, "--out", tmp_path / "out")
    assert code == 2
    assert "'none.png' does not exist" in lines[0]["error"]
    assert "a.png" in lines[1]["error"]
    assert lines[2]["file"] == str(tmp_path / "out/b.png")
    assert not (tmp_path / "out/a.png").exists()


def test_every_flag_reaches_the_request(command, engine, folder, tmp_path):
    flags = "--width 60 --no-crop --upscaler-2 Lanczos --upscaler-2-visibility 0.25 --tile 64 --overlap 8"
    faces = "--face-restorer face --face-visibility 0.5 --codeformer-weight 0.75"
    told = "--prompt fur --negative-prompt blur --steps 9 --cfg-scale 5 --noise-level 30 --seed 4"
    given = (*flags.split(), *faces.split(), *told.split())
    code, _, _ = command("upscale", folder / "a.png", "--out", tmp_path / "out", *given)
    request = engine.requests[0]
    assert code == 0
    assert (request.width, request.height, request.crop) == (60, 40, False)  # the side left out follows
    assert (request.upscaler_2, request.upscaler_2_visibility) == ("Lanczos", 0.25)
    assert (request.tile, request.overlap) == (64, 8)
    assert request.faces == FaceRestoration(model="face", visibility=0.5, weight=0.75)
    assert request.diffusion == DiffusionUpscaler(
        prompt="fur", negative_prompt="blur", steps=9, cfg_scale=5.0, noise_level=30, seed=4
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--upscaler", "spam"), "no upscaler 'spam'; choose one of Lanczos, net"),
        (("--upscaler-2", "spam"), "no upscaler 'spam'"),
        (("--face-restorer", "spam"), "no face restorer 'spam'; choose one of face"),
        (("--scale", "99"), "Scale is 99"),
        (("--tile", "64", "--overlap", "60"), "Tile overlap is 60"),
    ],
)
def test_what_no_picture_could_make_good_is_said_once(command, engine, folder, tmp_path, flags, sentence):
    code, lines, said = command("upscale", folder, "--out", tmp_path / "out", *flags)
    assert (code, lines, engine.requests) == (2, [], [])
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_no_picture_is_replaced_by_what_is_made_of_it(command, engine, folder):
    code, lines, _ = command("upscale", folder / "a.png", "--out", folder, "--overwrite")
    assert code == 2
    assert "would be replaced" in lines[0]["error"]
    assert engine.requests == []
