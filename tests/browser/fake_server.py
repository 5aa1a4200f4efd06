"""Serves the real page, queue, settings and extensions over an engine that only draws.

Usage: fake_server.py ROOT PORT [USER:PASSWORD]

Run as a program by conftest.py, so that no torch is loaded and a run's length does not depend on the machine.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from webui.core.catalogue import BUILT_IN_UPSCALERS
from webui.core.codec import request_to_json
from webui.core.errors import CheckpointNotFound, ModelNotFound
from webui.core.events import Event, Finished, ImageReady, Started, Step
from webui.core.geometry import Size
from webui.core.hires import largest_size
from webui.core.infotext import KnownModels, format_infotext
from webui.core.paths import Folders
from webui.core.ports import CheckpointInfo, Control, EngineStatus
from webui.core.requests import Request, Upscale, alone

CHECKPOINTS = (
    CheckpointInfo(name="drawn", family="stable-diffusion-v1", native_size=Size(128, 128)),
    CheckpointInfo(name="drawn-large", family="stable-diffusion-v1", native_size=Size(256, 192)),
)
STEP_S = 0.05
WARM_UP_S = 1.0


class FakeCatalogue:
    """Two checkpoints, of which the larger one is an upscaler too; the built-in upscalers and those in `fetched`."""

    def __init__(self, fetched: Path) -> None:
        self._fetched = fetched

    def checkpoints(self) -> tuple[CheckpointInfo, ...]:
        return CHECKPOINTS

    def upscalers(self) -> tuple[str, ...]:
        return (*BUILT_IN_UPSCALERS, CHECKPOINTS[1].name, *sorted(file.stem for file in self._fetched.glob("*.*")))

    def vaes(self) -> tuple[str, ...]:
        return ()

    def face_restorers(self) -> tuple[str, ...]:
        return ()

    def checkpoint(self, name: str) -> CheckpointInfo:
        for info in CHECKPOINTS:
            if name in ("", info.name):
                return info
        raise CheckpointNotFound(f"There is no checkpoint {name!r}; choose one of the menu.")


class FakeMasker:
    """Masks the left half for any words but "nothing", for which there is no model, and a disc as the foreground."""

    def by_prompt(self, image: Image.Image, words: str) -> Image.Image:
        if words == "nothing":
            raise ModelNotFound("Masking by words needs a CLIPSeg model; put the folder of one into models/masking.")
        mask = Image.new("L", image.size, 0)
        mask.paste(255, (0, 0, image.width // 2, image.height))
        return mask

    def foreground(self, image: Image.Image) -> Image.Image:
        mask = Image.new("L", image.size, 0)
        ImageDraw.Draw(mask).ellipse((0, 0, image.width - 1, image.height - 1), fill=255)
        return mask


class FakeEngine:
    """Draws a disc that comes out of the dark step by step; keeps the newest request beside `hold`, for tests."""

    def __init__(self, hold: Path) -> None:
        self._hold = hold
        self._phase = "warming up"

    def warm_up(self) -> None:
        time.sleep(WARM_UP_S)
        self._phase = "ready"

    def status(self) -> EngineStatus:
        ready = self._phase == "ready"
        return EngineStatus(
            phase=self._phase, device="cpu", attention="drawn by hand", checkpoint="drawn" if ready else ""
        )

    def generate(self, request: Request, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
        self._hold.with_name("last_request.json").write_text(json.dumps(request_to_json(request)), encoding="utf-8")
        if isinstance(request, Upscale):
            yield from self._upscale(request)
            return
        total = request.steps * request.batch_count
        yield Started(total_images=request.total_images, total_steps=total)
        for batch in range(start_batch, request.batch_count):
            for step in range(1, request.steps + 1):
                self._step(request.steps, step)
                share = step / request.steps
                yield Step(
                    index=batch * request.steps + step,
                    total=total,
                    batch=batch,
                    preview=lambda share=share, batch=batch: jpeg(disc(request.size, request.seed + batch, share)),
                )
                if control.take_skip():
                    break
            else:
                for place in range(request.batch_size):
                    index = batch * request.batch_size + place
                    single = alone(request, index)
                    seed = single.seed
                    text = format_infotext(single, model="drawn", model_hash="0123456789")
                    size = largest_size(request)
                    yield ImageReady(index=index, image=disc(size, seed, 1), seed=seed, infotext=text)
        yield Finished(seconds={"denoise": STEP_S * total})

    def _step(self, steps: int, step: int) -> None:
        """Takes its time; while the file `hold` is there, stays where it says, so that a test need not hurry."""
        time.sleep(STEP_S)
        while step == self._held_at(steps):
            time.sleep(STEP_S)

    def _held_at(self, steps: int) -> int | None:
        """The step that `hold` names, half-way where it is empty; None without it."""
        try:
            return int(self._hold.read_text(encoding="utf-8") or steps // 2)
        except FileNotFoundError:
            return None

    def _upscale(self, request: Upscale) -> Iterator[Event]:
        yield Started(total_images=1, total_steps=4)
        for tile in range(1, 5):
            time.sleep(STEP_S)
            yield Step(index=tile, total=4, batch=0)
        with Image.open(io.BytesIO(request.image)) as given:
            asked = Size(request.width, request.height)
            size = asked if asked.area else Size(*given.size).scaled(request.scale)
            made = given.convert("RGB").resize((size.width, size.height))
        text = f"Postprocess upscale by: {request.scale:g}, Postprocess upscaler: {request.upscaler}"
        yield ImageReady(index=0, image=made, seed=0, infotext=text)
        yield Finished(seconds={"upscale": STEP_S * 4})


def disc(size: Size, seed: int, share: float) -> Image.Image:
    """A disc whose colour and place follow from `seed`, `share` of the way out of the dark."""
    image = Image.new("RGB", (size.width, size.height), tuple(int(level * share) for level in (38, 70, 83)))
    radius = min(size.width, size.height) * 0.3
    x = size.width * (0.4 + 0.2 * (seed % 7) / 6)
    y = size.height * (0.4 + 0.2 * (seed % 5) / 4)
    colour = tuple(int(level * share) for level in ((231, 111, 81), (244, 162, 97), (233, 196, 106))[seed % 3])
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def jpeg(image: Image.Image) -> bytes:
    """`image` as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def main(root: Path, port: int, auth: str) -> None:
    """Builds and serves until it is killed."""
    from webui import bootstrap
    from webui.checkpoints import offer
    from webui.server.accounts import parse_account
    from webui.server.listening import take_port
    from webui.server.options import ServerOptions
    from webui.server.serving import serve

    accounts = (parse_account(auth),) if auth else ()
    options = ServerOptions(port=port, accounts=accounts)
    folders = Folders.at(root)
    for folder in (folders.models, folders.outputs, folders.data, folders.extensions, folders.page_cache):
        folder.mkdir(parents=True, exist_ok=True)
    known = KnownModels(checkpoints={info.name: "" for info in CHECKPOINTS}, vaes={})
    room = bootstrap.EngineRoom(
        catalogue=FakeCatalogue(folders.models / "ESRGAN"),
        engine=FakeEngine(root / "hold"),
        masker=FakeMasker(),
        known_models=lambda: known,
    )
    bootstrap.build_engine = lambda folders, settings, database: room
    really_install = offer.install

    def install(upscaler: Any, folder: Path, **options: Any) -> None:
        """While the file `package` is there, the package can be had; without it pip is asked, in vain."""
        if (root / "package").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{upscaler.name}.safetensors").touch()
        else:
            really_install(upscaler, folder, **options)

    offer.install = install
    taken = take_port(options.host, port)
    with bootstrap.build(folders, options) as app:

        def ready() -> None:
            print(json.dumps({"port": taken.getsockname()[1]}), flush=True)
            app.start()

        serve(app.page.asgi, taken, listening=ready, stopping=app.page.end_streams)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
