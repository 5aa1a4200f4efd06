"""How a picture is made with a pipeline of diffusers' own, for the models that our recipe in `generate` does not know.

The pipeline brings its scheduler and its prompt handling, so much of a request has no effect; a `Notice` says what.
Its loop calls us back at each step. It runs in a thread that works only while our generator does, so that stopping is
closing the generator here too. Nothing here owns a model: that is the workshop's.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image

from webui.checkpoints.hash import PendingHash
from webui.checkpoints.load_pipeline import LoadedPipeline
from webui.core.catalogue import VAE_AUTOMATIC, VAE_OWN
from webui.core.errors import UserError
from webui.core.events import Event, Finished, ImageReady, Notice, Started, Step
from webui.core.extra_networks import take_loras
from webui.core.infotext import format_infotext
from webui.core.ports import Control
from webui.core.requests import DiffusionRequest, Txt2Img, alone
from webui.engine.phases import Phases
from webui.engine.pipeline_placement import pipeline_at_work
from webui.engine.pipeline_previews import Forming
from webui.engine.plan import Place
from webui.engine.previews import Render

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

# The kernel that diffusers' own attention runs on, by the name that it has in webui.hardware.attention.
ATTENTION = "sdpa"

# What only our own recipe knows; "Sampler" and "Schedule type" are always named.
_WITHOUT_EFFECT: Mapping[str, str] = {
    "clip_skip": "clip skip",
    "emphasis": "emphasis",
    "vae": "VAE",
    "refiner": "refiner",
    "sampler_options": "sampler settings",
    "schedule_options": "schedule settings",
    "guidance": "guidance settings",
    "variation": "variation seed",
    "noise_source": "noise source",
    "eta_noise_seed_delta": "ENSD",
    "extras": "extras",
    "tiled": "tiled diffusion",
    "hires": "hires fix",
}

# Of a call of the pipeline: see `_progress`, and how the picture is shown that forms.
_Report = tuple[int, int, float, Callable[[], bytes] | None]
Report = TypeVar("Report")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineBench:
    """What the workshop lays out for a request to a pipeline; see `bench.Bench`.

    `places` say how its components come to the `device`; there are none where there is one memory.
    """

    checkpoint: LoadedPipeline
    model_hash: PendingHash
    device: torch.device
    places: Mapping[str, Place] = field(default_factory=dict)
    attention: str = ATTENTION
    memory_plan: str = ""
    render: Render | None = None
    phases: Phases = field(default_factory=Phases)


class _Stopped(Exception):
    """Unwinds a pipeline whose pictures nobody waits for any more."""


def require_words_alone(request: DiffusionRequest, name: str) -> None:
    """Raises `UserError` for what pipelines do not do here: anything but txt2img."""
    if not isinstance(request, Txt2Img):
        raise UserError(f"{name!r} makes pictures from words alone so far; choose another checkpoint for this picture.")


def generate_with_pipeline(
    request: DiffusionRequest, bench: PipelineBench, *, control: Control, start_batch: int = 0
) -> Iterator[Event]:
    """The events of `request` from batch `start_batch` on; closing it stops before the next step.

    Picture i is that of the pipeline called alone with a CPU generator of its seed. Raises `UserError` where the
    pipeline refuses the request; running out of memory comes through as torch says it.
    """
    name, pipeline, phases = bench.checkpoint.info.name, bench.checkpoint.pipeline, bench.phases
    require_words_alone(request, name)
    prompt, loras = take_loras(request.prompt)
    arguments, unused = _arguments(pipeline, request, prompt)
    effective, said = _effective(request, unused=unused, loras=bool(loras))
    scheduler = type(pipeline.components["scheduler"]).__name__

    total = request.steps * request.batch_count
    yield Started(total_images=request.total_images, total_steps=total, checkpoint=name, attention=bench.attention)
    yield Notice(text=f"{name} runs with its own scheduler ({scheduler}); no effect here: {', '.join(said)}.")
    for notice in bench.checkpoint.notices:
        yield Notice(text=notice)

    for batch in range(start_batch, request.batch_count):
        if control.take_skip():
            continue
        indices = range(batch * request.batch_size, (batch + 1) * request.batch_size)
        singles = [alone(effective, index) for index in indices]
        generators = [torch.Generator("cpu").manual_seed(single.seed) for single in singles]
        with phases("denoise"):
            pictures = yield from _walk(bench, {**arguments, "generator": generators}, batch, total, control)
        if pictures is None:
            continue
        for index, single, picture in zip(indices, singles, pictures, strict=True):
            # Some pipelines round the size to what their networks can make.
            made = dataclasses.replace(single, width=picture.width, height=picture.height)
            yield ImageReady(
                index=index,
                image=picture,
                seed=single.seed,
                infotext=format_infotext(
                    made,
                    model=name,
                    model_hash=bench.model_hash(),
                    extra={"Sampler": scheduler, "Schedule type": "", "Pipeline": type(pipeline).__name__},
                ),
            )
        # A wish to skip that came too late was for this batch, not for the next.
        control.take_skip()
    yield Finished(seconds=dict(phases.seconds))


def _arguments(pipeline: DiffusionPipeline, request: DiffusionRequest, prompt: str) -> tuple[dict[str, Any], list[str]]:
    """What the pipeline is called with, generators aside, and what of the request its call has no place for.

    Models distilled for guidance take the CFG scale as ``guidance_scale`` and keep true guidance, the one with a
    negative prompt, at 1; where its default is higher, or there is no other (Qwen-Image), the CFG scale is that.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    both = {"guidance_scale", "true_cfg_scale"} <= set(known)
    distilled = both and known["true_cfg_scale"].default <= 1
    arguments: dict[str, Any] = {
        "prompt": prompt,
        "num_inference_steps": request.steps,
        "width": request.width,
        "height": request.height,
        "num_images_per_prompt": request.batch_size,
    }
    unused: list[str] = []
    if "true_cfg_scale" in known and not distilled:
        arguments["true_cfg_scale"] = request.cfg_scale
    elif "guidance_scale" in known:
        arguments["guidance_scale"] = request.cfg_scale
    else:
        unused.append("CFG scale")
    if "negative_prompt" in known and not distilled:
        arguments["negative_prompt"] = request.negative_prompt
    elif request.negative_prompt:
        unused.append("negative prompt")
    return arguments, unused


def _effective(request: DiffusionRequest, *, unused: list[str], loras: bool) -> tuple[DiffusionRequest, list[str]]:
    """The request without what has no effect, as its pictures' texts tell it; and what that is, for people."""
    defaults = Txt2Img()
    reset: dict[str, Any] = {name: getattr(defaults, name) for name in _WITHOUT_EFFECT}
    idle: dict[str, tuple[object, ...]] = {"vae": (VAE_AUTOMATIC, VAE_OWN)}
    if isinstance(request, Txt2Img) and not request.hires.enabled:
        idle["hires"] = (request.hires,)
    said = ["sampler", "schedule type", *unused]
    for name, title in _WITHOUT_EFFECT.items():
        if getattr(request, name) not in idle.get(name, (reset[name],)):
            said.append(title)
    if loras:
        said.append("LoRAs")
    if "negative prompt" in unused:
        reset["negative_prompt"] = ""
    return dataclasses.replace(request, **reset), said


def _walk(
    bench: PipelineBench, arguments: Mapping[str, Any], batch: int, total: int, control: Control
) -> Generator[Step, None, list[Image.Image] | None]:
    """One call of the pipeline as steps; returns its pictures, or None if skipped."""
    pipeline = bench.checkpoint.pipeline
    known = inspect.signature(type(pipeline).__call__).parameters

    def call(report: Callable[[_Report], None]) -> list[Image.Image]:
        forming = Forming(pipeline, bench.render, width=arguments["width"], height=arguments["height"])

        def at_step_end(_pipeline: object, index: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            report((*_progress(pipeline, forming, index), forming.preview(index, tensors.get("latents"))))
            return tensors

        def at_step(index: int, _timestep: object, latents: object) -> None:
            report((*_progress(pipeline, forming, index), forming.preview(index, latents)))

        modern = "callback_on_step_end" in known
        callback = {"callback_on_step_end": at_step_end} if modern else {"callback": at_step}
        try:
            with pipeline_at_work(pipeline, bench.places, bench.device):
                return pipeline(**arguments, **callback).images  # pyright: ignore[reportCallIssue]  # subclasses define it
        except ValueError as error:
            told = " ".join(str(error).split())
            raise UserError(f"{bench.checkpoint.info.name!r} cannot make this picture: {told}") from error

    steps = arguments["num_inference_steps"]
    walk = in_steps(call)
    while True:
        try:
            index, count, sigma, preview = next(walk)
        except StopIteration as end:
            return end.value
        # Schedulers of higher order take more evaluations than there are steps.
        made = batch * steps + (index + 1) * steps // count
        yield Step(index=made, total=total, batch=batch, sigma=sigma, preview=preview)
        if control.take_skip():
            walk.close()
            return None


def _progress(pipeline: DiffusionPipeline, forming: Forming, index: int) -> tuple[int, int, float]:
    """Which evaluation is done, of how many, and the noise level that it began at (0 where there is no such thing)."""
    count = len(pipeline.components["scheduler"].timesteps)
    return index, max(count, index + 1), forming.sigma(index)


def in_steps(work: Callable[[Callable[[Report], None]], Result]) -> Generator[Report, None, Result]:
    """What `work` reports while it runs, as a generator that returns its result and raises its error.

    `work` runs in a thread of its own, and rests in each report until the generator is asked for the next; when the
    generator is closed, the report raises and the thread ends, which closing waits for.
    """
    reports: SimpleQueue[Report | Future[Result]] = SimpleQueue()
    go_on = threading.Semaphore(0)
    stopping = threading.Event()

    def report(what: Report) -> None:
        reports.put(what)
        go_on.acquire()
        if stopping.is_set():
            raise _Stopped

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="atelier-pipeline") as pool:
        future = pool.submit(work, report)
        future.add_done_callback(reports.put)
        try:
            while True:
                what = reports.get()
                if isinstance(what, Future):
                    return future.result()
                yield what
                go_on.release()
        finally:
            stopping.set()
            go_on.release()
