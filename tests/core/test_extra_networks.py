"""LoRA tags in prompts: what is taken out, and what stays because it is not understood."""

import random

import pytest

from webui.core.extra_networks import LoraTag, take_loras


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:ink>", LoraTag(name="ink")),
        ("<lora:ink:0.5>", LoraTag(name="ink", text_weight=0.5, unet_weight=0.5)),
        ("<lora:ink:0.5:-1>", LoraTag(name="ink", text_weight=0.5, unet_weight=-1)),
        ("<lora:ink:.5:1.:8>", LoraTag(name="ink", text_weight=0.5, unet_weight=1, rank=8)),
        ("<LORA: ink v2 (final) : 1e-1 >", LoraTag(name="ink v2 (final)", text_weight=0.1, unet_weight=0.1)),
        ("<lyco:people/ink:2>", LoraTag(name="people/ink", text_weight=2, unet_weight=2)),
        ("<lora:ink:unet=0.3>", LoraTag(name="ink", unet_weight=0.3)),
        ("<lora:ink:te=0.3>", LoraTag(name="ink", text_weight=0.3, unet_weight=0.3)),
        ("<lora:ink:0.7:unet=0.2:dyn=4>", LoraTag(name="ink", text_weight=0.7, unet_weight=0.2, rank=4)),
    ],
)
def test_a_tag_is_taken_out(tag, expected):
    assert take_loras(f"a cat, {tag} in ink") == ("a cat,  in ink", (expected,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<lora>",
        "<lora:>",
        "<lora: :1>",
        "<lora:ink:>",
        "<lora:ink:much>",
        "<lora:ink:nan>",
        "<lora:ink:1e999>",
        "<lora:ink:1:1:1:1>",
        "<lora:ink:1:1:0>",
        "<lora:ink:1:1:2.5>",
        "<lora:ink:lbw=ALL>",
        "<lora:ink:1:te=2>",
        "<lora:ink",
        "lora:ink>",
        "<hypernet:ink:1>",
        "a < b > c",
    ],
)
def test_what_is_not_understood_stays(text):
    assert take_loras(text) == (text, ())


def test_several_and_one_inside_a_broken_one():
    assert take_loras("<lora:a<lora:b:2>:1><lyco:c>") == (
        "<lora:a:1>",
        (LoraTag(name="b", text_weight=2, unet_weight=2), LoraTag(name="c")),
    )


def test_tags_come_back_as_written_and_the_rest_is_untouched():
    """Whatever stands between tags: taking them out gives the texts between, and the tags in order."""
    dice = random.Random(4)
    letters = "ab<>:=().,0 \n\\[]é"
    for _ in range(300):
        texts = ["".join(dice.choices(letters.replace("<", ""), k=dice.randrange(12))) for _ in range(4)]
        tags = [
            LoraTag(
                name=dice.choice(["ink", "a b", "x/y.z", "é(1)"]),
                text_weight=dice.uniform(-2, 2),
                unet_weight=dice.uniform(-2, 2),
                rank=dice.choice([None, 1, 64]),
            )
            for _ in range(3)
        ]
        prompt = texts[0] + "".join(_written(tag) + text for tag, text in zip(tags, texts[1:], strict=True))
        assert take_loras(prompt) == ("".join(texts), tuple(tags))


def _written(tag):
    rank = "" if tag.rank is None else f":{tag.rank}"
    return f"<lora:{tag.name}:{tag.text_weight!r}:{tag.unet_weight!r}{rank}>"


def test_any_text_is_accepted_and_without_tags_nothing_changes():
    dice = random.Random(5)
    for _ in range(2000):
        text = "".join(dice.choices(["<", ">", ":", "lora", "lyco", "1", ".5", "=", "te", "x", " "], k=14))
        rest, tags = take_loras(text)
        assert tags or rest == text


@pytest.mark.parametrize("piece", ["<lora:", "<lora:a:", "<", ":", "<lora:a", "<lora:a:=", "lora:a>"])
def test_long_hostile_texts_take_linear_time(piece):
    text = piece * 20_000
    rest, tags = take_loras(text)
    assert (rest, tags) == (text, ())
