"""Texts through text encoders: parity with diffusers, emphasis by hand, embeddings, the cache, plans by step."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import pytest
import torch

from webui.checkpoints.loaded import TextEncoder
from webui.checkpoints.tokenizer import ClipTokenizer
from webui.core.errors import InvalidRequest
from webui.core.geometry import Size
from webui.core.prompt.editing import Pass
from webui.core.requests import Emphasis, Txt2Img
from webui.engine.conditioning import PromptCache, PromptEncoder
from webui.engine.conditioning.cache import EncodingKey
from webui.engine.conditioning.encode import Encoded, emphasise, encode_text

CPU = torch.device("cpu")
START, END = 49406, 49407
LONG = "a cat on a mat, " * 25  # 125 tokens and 25 commas: two chunks
PROMPTS = ["a photo of a cat", "", "Two  DOGS,\nit's 12 o'clock é"]

# float32 on one machine: the same sums in another order.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


# ---- tiny encoders, and diffusers' pipelines over the same modules


def config(width, activation):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=20,
        hidden_act=activation,
        bos_token_id=START,
        eos_token_id=END,
    )


@pytest.fixture(scope="module")
def clip_l(diffusers):
    from transformers import CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = CLIPTextModel(config(16, "quick_gelu")).eval().requires_grad_(False)
    # diffusers 0.42 looks for the layer norm under transformers 4's name when layers are skipped.
    object.__setattr__(module, "text_model", module)
    return module


@pytest.fixture(scope="module")
def clip_g(diffusers):
    from transformers import CLIPTextModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(2)
        return CLIPTextModelWithProjection(config(24, "gelu")).eval().requires_grad_(False)


def encoder(module, name, *, layer=1, final_norm=True, pooled=False):
    pad = END if name == "clip_l" else 0
    tokenizer = ClipTokenizer(pad_token=pad)
    return TextEncoder(
        name=name,
        module=module,
        tokenizer=tokenizer,
        pad_token=pad,
        layer=layer,
        final_norm=final_norm,
        pooled=pooled,
    )


@pytest.fixture(scope="module")
def sd1(clip_l):
    return (encoder(clip_l, "clip_l"),)


@pytest.fixture(scope="module")
def sd2(clip_l):
    return (encoder(clip_l, "clip_h", layer=2),)


@pytest.fixture(scope="module")
def refiner(clip_g):
    return (encoder(clip_g, "clip_g", layer=2, final_norm=False, pooled=True),)


@pytest.fixture(scope="module")
def sdxl(clip_l, refiner):
    return (encoder(clip_l, "clip_l", layer=2, final_norm=False), *refiner)


@pytest.fixture(scope="module")
def tokenizers(diffusers):
    """transformers' tokenizers over the same vocabulary, by what they pad with."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    known = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in known.encoder.items()}

    def make(pad):
        return CLIPTokenizer(vocab=vocabulary, merges=list(known.bpe_ranks), pad_token=pad, model_max_length=77)

    return {END: make("<|endoftext|>"), 0: make("!")}


def pipeline(diffusers, encoders, tokenizers):
    """The pipeline whose `encode_prompt` is the reference for `encoders`; it needs none of the other parts."""
    parts = {"vae": None, "unet": None, "scheduler": None}
    last = encoders[-1]
    if not last.pooled:
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(
            text_encoder=last.module, tokenizer=tokenizers[last.pad_token], **parts, **nothing
        )
    first = encoders[0] if len(encoders) == 2 else None
    return diffusers.StableDiffusionXLPipeline(
        text_encoder=first and first.module,
        tokenizer=first and tokenizers[first.pad_token],
        text_encoder_2=last.module,
        tokenizer_2=tokenizers[last.pad_token],
        add_watermarker=False,
        **parts,
    )


# diffusers counts skipped layers from 0, and for SDXL from its last layer but one; SD 2 files say 23 layers of 24.
@pytest.mark.parametrize(
    ("family", "clip_skip", "skipped"),
    [
        ("sd1", 1, None),
        ("sd1", 2, 1),
        ("sd1", 3, 2),
        ("sd2", 1, 1),
        ("sd2", 2, 1),
        ("sd2", 3, 2),
        ("sdxl", 1, None),
        ("sdxl", 2, None),
        ("sdxl", 3, 1),
        ("refiner", 1, None),
    ],
)
def test_plain_prompts_are_encoded_as_by_diffusers(request, diffusers, tokenizers, family, clip_skip, skipped):
    encoders = request.getfixturevalue(family)
    reference = pipeline(diffusers, encoders, tokenizers)
    for prompt in PROMPTS:
        got = encode_text(prompt, encoders, clip_skip=clip_skip, device=CPU)
        wanted = reference.encode_prompt(
            prompt=prompt,
            device=CPU,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=skipped,
        )
        torch.testing.assert_close(got.states, wanted[0], **TOLERANCE)
        if encoders[-1].pooled:
            torch.testing.assert_close(got.pooled, wanted[2], **TOLERANCE)
        else:
            assert got.pooled is None


def test_a_text_is_encoded_alike_whatever_came_before(sdxl):
    first = encode_text("a cat", sdxl, device=CPU)
    encode_text(LONG, sdxl, device=CPU)
    again = encode_text("a cat", sdxl, device=CPU)
    assert torch.equal(first.states, again.states)
    assert torch.equal(first.pooled, again.pooled)


def test_more_clip_skip_than_layers_is_said(sd1):
    with pytest.raises(InvalidRequest, match="3 layers"):
        encode_text("a", sd1, clip_skip=4, device=CPU)


# ---- chunks and emphasis


def row(ids, pad=END):
    return torch.tensor([[START, *ids, END, *[pad] * (75 - len(ids))]])


def test_chunks_stand_side_by_side_and_the_first_is_pooled(sdxl):
    tokens = ClipTokenizer().encode(LONG)
    got = encode_text(LONG, sdxl, device=CPU)
    large = sdxl[1].module
    # 125 tokens in phrases of five ("a cat on a mat" and a comma make six): the first chunk ends at token 72.
    assert len(tokens) == 150
    parts = [tokens[:72], tokens[72:144], tokens[144:]]
    outputs = [large(input_ids=row(part, pad=0), output_hidden_states=True) for part in parts]
    assert got.states.shape == (1, 3 * 77, 16 + 24)
    wanted = torch.cat([output.hidden_states[-2] for output in outputs], dim=1)
    torch.testing.assert_close(got.states[..., 16:], wanted, **TOLERANCE)
    torch.testing.assert_close(got.pooled, outputs[0].text_embeds, **TOLERANCE)


def by_hand(module, weights_by_token, *, keep_mean):
    """A chunk's states, derived anew: multiply token by token, then put the mean over all numbers back."""
    ids = [token for token, _ in weights_by_token]
    states = module(input_ids=row(ids)).last_hidden_state[0].double()
    weighted = states.clone()
    for position, (_, weight) in enumerate(weights_by_token, start=1):
        weighted[position] *= weight
    if keep_mean:
        weighted *= states.mean() / weighted.mean()
    return weighted.float()


@pytest.fixture(scope="module")
def biased(sd1):
    """Random states have no mean to keep; CLIP's have, about a tenth of their deviation."""
    module = copy.deepcopy(sd1[0].module)
    torch.nn.init.constant_(module.final_layer_norm.bias, 0.1)
    return (dataclasses.replace(sd1[0], module=module),)


WEIGHTED = "a (red:1.4) [[circle]], (((blurry:0.3)))"
WEIGHTS = [("a", 1.0), ("red", 1.4), ("circle", 1.1**-2), (",", 1.0), ("blurry", 0.3 * 1.1**2)]


@pytest.mark.parametrize(("emphasis", "keep_mean"), [(Emphasis.ORIGINAL, True), (Emphasis.NO_NORM, False)])
def test_weights_by_an_independent_derivation(biased, emphasis, keep_mean):
    tokenizer = ClipTokenizer()
    weights = [(token, weight) for word, weight in WEIGHTS for token in tokenizer.encode(word)]
    got = encode_text(WEIGHTED, biased, emphasis=emphasis, device=CPU)
    wanted = by_hand(biased[0].module, weights, keep_mean=keep_mean)
    torch.testing.assert_close(got.states[0], wanted, **TOLERANCE)


def test_every_chunk_keeps_its_own_mean(biased):
    both = encode_text("a (red:1.4) BREAK (b:0.5) c", biased, device=CPU).states
    one = encode_text("a (red:1.4)", biased, device=CPU).states
    other = encode_text("(b:0.5) c", biased, device=CPU).states
    torch.testing.assert_close(both, torch.cat([one, other], dim=1), **TOLERANCE)


def test_ignore_reads_weights_and_drops_them_and_none_does_not_read(biased):
    def states(text, emphasis=Emphasis.ORIGINAL):
        return encode_text(text, biased, emphasis=emphasis, device=CPU).states

    torch.testing.assert_close(states("a (red:1.4) b", Emphasis.IGNORE), states("a red b"), rtol=0, atol=0)
    torch.testing.assert_close(states("a (red:1.4) b", Emphasis.NONE), states(r"a \(red:1.4\) b"), rtol=0, atol=0)
    assert states("a BREAK b", Emphasis.IGNORE).shape[1] == 154
    assert states("a BREAK b", Emphasis.NONE).shape[1] == 77
    torch.testing.assert_close(states("a (red:1.0) circle"), states("a red circle"), rtol=0, atol=0)


def test_the_original_rule_by_hand():
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    # Weighted: 1 2 6 12, mean 5.25; before 3.
    wanted = torch.tensor([[[1.0, 2.0], [6.0, 12.0]]]) * (3 / 5.25)
    torch.testing.assert_close(emphasise(states, [[1.0, 2.0]]), wanted)


def test_no_mean_to_keep_is_not_divided_by():
    states = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    torch.testing.assert_close(emphasise(states, [[1.0, 2.0]]), torch.tensor([[[1.0, -1.0], [2.0, -2.0]]]))


# ---- embeddings


@dataclass(frozen=True, eq=False)
class Learnt:
    """An embedding by its encoders' widths."""

    name: str
    by_width: dict
    modified_ns: int = 1

    def vectors_for(self, encoder, width):
        return self.by_width.get(width)


class Shelf:
    """Embeddings whose names are whole words between spaces."""

    def __init__(self, *embeddings):
        self.known = {each.name: each for each in embeddings}

    def split(self, text):
        return [self.known.get(word, word) for word in text.split(" ")]


def learnt(name, count, *widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Learnt(name, {width: torch.randn(count, width, generator=generator) for width in widths})


def test_an_embedding_stands_where_its_name_stood(sd1):
    style = learnt("style", 3, 16)
    got = encode_text("a style cat", sd1, embeddings=Shelf(style), device=CPU)
    # The same vectors as words of a larger vocabulary.
    module = copy.deepcopy(sd1[0].module)
    module.embeddings.token_embedding.weight[[5, 6, 7]] = style.by_width[16]
    a, cat = ClipTokenizer().encode("a cat")
    wanted = module(input_ids=row([a, 5, 6, 7, cat])).last_hidden_state
    torch.testing.assert_close(got.states, wanted, **TOLERANCE)
    plain = encode_text("a cat", sd1, device=CPU)
    assert torch.equal(encode_text("a cat", sd1, embeddings=Shelf(style), device=CPU).states, plain.states)


def test_an_embedding_goes_into_each_encoder_and_carries_weight(sdxl):
    style = learnt("style", 2, 16, 24)
    got = encode_text("(style:1.3)", sdxl, emphasis=Emphasis.NO_NORM, embeddings=Shelf(style), device=CPU).states
    for own, part, width in zip(sdxl, got.split([16, 24], dim=-1), (16, 24), strict=True):
        module = copy.deepcopy(own.module)
        inner = getattr(module, "text_model", module)
        inner.embeddings.token_embedding.weight[[5, 6]] = style.by_width[width]
        wanted = module(input_ids=row([5, 6], own.pad_token), output_hidden_states=True).hidden_states[-2]
        wanted[:, 1:3] *= 1.3
        torch.testing.assert_close(part, wanted, **TOLERANCE)


def test_an_embedding_in_a_later_chunk(sd1):
    style = learnt("style", 2, 16)
    got = encode_text("cat BREAK style", sd1, embeddings=Shelf(style), device=CPU).states
    alone = encode_text("style", sd1, embeddings=Shelf(style), device=CPU).states
    torch.testing.assert_close(got[:, 77:], alone, **TOLERANCE)


def test_an_embedding_for_other_encoders_is_a_word(sdxl):
    style = learnt("style", 2, 16)
    got = encode_text("a style cat", sdxl, embeddings=Shelf(style), device=CPU).states
    assert torch.equal(got, encode_text("a style cat", sdxl, device=CPU).states)


def test_an_embedding_beyond_a_chunk_is_said(sd1):
    with pytest.raises(InvalidRequest, match="huge has 76 vectors"):
        encode_text("huge", sd1, embeddings=Shelf(learnt("huge", 76, 16)), device=CPU)


# ---- plans


def prompt_encoder(tiny, encoders, *, conditioning="text", cache=None, **options):
    values = {"clip_skip": 1, "emphasis": Emphasis.ORIGINAL, "embeddings": None, "patches": "", **options}
    return PromptEncoder(
        checkpoint=dataclasses.replace(tiny, text_encoders=encoders, conditioning=conditioning),
        weights="tiny",
        device=CPU,
        cache=PromptCache() if cache is None else cache,
        size=Size(640, 512),
        **values,
    )


def test_words_change_one_evaluation_after_the_step_that_is_said(tiny, sd1):
    plan = prompt_encoder(tiny, sd1).plan("a [cat:dog:0.5]", "[x:y:3]", Pass(steps=10))
    cat, dog = (encode_text(f"a {word}", sd1, device=CPU).states for word in ("cat", "dog"))
    shown = [plan.at(step).prompts[0].conditioning.states for step in range(12)]
    assert [torch.equal(states, cat) for states in shown] == [True] * 6 + [False] * 6
    assert all(torch.equal(states, dog) for states in shown[6:])
    x = encode_text("x", sd1, device=CPU).states
    assert [torch.equal(plan.at(step).negative.states, x) for step in range(6)] == [True] * 4 + [False] * 2


def test_alternation_gives_the_same_objects_again(tiny, sd1):
    plan = prompt_encoder(tiny, sd1).plan("[cat|dog]", "", Pass(steps=6))
    shown = [plan.at(step).prompts[0].conditioning for step in range(6)]
    assert shown[0] is shown[1] is shown[3] is shown[5]
    assert shown[2] is shown[4] is not shown[0]


def test_parts_have_their_weights_and_their_own_lengths(tiny, sd1):
    words = prompt_encoder(tiny, sd1).plan(f"a cat:1.5 AND {LONG} :-0.5", "blurry AND x", Pass(steps=4)).at(0)
    assert [part.weight for part in words.prompts] == [1.5, -0.5]
    assert [part.conditioning.states.shape[1] for part in words.prompts] == [77, 231]
    assert torch.equal(words.negative.states, encode_text("blurry AND x", sd1, device=CPU).states)


def test_sdxl_is_told_sizes_and_gets_zeros_for_no_negative_prompt(tiny, sdxl):
    words = prompt_encoder(tiny, sdxl, conditioning="sdxl").plan("a cat", "", Pass(steps=4)).at(0)
    prompt = words.prompts[0].conditioning
    # Height before width: original size, crop, target size.
    assert prompt.time_ids.tolist() == words.negative.time_ids.tolist() == [[512, 640, 0, 0, 512, 640]]
    assert prompt.pooled.shape == (1, 20)
    assert not words.negative.states.any()
    assert not words.negative.pooled.any()
    said = prompt_encoder(tiny, sdxl, conditioning="sdxl").plan("", "blurry", Pass(steps=4)).at(0)
    assert said.negative.states.any()
    assert said.prompts[0].conditioning.states.any()


def test_the_refiner_is_told_an_aesthetic_score(tiny, refiner):
    words = prompt_encoder(tiny, refiner, conditioning="refiner").plan("a cat", "blurry", Pass(steps=4)).at(0)
    assert words.prompts[0].conditioning.time_ids.tolist() == [[512, 640, 0, 0, 6.0]]
    assert words.negative.time_ids.tolist() == [[512, 640, 0, 0, 2.5]]


# ---- the cache


def test_only_new_texts_are_encoded(tiny, sd1):
    cache, calls = PromptCache(), []
    handle = sd1[0].module.register_forward_pre_hook(lambda *_: calls.append(1))

    def count(prompt, negative, **options):
        calls.clear()
        prompt_encoder(tiny, sd1, cache=cache, **options).plan(prompt, negative, Pass(steps=4))
        return len(calls)

    style = learnt("style", 2, 16)
    try:
        assert count("a cat", "blurry") == 2
        assert count("a cat", "blurry") == 0
        assert count("a cat", "dark") == 1
        assert count("blurry", "a cat") == 0
        assert count("[a cat|a dog]", "dark") == 1
        assert count("a cat", "dark", clip_skip=2) == 2
        assert count("a cat", "dark", emphasis=Emphasis.IGNORE) == 2
        assert count("a cat", "dark", patches="a LoRA") == 2
        assert count("style", "dark") == 1
        assert count("style", "dark", embeddings=Shelf(style)) == 1
        assert count("style", "dark", embeddings=Shelf(dataclasses.replace(style, modified_ns=2))) == 1
    finally:
        handle.remove()


def test_the_cache_forgets_what_was_used_longest_ago():
    cache, made = PromptCache(2), []

    def ask(weights, text):
        def encode():
            made.append((weights, text))
            return Encoded(states=torch.zeros(1), pooled=None)

        key = EncodingKey(
            text=text, weights=weights, patches="", clip_skip=1, emphasis=Emphasis.ORIGINAL, embeddings=()
        )
        return cache.get(key, encode)

    first = ask("a", "x")
    ask("b", "x")
    assert ask("a", "x") is first
    ask("a", "y")
    ask("a", "x")
    ask("b", "x")
    assert made == [("a", "x"), ("b", "x"), ("a", "y"), ("b", "x")]


# ---- through the recipe


def test_the_recipe_edits_prompts_and_composes_them(run, tiny):
    seen = []

    def look(module, arguments):
        seen.append(arguments[2])

    handle = tiny.unet.register_forward_pre_hook(look)
    request = Txt2Img(
        prompt="a [cat:dog:0.5] AND sky :0.5", sampler="Euler", steps=4, width=64, height=64, seed=1, cfg_scale=3.0
    )
    try:
        run(request)
    finally:
        handle.remove()
    # Both parts and the negative prompt in one call; the first part changes after step 2 of 0…3.
    assert [states.shape[0] for states in seen] == [3] * 4
    assert [torch.equal(states[0], seen[0][0]) for states in seen] == [True, True, True, False]
    assert all(torch.equal(states[1:], seen[0][1:]) for states in seen)


def test_second_order_samplers_count_evaluations(run, tiny):
    seen = []
    handle = tiny.unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2][0]))
    try:
        run(Txt2Img(prompt="[cat:dog:0.5]", sampler="Heun", steps=4, width=64, height=64, seed=1))
    finally:
        handle.remove()
    assert [torch.equal(states, seen[0]) for states in seen] == [True] * 5 + [False] * 2
