"""Masks by words and of the foreground, with tiny random networks from a folder, offline."""

import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import InvalidRequest, ModelNotFound, ResourceError, UnsupportedModel
from webui.engine.manager import EngineManager
from webui.engine.masking import EngineMasker
from webui.engine.masking.foreground import load_foreground_finder
from webui.engine.masking.u2net import U2Net
from webui.engine.masking.words import load_word_masker
from webui.settings.schema import Settings

CPU = torch.device("cpu")
LAYERS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def clipseg(diffusers, tmp_path_factory):
    """A folder as transformers saves a CLIPSeg, of a few random weights (and CLIP's whole vocabulary)."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig(
        text_config=LAYERS,
        vision_config=LAYERS | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    folder = tmp_path_factory.mktemp("clipseg") / "clipseg-tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CLIPSegForImageSegmentation(config)
    # Random weights are unsure everywhere; larger ones at the end make some places and words surer than others.
    network.decoder.transposed_convolution.weight.data.mul_(60)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 48, "width": 48}, "image_std": [1, 1, 1]}')
    return folder


def shapes(width=4):
    """The shapes of a U²-Net whose every stage is `width` wide, by the published names."""
    made = {"outconv.weight": (1, 6, 1, 1), "outconv.bias": (1,)}
    for stage, height in enumerate((7, 6, 5, 4, 4, 4), start=1):
        made |= {f"side{stage}.weight": (1, width, 3, 3), f"side{stage}.bias": (1,)}
        for name in (f"stage{stage}", f"stage{stage}d"):
            if name == "stage6d":
                continue
            entering = 3 if name == "stage1" else 2 * width if name.endswith("d") else width
            layers = {"rebnconvin": entering} | {f"rebnconv{level}": width for level in range(1, height + 1)}
            layers |= {f"rebnconv{level}d": 2 * width for level in range(1, height)}
            for layer, inputs in layers.items():
                made[f"{name}.{layer}.conv_s1.weight"] = (width, inputs, 3, 3)
                made[f"{name}.{layer}.conv_s1.bias"] = (width,)
                for part in ("weight", "bias", "running_mean", "running_var"):
                    made[f"{name}.{layer}.bn_s1.{part}"] = (width,)
    return made


@pytest.fixture(scope="session")
def u2net(tmp_path_factory):
    """A file of random weights under the names that U²-Net's authors gave them."""
    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.rand(shape, generator=generator) - (0.0 if "running_var" in name else 0.45)
        for name, shape in shapes().items()
    }
    path = tmp_path_factory.mktemp("u2net") / "u2net-tiny.safetensors"
    save_file(state, path)
    return path


@pytest.fixture
def models(tmp_path, clipseg, u2net):
    shutil.copytree(clipseg, tmp_path / "masking" / "clipseg-tiny")
    shutil.copy(u2net, tmp_path / "masking")
    save_file({"other": torch.zeros(1)}, tmp_path / "masking" / "another.safetensors")
    (tmp_path / "masking" / "broken").mkdir()
    (tmp_path / "masking" / "broken" / "config.json").write_text("{")
    return tmp_path


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((70, 50), Image.Resampling.BICUBIC)


def masker_of(models):
    folder = CheckpointFolder(models)
    engine = EngineManager(folder, Settings)
    return engine, EngineMasker(folder, engine.borrowed)


def test_both_kinds_of_masks_come_offline_and_in_the_size_of_the_picture(models, picture):
    _, masker = masker_of(models)
    words = masker.by_prompt(picture, "a hat, , a scarf")
    front = masker.foreground(picture.convert("RGBA"))
    for mask in (words, front):
        assert (mask.mode, mask.size) == ("L", (70, 50))
    assert set(np.unique(words)) == {0, 255}
    assert front.getextrema() == (0, 255)


def test_several_things_are_masked_together(clipseg, picture):
    masker = load_word_masker(clipseg, CPU)
    assert (masker.prepare.side, masker.prepare.deviation) == (48, [1, 1, 1])
    hat, scarf = (np.asarray(masker.mask(picture, [thing])) > 0 for thing in ("a hat", "a long blue scarf"))
    assert (hat != scarf).any()
    both = np.asarray(masker.mask(picture, ["a hat", "a long blue scarf"])) > 0
    assert (both & (hat | scarf)).sum() >= (hat | scarf).sum()
    masker.mask(picture, ["word " * 200])  # longer than CLIP reads


def test_words_become_the_tokens_that_transformers_gives_clipseg(clipseg, picture):
    masker = load_word_masker(clipseg, CPU)
    seen = []
    masker.network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    masker.mask(picture, ["a photo of a cat"])
    # openai/clip-vit-base-patch16's ids of the sentence.
    assert seen[0].tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407]]


def test_without_models_a_sentence_says_what_to_put_where(tmp_path, picture):
    _, masker = masker_of(tmp_path)
    with pytest.raises(ModelNotFound, match=rf"CLIPSeg model; put the folder of one.* into {tmp_path}/masking\."):
        masker.by_prompt(picture, "a hat")
    with pytest.raises(ModelNotFound, match=rf"u2net\.pth or u2netp\.pth into {tmp_path}/masking\."):
        masker.foreground(picture)
    with pytest.raises(InvalidRequest, match="no words"):
        masker.by_prompt(picture, " , ")


def test_what_lacks_weights_is_refused(clipseg, u2net, tmp_path):
    folder = shutil.copytree(clipseg, tmp_path / "clipseg")
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.film_mul.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"lacks weights, such as 'decoder\.film_mul\.weight'"):
        load_word_masker(folder, CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="clipseg cannot be loaded"):
        load_word_masker(folder, CPU)

    weights = load_file(u2net)
    del weights["stage4.rebnconv2.conv_s1.weight"]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(UnsupportedModel, match="no whole U²-Net"):
        load_foreground_finder(tmp_path / "cut.safetensors", CPU)


def test_the_network_takes_any_size(u2net):
    state = load_file(u2net)
    network = U2Net({name: weight.shape for name, weight in state.items()}).eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        made = network(torch.rand(1, 3, 75, 50))
    assert made.shape == (1, 1, 75, 50)
    assert 0 <= made.min() < made.max() <= 1


def test_masks_wait_for_the_engine_and_say_so_when_it_stays_at_work(models):
    engine, _ = masker_of(models)
    left = threading.Event()

    def work():
        with engine.borrowed():
            entered.set()
            left.wait(30)

    entered = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert entered.wait(30)
        with pytest.raises(ResourceError, match="at work on a picture"), engine.borrowed(patience_s=0.01):
            pass
    finally:
        left.set()
        thread.join()
    with engine.borrowed(patience_s=0.01) as workshop:
        assert workshop.stock.device.type
