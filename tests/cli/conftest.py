"""An engine and a models folder that are none, for commands and what they run on."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from webui.core.errors import CheckpointNotFound, UnreadableImage
from webui.core.events import Finished, ImageReady, Notice, Started
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo, EngineStatus
from webui.core.requests import Upscale

TINY = CheckpointInfo(name="tiny", family="sd1", native_size=Size(128, 64))


class FakeCatalogue:
    def checkpoints(self):
        return [TINY]

    def upscalers(self):
        return ["Lanczos", "net"]

    def vaes(self):
        return []

    def face_restorers(self):
        return ["face"]

    def checkpoint(self, name):
        if name not in ("", "tiny"):
            raise CheckpointNotFound(f"There is no checkpoint {name!r}.")
        return TINY


class FakeEngine:
    """Makes black pictures of the size asked for; refuses to enlarge what says that it is bad."""

    def __init__(self):
        self.requests = []

    def warm_up(self):
        raise AssertionError("nothing is warmed up without a page")

    def status(self):
        return EngineStatus(phase="ready")

    def generate(self, request, *, control, start_batch=0):
        self.requests.append(request)
        yield Started(total_images=request.total_images, total_steps=1)
        if isinstance(request, Upscale):
            if b"bad" in request.image:
                raise UnreadableImage("The picture to upscale is bad.")
            yield ImageReady(index=0, image=Image.new("RGB", (8, 8)), seed=0, infotext="larger")
        else:
            for index in range(request.total_images):
                image = Image.new("RGB", (request.width, request.height))
                yield ImageReady(index=index, image=image, seed=request.seed + index, infotext=f"picture {index}")
        yield Notice(text="the VAE overflowed")
        yield Finished(seconds={"denoise": 0.123456})


@pytest.fixture
def catalogue():
    return FakeCatalogue()


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def command(engine, catalogue, tmp_path, monkeypatch, capsys):
    """``command(*arguments)`` runs a command over the fake engine: exit code, lines of JSON, and standard error."""
    from webui import bootstrap, cli

    (tmp_path / "models").mkdir()
    room = bootstrap.EngineRoom(catalogue=catalogue, engine=engine, masker=None)
    monkeypatch.setattr(bootstrap, "build_engine", lambda *_: room)
    monkeypatch.setattr("webui.commands.common.set_up_logging", lambda *_: None)

    def run(*arguments):
        code = cli.main(["--root", str(tmp_path), *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return run
