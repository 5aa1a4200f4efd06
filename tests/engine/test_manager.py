"""The engine as jobs see it: swapping, failing and recovering, status, budgets."""

import dataclasses
import gc
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from webui.checkpoints.hash import ModelHashes
from webui.core.errors import (
    CheckpointNotFound,
    UnsupportedModel,
    UpscalerNotFound,
    UserError,
    VaeNotFound,
)
from webui.core.events import Finished, ImageReady, Notice, Started, Step
from webui.core.infotext import parse_infotext
from webui.core.ports import Control
from webui.core.requests import Extras, HiresFix, Img2Img, Loopback, Txt2Img, Upscale
from webui.engine.manager import EngineManager
from webui.engine.workshop import COMPILING
from webui.settings.schema import Settings

ROOT = Path(__file__).resolve().parents[2]
REQUEST = Txt2Img(prompt="a red circle", steps=2, width=64, height=64, seed=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny):
    """A models folder with the tiny checkpoint twice, as diffusers folders "first" and "second", and a broken one."""
    root = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        folder = root / "Stable-diffusion" / name
        tiny.unet.save_pretrained(folder / "unet")
        tiny.vae.save_pretrained(folder / "vae")
        tiny.text_encoders[0].module.save_pretrained(folder / "text_encoder")
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(
            json.dumps(
                {
                    "_class_name": "DDIMScheduler",
                    "beta_start": 0.00085,
                    "beta_end": 0.012,
                    "beta_schedule": "scaled_linear",
                    "num_train_timesteps": 1000,
                    "prediction_type": "v_prediction",
                }
            )
        )
        (folder / "model_index.json").write_text(
            json.dumps(
                {
                    "_class_name": "StableDiffusionPipeline",
                    "unet": ["diffusers", "UNet2DConditionModel"],
                    "vae": ["diffusers", "AutoencoderKL"],
                    "text_encoder": ["transformers", "CLIPTextModel"],
                    "scheduler": ["diffusers", "DDIMScheduler"],
                }
            )
        )
    return root


@pytest.fixture
def folder(models):
    from webui.checkpoints.scan import CheckpointFolder

    return CheckpointFolder(models)


@pytest.fixture
def engine(folder):
    return EngineManager(folder, Settings)


def run(engine, request=REQUEST, **options):
    return list(engine.generate(request, control=Control(), **options))


def picture(events):
    return next(event.image for event in events if isinstance(event, ImageReady))


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_making_one_loads_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from webui.checkpoints.scan import CheckpointFolder\n"
        "from webui.engine.manager import EngineManager\n"
        "from webui.settings.schema import Settings\n"
        f"engine = EngineManager(CheckpointFolder(Path({str(tmp_path)!r})), Settings)\n"
        "assert engine.status().phase == 'warming up'\n"
        "loaded = {'torch', 'diffusers', 'transformers', 'spandrel'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_warming_up_makes_ready(engine):
    assert engine.status().phase == "warming up"
    engine.warm_up()
    status = engine.status()
    assert status.phase == "ready"
    assert status.checkpoint == "first"
    assert status.device
    assert status.attention in ("xformers", "sdpa", "chunked")


def test_a_request_from_start_to_end(engine):
    events = run(engine)
    assert [type(event) for event in events] == [Started, Step, Step, ImageReady, Finished]
    assert events[0].checkpoint == "first"
    assert events[0].attention == engine.status().attention
    assert "load" in events[-1].seconds
    assert picture(events).tobytes() == picture(run(engine)).tobytes()


def test_swapping_by_name_and_back(engine):
    first = picture(run(engine))
    events = run(engine, dataclasses.replace(REQUEST, checkpoint="second"))
    assert events[0].checkpoint == engine.status().checkpoint == "second"
    # The same weights under another name.
    assert picture(events).tobytes() == first.tobytes()
    assert run(engine)[0].checkpoint == "first"


def test_a_checkpoint_that_fails_leaves_the_one_before(engine, models):
    run(engine)
    broken = models / "Stable-diffusion" / "broken.safetensors"
    broken.write_bytes(b"x" * 200)
    try:
        with pytest.raises((UnsupportedModel, CheckpointNotFound)):
            run(engine, dataclasses.replace(REQUEST, checkpoint="broken"))
    finally:
        broken.unlink()
    with pytest.raises(CheckpointNotFound, match="absent"):
        run(engine, dataclasses.replace(REQUEST, checkpoint="absent"))
    assert engine.status().phase == "ready"
    assert engine.status().checkpoint == "first"
    assert isinstance(run(engine)[-1], Finished)


def test_without_any_checkpoint_the_status_says_so(tmp_path):
    from webui.checkpoints.scan import CheckpointFolder

    engine = EngineManager(CheckpointFolder(tmp_path), Settings)
    engine.warm_up()
    assert engine.status().phase == "failed"
    assert engine.status().detail
    # Enlarging needs no checkpoint.
    assert picture(run(engine, Upscale(image=png(), scale=2.0))).size == (40, 20)


def test_attention_by_wish(folder):
    engine = EngineManager(folder, lambda: Settings(attention="chunked"))
    assert run(engine)[0].attention == "chunked"
    engine = EngineManager(folder, lambda: Settings(attention="sparkling"))
    engine.warm_up()
    assert engine.status().phase == "failed"
    with pytest.raises(UserError, match="sparkling"):
        run(engine)


def test_compiling_by_wish(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("webui.engine.workshop.set_compiled", lambda _, *, wanted: asked.append(wanted) or wanted)
    engine = EngineManager(folder, lambda: Settings(compile=True))

    def told(request=REQUEST):
        return [event.text for event in run(engine, request) if isinstance(event, Notice)]

    monkeypatch.setattr("webui.engine.workshop.why_not", lambda _: "")
    assert told() == [COMPILING]
    assert told(dataclasses.replace(REQUEST, extras=Extras(tiling=True))) == []
    monkeypatch.setattr("webui.engine.workshop.why_not", lambda _: "There is no compiler.")
    assert told() == ["There is no compiler. The network runs as it is."]
    assert asked == [True, False, False]


def test_closing_early_frees_the_engine(engine):
    events = engine.generate(REQUEST, control=Control())
    next(events)
    events.close()
    assert isinstance(run(engine)[-1], Finished)


def test_an_unknown_upscaler_is_named(engine):
    with pytest.raises(UpscalerNotFound, match="absent"):
        run(engine, Upscale(image=png(), upscaler="absent"))


def test_other_errors_come_through(engine, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("webui.engine.generate.decode", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(engine)


def test_a_small_budget_keeps_only_the_last(folder):
    import weakref

    engine = EngineManager(folder, lambda: Settings(model_memory_gib=1e-9))
    run(engine)
    residents = engine._workshop.stock.residents
    first = weakref.ref(residents.all()[0].model.checkpoint.unet)
    run(engine, dataclasses.replace(REQUEST, checkpoint="second"))
    assert [resident.name for resident in residents.all()] == ["second"]
    gc.collect()
    assert first() is None


@pytest.fixture
def soft_vae(models, tiny):
    """A VAE of one's own, other than the checkpoints'."""
    path = models / "VAE" / "soft.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({name: weight * 0.9 for name, weight in tiny.vae.state_dict().items()}, path)
    yield path
    path.unlink()


def test_a_vae_of_ones_own_is_used_shared_and_named(engine, folder, soft_vae):
    own = picture(run(engine, dataclasses.replace(REQUEST, vae="None")))
    made = [
        run(engine, dataclasses.replace(REQUEST, vae=soft_vae.name, checkpoint=name)) for name in ("first", "second")
    ]

    assert picture(made[0]).tobytes() == picture(made[1]).tobytes() != own.tobytes()
    # Each checkpoint once, and one VAE for both.
    assert sorted(each.name for each in engine._workshop.stock.residents.all()) == ["first", "second", soft_vae.name]
    text = next(event.infotext for event in made[0] if isinstance(event, ImageReady))
    digits = hashlib.sha256(soft_vae.read_bytes()).hexdigest()[:10]
    assert parse_infotext(text).pairs.items() >= {"VAE": soft_vae.name, "VAE hash": digits}.items()
    by_setting = EngineManager(folder, lambda: Settings(vae=soft_vae.name))
    assert picture(run(by_setting)).tobytes() == picture(made[0]).tobytes()
    assert picture(run(by_setting, dataclasses.replace(REQUEST, vae="None"))).tobytes() == own.tobytes()


def test_a_vae_that_does_not_fit_leaves_the_checkpoint_usable(engine, models, soft_vae):
    first = picture(run(engine))
    save_file({"decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)}, soft_vae)
    with pytest.raises(UnsupportedModel, match="16 latent channels"):
        run(engine, dataclasses.replace(REQUEST, vae=soft_vae.name))
    with pytest.raises(VaeNotFound, match="absent"):
        run(engine, dataclasses.replace(REQUEST, vae="absent.safetensors"))
    assert picture(run(engine)).tobytes() == first.tobytes()


def test_the_infotext_waits_for_a_hash_that_is_still_in_the_making(folder):
    """And nothing else does: the hash is asked for once its checkpoint is loaded, and called for with the picture."""
    asked = []

    class SlowHashes(ModelHashes):
        def short_hash(self, path):
            asked.append(path.name)
            return lambda: "abcdef0123"

    events = run(EngineManager(folder, Settings, SlowHashes()))
    assert asked == ["first"]
    text = next(event.infotext for event in events if isinstance(event, ImageReady))
    assert parse_infotext(text).pairs["Model hash"] == "abcdef0123"


HIRES = dataclasses.replace(REQUEST, hires=HiresFix(enabled=True, scale=1.5, upscaler="Lanczos"))


def hires(**asked):
    return dataclasses.replace(HIRES, hires=dataclasses.replace(HIRES.hires, **asked))


def test_hires_fix_runs_its_second_pass_on_the_checkpoint_it_names(engine, models, folder):
    events = run(engine, hires())
    assert events[0].total_steps == 2 + 1 + 2
    assert picture(events).size == (96, 96)
    # The same weights under another name; "" and the name are the same checkpoint.
    other = run(engine, hires(checkpoint="second"))
    assert picture(other).tobytes() == picture(events).tobytes()
    assert picture(run(engine, hires(checkpoint="first"))).tobytes() == picture(events).tobytes()
    assert {each.name for each in engine._workshop.stock.residents.all()} == {"first", "second"}
    text = next(event.infotext for event in other if isinstance(event, ImageReady))
    assert parse_infotext(text).pairs.items() >= {"Model": "first", "Hires checkpoint": "second"}.items()
    assert "upscale" in other[-1].seconds


def test_a_hires_checkpoint_that_cannot_be_is_refused_before_the_first_step(engine, folder, monkeypatch):
    with pytest.raises(CheckpointNotFound, match="absent"):
        run(engine, hires(checkpoint="absent"))
    with pytest.raises(UpscalerNotFound, match="absent"):
        run(engine, hires(upscaler="absent"))
    known = type(folder).checkpoint

    def checkpoint(self, name):
        info = known(self, name)
        return dataclasses.replace(info, family="sdxl") if name == "second" else info

    monkeypatch.setattr(type(folder), "checkpoint", checkpoint)
    with pytest.raises(UserError, match=r"hires checkpoint 'second' is of another family \(sdxl\)"):
        run(engine, hires(checkpoint="second"))


def test_with_hires_fix_the_refiner_is_laid_out_for_the_second_pass(engine, monkeypatch):
    from webui.engine.workshop import Workshop

    asked = []
    bench = Workshop.bench

    def note(self, request, **options):
        asked.append((request.checkpoint, str(request.size), request.hires.enabled))
        return bench(self, request, **options)

    monkeypatch.setattr(Workshop, "bench", note)
    run(engine, dataclasses.replace(hires(checkpoint="first", steps=4), refiner="second", refiner_switch_at=0.5))
    assert asked == [("", "64x64", True), ("second", "96x96", False)]


def test_loopback_goes_through_the_manager(engine):
    events = run(
        engine,
        Img2Img(init_image=png(), steps=2, width=64, height=64, seed=1, loopback=Loopback(loops=2, final_strength=1.0)),
    )
    assert [event.index for event in events if isinstance(event, ImageReady)] == [0, 1]


def test_weights_in_few_bits_by_wish(folder):
    chosen = {"weights": "full"}
    engine = EngineManager(folder, lambda: Settings(**chosen))
    full = picture(run(engine))
    assert engine.status().memory == ""
    chosen["weights"] = "fp8"
    small = picture(run(engine))
    assert engine.status().memory == "unet in fp8, 0.0 GiB"
    assert small.tobytes() != full.tobytes()
    other = dataclasses.replace(REQUEST, checkpoint="second")
    assert picture(run(engine, other)).tobytes() == small.tobytes()
    chosen["weights"] = "full"
    assert picture(run(engine)).tobytes() == full.tobytes()
