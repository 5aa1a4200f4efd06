"""A small server for test_kill.py to kill: the real queue, files and database with an engine that needs no torch.

Arguments: the folder to work in, how many jobs to submit, and options as NAME=VALUE. It says on its output what it has
done, one word or two a line: "submitted ID", "started", "stored" (a batch is listed), "done" (the queue is empty).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from webui.core.events import Event, Finished, ImageReady, Started, Step
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo, Control, EngineStatus
from webui.core.requests import Request, Txt2Img
from webui.database.opening import open_database
from webui.gallery.files import ImageFiles
from webui.jobs.service import Jobs
from webui.settings.schema import Settings

STEP_S = 0.003


def say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class SlowPainter:
    """Paints noise in small steps; the prompt "poison" kills the server at its second step."""

    def warm_up(self) -> None:
        return

    def status(self) -> EngineStatus:
        return EngineStatus(phase="ready")

    def generate(self, request: Request, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
        assert isinstance(request, Txt2Img)
        total = request.batch_count * request.steps
        yield Started(total_images=request.total_images, total_steps=total)
        for batch in range(start_batch, request.batch_count):
            for step in range(1, request.steps + 1):
                time.sleep(STEP_S)
                if request.prompt == "poison" and step == 2:
                    die()
                yield Step(index=batch * request.steps + step, total=total, batch=batch, preview=lambda: b"jpeg")
            for place in range(batch * request.batch_size, (batch + 1) * request.batch_size):
                image = Image.effect_noise((request.width, request.height), 50).convert("RGB")
                seed = request.seed + place
                yield ImageReady(index=place, image=image, seed=seed, infotext=f"{request.prompt}, seed {seed}")
                # The worker asks for the next event when it has listed this picture. Of a batch that was cut short the
                # first may have been there already; the last is always new.
                if place % request.batch_size == request.batch_size - 1:
                    say("stored")
        yield Finished(seconds={})


class Catalogue:
    def checkpoints(self) -> Sequence[CheckpointInfo]:
        return [self.checkpoint("")]

    def checkpoint(self, name: str) -> CheckpointInfo:
        return CheckpointInfo(name=name or "only", family="sd1", native_size=Size(64, 64))

    def upscalers(self) -> Sequence[str]:
        return ()

    def vaes(self) -> Sequence[str]:
        return ()

    def face_restorers(self) -> Sequence[str]:
        return ()


class NoHooks:
    def before_job(self, request: Request) -> Request:
        return request

    def on_step(self, request: Request, step: Step) -> None:
        return

    def process_image(self, image: Image.Image, request: Request) -> Image.Image:
        return image

    def after_job(self, request: Request, state: str) -> None:
        return


class FilesThatKill(ImageFiles):
    """Kills the server between the file and its row, after so many pictures."""

    saves_left = 0

    def save(self, image: Image.Image, *, task: str, seed: int, infotext: str) -> Path:
        path = super().save(image, task=task, seed=seed, infotext=infotext)
        self.saves_left -= 1
        if self.saves_left == 0:
            die()
        return path


def main(folder: Path, count: int, options: dict[str, str]) -> None:
    files = FilesThatKill(folder / "outputs")
    files.saves_left = int(options.get("die_after_saves", "0"))
    database = open_database(folder / "data" / "atelier.sqlite")
    jobs = Jobs(
        database=database,
        engine=SlowPainter(),
        catalogue=Catalogue(),
        files=files,
        hooks=NoHooks(),
        settings=Settings,
    )
    with jobs:
        say("started")
        for number in range(count):
            prompt = options.get("prompt", f"picture {number} of {os.getpid()}")
            request = Txt2Img(
                prompt=prompt, steps=3, seed=1000 + number, width=128, height=128, batch_size=2, batch_count=4
            )
            say(f"submitted {jobs.submit(request)}")
        for view in jobs.queue():
            for _ in jobs.watch(view.id):
                pass
        say("done")
    database.dispose()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), dict(option.split("=", 1) for option in sys.argv[3:]))
