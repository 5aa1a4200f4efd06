"""What the engine adds to the networks' own time: a request through it, beside the bare module calls, in turn.

    .venv/bin/python benchmarks/overhead.py [--steps 20] [--repeats 7] [--model NAME] [--size PIXELS] [--json]

The engine's side is `EngineManager.generate` to its last event, with previews rendered by the jobs' own thread four
times a second. The floor is the text encoder once (prompt and negative prompt), a UNet forward a step at the same batch
of two, and one VAE decode, by the same attention kernels, on inputs made beforehand. Each round runs both, in changing
order, with a prompt that was not seen before. The medians are compared. CFG scale 7, batch size 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the path, so that the file runs from any folder

from webui.checkpoints.hash import ModelHashes  # noqa: E402
from webui.checkpoints.scan import CheckpointFolder  # noqa: E402
from webui.core.events import Step  # noqa: E402
from webui.core.ports import Control  # noqa: E402
from webui.core.requests import Txt2Img  # noqa: E402
from webui.engine.bench import Bench  # noqa: E402
from webui.engine.manager import EngineManager  # noqa: E402
from webui.engine.workshop import Workshop  # noqa: E402
from webui.jobs.progress import Previews  # noqa: E402
from webui.settings.schema import Settings  # noqa: E402

PREVIEWS_PER_SECOND = 4.0


class EngineSide:
    """A request through the engine, its previews shown as a job's are."""

    def __init__(self, engine: EngineManager) -> None:
        self._engine = engine
        self.shown = 0
        self._previews = Previews(self._show)
        self._previews.start()

    def _show(self, _job_id: str, jpeg: bytes) -> None:
        self.shown += bool(jpeg)

    def run(self, request: Txt2Img) -> float:
        """Seconds from the request to the last event."""
        begin = time.perf_counter()
        for event in self._engine.generate(request, control=Control()):
            if isinstance(event, Step) and event.preview is not None:
                self._previews.offer("benchmark", event.preview, per_second=PREVIEWS_PER_SECOND)
        seconds = time.perf_counter() - begin
        self._previews.clear()
        return seconds

    def stop(self) -> None:
        """Ends the previews' thread."""
        self._previews.stop(5)


@torch.inference_mode()
def floor(bench: Bench, request: Txt2Img) -> float:
    """Seconds of nothing but the networks."""
    checkpoint = bench.checkpoint
    unet, vae, text = checkpoint.unet, checkpoint.vae, checkpoint.text_encoders[0]
    device, dtype = bench.device, unet.dtype
    tokens = torch.randint(1000, 40000, (2, text.tokenizer.length), device=device)
    latents = torch.randn(2, 4, request.height // 8, request.width // 8, device=device, dtype=dtype)
    timesteps = torch.linspace(999, 0, request.steps, device=device).split(1)
    begin = time.perf_counter()
    states = text.module(input_ids=tokens).last_hidden_state.to(dtype)
    for timestep in timesteps:
        unet(latents, timestep, states, return_dict=False)
    vae.decode(latents[:1], return_dict=False)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """Both sides in turn; the medians in seconds, their ratio, and how many previews were shown in the timed rounds."""
    folder = CheckpointFolder(options.models)
    info = folder.checkpoint(options.model)
    width, height = (options.size or side for side in (info.native_size.width, info.native_size.height))
    engine = EngineManager(folder, Settings)
    engine.warm_up()
    side = EngineSide(engine)
    engine_s: list[float] = []
    floor_s: list[float] = []
    with Workshop(folder, Settings, ModelHashes()).bench(Txt2Img(checkpoint=info.name)) as bench:
        for number in range(-1, options.repeats):  # the first round warms up
            request = Txt2Img(
                prompt=f"a red circle on a blue background {number}",
                checkpoint=info.name, steps=options.steps, width=width, height=height, seed=max(number, 0),
            )  # fmt: skip
            gc.collect()
            if number % 2:
                bare, whole = floor(bench, request), side.run(request)
            else:
                whole, bare = side.run(request), floor(bench, request)
            if number < 0:
                side.shown = 0
                continue
            engine_s.append(whole)
            floor_s.append(bare)
    side.stop()
    medians = statistics.median(engine_s), statistics.median(floor_s)
    return {
        "ratio": round(medians[0] / medians[1], 4),
        "engine_s": round(medians[0], 4),
        "floor_s": round(medians[1], 4),
        "best_ratio": round(min(engine_s) / min(floor_s), 4),
        "previews": side.shown,
        "steps": options.steps,
        "size": f"{width}x{height}",
        "model": info.name,
        "attention": engine.status().attention,
        "device": engine.status().device,
    }


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default="", help="the checkpoint's name; the default checkpoint if left out")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--size", type=int, default=0, help="width and height in pixels; the model's own if left out")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    result = measure(options)
    print(f"{result['model']}, {result['size']}, {result['steps']} steps, {result['device']}, {result['attention']}")
    print(f"{'side':<10}{'median, s':>12}")
    print(f"{'engine':<10}{result['engine_s']:>12.4f}   with {result['previews']} previews in {options.repeats} rounds")
    print(f"{'floor':<10}{result['floor_s']:>12.4f}")
    print(f"{'ratio':<10}{result['ratio']:>12.4f}   of the best rounds {result['best_ratio']:.4f}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
