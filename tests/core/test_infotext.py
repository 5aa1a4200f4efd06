"""The infotext codec: A1111's text word for word, and reading as the inverse of writing for every text."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

import webui
from webui.core import catalogue
from webui.core.geometry import Size
from webui.core.infotext import KnownModels, format_infotext, infotext_to_request, parse_infotext
from webui.core.infotext.mapping import PAIRS
from webui.core.requests import (
    Emphasis,
    Extras,
    Guidance,
    HiresFix,
    Img2Img,
    Inpaint,
    InpaintArea,
    Loopback,
    MaskedContent,
    NoiseSource,
    Outpaint,
    ResizeMode,
    SamplerOptions,
    ScheduleOptions,
    SdUpscale,
    SoftInpainting,
    StartOptions,
    StrengthCurve,
    TileBlend,
    TiledDiffusion,
    Txt2Img,
    Variation,
)
from webui.core.validation import validate

NASTY = [
    "",
    " ",
    "\n",
    "a cat",
    "a cat, sitting, (very:1.3) [calm]",
    " leading and trailing ",
    "two\nlines",
    "windows\r\nlines\r",
    "blank\n\n\nlines\n",
    "Negative prompt: not really",
    "a\nNegative prompt: b\nc",
    "  Negative prompt:b",
    "a Negative prompt: b",
    "Steps: 3, Sampler: Euler, CFG scale: 2, Seed: 9",
    "a\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 9",
    'quotes " and \\" and "whole, quoted"',
    "back\\slash \\n",
    "emoji 🐈 中文 é \u2028 \x85 \x0b",
    "nul \0 tab \t",
    "half a surrogate \ud800",
    "Prompt as written: x, Negative prompt as written: y, Version: z",
]

PIECES = [
    "a",
    "cat",
    " ",
    ", ",
    ": ",
    "\n",
    "\r\n",
    '"',
    "\\",
    "Negative prompt: ",
    "Steps: 1, Seed: 2",
    "🐈",
    "\0",
    "\ud9ab",
]


def write(request, **changes):
    arguments = {"model": "tiny", "model_hash": "0123456789", **changes}
    return format_infotext(request, **arguments)


def test_the_text_is_a1111s_word_for_word():
    request = Txt2Img(prompt="a cat", negative_prompt="a dog", steps=12, cfg_scale=7.5, width=640, seed=4)
    assert write(request) == (
        "a cat\nNegative prompt: a dog\n"
        "Steps: 12, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7.5, Seed: 4, Size: 640x512, "
        f"Model hash: 0123456789, Model: tiny, RNG: CPU, Version: Atelier {webui.__version__}"
    )


def test_prompts_without_words_are_left_out():
    assert write(Txt2Img(seed=1)).startswith("Steps: 20, ")
    assert write(Txt2Img(seed=1, negative_prompt="b")).startswith("Negative prompt: b\nSteps: 20, ")


def test_inpaint_says_what_a1111_says():
    request = Inpaint(init_image=b"x", mask=b"y", seed=1, area=InpaintArea.MASKED, mask_inverted=True)
    assert (
        "Denoising strength: 0.75, RNG: CPU, Resize mode: Just resize, Mask blur: 4, Mask mode: Inpaint not masked, "
        "Inpaint area: Only masked, Masked area padding: 32, Masked content: original, Version: "
    ) in write(request)


def test_extra_pairs_go_to_their_places_and_are_quoted_where_needed():
    text = write(
        Txt2Img(seed=1), extra={"Upscaler": "a, b", "RNG": "NV", "Tiling": "Tiling", "Empty": "", "User": "me"}
    )
    assert ", Model: tiny, RNG: NV, Tiling, " in text
    assert f', Upscaler: "a, b", Version: Atelier {webui.__version__}, User: me' in text
    assert "Empty" not in text
    pairs = parse_infotext(text).pairs
    assert (pairs["Upscaler"], pairs["RNG"], pairs["Tiling"]) == ("a, b", "NV", "Tiling")


@pytest.mark.parametrize("key", ["", "a", "with: colon", "with, comma", " blank", "blank ", "two\nlines"])
def test_keys_that_could_not_be_read_back_are_refused(key):
    with pytest.raises(ValueError, match="could not be read back"):
        write(Txt2Img(seed=1), extra={key: "value"})


@pytest.mark.parametrize("prompt", NASTY)
def test_any_prompt_comes_back(prompt):
    for negative in NASTY:
        text = write(Txt2Img(prompt=prompt, negative_prompt=negative, seed=1))
        text.encode("utf-8")
        info = parse_infotext(text)
        assert (info.prompt, info.negative_prompt) == (prompt, negative)
        assert list(info.pairs)[-1] == "Version"


@pytest.mark.parametrize("value", [text for text in NASTY if text])
def test_any_value_comes_back(value):
    assert parse_infotext(write(Txt2Img(seed=1), model=value, extra={"Note": value})).pairs["Note"] == value


def random_extras(source: random.Random) -> dict[str, object]:
    """Every field beyond the common ones, each at its default half of the time."""

    def perhaps(default, other):
        return default if source.random() < 0.5 else other

    side = source.randrange(0, 2049)
    return {
        "clip_skip": perhaps(1, source.randint(*catalogue.CLIP_SKIP_RANGE)),
        "emphasis": source.choice(list(Emphasis)),
        "vae": source.choice(["Automatic", "None", "one.safetensors", "folder/vae: two"]),
        "refiner": source.choice(["", "folder/one, two", "a:b [not a hash]"]),
        "refiner_switch_at": perhaps(0.8, source.uniform(0.01, 1)),
        "sampler_options": SamplerOptions(
            eta=perhaps(None, source.random()),
            s_churn=perhaps(0.0, source.random()),
            s_tmin=perhaps(0.0, source.random()),
            s_tmax=perhaps(0.0, source.random()),
            s_noise=perhaps(1.0, source.uniform(0.95, 1.05)),
            order=source.randint(1, 3),
        ),
        "schedule_options": ScheduleOptions(
            sigma_min=perhaps(None, source.uniform(0.01, 0.1)),
            sigma_max=perhaps(None, source.uniform(5, 20)),
            rho=perhaps(0.0, source.uniform(1, 10)),
            alpha=perhaps(0.6, source.uniform(0.1, 1)),
            beta=perhaps(0.6, source.uniform(0.1, 1)),
            discard_next_to_last=source.random() < 0.5,
            sgm_noise_multiplier=source.random() < 0.5,
        ),
        "guidance": Guidance(
            rescale=perhaps(0.0, source.random()),
            skip_early=perhaps(0.0, source.random()),
            skip_negative_below=perhaps(0.0, source.uniform(0, 4)),
            image_scale=perhaps(1.5, source.uniform(0, 3)),
        ),
        "extras": Extras(
            tiling=source.random() < 0.5,
            freeu_b1=perhaps(1.0, source.uniform(0, 2)),
            freeu_b2=perhaps(1.0, source.uniform(0, 2)),
            freeu_s1=perhaps(1.0, source.uniform(0, 4)),
            freeu_s2=perhaps(1.0, source.uniform(0, 4)),
            epsilon_scaling=perhaps(1.0, source.uniform(0.9, 1.1)),
            mimic_scale=perhaps(0.0, source.uniform(0, 30)),
            threshold_percentile=perhaps(100.0, source.uniform(90, 100)),
            token_merging=perhaps(0.0, source.uniform(0, 0.9)),
            pag_scale=perhaps(0.0, source.uniform(0, 10)),
            sag_scale=perhaps(0.0, source.uniform(0, 5)),
        ),
        "variation": Variation(
            seed=perhaps(-1, source.randint(0, catalogue.MAX_SEED)),
            strength=perhaps(0.0, source.random()),
            width=perhaps(0, side),
            height=perhaps(0, side),
        ),
        "noise_source": source.choice(list(NoiseSource)),
        "eta_noise_seed_delta": perhaps(0, source.randint(-1000, 31337)),
    }


def random_request(source: random.Random) -> Txt2Img | Img2Img | Inpaint:
    def words() -> str:
        return "".join(source.choice(PIECES) for _ in range(source.randrange(12)))

    fields = {
        "prompt": words(),
        "negative_prompt": words(),
        "checkpoint": source.choice(["tiny", "folder/one, two", 'odd "name"', "a:b", "模型"]),
        "sampler": source.choice(catalogue.SAMPLERS),
        "schedule_type": source.choice(catalogue.SCHEDULE_TYPES),
        "steps": source.randint(*catalogue.STEPS_RANGE),
        "width": source.randrange(64, 2049, 8),
        "height": source.randrange(64, 2049, 8),
        "cfg_scale": source.choice([1.0, 7.0, 7.5, source.uniform(1, 30)]),
        "seed": source.randint(0, catalogue.MAX_SEED),
        **random_extras(source),
        "tiled": TiledDiffusion(method=source.choice(list(TileBlend)), tile=512, overlap=source.choice([0, 128])),
    }

    if fields["extras"].tiling or fields["extras"].sag_scale > 0:
        fields["tiled"] = TiledDiffusion(tile=512)  # these need the whole picture at once

    def some(low: float, high: float) -> float:
        return source.choice([low, high, source.uniform(low, high)])

    def switch() -> bool:
        return source.random() < 0.5

    hires = HiresFix()
    if switch():
        hires = HiresFix(
            enabled=True,
            upscaler=source.choice([*catalogue.LATENT_UPSCALERS, "a: b, c"]),
            scale=some(1, 4),
            width=source.choice([0, fields["width"] * 2]),
            height=source.choice([0, fields["height"] * 3]),
            steps=source.choice([0, 12]),
            denoising_strength=some(0, 1),
            sampler=source.choice(["", *catalogue.SAMPLERS]),
            schedule_type=source.choice(["", *catalogue.SCHEDULE_TYPES]),
            cfg_scale=source.choice([0.0, 5.5]),
            prompt=words().strip(),
            negative_prompt=words().strip(),
            checkpoint=source.choice(["", "other"]),
            token_merging=source.choice([None, 0.0, 0.5]),
        )
    from_picture = {
        "start": StartOptions(
            exact_steps=switch(), extra_noise=some(0, 1), colour_correction=switch(), background="#12abEF"
        ),
        "init_image": b"picture",
        "denoising_strength": source.choice([0.0, 1.0, 0.75, source.random(), 1e-7]),
        "resize_mode": source.choice(list(ResizeMode)),
    }
    from_mask = {
        "mask": b"mask",
        "mask_blur": source.randint(0, 64),
        "mask_inverted": source.random() < 0.5,
        "area": source.choice(list(InpaintArea)),
        "padding": source.randint(0, 256),
        "masked_content": source.choice(list(MaskedContent)),
        "mask_blur_y": source.choice([None, 0, 64]),
        "conditional_mask_weight": some(0, 1),
        "soft": SoftInpainting(
            enabled=switch(),
            schedule_bias=some(0, 8),
            preservation_strength=some(0, 8),
            transition_contrast=some(1, 32),
            mask_influence=some(0, 1),
            difference_threshold=some(0, 8),
            difference_contrast=some(0, 8),
        ),
        "outpaint": Outpaint(left=source.choice([0, 64]), bottom=source.choice([0, 2048])),
    }
    by_tiles = switch()
    from_itself = {
        "loopback": Loopback(
            loops=1 if by_tiles else source.randint(1, 32), final_strength=some(0, 1), curve=StrengthCurve.LAZY
        ),
        "sd_upscale": SdUpscale(upscaler="Lanczos" if by_tiles else "", scale=some(1, 8), overlap=32),
    }
    kind = source.randrange(3)
    if kind == 0:
        return Txt2Img(**fields, hires=hires)
    return (
        Img2Img(**fields, **from_picture, **from_itself)
        if kind == 1
        else Inpaint(**fields, **from_picture, **from_mask)
    )


@pytest.mark.parametrize("seed", range(300))
def test_request_to_infotext_and_back_is_the_identity(seed):
    source = random.Random(seed)
    request = random_request(source)
    base = {
        Txt2Img: Txt2Img(),
        Img2Img: Img2Img(init_image=b"picture"),
        Inpaint: Inpaint(init_image=b"picture", mask=b"mask"),
    }[type(request)]
    known = KnownModels(
        checkpoints=dict.fromkeys(["other", request.checkpoint, request.refiner], ""),
        vaes={request.vae: ""},
    )
    text = write(request, model=request.checkpoint)
    pasted = infotext_to_request(parse_infotext(text), base, known)
    assert pasted.request == request
    assert pasted.warnings == ()


# ------------------------------------------------------------------------------------------------- texts of others

A1111_TEXT = """masterpiece, (a cat:1.2),
second line
Negative prompt: blurry, bad
more of it
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 123, Size: 640x768, Model hash: abcdef0123, Model: v1-5, \
VAE: "a, b: c", Hires upscale: 1.5, Hires resize: 960x1152, Lora hashes: "one: 11, two: 22", Tiling, Version: v1.8.0"""


def test_reads_a_text_of_a1111():
    info = parse_infotext(A1111_TEXT)
    assert info.prompt == "masterpiece, (a cat:1.2),\nsecond line"
    assert info.negative_prompt == "blurry, bad\nmore of it"
    assert info.pairs["VAE"] == "a, b: c"
    assert info.pairs["Lora hashes"] == "one: 11, two: 22"
    assert info.pairs["Tiling"] == "Tiling"
    assert info.size("Hires resize") == Size(960, 1152)
    assert info.sampling == ("DPM++ 2M", "Karras")


def test_as_json_the_known_pairs_are_typed_and_the_others_keep_their_names():
    values = json.loads(json.dumps(parse_infotext(A1111_TEXT).to_json()))
    assert values == {
        "prompt": "masterpiece, (a cat:1.2),\nsecond line",
        "negative_prompt": "blurry, bad\nmore of it",
        "steps": 28,
        "sampler": "DPM++ 2M",
        "scheduler": "Karras",
        "cfg_scale": 6.5,
        "seed": 123,
        "width": 640,
        "height": 768,
        "Model hash": "abcdef0123",
        "Model": "v1-5",
        "VAE": "a, b: c",
        "Hires upscale": "1.5",
        "Hires resize": "960x1152",
        "Lora hashes": "one: 11, two: 22",
        "Tiling": "Tiling",
        "Version": "v1.8.0",
    }


def test_as_json_what_cannot_be_typed_stays_text():
    values = parse_infotext("a\nSteps: many, Seed: 5, Size: large, CFG scale: 7").to_json()
    assert values == {
        "prompt": "a", "negative_prompt": "", "cfg_scale": 7.0, "seed": 5, "Steps": "many", "Size": "large",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("", ""),
        ("just a prompt", "just a prompt"),
        ("a\nSteps: 20, Sampler: Euler", "a\nSteps: 20, Sampler: Euler"),
        ("a, b, c, d", "a, b, c, d"),
        ("Steps: 20, Sampler: Euler, Seed: 1", ""),
        ("a\n(Steps: 20, Sampler: Euler, Seed: 1", "a"),
        ("a\r\nSteps: 20, Sampler: Euler, Seed: 1\r\n", "a"),
    ],
)
def test_the_last_line_is_parameters_from_three_pairs_on(text, prompt):
    info = parse_infotext(text)
    assert info.prompt == prompt
    assert info.pairs.get("Steps", "") == ("20" if prompt in ("", "a") and text else "")


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("DPM++ 2M Karras", None, ("DPM++ 2M", "Karras")),
        ("DPM++ 2M Karras", "Automatic", ("DPM++ 2M", "Karras")),
        ("DPM++ SDE Exponential", None, ("DPM++ SDE", "Exponential")),
        ("Euler a", None, ("Euler a", "Automatic")),
        ("Euler a", "SGM Uniform", ("Euler a", "SGM Uniform")),
        ("Karras", None, ("Karras", "Automatic")),
    ],
)
def test_old_joined_sampler_names_are_split(sampler, schedule, expected):
    schedule_pair = f", Schedule type: {schedule}" if schedule else ""
    assert parse_infotext(f"a\nSteps: 1, Sampler: {sampler}{schedule_pair}, Seed: 1, ENSD: 1").sampling == expected


def test_broken_quotes_are_text():
    pairs = parse_infotext('Steps: 1, Model: "half, Seed: 3, Note: "bad \\q escape", Size: 8x8').pairs
    assert pairs == {"Steps": "1", "Model": '"half', "Seed": "3", "Note": '"bad \\q escape"', "Size": "8x8"}


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, ":" * 100_000, "ab: " * 25_000, 'ab: "' * 20_000, 'ab: "\\' * 16_000, "a, " * 33_000,
     "ab: 1, " * 14_000, '"' * 100_000, "ab: 1, cd: 2, ef: " + " " * 100_000 + "x", "a " * 50_000,
     "\n" * 100_000 + "x", "Negative prompt:\n" * 6_000],
    ids=lambda text: repr(text[:8]),
)  # fmt: skip
@pytest.mark.timeout(60)  # the guard is against hanging
def test_long_nonsense_is_read(text):
    info = parse_infotext(text)
    assert len(info.prompt) + len(info.negative_prompt) + sum(map(len, info.pairs.values())) <= len(text)


# ------------------------------------------------------------------------------------------------------- pasting


def paste(line, base=None, **known):
    return infotext_to_request(parse_infotext(f"new words\n{line}"), base or Txt2Img(), KnownModels(**known))


def test_pasting_keeps_what_the_text_leaves_out():
    base = Txt2Img(
        steps=33, width=256, batch_size=4, checkpoint="mine", sampler="DDIM", schedule_type="Karras",
        noise_source=NoiseSource.GPU,
    )  # fmt: skip
    pasted = paste("Seed: 5, ENSD: 1, Clip skip: 2", base)
    assert pasted.request == dataclasses.replace(base, prompt="new words", seed=5, eta_noise_seed_delta=1, clip_skip=2)
    assert pasted.warnings == ()


def test_what_a1111_leaves_out_for_a_default_becomes_that_default():
    base = Txt2Img(
        clip_skip=2,
        emphasis=Emphasis.NONE,
        refiner="other",
        variation=Variation(seed=1, strength=0.5),
        noise_source=NoiseSource.CPU,
        sampler_options=SamplerOptions(eta=0.5),
    )
    pasted = paste("Steps: 20, Seed: 5, CFG scale: 7", base, checkpoints={})
    assert pasted.request == Txt2Img(prompt="new words", seed=5, noise_source=NoiseSource.GPU)
    assert infotext_to_request(parse_infotext("only words"), base).request == dataclasses.replace(
        base, prompt="only words"
    )


def test_every_field_of_a_request_has_its_place_in_the_text():
    told = {name for pair in PAIRS for name in pair.fields}
    told |= {"prompt", "negative_prompt", "checkpoint", "sampler", "schedule_type", "vae", "refiner"}
    told |= {"hires.enabled", "hires.checkpoint"}
    about_the_job = {"batch_size", "batch_count", "init_image", "mask", "hires.first_pass"}
    fields = set()
    for made in (Txt2Img(), Img2Img(init_image=b"x"), Inpaint(init_image=b"x", mask=b"y")):
        for name in (found.name for found in dataclasses.fields(made)):
            value = getattr(made, name)
            inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
            fields |= {f"{name}.{part.name}" for part in inner} or {name}
    assert fields - about_the_job == told


def test_ddim_and_its_kin_have_an_eta_of_their_own():
    line = "Steps: 5, Eta: 0.5, Eta DDIM: 0.25, Seed: 1"
    assert paste(f"{line}, Sampler: DDIM").request.sampler_options.eta == 0.25
    assert paste(f"{line}, Sampler: Euler a").request.sampler_options.eta == 0.5
    assert "Eta DDIM: 0.1" in write(Txt2Img(seed=1, sampler="DDIM", sampler_options=SamplerOptions(eta=0.1)))


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ("Sampler: Restarted", "'Restarted'"),
        ("Sampler: Euler, Schedule type: Sideways", "'Sideways'"),
        ("Steps: 500", "'500'"),
        ("Steps: 2.5", "'2.5'"),
        ("Steps: " + "9" * 5000, "'9999"),
        ("CFG scale: nan", "'nan'"),
        ("CFG scale: 1e999", "'1e999'"),
        ("CFG scale: 0.5", "'0.5'"),
        ("Seed: -2", "'-2'"),
        ("Seed: 4294967296", "'4294967296'"),
        ("Size: 513x512", "513x512"),
        ("Size: 8x512", "8x512"),
        ("Size: 99999x512", "99999x512"),
        ("RNG: TPU", "'TPU'"),
        ("Clip skip: 99", "'99'"),
        ("Variation seed strength: 2", "'2'"),
        ("Seed resize from: 9000x8", "'9000x8'"),
        ("Discard penultimate sigma: maybe", "'maybe'"),
    ],
)
def test_what_cannot_be_taken_over_is_named_and_the_request_stays_valid(pair, named):
    base = Txt2Img(sampler="Euler", schedule_type="Automatic", seed=7, noise_source=NoiseSource.GPU)
    pasted = paste(f"{pair}, Token merging ratio: 0, Face restoration: GFPGAN, Version: v1.10.1", base)
    assert len(pasted.warnings) == 1
    assert named in pasted.warnings[0]
    assert "left out" in pasted.warnings[0]
    assert pasted.request == dataclasses.replace(base, prompt="new words")
    validate(pasted.request)


def test_an_unknown_joined_sampler_still_gives_its_schedule_type():
    pasted = paste("Steps: 5, Sampler: DPM+ 2M Karras, Seed: 1", Txt2Img(sampler="DDIM"))
    assert (pasted.request.sampler, pasted.request.schedule_type) == ("DDIM", "Karras")
    assert len(pasted.warnings) == 1
    assert "'DPM+ 2M'" in pasted.warnings[0]
    assert "nearest name is 'DPM++ 2M'" in pasted.warnings[0]


def test_sampler_names_are_known_in_any_case():
    assert paste("Steps: 5, Sampler: euler A, Seed: 1").request.sampler == "Euler a"


@pytest.mark.parametrize(
    ("pairs", "checkpoint", "warning"),
    [
        ("Model: anime/one", "anime/one", ""),
        ("Model: two", "photo/two", ""),
        ("Model: one", "", "could be"),
        ("Model: threw", "", "nearest name is 'photo/three'"),
        ("Model: unheard of", "", "not in the models folder."),
        ("Model: renamed, Model hash: 33333333aa", "photo/three", ""),
        ("Model: one, Model hash: 2222222222", "photo/one", ""),
        ("Model: three, Model hash: 9999999999", "photo/three", "another file"),
    ],
)
def test_the_checkpoint_is_found_by_hash_then_by_name(pairs, checkpoint, warning):
    known = {"anime/one": "1111111111", "photo/one": "2222222222", "photo/two": "", "photo/three": "33333333aa"}
    pasted = paste(f"Steps: 5, {pairs}, Seed: 1", checkpoints=known)
    assert pasted.request.checkpoint == checkpoint
    assert len(pasted.warnings) == bool(warning)
    assert warning in "".join(pasted.warnings)


def test_refiner_and_vae_are_found_as_a1111_writes_them():
    line = "Steps: 5, Seed: 1, Refiner: xl_refiner.safetensors [7440042bbd], Refiner switch at: 0.6, VAE: v.pt"
    pasted = paste(line, checkpoints={"other": "", "mine": "7440042bbd"}, vaes={"folder/v.safetensors": ""})
    assert pasted.warnings == ()
    request = pasted.request
    assert (request.refiner, request.refiner_switch_at, request.vae) == ("mine", 0.6, "folder/v.safetensors")


def test_loras_are_named_where_they_are_missing_and_renamed_where_only_the_name_differs():
    text = (
        "a <lora:mine:0.8> <lyco:old name:1:0.5> <lora:gone:1> <lora:gone:1>\n"
        'Steps: 5, Seed: 1, Lora hashes: "mine: 1, old name: 0123456789ab, gone: ffffffffffff", Size: 64x64'
    )
    known = KnownModels(loras={"folder/mine": "", "new": "0123456789ab"}, embeddings={})
    pasted = infotext_to_request(parse_infotext(text), Txt2Img(), known)
    assert pasted.request.prompt == "a <lora:mine:0.8> <lyco:new:1:0.5> <lora:gone:1> <lora:gone:1>"
    assert len(pasted.warnings) == 1
    assert "LoRA 'gone' was left out: it is not in the models folder" in pasted.warnings[0]


def test_embeddings_are_named_where_they_are_missing():
    line = 'Steps: 5, Seed: 1, TI hashes: "bad hands: 0123456789, here: 1"'
    warnings = paste(line, embeddings={"good hands": "0123456789", "here": ""}).warnings
    assert warnings == ("The embedding 'bad hands' is here under the name good hands.",)


def test_fields_of_other_tasks_are_not_looked_at():
    line = "Steps: 5, Seed: 1, Denoising strength: 7, Mask blur: x, Inpaint area: nowhere"
    assert paste(line).warnings == ()
    assert len(paste(line, Img2Img(init_image=b"x")).warnings) == 1
    assert len(paste(line, Inpaint(init_image=b"x", mask=b"y")).warnings) == 3
