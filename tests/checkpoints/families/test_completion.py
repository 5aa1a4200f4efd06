"""UNets alone in their files, with parts borrowed from files around them, against the whole they were taken from."""

import dataclasses
import math

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from webui.checkpoints import keymap
from webui.checkpoints.detect import identify
from webui.checkpoints.hash import ModelHashes
from webui.checkpoints.inspect import inspect
from webui.checkpoints.load import load_checkpoint
from webui.checkpoints.scan import CheckpointFolder
from webui.checkpoints.weights import open_weights
from webui.core.errors import UnsupportedModel
from webui.core.events import ImageReady, Notice
from webui.core.ports import CheckpointInfo, Control
from webui.core.requests import Txt2Img
from webui.engine.manager import EngineManager
from webui.engine.placement import weight_bytes
from webui.engine.stock import Stock
from webui.engine.workshop import Workshop
from webui.hardware.low_bits import FULL, LowBitLinear, dense_shapes, main_kind
from webui.settings.schema import Settings

UNET, VAE = keymap.UNET_PREFIX, keymap.VAE_PREFIX
REQUEST = Txt2Img(prompt="a red circle", steps=2, width=64, height=64, seed=1)


def part(state, prefix, under=""):
    """The weights of `state` below `prefix`, below `under` instead."""
    return {under + key[len(prefix) :]: weight.clone() for key, weight in state.items() if key.startswith(prefix)}


def save(state, path, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def originals(make_original):
    return {name: make_original(name) for name in ("sd1", "sd2", "sdxl")}


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models" / "Stable-diffusion").mkdir(parents=True)
    return tmp_path / "models"


@pytest.fixture
def checkpoints(models):
    return models / "Stable-diffusion"


def load(path, dtype=torch.float32, **how):
    family, config = identify(path)
    info = CheckpointInfo(name=path.stem, family=family.name, native_size=config.native_size)
    return load_checkpoint(path, info, dtype=dtype, device=torch.device("cpu"), **how)


def same(got, wanted):
    wanted = wanted.state_dict()
    weights = got.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in wanted.items())


def diffusers_unet(original):
    return {key: weight.clone() for key, weight in original.unet.state_dict().items()}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("names", ["whole", "bare", "diffusers"])
def test_a_lone_unet_borrows_from_the_first_checkpoint_of_its_family(family, names, originals, checkpoints):
    original = originals[family]
    for other in originals:
        save(originals[other].state, checkpoints / f"b-{other}.safetensors")
    save(original.state, checkpoints / f"c-{family}.safetensors")
    unet = diffusers_unet(original) if names == "diffusers" else part(original.state, UNET, UNET * (names == "whole"))
    path = save(unet, checkpoints / "alone.safetensors")

    got = load(path)

    assert got.family == family
    same(got.unet, original.unet)
    same(got.vae, original.vae)
    assert got.notices == (
        "alone.safetensors is no complete checkpoint; it runs with the text encoder and the VAE of"
        f" b-{family}.safetensors.",
    )


def test_an_lcms_unet_is_told_the_scale(originals, checkpoints):
    from diffusers import UNet2DConditionModel

    original = originals["sd1"]
    save(original.state, checkpoints / "whole.safetensors")
    with torch.random.fork_rng(devices=[]):
        unet = UNet2DConditionModel(**{**original.kind.unet, "time_cond_proj_dim": 24})
    state = {key: weight.clone() for key, weight in unet.state_dict().items()}

    got = load(save(state, checkpoints / "alone.safetensors")).unet

    assert got.config.time_cond_proj_dim == 24
    same(got, unet)


def test_text_encoders_and_vaes_of_their_folders_come_first(originals, models, checkpoints):
    original = originals["sdxl"]
    save(originals["sdxl"].state, checkpoints / "whole.safetensors")
    path = save(part(original.state, UNET), checkpoints / "alone.safetensors")
    clip_l = part(original.state, "conditioner.embedders.0.transformer.text_model.", "text_model.")
    save(clip_l, models / "text_encoder" / "l.safetensors")
    save(part(original.state, "conditioner.embedders.1.model."), models / "clip" / "g.safetensors")
    declared = {"modelspec.architecture": "stable-diffusion-v1/vae"}
    save(part(original.state, VAE), models / "VAE" / "a.safetensors", declared)
    declared = {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"}
    vae = {key: weight.clone() for key, weight in original.vae.state_dict().items()}
    save(vae, models / "VAE" / "b.safetensors", declared)

    got = load(path)

    assert [encoder.name for encoder in got.text_encoders] == ["clip_l", "clip_g"]
    same(got.text_encoders[0].module, original.texts[0])
    same(got.vae, original.vae)
    assert got.notices == (
        "alone.safetensors is no complete checkpoint; it runs with the text encoder of l.safetensors, the text encoder"
        " of g.safetensors, the VAE of b.safetensors.",
    )


def test_the_second_encoder_may_have_transformers_names(originals, models, checkpoints):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    original = originals["sdxl"]
    alone = {**part(original.state, UNET, UNET), **part(original.state, VAE, VAE)}
    path = save(alone, checkpoints / "alone.safetensors")
    clip_l = part(original.state, "conditioner.embedders.0.transformer.text_model.", "text_model.")
    save(clip_l, models / "text_encoder" / "l.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.random.fork_rng(devices=[]):
        text = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=16, hidden_act="gelu"))
    text.save_pretrained(models / "text_encoder" / "g", max_shard_size="1GB")

    got = load(path).text_encoders[1]

    same(got.module, text)
    assert got.module.config.hidden_act == "gelu"
    assert load(path).text_encoders[0].module.config.hidden_act == "quick_gelu"


def test_what_is_missing_is_told_until_it_is_there(originals, models, checkpoints):
    state = originals["sd1"].state
    path = save(part(state, UNET), checkpoints / "alone.safetensors")
    catalogue = CheckpointFolder(models)

    (problem,) = catalogue.problems()
    assert problem.reason == (
        "alone.safetensors holds the UNet of Stable Diffusion 1 without a text encoder (clip_l); put that into"
        " models/text_encoder, or a complete checkpoint of that family into models/Stable-diffusion."
    )
    save(part(state, keymap.TEXT_PREFIX, "text_model."), models / "text_encoder" / "l.safetensors")
    for name in ("a", "b"):
        save(part(state, VAE), models / "VAE" / f"{name}.safetensors")
    (problem,) = catalogue.problems()
    assert "without a VAE; put one beside it as alone.vae.safetensors" in problem.reason
    (models / "VAE" / "b.safetensors").unlink()
    assert catalogue.checkpoint("alone").family == "sd1"
    assert inspect(path)["family"] == "sd1"
    assert load(path).notices[0].endswith("the VAE of a.safetensors.")
    save(part(state, VAE), models / "VAE" / "alone.safetensors")
    assert load(path).notices[0].endswith("the VAE of alone.safetensors.")
    save(part(state, VAE), checkpoints / "alone.vae.safetensors")
    assert load(path).notices[0].endswith("the VAE of alone.vae.safetensors.")


def test_nothing_is_borrowed_from_other_sizes_or_built_in_models(originals, checkpoints, tiny_checkpoint):
    path = save(part(originals["sd2"].state, UNET), checkpoints / "alone.safetensors")
    save(originals["sd1"].state, checkpoints / "other.safetensors")
    (checkpoints / "tiny.safetensors").symlink_to(tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors")

    with pytest.raises(UnsupportedModel, match=r"UNet of Stable Diffusion 2 without a text encoder \(clip_h\)"):
        load(path)


@pytest.fixture
def packed(originals, models, checkpoints, write_gguf):
    """The same UNet as safetensors and as GGUF, 16 bits and 8, with one checkpoint to borrow from."""
    state = {key: weight.half() for key, weight in originals["sd1"].state.items()}
    save(state, checkpoints / "whole.safetensors")
    unet = part(state, UNET)
    write_gguf(unet, checkpoints / "sixteen.gguf")
    write_gguf(unet, checkpoints / "eight.gguf", GGMLQuantizationType.Q8_0)
    return models


def test_a_gguf_makes_the_pictures_of_the_whole_file(packed):
    """16 bits are those of the file; of 8, each number is off by up to a 255th of its block's largest."""
    pictures = {}
    engine = EngineManager(CheckpointFolder(packed), Settings)
    for name in ("whole", "sixteen", "eight"):
        events = list(engine.generate(dataclasses.replace(REQUEST, checkpoint=name), control=Control()))
        (image,) = [event.image for event in events if isinstance(event, ImageReady)]
        pictures[name] = np.asarray(image, dtype=float)
        said = [event.text for event in events if isinstance(event, Notice)]
        borrowed = f"{name}.gguf is no complete checkpoint; it runs with the text encoder and the VAE of whole"
        assert any(text.startswith(borrowed) for text in said) == (name != "whole")

    assert np.array_equal(pictures["sixteen"], pictures["whole"])
    assert 0 < np.abs(pictures["eight"] - pictures["whole"]).mean() < 2


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F32"])
def test_every_packing_is_unpacked_to_what_its_writer_meant(kind, tmp_path, write_gguf):
    kind = GGMLQuantizationType[kind]
    numbers = np.random.default_rng(1).normal(size=(6, 64)).astype(np.float32)
    wanted = gguf.quants.dequantize(gguf.quants.quantize(numbers, kind), kind)

    with open_weights(write_gguf({"x": torch.from_numpy(numbers)}, tmp_path / "a.gguf", kind)) as weights:
        got = weights.tensor("x").float().numpy()

    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256_are_unpacked(kind, tmp_path):
    """Any bytes are a block; the `gguf` package's own reader says what they mean."""
    kind = GGMLQuantizationType[kind]
    numbers, size = gguf.constants.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(2).integers(0, 60, (3, size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "sd1")
    writer.add_tensor("x", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with open_weights(tmp_path / "a.gguf") as weights:
        got = weights.tensor("x").numpy()

    assert got.shape == (3, numbers)
    assert np.array_equal(got, gguf.quants.dequantize(packed, kind))


def test_a_broken_gguf_is_told_in_a_sentence(packed):
    path = packed / "Stable-diffusion" / "eight.gguf"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UnsupportedModel, match=r"^eight\.gguf is cut off: .* Download it again\.$"):
        load(path)
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(UnsupportedModel, match=r"^eight\.gguf is GGUF of version"):
        load(path)


def test_a_ggufs_blocks_stay_as_they_are_in_memory(packed):
    """And widened, they are the numbers that the file would be unpacked to."""
    loaded = load(packed / "Stable-diffusion" / "eight.gguf")
    with open_weights(packed / "Stable-diffusion" / "eight.gguf") as weights:
        own = weights.tensor("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    layer = loaded.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    assert isinstance(layer, LowBitLinear)
    assert torch.equal(layer.dense_weight(), own)
    assert main_kind(loaded.unet) == "Q8_0"
    assert type(loaded.unet.conv_in) is torch.nn.Conv2d
    assert main_kind(loaded.vae) == main_kind(loaded.text_encoders[0].module) == FULL
    numbers = sum(math.prod(shape) for _, shape in dense_shapes(loaded.unet))
    assert weight_bytes(loaded.unet) < 1.8 * numbers, "of four bytes a number"


def test_a_gguf_that_is_to_lie_in_another_format_is_packed_anew(packed):
    def answer(**how):
        loaded = load(packed / "Stable-diffusion" / "eight.gguf", **how)
        with torch.inference_mode():
            width = loaded.unet.config["cross_attention_dim"]
            x, states = (torch.randn(shape, generator=torch.manual_seed(1)) for shape in ((1, 4, 8, 8), (1, 77, width)))
            return main_kind(loaded.unet), loaded.unet(x, 500, states).sample

    (own, wanted), (asked, got) = answer(), answer(weights="int8")
    assert (own, asked) == ("Q8_0", "int8")
    assert torch.corrcoef(torch.stack([got.flatten(), wanted.flatten()]))[0, 1] > 0.999


def test_memory_is_made_for_what_a_gguf_takes(packed):
    folder = CheckpointFolder(packed)
    stock = Stock(folder, Settings)
    for name in ("eight", "sixteen"):
        loaded = load(folder.path(name), dtype=stock.dtype)
        modules = (loaded.unet, loaded.vae, *(encoder.module for encoder in loaded.text_encoders))
        expected = stock._expected_bytes(folder.path(name), FULL)
        assert expected == pytest.approx(sum(map(weight_bytes, modules)), rel=0.05)
    numbers = sum(tensor.numel() for tensor in load_file(folder.path("whole")).values())
    assert stock._expected_bytes(folder.path("eight"), "nf4") == numbers * stock.dtype.itemsize


def test_the_plan_says_in_what_a_gguf_lies(packed):
    workshop = Workshop(CheckpointFolder(packed), Settings, ModelHashes())
    for name, told in (("whole", ""), ("eight", "unet in Q8_0, 0.0 GiB")):
        with workshop.bench(dataclasses.replace(REQUEST, checkpoint=name)) as bench:
            assert bench.memory_plan == told
