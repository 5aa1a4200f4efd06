"""Pictures without the page, over a fake engine: sizes, files, names and the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from webui import headless
from webui.core.errors import CheckpointNotFound, DiskFull, InvalidRequest, UnreadableImage, UserError
from webui.core.geometry import Size
from webui.core.requests import Img2Img, Inpaint, InpaintArea, Outpaint, Txt2Img
from webui.gallery.pictures import png_bytes, read_infotext

PNG = png_bytes(Image.new("RGB", (100, 60)))


def settle(catalogue, empty, *, width=None, height=None, picture=None, **wishes):
    return headless.make_request(catalogue, empty, wishes, width=width, height=height, picture=picture)


def test_size_seed_and_checkpoint_are_settled(catalogue):
    request = settle(catalogue, Txt2Img(), prompt="x")

    assert request.checkpoint == "tiny"
    assert request.size == Size(128, 64)
    assert request.seed >= 0


def test_a_given_size_and_seed_stay(catalogue):
    request = settle(catalogue, Txt2Img(), width=256, seed=5)
    assert (request.size, request.seed) == (Size(256, 64), 5)


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, Size(104, 64)),  # the nearest multiples of 8 of 101 x 62
        ({"width": 200}, Size(200, 120)),
        ({"height": 128}, Size(208, 128)),
        ({"width": 64, "height": 512}, Size(64, 512)),
    ],
)
def test_a_picture_gives_its_size_and_shape(catalogue, asked, size):
    assert settle(catalogue, Img2Img(init_image=PNG), picture=Size(101, 62), **asked).size == size


def test_a_part_of_a_picture_is_worked_on_at_the_checkpoints_size(catalogue):
    empty = Inpaint(init_image=PNG, mask=PNG)
    assert settle(catalogue, empty, picture=Size(900, 600), area=InpaintArea.MASKED).size == Size(128, 64)
    assert settle(catalogue, empty, picture=Size(96, 64)).size == Size(96, 64)


def test_a_picture_that_grows_is_made_at_the_size_that_it_has_then(catalogue):
    empty = Inpaint(init_image=PNG, mask=b"")
    assert settle(catalogue, empty, picture=Size(100, 60), outpaint=Outpaint(left=32, bottom=8)).size == Size(136, 72)


def test_bad_wishes_are_refused(catalogue):
    with pytest.raises(InvalidRequest, match="Width is 100"):
        settle(catalogue, Txt2Img(), width=100)
    with pytest.raises(CheckpointNotFound, match="'other'"):
        settle(catalogue, Txt2Img(), checkpoint="other")


def test_one_picture_goes_to_the_named_file(engine, tmp_path):
    out = tmp_path / "a.png"
    out.write_text("replaced")

    report = headless.generate(engine, Txt2Img(seed=3, width=64, height=64), out)

    assert read_infotext(out) == "picture 0"
    assert report["seed"] == 3
    assert report["file"] == str(out)
    assert report["notices"] == ["the VAE overflowed"]
    assert report["files"] == [str(out)]
    assert report["seconds"]["denoise"] == 0.1235
    assert report["seconds"]["total"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_several_pictures_are_numbered(engine, tmp_path):
    report = headless.generate(engine, Txt2Img(seed=3, width=64, height=64, batch_size=2), tmp_path / "a.png")

    assert [Path(file).name for file in report["files"]] == ["a-1.png", "a-2.png"]
    assert read_infotext(tmp_path / "a-2.png") == "picture 1"


def test_the_target_is_checked_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert headless.check_target(Path("new/a.png")) == tmp_path / "new/a.png"
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UserError, match=r"does not end in \.png"):
        headless.check_target(Path("a.jpg"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFull, match="choose another --out"):
        headless.check_target(Path("file/a.png"))


def test_a_picture_is_read_with_what_it_says(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(Image.new("RGBA", (3, 2)), "a cat"))
    data, size = headless.read_picture(tmp_path / "a.png", 100)
    assert size == Size(3, 2)
    assert read_infotext(data) == "a cat"
    with pytest.raises(UnreadableImage, match=r"b\.png"):
        headless.read_picture(tmp_path / "b.png", 100)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    for name in ("b.png", "a.JPG", "a.webp", "deep/a.png", "notes.txt", "out/made.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"")
    return place


def test_a_batch_keeps_names_and_leaves_its_own_results_out(folder):
    made = headless.batch([folder, folder / "b.png"], folder / "out")
    assert {str(each.source.relative_to(folder)): str(each.target.relative_to(folder)) for each in made} == {
        "a.JPG": "out/a.JPG.png",
        "a.webp": "out/a.webp.png",
        "b.png": "out/b.png",
        "deep/a.png": "out/deep/a.png",
    }


def test_a_batch_of_nothing_or_into_its_own_folder_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in"):
        headless.batch([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UserError, match="choose another"):
        headless.batch([folder], folder)
