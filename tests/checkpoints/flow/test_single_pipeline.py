"""Stable Diffusion 3, FLUX.1 and Chroma in one file: loaded with what lies around, equal to diffusers' pipeline."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from webui.checkpoints.families.flow import CHROMA, FLUX, SD3
from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.load_pipeline import load_pipeline
from webui.checkpoints.scan import CheckpointFolder
from webui.checkpoints.single_pipeline_parts import pipeline_files
from webui.core.errors import UnsupportedModel
from webui.core.events import ImageReady, Notice
from webui.core.ports import Control
from webui.core.requests import Txt2Img
from webui.engine.manager import EngineManager
from webui.engine.workshop import Workshop
from webui.hardware.low_bits import FORMATS, FULL, LowBitLinear, main_kind
from webui.settings.schema import Settings

# diffusers' own Chroma still calls it so.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

MODELS = {"sd3": SD3, "flux": FLUX, "chroma": CHROMA}
NAMES = list(MODELS)
CALL = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture
def models(tmp_path, words):
    """A models folder with T5's tokenizer alone."""
    (tmp_path / "text_encoder").mkdir()
    shutil.copy(words, tmp_path / "text_encoder" / "tokenizer.json")
    (tmp_path / "Stable-diffusion").mkdir()
    return tmp_path


@pytest.fixture
def load(models):
    """Loads the checkpoint called "model" as the engine does."""

    def load(dtype=torch.float32, **how):
        folder = CheckpointFolder(models)
        return load_pipeline(folder.path("model"), folder.checkpoint("model"), dtype=dtype, models=models, **how)

    return load


def checkpoint(models, suffix=".safetensors"):
    return models / "Stable-diffusion" / f"model{suffix}"


def pixels(pipeline, prompt="a red circle"):
    made = pipeline(prompt, generator=torch.Generator().manual_seed(7), output_type="np", **CALL)
    return made.images[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_makes_the_pictures_of_diffusers_pipeline(name, tiny, save, models, load):
    model = tiny(name)
    save(model.whole(), checkpoint(models))
    loaded = load()

    got, wanted = pixels(loaded.pipeline), pixels(model.pipeline)
    assert loaded.info.family == "diffusers"
    assert np.abs(got - wanted).max() <= 1e-5
    assert wanted.std() > 0.01
    assert {name: type(part) for name, part in loaded.pipeline.components.items() if part is not None}.keys() == {
        name for name, part in model.pipeline.components.items() if part is not None
    }


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_taken_from_the_folders_of_other_studios(name, tiny, save, models, load):
    model = tiny(name)
    save(model.transformer, checkpoint(models))
    save(model.vae, models / "VAE" / ("sd3_vae.safetensors" if name == "sd3" else "ae.safetensors"))
    for text, weights in model.texts.items():
        save(weights, models / "text_encoder" / f"{text}.safetensors")

    assert np.abs(pixels(load().pipeline) - pixels(model.pipeline)).max() <= 1e-5


def test_the_engine_makes_a_picture_and_says_what_is_missing_of_sd3(tiny, save, models):
    whole = {key: weight for key, weight in tiny("sd3").whole().items() if ".t5xxl." not in key}
    save(whole, checkpoint(models))
    engine = EngineManager(CheckpointFolder(models), Settings)
    request = Txt2Img(checkpoint="model", prompt="a red circle", steps=2, width=32, height=32, seed=7)
    events = list(engine.generate(request, control=Control()))

    pictures = [event for event in events if isinstance(event, ImageReady)]
    assert [picture.image.size for picture in pictures] == [(32, 32)]
    said = [event.text for event in events if isinstance(event, Notice)]
    assert any("T5-XXL" in text for text in said)


def test_a_part_that_comes_later_is_taken_up(tiny, save, models):
    model = tiny("sd3")
    save({key: weight for key, weight in model.whole().items() if ".t5xxl." not in key}, checkpoint(models))
    workshop = Workshop(CheckpointFolder(models), Settings, ModelHashes())
    request = Txt2Img(checkpoint="model", prompt="a circle")

    def has_t5():
        with workshop.pipeline_bench(request) as bench:
            return "text_encoder_3" in bench.checkpoint.modules

    assert not has_t5()
    t5 = save(model.texts["t5"], models / "text_encoder" / "t5xxl.safetensors")
    assert has_t5()
    assert pipeline_files(checkpoint(models), models) == (checkpoint(models), t5)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("flux", ["CLIP-L (clip_l) and T5-XXL (t5xxl) in models/text_encoder", "models/VAE", "begins with ae or flux"]),
        ("sd3", ["CLIP-L (clip_l) and CLIP-G (clip_g) in models/text_encoder", "begins with sd3"]),
        ("chroma", ["needs T5-XXL (t5xxl) in models/text_encoder"]),
    ],
)
def test_a_transformer_alone_says_what_it_needs_and_where(name, lacking, tiny, save, models, load):
    save(tiny(name).transformer, checkpoint(models))

    with pytest.raises(UnsupportedModel) as told:
        load()
    assert all(words in str(told.value) for words in lacking), told.value


def test_a_missing_tokenizer_is_named(tiny, save, models, load):
    save(tiny("flux").whole(), checkpoint(models))
    (models / "text_encoder" / "tokenizer.json").unlink()

    with pytest.raises(UnsupportedModel, match=r"T5's tokenizer \(spiece\.model or tokenizer\.json\)"):
        load()


def test_sentencepieces_own_file_makes_the_same_tokens(tiny, save, models, load, piece_file):
    model = tiny("chroma")
    save(model.whole(), checkpoint(models))
    (models / "text_encoder" / "tokenizer.json").unlink()
    piece_file(models / "text_encoder" / "spiece.model")
    pipeline = load().pipeline

    for text in ("a red circle", "blue", "", "a thing"):
        assert pipeline.tokenizer(text).input_ids == model.pipeline.tokenizer(text).input_ids, text


def test_of_several_vaes_the_name_decides_and_another_models_is_never_taken(tiny, save, models, load):
    model = tiny("flux")
    whole = {key: weight for key, weight in model.whole().items() if not key.startswith("first_stage_model.")}
    save(whole, checkpoint(models))
    save(model.vae, models / "VAE" / "sd3_vae.safetensors")
    with pytest.raises(UnsupportedModel, match="its VAE in models/VAE"):
        load()

    blank = {key: torch.zeros_like(weight) for key, weight in model.vae.items()}
    save(blank, models / "VAE" / "another.safetensors")
    assert not any(weight.any() for weight in load().pipeline.vae.parameters())
    save(model.vae, models / "VAE" / "ae.safetensors")
    assert any(weight.any() for weight in load().pipeline.vae.parameters())


def test_a_vae_with_diffusers_names_fits_too(tiny, save, models, load):
    model = tiny("flux")
    whole = {key: weight for key, weight in model.whole().items() if not key.startswith("first_stage_model.")}
    save(whole, checkpoint(models))
    save(model.pipeline.vae.state_dict(), models / "VAE" / "flux_vae.safetensors")

    assert np.abs(pixels(load().pipeline) - pixels(model.pipeline)).max() <= 1e-5


def test_a_lost_weight_is_named_and_the_checkpoint_before_stays(tiny, save, models):
    model = tiny("sd3")
    save(model.whole(), checkpoint(models))
    engine = EngineManager(CheckpointFolder(models), Settings)
    request = Txt2Img(checkpoint="model", prompt="a circle", steps=1, width=32, height=32, seed=7)
    assert list(engine.generate(request, control=Control()))
    lacking = {key: weight for key, weight in model.whole().items() if "joint_blocks.1.x_block.mlp.fc2" not in key}
    save(lacking, models / "Stable-diffusion" / "broken.safetensors")

    with pytest.raises(UnsupportedModel, match=r"transformer of broken\.safetensors lacks 2 weights, 'transformer_blo"):
        list(engine.generate(dataclasses.replace(request, checkpoint="broken"), control=Control()))
    assert [resident.name for resident in engine._open_workshop().stock.residents.all()] == ["model"]
    assert any(isinstance(event, ImageReady) for event in engine.generate(request, control=Control()))


def test_a_file_that_is_cut_off_says_so(tiny, save, models):
    path = save(tiny("flux").whole(), checkpoint(models))
    path.write_bytes(path.read_bytes()[:-1000])

    (problem,) = CheckpointFolder(models).problems()
    assert "is cut off" in problem.reason


def test_factors_of_8_bit_files_are_applied(tiny, save, models, load):
    model = tiny("flux")
    whole = model.whole()
    key = "model.diffusion_model.double_blocks.0.img_mlp.0.weight"
    factor = torch.tensor(0.01)
    narrow = (whole[key] / factor).to(torch.float8_e4m3fn)
    whole |= {key: narrow, key.replace(".weight", ".scale_weight"): factor}
    whole["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save(whole, checkpoint(models))

    loaded = load().pipeline.transformer.transformer_blocks[0].ff.net[0].proj.weight
    assert torch.equal(loaded, narrow.float() * factor)


def test_half_precision_keeps_t5s_last_layer_wide(tiny, save, models, load):
    save(tiny("chroma").whole(), checkpoint(models))
    block = load(torch.float16).pipeline.text_encoder.encoder.block[0].layer

    assert block[0].SelfAttention.q.weight.dtype == torch.float16
    assert block[1].DenseReluDense.wo.weight.dtype == torch.float32


def test_a_model_that_edits_pictures_is_refused(tiny, save, models):
    model = tiny("flux")
    weights = dict(model.transformer)
    weights["img_in.weight"] = torch.zeros(32, 96)
    save(weights, checkpoint(models))

    (problem,) = CheckpointFolder(models).problems()
    assert "takes 96 channels and makes 16: it edits pictures" in problem.reason


# ------------------------------------------------------------------------------------------------ weights in few bits


@pytest.fixture
def as_gguf(tiny, save, models, write_gguf):
    """Writes the model's transformer and T5 as GGUF, the rest beside; returns it with numbers that are packed so."""

    def write(name, kind=GGMLQuantizationType.Q8_0):
        model = tiny(name)
        write_gguf(model.transformer, checkpoint(models, ".gguf"), kind)
        save(model.vae, models / "VAE" / ("sd3_vae.safetensors" if name == "sd3" else "ae.safetensors"))
        for text, weights in model.texts.items():
            if text == "t5":
                write_gguf(weights, models / "text_encoder" / "t5.gguf", kind)
            else:
                save(weights, models / "text_encoder" / f"{text}.safetensors")
        return model

    return write


@pytest.mark.parametrize("name", NAMES)
def test_a_gguf_stays_in_its_blocks_and_makes_nearly_the_same_pictures(name, tiny, as_gguf, load):
    model = as_gguf(name)
    loaded = load()

    assert np.abs(pixels(loaded.pipeline) - pixels(model.pipeline)).max() < 0.03
    kinds = {part: main_kind(module) for part, module in loaded.modules.items()}
    t5 = next(component for component, text in MODELS[name].texts.items() if text == "t5")
    assert kinds == {**dict.fromkeys(kinds, FULL), "transformer": "Q8_0", t5: "Q8_0"}
    first = loaded.pipeline.transformer.transformer_blocks[0].attn
    assert all(isinstance(layer, LowBitLinear) for layer in (first.to_q, first.to_k, first.to_v))


def test_the_engine_makes_a_picture_of_a_flow_models_gguf(as_gguf, models):
    as_gguf("flux", GGMLQuantizationType.Q4_0)
    workshop = Workshop(CheckpointFolder(models), Settings, ModelHashes())
    with workshop.pipeline_bench(Txt2Img(checkpoint="model", prompt="a circle")) as bench:
        assert bench.memory_plan == "text encoder 2 in Q4_0, 0.0 GiB, transformer in Q4_0, 0.0 GiB"
    engine = EngineManager(CheckpointFolder(models), Settings)
    request = Txt2Img(checkpoint="model", prompt="a red circle", steps=2, width=32, height=32, seed=7)
    events = list(engine.generate(request, control=Control()))
    assert [event.image.size for event in events if isinstance(event, ImageReady)] == [(32, 32)]


def near(got, wanted):
    return torch.corrcoef(torch.stack([got.flatten().float(), wanted.flatten().float()]))[0, 1]


@torch.inference_mode()
@pytest.mark.parametrize("weights", FORMATS)
def test_t5_too_lies_in_few_bits_and_says_nearly_the_same(weights, tiny, save, models, load):
    """In half precision, in which its last layers are computed wider."""
    model = tiny("sd3")
    save(model.whole(), checkpoint(models))
    encoder = load(torch.float16, weights=weights).pipeline.text_encoder_3
    tokens = torch.tensor([[3, 4, 5, 6, 3, 1]])
    wanted = model.pipeline.text_encoder_3(tokens).last_hidden_state

    layers = [layer for layer in encoder.modules() if isinstance(layer, LowBitLinear)]
    # All of both blocks; so small a feed-forward part makes no whole blocks of nf4.
    assert len(layers) == 2 * (4 if weights == "nf4" else 7)
    assert {str(layer.weight.dtype) for layer in layers} == {"torch.int8"}
    assert near(encoder(tokens).last_hidden_state, wanted) > {"fp8": 0.998, "int8": 0.9998, "nf4": 0.98}[weights]
