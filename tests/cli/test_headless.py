"""Pictures without the page, over a fake engine: files, names and the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from webui import headless
from webui.core.errors import CheckpointNotFound, DiskFull, InvalidRequest, UserError
from webui.core.events import Finished, ImageReady, Notice, Started
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo, EngineStatus
from webui.core.requests import Txt2Img
from webui.gallery.pictures import read_infotext

TINY = CheckpointInfo(name="tiny", family="sd1", native_size=Size(128, 64))


class FakeCatalogue:
    def checkpoints(self):
        return [TINY]

    def upscalers(self):
        return []

    def vaes(self):
        return []

    def face_restorers(self):
        return []

    def checkpoint(self, name):
        if name not in ("", "tiny"):
            raise CheckpointNotFound(f"There is no checkpoint {name!r}.")
        return TINY


class FakeEngine:
    def warm_up(self):
        raise AssertionError("nothing is warmed up without a page")

    def status(self):
        return EngineStatus(phase="ready")

    def generate(self, request, *, control, start_batch=0):
        yield Started(total_images=request.total_images, total_steps=1)
        for index in range(request.total_images):
            image = Image.new("RGB", (request.width, request.height))
            yield ImageReady(index=index, image=image, seed=request.seed + index, infotext=f"picture {index}")
        yield Notice(text="the VAE overflowed")
        yield Finished(seconds={"denoise": 0.123456})


def test_size_seed_and_checkpoint_are_settled():
    request = headless.make_request(FakeCatalogue(), width=None, height=None, prompt="x")

    assert request.checkpoint == "tiny"
    assert request.size == Size(128, 64)
    assert request.seed >= 0


def test_a_given_size_and_seed_stay():
    request = headless.make_request(FakeCatalogue(), width=256, height=None, seed=5)
    assert (request.size, request.seed) == (Size(256, 64), 5)


def test_bad_wishes_are_refused():
    with pytest.raises(InvalidRequest, match="Width is 100"):
        headless.make_request(FakeCatalogue(), width=100, height=None)
    with pytest.raises(CheckpointNotFound, match="'other'"):
        headless.make_request(FakeCatalogue(), width=None, height=None, checkpoint="other")


def test_one_picture_goes_to_the_named_file(tmp_path):
    out = tmp_path / "a.png"
    out.write_text("replaced")

    report = headless.generate(FakeEngine(), Txt2Img(seed=3, width=64, height=64), out)

    assert read_infotext(out) == "picture 0"
    assert report["seed"] == 3
    assert report["file"] == str(out)
    assert report["notices"] == ["the VAE overflowed"]
    assert report["files"] == [str(out)]
    assert report["seconds"]["denoise"] == 0.1235
    assert report["seconds"]["total"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_several_pictures_are_numbered(tmp_path):
    report = headless.generate(FakeEngine(), Txt2Img(seed=3, width=64, height=64, batch_size=2), tmp_path / "a.png")

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
