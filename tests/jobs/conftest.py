"""A queue on a temporary folder, with an engine that draws plain pictures as slowly as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from PIL import Image

from webui.core.errors import CheckpointNotFound
from webui.core.events import Event, Finished, ImageReady, Notice, Started, Step
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo, Control, EngineStatus
from webui.core.requests import Request, Txt2Img, Upscale
from webui.database.opening import open_database
from webui.gallery.files import ImageFiles
from webui.jobs.service import Jobs
from webui.settings.schema import Settings

PATIENCE_S = 20


class FakeEngine:
    """Draws pictures of one colour; `hold()` makes it wait before a step until `let_go()`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Request, int]] = []
        self.closed: list[int] = []  # steps done when a generator was closed early
        self.fails: dict[str, BaseException] = {}  # prompt → what generate raises after its first batch
        self.notices: dict[str, list[str]] = {}  # prompt → what generate has to say after each batch
        self.fails_to_warm_up: BaseException | None = None
        self.warm = threading.Event()
        self._held_at: int | None = None
        self.reached = threading.Event()
        self._go = threading.Event()

    def hold(self, step: int) -> None:
        self._held_at = step
        self.reached.clear()
        self._go.clear()

    def let_go(self) -> None:
        self._held_at = None
        self._go.set()

    def wait_until_held(self) -> None:
        assert self.reached.wait(PATIENCE_S)

    def warm_up(self) -> None:
        if self.fails_to_warm_up is not None:
            raise self.fails_to_warm_up
        self.warm.set()

    def status(self) -> EngineStatus:
        return EngineStatus(phase="ready")

    def generate(self, request: Request, *, control: Control, start_batch: int = 0) -> Iterator[Event]:
        self.calls.append((request, start_batch))
        batches, size, steps = (1, 1, 1) if isinstance(request, Upscale) else _shape(request)
        seed = 0 if isinstance(request, Upscale) else request.seed
        total = batches * steps
        done = start_batch * steps
        yield Started(total_images=batches * size, total_steps=total)
        try:
            for batch in range(start_batch, batches):
                control.take_skip()
                skipped = False
                for _ in range(steps):
                    self._pass_gate(done + 1)
                    done += 1
                    yield Step(index=done, total=total, batch=batch, preview=lambda done=done: b"jpeg %d" % done)
                    if control.take_skip():
                        skipped = True
                        done = (batch + 1) * steps
                        break
                if skipped:
                    continue
                for place in range(batch * size, (batch + 1) * size):
                    image = Image.new("RGB", (8, 8), (place, 0, 0))
                    yield ImageReady(index=place, image=image, seed=seed + place, infotext=f"seed {seed + place}")
                for sentence in self.notices.get(getattr(request, "prompt", ""), []):
                    yield Notice(text=sentence)
                if (failure := self.fails.get(getattr(request, "prompt", ""))) is not None:
                    raise failure
            yield Finished(seconds={"denoise": 0.0})
        except GeneratorExit:
            self.closed.append(done)
            raise

    def _pass_gate(self, step: int) -> None:
        if step == self._held_at:
            self.reached.set()
            assert self._go.wait(PATIENCE_S)


def _shape(request: Txt2Img) -> tuple[int, int, int]:
    return request.batch_count, request.batch_size, request.steps


class Catalogue:
    def checkpoints(self) -> Sequence[CheckpointInfo]:
        return [CheckpointInfo(name=name, family="sd1", native_size=Size(64, 64)) for name in ("first", "second")]

    def checkpoint(self, name: str) -> CheckpointInfo:
        for info in self.checkpoints():
            if name in ("", info.name):
                return info
        raise CheckpointNotFound(f"No checkpoint {name!r}.")

    def upscalers(self) -> Sequence[str]:
        return ["Lanczos", "Nearest"]

    def vaes(self) -> Sequence[str]:
        return ["soft.safetensors"]

    def face_restorers(self) -> Sequence[str]:
        return ["face"]


class Hooks:
    """Hooks that do nothing but note what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def before_job(self, request: Request) -> Request:
        self.told.append(("before", getattr(request, "prompt", "")))
        return request

    def on_step(self, request: Request, step: Step) -> None:
        self.told.append(("step", str(step.index)))

    def process_image(self, image: Image.Image, request: Request) -> Image.Image:
        self.told.append(("image",))
        return image

    def after_job(self, request: Request, state: str) -> None:
        self.told.append(("after", state))


@pytest.fixture
def engine():
    fake = FakeEngine()
    yield fake
    fake.let_go()


@pytest.fixture
def hooks():
    return Hooks()


@pytest.fixture
def database(tmp_path):
    opened = open_database(tmp_path / "data" / "atelier.sqlite", busy_timeout_s=0.05)
    yield opened
    opened.dispose()


@pytest.fixture
def files(tmp_path):
    return ImageFiles(tmp_path / "outputs")


@pytest.fixture
def make_jobs(database, engine, files, hooks):
    """Builds queues on the same database and folder; those that were started are closed at the end."""
    made: list[Jobs] = []

    def make(**changes) -> Jobs:
        parts = {"database": database, "engine": engine, "catalogue": Catalogue(), "files": files, "hooks": hooks}
        jobs = Jobs(**{**parts, "settings": lambda: Settings(), "retry_s": 0.02, **changes})
        made.append(jobs)
        return jobs

    yield make
    engine.let_go()
    for jobs in made:
        jobs.close()


@pytest.fixture
def jobs(make_jobs):
    return make_jobs()


@pytest.fixture
def wait_for_end():
    """The final view of a job; fails when it takes too long, instead of hanging."""

    def wait(jobs: Jobs, job_id: str):
        views = []
        done = threading.Event()

        def watch() -> None:
            views.extend(jobs.watch(job_id, interval_s=0))
            done.set()

        threading.Thread(target=watch, daemon=True).start()
        assert done.wait(PATIENCE_S), f"still {jobs.view(job_id)}"
        return views[-1]

    return wait
