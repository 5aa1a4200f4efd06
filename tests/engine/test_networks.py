"""LoRAs and embeddings through the whole engine: a prompt names them, the picture changes, and changes back."""

import json

import pytest
import torch
from safetensors.torch import save_file

from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import LoraNotFound, UnsupportedModel
from webui.core.events import ImageReady, Notice
from webui.core.infotext import parse_infotext
from webui.core.ports import Control
from webui.core.requests import HiresFix, Txt2Img
from webui.engine.manager import EngineManager
from webui.settings.schema import Settings

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def lora(*paths, out=16, inputs=16):
    generator = torch.Generator().manual_seed(1)
    return {
        f"{path}.{name}": torch.randn(*shape, generator=generator)
        for path in paths
        for name, shape in (("lora_down.weight", (2, inputs)), ("lora_up.weight", (out, 2)))
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_checkpoint):
    """The tiny checkpoint, LoRAs of several kinds, and embeddings beside and inside the models folder."""
    root = tmp_path_factory.mktemp("studio") / "models"
    (root / "Lora" / "people").mkdir(parents=True)
    (root / "embeddings").mkdir()
    (root.parent / "embeddings").mkdir()
    (root / "Stable-diffusion").symlink_to(tiny_checkpoint / "Stable-diffusion")
    save_file(lora(UNET), root / "Lora" / "ink.safetensors", {"ss_output_name": "ink_by_hand"})
    save_file(lora(TEXT, out=32), root / "Lora" / "people" / "words.safetensors")
    save_file(lora(UNET, inputs=2048), root / "Lora" / "large.safetensors")
    save_file(lora(UNET, "lora_unet_gone"), root / "Lora" / "mixed.safetensors")
    save_file({"emb_params": torch.ones(2, 16)}, root / "embeddings" / "glow-v2.safetensors")
    save_file({"emb_params": torch.ones(2, 768)}, root.parent / "embeddings" / "foreign.safetensors")
    return root


@pytest.fixture(scope="module")
def engine(models):
    return EngineManager(CheckpointFolder(models), Settings)


@pytest.fixture(scope="module")
def draw(engine):
    def draw(prompt, negative=""):
        request = Txt2Img(prompt=prompt, negative_prompt=negative, steps=2, width=64, height=64, seed=1)
        events = list(engine.generate(request, control=Control()))
        ready = next(event for event in events if isinstance(event, ImageReady))
        notices = [event.text for event in events if isinstance(event, Notice)]
        return ready.image.tobytes(), parse_infotext(ready.infotext), notices

    return draw


@pytest.fixture(scope="module")
def plain(draw):
    return draw("a red circle")[0]


@pytest.mark.parametrize("tag", ["<lora:ink:1>", "<lora:people/words:1>", "<lora:words:1>", "<lyco:ink_by_hand>"])
def test_a_lora_changes_the_picture_and_leaves_no_trace(draw, plain, tag):
    changed, info, _ = draw(f"a red circle{tag}")
    assert changed != plain
    assert info.prompt == f"a red circle{tag}"
    name, _, digest = info.pairs["Lora hashes"].partition(": ")
    assert name == tag[1:-1].split(":")[1]
    assert len(digest) == 12
    again, info, _ = draw("a red circle")
    assert again == plain
    assert "Lora hashes" not in info.pairs


def test_strength_nought_and_a_comment_change_nothing(draw, plain):
    assert draw("a red circle<lora:ink:0><lora:words:0>")[0] == plain
    assert draw("a red circle\n# <lora:ink:1>")[0] == plain


def test_text_weight_and_unet_weight_are_apart(draw, plain):
    assert draw("a red circle<lora:ink:1:0>")[0] == plain
    assert draw("a red circle<lora:words:0:1>")[0] == plain
    assert draw("a red circle<lora:words:0.5>")[0] != draw("a red circle<lora:words:1>")[0]


def test_order_does_not_matter(draw):
    assert draw("a<lora:ink:1> b<lora:words:0.5>")[0] == draw("a<lora:words:0.5> b<lora:ink:1>")[0]


def test_one_that_is_not_there_is_named_with_the_nearest(draw, plain):
    with pytest.raises(LoraNotFound, match=r"no LoRA 'inc' .* did you mean ink"):
        draw("a red circle<lora:inc:1>")
    assert draw("a red circle")[0] == plain


def test_one_for_another_family_is_refused_by_name_and_family(draw, plain):
    with pytest.raises(
        UnsupportedModel, match=r"'large' was made for Stable Diffusion XL and .* \(Stable Diffusion 1\)"
    ):
        draw("a red circle<lora:ink:1><lora:large:1>")
    assert draw("a red circle")[0] == plain


def test_modules_that_are_not_there_are_told(draw):
    assert draw("a red circle<lora:mixed:1>")[2] == [
        "The LoRA 'mixed' has 1 modules that this checkpoint lacks; the others are used."
    ]


def test_an_embedding_works_in_either_prompt_and_is_named(draw, plain):
    for prompts in (("a red circle, Glow-V2", ""), ("a red circle", "(glow-v2:1.2)")):
        changed, info, _ = draw(*prompts)
        assert changed != plain
        assert info.pairs["TI hashes"].startswith("glow-v2: ")
    assert "TI hashes" not in draw("a red circle")[1].pairs


def test_an_embedding_for_other_encoders_is_a_word(draw):
    picture, info, _ = draw("foreign")
    assert "TI hashes" not in info.pairs
    assert picture == draw("FOREIGN")[0]


def test_a_changed_file_counts_at_once(models, draw):
    path = models / "Lora" / "changing.safetensors"
    save_file(lora(UNET), path)
    first = draw("a red circle<lora:changing:1>")[0]
    save_file({name: tensor * 2 for name, tensor in lora(UNET).items()}, path, {"note": json.dumps("longer")})
    assert draw("a red circle<lora:changing:1>")[0] != first


def hires(engine, **asked):
    values = {"enabled": True, "scale": 1.5, "steps": 1, **asked}
    request = Txt2Img(
        prompt="a red circle<lora:ink:1>", steps=1, width=64, height=64, seed=1, batch_count=2, hires=HiresFix(**values)
    )
    return [event for event in engine.generate(request, control=Control()) if isinstance(event, ImageReady)]


def test_the_second_pass_of_hires_fix_has_the_loras_of_its_own_prompt_and_the_first_has_its_own_again(engine):
    first, second = hires(engine, prompt="a red circle<lora:words:1>")
    same = [event.image.tobytes() for event in hires(engine)]
    assert [event.image.tobytes() for event in (first, second)] != same
    # Alone, nothing of the first batch's second pass can be left over.
    alone = Txt2Img(
        prompt="a red circle<lora:ink:1>",
        steps=1,
        width=64,
        height=64,
        seed=2,
        hires=HiresFix(enabled=True, scale=1.5, steps=1, prompt="a red circle<lora:words:1>"),
    )
    (wanted,) = [event for event in engine.generate(alone, control=Control()) if isinstance(event, ImageReady)]
    assert second.image.tobytes() == wanted.image.tobytes()
    hashes = parse_infotext(first.infotext).pairs["Lora hashes"].split(", ")
    assert [each.partition(":")[0] for each in hashes] == ["ink", "words"]


def test_embeddings_of_the_second_pass_s_words_are_named(engine):
    info = parse_infotext(hires(engine, negative_prompt="glow-v2")[0].infotext)
    assert info.pairs["TI hashes"].startswith("glow-v2: ")


def test_a_lora_of_the_second_pass_that_is_not_there_is_named(engine):
    with pytest.raises(LoraNotFound, match="absent"):
        hires(engine, prompt="x<lora:absent:1>")
