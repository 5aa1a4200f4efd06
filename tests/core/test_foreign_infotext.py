"""Texts of other programs, in the shapes that they write, read as requests."""

from __future__ import annotations

import json

import pytest

from webui.core.infotext import KnownModels, foreign_infotext, infotext_to_request, parse_infotext
from webui.core.requests import NoiseSource, Txt2Img

NOVELAI = {
    "Software": "NovelAI",
    "Description": "a cat, {best quality}",
    "Comment": json.dumps(
        {"steps": 28, "sampler": "k_dpmpp_2m", "noise_schedule": "karras", "seed": 5, "scale": 5.5,
         "cfg_rescale": 0.2, "uc": "lowres", "width": 832, "height": 1216}
    ),
}  # fmt: skip


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


COMFY = {
    "1": node("CheckpointLoaderSimple", ckpt_name="xl/base.safetensors"),
    "2": node("LoraLoader", model=["1", 0], clip=["1", 1], lora_name="one.safetensors", strength_model=0.5,
              strength_clip=0.75),
    "3": node("LoraLoader", model=["2", 0], clip=["2", 1], lora_name="two.safetensors", strength_model=1,
              strength_clip=1),
    "4": node("CLIPSetLastLayer", clip=["3", 1], stop_at_clip_layer=-2),
    "5": node("CLIPTextEncode", clip=["4", 0], text=["10", 0]),
    "6": node("CLIPTextEncode", clip=["4", 0], text="a dog"),
    "7": node("EmptyLatentImage", width=640, height=768, batch_size=1),
    "8": node("KSampler", model=["3", 0], positive=["9", 0], negative=["6", 0], latent_image=["7", 0], seed=12,
              steps=25, cfg=6.5, sampler_name="dpmpp_2m_sde_gpu", scheduler="karras", denoise=1.0),
    "9": node("ControlNetApply", conditioning=["5", 0], strength=1),
    "10": node("PrimitiveString", value="a cat"),
    "11": node("VAELoader", vae_name="v.safetensors"),
    "12": node("VAEDecode", samples=["8", 0], vae=["11", 0]),
}  # fmt: skip

INVOKE = {
    "positive_prompt": "a cat", "negative_prompt": "a dog", "seed": 7, "steps": 30, "cfg_scale": 7.5,
    "scheduler": "dpmpp_2m_k", "width": 512, "height": 768, "rand_device": "cpu", "clip_skip": 1,
    "model": {"name": "base", "hash": "blake3:00"}, "vae": {"name": "v"},
    "loras": [{"model": {"name": "one"}, "weight": 0.5}],
}  # fmt: skip

OLD_INVOKE = {
    "model_weights": "base",
    "image": {
        "prompt": [{"prompt": "a cat [a dog]", "weight": 1.0}], "steps": 30, "cfg_scale": 7.5, "seed": 7,
        "sampler": "k_euler_a", "width": 512, "height": 768,
    },
}  # fmt: skip

FOOOCUS = {
    "full_prompt": ["a cat", "cinematic"], "full_negative_prompt": ["a dog"], "prompt": "a cat", "steps": 30,
    "resolution": "(896, 1152)", "guidance_scale": 4.0, "base_model": "base.safetensors",
    "base_model_hash": "0123456789", "refiner_model": "None", "refiner_switch": 0.5,
    "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "77", "loras": [["one.safetensors", 0.5, "aa"]],
}  # fmt: skip


def read(texts):
    text = foreign_infotext(texts)
    assert text is not None
    info = parse_infotext(text)
    known = KnownModels(checkpoints={"xl/base": "", "base": "0123456789"}, vaes={"v.safetensors": ""})
    pasted = infotext_to_request(info, Txt2Img(), known)
    return pasted.request, pasted.warnings


def test_novelai():
    request, warnings = read(NOVELAI)
    assert warnings == ()
    assert (request.prompt, request.negative_prompt) == ("a cat, {best quality}", "lowres")
    assert (request.sampler, request.schedule_type, request.steps) == ("DPM++ 2M", "Karras", 28)
    assert (request.cfg_scale, request.guidance.rescale, request.seed) == (5.5, 0.2, 5)
    assert (request.clip_skip, request.eta_noise_seed_delta, request.width, request.height) == (2, 31337, 832, 1216)


def test_novelai_in_the_alpha_channel():
    assert foreign_infotext({"parameters": json.dumps(NOVELAI)}) == foreign_infotext(NOVELAI)


def test_comfyui():
    request, warnings = read({"prompt": json.dumps(COMFY), "workflow": "{}"})
    assert all("checkpoint" in warning for warning in warnings)  # "base" could be either of two here
    assert request.prompt == "a cat <lora:one:0.75:0.5> <lora:two:1>"
    assert request.negative_prompt == "a dog"
    assert (request.sampler, request.schedule_type) == ("DPM++ 2M SDE", "Karras")
    assert (request.steps, request.cfg_scale, request.seed) == (25, 6.5, 12)
    assert (request.width, request.height, request.clip_skip) == (640, 768, 2)
    assert (request.vae, request.noise_source) == ("v.safetensors", NoiseSource.CPU)


def test_invokeai():
    request, _ = read({"invokeai_metadata": json.dumps(INVOKE)})
    assert (request.prompt, request.negative_prompt) == ("a cat <lora:one:0.5>", "a dog")
    assert (request.sampler, request.schedule_type, request.clip_skip) == ("DPM++ 2M", "Karras", 2)
    assert (request.cfg_scale, request.seed, request.width, request.height) == (7.5, 7, 512, 768)


def test_invokeai_2():
    request, _ = read({"sd-metadata": json.dumps(OLD_INVOKE)})
    assert (request.prompt, request.negative_prompt) == ("a cat", "a dog")
    assert (request.sampler, request.steps, request.seed) == ("Euler a", 30, 7)


def test_fooocus():
    request, warnings = read({"parameters": json.dumps(FOOOCUS)})
    assert warnings == ()
    assert (request.prompt, request.negative_prompt) == ("a cat, cinematic <lora:one:0.5>", "a dog")
    assert (request.sampler, request.schedule_type) == ("DPM++ 2M SDE", "Karras")
    assert (request.checkpoint, request.refiner, request.seed) == ("base", "", 77)
    assert (request.width, request.height) == (896, 1152)


def test_what_the_program_calls_by_a_name_unknown_here_is_named():
    graph = json.loads(json.dumps(COMFY))
    graph["8"]["inputs"]["sampler_name"] = "res_multistep"
    _, warnings = read({"prompt": json.dumps(graph)})
    assert any("'res_multistep'" in warning for warning in warnings)


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"parameters": "a cat\nSteps: 1, Sampler: Euler, Seed: 1", "prompt": json.dumps(COMFY)},
        {"parameters": '{"a": 1}'},
        {"prompt": "just words"},
        {"prompt": "[" * 100_000},
        {"prompt": '{"1": ' + "[" * 100_000},
        {"prompt": '{"1": {"inputs": {"seed": 1, "positive": ["1", 0]}}}'},
        {"invokeai_metadata": '{"seed": {}, "steps": [], "model": 3, "loras": [1, {"lora": "x"}]}'},
        {"sd-metadata": '{"image": {"prompt": [3, {"prompt": 4}]}}'},
        {"Software": "NovelAI", "Comment": "broken"},
    ],
    ids=lambda texts: repr(texts)[:30],
)
def test_what_says_nothing_gives_nothing(texts):
    assert foreign_infotext(texts) is None


def test_a_graph_that_bites_its_tail_ends():
    graph = json.loads(json.dumps(COMFY))
    graph["1"]["inputs"]["model"] = ["3", 0]
    assert foreign_infotext({"prompt": json.dumps(graph)}) is not None
