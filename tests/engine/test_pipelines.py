"""Diffusers folders of other families through the engine: the pipeline's own pictures, as our events."""

import dataclasses
import inspect
import io
import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from webui.checkpoints.families.diffusers_folder import PIPELINES
from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import UnsupportedModel, UserError
from webui.core.events import Finished, ImageReady, Notice, Started, Step
from webui.core.infotext import parse_infotext
from webui.core.ports import Control
from webui.core.requests import Generation, Img2Img, Txt2Img
from webui.engine import card as card_module
from webui.engine import placement
from webui.engine import workshop as workshop_module
from webui.engine.ladder import Economy, Rung
from webui.engine.manager import EngineManager
from webui.engine.pipeline_placement import pipeline_at_work
from webui.engine.pipeline_previews import Forming
from webui.engine.pipelines import _arguments, in_steps
from webui.engine.workshop import Workshop
from webui.settings.schema import Settings

REQUEST = Txt2Img(
    checkpoint="sd3", prompt="a red circle", negative_prompt="blue", steps=3, width=32, height=32, cfg_scale=5, seed=7
)
WORDS = ["a", "red", "circle", "blue"]


def clip_tokenizer():
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    ), len(tokens)


def word_tokenizer():
    """What stands in for T5's: one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "</s>", "<unk>", *WORDS]
    words = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=77
    )


def clip(kind, vocabulary):
    import transformers

    return getattr(transformers, kind)(
        transformers.CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    ).eval()


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, is_encoder_decoder=False)
    ).eval()


def vae(diffusers, channels):
    """Random, but that its decoder's convolutions look at one pixel: others of this size paint hardly what they see."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,),
        norm_num_groups=1,
        sample_size=32,
        latent_channels=channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    ).eval()
    for weight in vae.decoder.parameters():
        if weight.shape[2:] == (3, 3):
            weight.data *= 3 * torch.nn.functional.pad(torch.ones(1, 1), (1, 1, 1, 1))
    return vae


def sd3(diffusers):
    tokenizer, vocabulary = clip_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer.eval(),
        vae=vae(diffusers, 4),
        text_encoder=clip("CLIPTextModelWithProjection", vocabulary),
        text_encoder_2=clip("CLIPTextModelWithProjection", vocabulary),
        text_encoder_3=t5(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=word_tokenizer(),
    )


def flux(diffusers):
    tokenizer, vocabulary = clip_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer.eval(),
        vae=vae(diffusers, 1),
        text_encoder=clip("CLIPTextModel", vocabulary),
        text_encoder_2=t5(),
        tokenizer=tokenizer,
        tokenizer_2=word_tokenizer(),
    )


@pytest.fixture(scope="module")
def pipelines(diffusers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {"sd3": sd3(diffusers), "flux": flux(diffusers)}
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def models(pipelines, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / "Stable-diffusion" / name)
    return root


@pytest.fixture(scope="module")
def engine(models):
    return EngineManager(CheckpointFolder(models), Settings)


@pytest.fixture(autouse=True)
def offline(no_network):
    """Nothing here asks the network."""


def run(engine, request, control=None, **options):
    return list(engine.generate(request, control=control or Control(), **options))


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def same(first, second):
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("sd3", {"negative_prompt": "blue"}), ("flux", {})],
)
def test_the_pictures_are_the_pipelines_own(name, arguments, engine, pipelines):
    events = run(engine, dataclasses.replace(REQUEST, checkpoint=name, batch_size=2))
    wanted = pipelines[name](
        "a red circle",
        width=32,
        height=32,
        num_inference_steps=3,
        guidance_scale=5,
        num_images_per_prompt=2,
        generator=[torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)],
        **arguments,
    ).images

    got = of(ImageReady, events)
    assert [event.seed for event in got] == [7, 8]
    assert all(same(event.image, picture) for event, picture in zip(got, wanted, strict=True))
    assert not same(*wanted)


def test_events_come_in_order_and_say_what_had_no_effect(engine):
    events = run(engine, dataclasses.replace(REQUEST, batch_count=2, clip_skip=2))

    kinds = [type(event) for event in events]
    assert kinds == [Started, Notice, *([Step] * 3 + [ImageReady]) * 2, Finished]
    assert events[0].total_steps == 6
    steps = of(Step, events)
    assert [(step.index, step.total, step.batch) for step in steps] == [(i + 1, 6, i // 3) for i in range(6)]
    assert steps[0].sigma > steps[1].sigma > steps[2].sigma > 0
    assert events[1].text.endswith("no effect here: sampler, schedule type, clip skip.")
    assert "denoise" in events[-1].seconds


def test_the_infotext_tells_the_scheduler_and_nothing_that_had_no_effect(engine):
    request = dataclasses.replace(REQUEST, checkpoint="flux", clip_skip=2, width=40)
    text = of(ImageReady, run(engine, request))[0].infotext
    pairs = parse_infotext(text).pairs

    assert pairs["Sampler"] == "FlowMatchEulerDiscreteScheduler"
    assert pairs["Pipeline"] == "FluxPipeline"
    assert "Schedule type" not in pairs
    assert "Clip skip" not in pairs
    assert parse_infotext(text).negative_prompt == ""
    assert (pairs["Seed"], pairs["CFG scale"], pairs["Model"]) == ("7", "5", "flux")


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_previews_show_the_picture_forming(name, engine):
    events = run(engine, dataclasses.replace(REQUEST, checkpoint=name, steps=4))
    previews = [step.preview for step in of(Step, events)]
    assert previews[0] is None  # one step does not tell where the flow ends
    shown = [Image.open(io.BytesIO(preview())).convert("RGB") for preview in previews[1:]]
    made = of(ImageReady, events)[0].image

    likeness = [alike(picture, made) for picture in shown]
    assert shown[0].width == shown[0].height
    other = of(ImageReady, run(engine, dataclasses.replace(REQUEST, checkpoint=name, seed=8)))[0].image
    assert min(likeness) > 0.5
    assert abs(alike(shown[-1], other)) < 0.2


def test_noise_levels_are_brought_from_a_card_once_a_call():
    asked = []

    class Sigmas:
        """On a card, whose work each question waits for."""

        def tolist(self):
            asked.append(1)
            return [1.0, 0.5, 0.0]

        def __getitem__(self, _index):
            raise AssertionError("a level by itself makes the host wait at each step")

    config = {"stochastic_sampling": False}
    scheduler = type("FlowMatchEulerDiscreteScheduler", (), {"sigmas": Sigmas(), "config": config})()
    forming = Forming(SimpleNamespace(components={"scheduler": scheduler}), lambda _: _, width=8, height=8)
    assert [forming.sigma(index) for index in (0, 1, 2, 3)] == [1.0, 0.5, 0.0, 0.0]
    for index in (0, 1):
        forming.preview(index, torch.zeros(1, 4, 8, 8))
    assert asked == [1]


def alike(preview, picture):
    """How much the two go together apart from their mean colours, at the size of the latents."""
    small = [np.asarray(image.resize(picture.size, Image.Resampling.BOX), float) for image in (preview, picture)]
    return np.corrcoef(*((pixels - pixels.mean((0, 1))).ravel() for pixels in small))[0, 1]


def test_a_preview_decoder_of_the_pipeline_is_taken(models, monkeypatch):
    asked = []
    monkeypatch.setattr(workshop_module, "find_preview_decoder", lambda *told: asked.append(told[1:]))
    workshop = Workshop(CheckpointFolder(models), Settings, ModelHashes())
    with workshop.pipeline_bench(REQUEST) as bench:
        assert bench.render is not None

    assert asked == [("sd3", "StableDiffusion3Pipeline")]


def test_later_batches_are_those_of_the_whole_job(engine):
    whole = of(ImageReady, run(engine, dataclasses.replace(REQUEST, batch_count=2)))
    resumed = of(ImageReady, run(engine, dataclasses.replace(REQUEST, batch_count=2), start_batch=1))

    assert [event.index for event in resumed] == [1]
    assert same(resumed[0].image, whole[1].image)


def test_closing_stops_before_the_next_step(engine):
    workshop = engine._open_workshop()
    with workshop.pipeline_bench(REQUEST) as bench:
        transformer = bench.checkpoint.modules["transformer"]
    calls = []
    hook = transformer.register_forward_hook(lambda *_: calls.append(1))
    events = engine.generate(dataclasses.replace(REQUEST, steps=20), control=Control())
    while not isinstance(next(events), Step):
        pass
    events.close()
    hook.remove()

    assert len(calls) == 1
    assert of(ImageReady, run(engine, REQUEST))


def test_skipping_leaves_the_batch_and_goes_on(engine):
    control = Control()
    got = []
    for event in engine.generate(dataclasses.replace(REQUEST, batch_count=2), control=control):
        got.append(event)
        if isinstance(event, Step) and event.index == 2:
            control.skip()

    assert [event.index for event in of(Step, got)] == [1, 2, 4, 5, 6]
    assert [event.index for event in of(ImageReady, got)] == [1]


def test_pictures_from_pictures_are_refused(engine):
    fields = {field.name: getattr(REQUEST, field.name) for field in dataclasses.fields(Generation)}

    with pytest.raises(UserError, match="'sd3' makes pictures from words alone"):
        run(engine, Img2Img(**fields, init_image=b""))


def test_a_refusal_of_the_pipeline_is_a_sentence(engine, monkeypatch, diffusers):
    def refuse(*_arguments, **_options):
        raise ValueError("`height` and `width` have to be\n divisible by 16")

    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "check_inputs", refuse)

    with pytest.raises(UserError, match=r"'sd3' cannot make this picture: .* have to be divisible by 16"):
        run(engine, REQUEST)


def test_the_catalogue_knows_the_family_and_the_size(models):
    info = CheckpointFolder(models).checkpoint("sd3")

    assert (info.family, str(info.native_size)) == ("diffusers", "1024x1024")


def test_a_pipeline_is_counted_by_its_parts_beside_other_models(engine):
    run(engine, REQUEST)
    residents = engine._open_workshop().stock.residents
    resident = next(resident for resident in residents.all() if resident.name == "sd3")

    assert set(resident.parts) == {"text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"}
    assert sum(part.weight_bytes for part in resident.parts.values()) <= residents.bytes_in_main_memory()


CARD = torch.device("cpu", 0)  # another device than "cpu" to whoever compares, and yet a place to compute


@pytest.fixture
def with_card(models, monkeypatch):
    """A function: an engine whose device has as many bytes free as are said, with settings; and what came there how."""
    came = []

    def watched(name, real):
        @contextmanager
        def at_work(module, device):
            came.append((name, type(module).__name__))
            with real(module, device):
                yield
            came.append(("left", type(module).__name__))

        return at_work

    for name in ("copied", "streamed"):
        monkeypatch.setattr(placement, name, watched(name, getattr(placement, name)))

    def engine(free, **settings):
        made = EngineManager(CheckpointFolder(models), lambda: Settings(**settings))
        made._open_workshop().stock.card.device = CARD
        for module in (placement, card_module):
            monkeypatch.setattr(module, "free_bytes", lambda _device: free)
        return made, came

    return engine


def test_a_pipeline_that_fits_is_kept_on_the_card(with_card, engine):
    card, came = with_card(2**40)
    picture = of(ImageReady, run(card, REQUEST))[0].image
    assert came == []
    assert same(picture, of(ImageReady, run(engine, REQUEST))[0].image)
    assert card.status().memory == "everything stays on the device"


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_components_come_as_the_plan_says_when_they_are_called(name, with_card, engine):
    request = dataclasses.replace(REQUEST, checkpoint=name)
    card, came = with_card(2**40, video_memory_use="lowvram")
    pictures = of(ImageReady, run(card, dataclasses.replace(request, batch_count=2)))
    wanted = of(ImageReady, run(engine, dataclasses.replace(request, batch_count=2)))
    assert all(same(got.image, other.image) for got, other in zip(pictures, wanted, strict=True))

    transformer = {"sd3": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel"}[name]
    streamed = [index for index, (how, _) in enumerate(came) if how == "streamed"]
    assert [came[index][1] for index in streamed] == [transformer] * 2  # once a picture, however many steps
    assert came[streamed[0] + 1] == ("left", transformer)
    assert came[streamed[0] + 2] == ("copied", "AutoencoderKL")
    visits, leaves = [came[index::2] for index in (0, 1)]
    assert [module for _, module in visits] == [module for _, module in leaves]  # one at a time
    assert "T5EncoderModel" in {module for _, module in visits}


def test_a_component_larger_than_the_card_is_streamed_whatever_it_is(with_card, engine):
    card, came = with_card(0)
    picture = of(ImageReady, run(card, REQUEST))[0].image
    assert {how for how, _ in came} == {"streamed", "left"}
    assert {module for _, module in came} >= {"T5EncoderModel", "SD3Transformer2DModel", "AutoencoderKL"}
    assert same(picture, of(ImageReady, run(engine, REQUEST))[0].image)


def test_a_pipeline_runs_on_the_card_and_is_left_as_it_was(with_card, engine, models):
    card, _ = with_card(2**40, video_memory_use="medvram")
    with card._open_workshop().pipeline_bench(REQUEST) as bench:
        pipeline = bench.checkpoint.pipeline
        before = {name: set(vars(module)) for name, module in bench.checkpoint.modules.items()}
        with pipeline_at_work(pipeline, bench.places, bench.device):
            assert pipeline._execution_device == CARD
        assert pipeline._execution_device == torch.device("cpu")
        assert {name: set(vars(module)) for name, module in bench.checkpoint.modules.items()} == before


def test_stopping_a_pipeline_leaves_nothing_on_the_card(with_card):
    card, came = with_card(0)
    events = card.generate(dataclasses.replace(REQUEST, steps=20), control=Control())
    while not isinstance(next(events), Step):
        pass
    events.close()
    assert came[-1] == ("left", "SD3Transformer2DModel")


def test_a_pipelines_vae_works_in_tiles_where_a_card_is_small(with_card):
    card, _ = with_card(0)
    workshop = card._open_workshop()
    with workshop.pipeline_bench(dataclasses.replace(REQUEST, width=1024, height=1024)) as bench:
        vae = bench.checkpoint.modules["vae"]
        assert vae.use_tiling
        assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (512, 512)
    with_card(2**40)
    with workshop.pipeline_bench(REQUEST) as bench:
        assert not bench.checkpoint.modules["vae"].use_tiling
    with workshop.pipeline_bench(REQUEST, economy=Economy(frozenset({Rung.OFFLOAD}))) as bench:
        assert bench.checkpoint.modules["vae"].use_tiling


@pytest.mark.parametrize(
    ("pipeline", "scale", "negative", "unused"),
    [
        ("StableDiffusion3Pipeline", "guidance_scale", True, []),
        ("FluxPipeline", "guidance_scale", False, ["negative prompt"]),
        ("QwenImagePipeline", "true_cfg_scale", True, []),
        ("Flux2Pipeline", "guidance_scale", False, ["negative prompt"]),
        ("QwenImage21Pipeline", "true_cfg_scale", True, []),
    ],
)
def test_cfg_scale_and_negative_prompt_go_where_the_pipeline_takes_them(pipeline, scale, negative, unused, diffusers):
    if not hasattr(diffusers, pipeline):
        pytest.skip(f"diffusers {diffusers.__version__} has no {pipeline}")
    made = getattr(diffusers, pipeline)
    arguments, idle = _arguments(object.__new__(made), REQUEST, "a red circle")

    assert {name for name, value in arguments.items() if value == 5} == {scale}
    assert ("negative_prompt" in arguments) is negative
    assert idle == unused


@pytest.fixture
def broken(models, tmp_path):
    """A copy of a folder to be damaged, and an engine over it."""
    import shutil

    folder = tmp_path / "Stable-diffusion" / "sd3"
    shutil.copytree(models / "Stable-diffusion" / "sd3", folder)
    return folder, EngineManager(CheckpointFolder(tmp_path), Settings)


def test_a_folder_with_code_of_its_own_is_refused(broken):
    folder, engine = broken
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["my_code", "SD3Transformer2DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(UnsupportedModel, match="takes its part 'transformer' from 'my_code'"):
        run(engine, REQUEST)


def test_a_folder_without_its_weights_is_refused(broken):
    folder, engine = broken
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()

    with pytest.raises(UnsupportedModel, match="The folder sd3 cannot be loaded"):
        run(engine, REQUEST)


@pytest.mark.parametrize(
    ("file", "lost", "words"),
    [
        (
            "text_encoder/model.safetensors",
            "text_model.encoder.layers.1.mlp",
            r"text encoder of sd3 lacks 4 weights, 'text_model.encoder.layers.1.mlp.fc1.weight' first",
        ),
        ("text_encoder_3/model.safetensors", "encoder.final_layer_norm", "text encoder 3 of sd3 lacks 1 weights"),
        ("transformer/diffusion_pytorch_model.safetensors", "proj_out.", "transformer of sd3 lacks 2 weights, 'proj_o"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias", "vae of sd3 lacks 1 weights"),
    ],
)
def test_weights_that_a_folder_lacks_are_not_made_up(file, lost, words, broken):
    from safetensors.torch import load_file, save_file

    folder, engine = broken
    weights = {name: weight for name, weight in load_file(folder / file).items() if not name.startswith(lost)}
    save_file(weights, folder / file, metadata={"format": "pt"})

    with pytest.raises(UnsupportedModel, match=words):
        run(engine, REQUEST)


def test_weights_that_are_not_numbers_are_refused(broken):
    from safetensors.torch import load_file, save_file

    folder, engine = broken
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["context_embedder.bias"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})

    with pytest.raises(UnsupportedModel, match=r"transformer of sd3 has numbers that are not finite"):
        run(engine, REQUEST)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_every_pipeline_takes_what_it_is_given(name, diffusers):
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    call = inspect.signature(getattr(diffusers, name).__call__).parameters

    needed = {"prompt", "num_inference_steps", "width", "height", "num_images_per_prompt", "generator"}
    assert needed <= set(call)
    assert {"callback_on_step_end", "callback"} & set(call)
    assert not getattr(diffusers, name)._load_connected_pipes


def test_an_error_in_the_thread_comes_through():
    def work(report):
        report(1)
        raise KeyError("inside")

    steps = in_steps(work)

    assert next(steps) == 1
    with pytest.raises(KeyError, match="inside"):
        next(steps)
