"""What NovelAI, ComfyUI, InvokeAI and Fooocus write into pictures, said in A1111's grammar, as far as it maps.

Only the formats are known here, no file: whoever opens the picture hands over its texts by their keys. Values come from
strangers, so everything is looked at before it is used, and what does not fit is left out.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from webui.core.infotext.grammar import short_number, write_infotext

Fields = Mapping[str, Any]

# ComfyUI's names, which Fooocus shares; "_gpu" at the end only says where the noise is drawn.
_COMFY_SAMPLERS = {
    "euler": "Euler",
    "euler_cfg_pp": "Euler CFG++",
    "euler_ancestral": "Euler a",
    "euler_ancestral_cfg_pp": "Euler a CFG++",
    "heun": "Heun",
    "heunpp2": "HeunPP2",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "ddpm": "DDPM",
    "lcm": "LCM",
    "tcd": "TCD",
    "ipndm": "IPNDM",
    "ipndm_v": "IPNDM_V",
    "deis": "DEIS",
    "ddim": "DDIM",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC",
}
_COMFY_SCHEDULES = {
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
}
_INVOKE_SAMPLERS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "k_euler": "Euler",
    "k_euler_a": "Euler a",
    "heun": "Heun",
    "kdpm_2": "DPM2",
    "kdpm_2_a": "DPM2 a",
    "lms": "LMS",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "deis": "DEIS",
    "pndm": "PLMS",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
_NOVELAI_SAMPLERS = {
    "k_euler": "Euler",
    "k_euler_ancestral": "Euler a",
    "k_lms": "LMS",
    "k_heun": "Heun",
    "k_dpm_2": "DPM2",
    "k_dpm_2_ancestral": "DPM2 a",
    "k_dpm_fast": "DPM fast",
    "k_dpm_adaptive": "DPM adaptive",
    "k_dpmpp_2s_ancestral": "DPM++ 2S a",
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE",
    "k_dpmpp_sde": "DPM++ SDE",
    "plms": "PLMS",
    "ddim": "DDIM",
    "ddim_v3": "DDIM",
}
_NOVELAI_SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "polyexponential": "Polyexponential"}

_MODEL_FILE = re.compile(r"\.(safetensors|ckpt|pt|pth|bin|sft)$", re.IGNORECASE)
_SIDES = re.compile(r"\(?\s*([0-9]{1,5})\s*[,x×]\s*([0-9]{1,5})\s*\)?")  # Fooocus writes this sign


def foreign_infotext(texts: Mapping[str, str]) -> str | None:
    """The "parameters" text that stands for what another program wrote; None where none of them did.

    `texts` are a picture's text chunks by key, with a JPEG's or WebP's user comment under "parameters".
    """
    own = _object(texts.get("parameters", ""))
    if "Comment" in own and "Description" in own:  # what NovelAI hides in the alpha channel
        texts = {key: value for key, value in own.items() if isinstance(value, str)}
    elif "base_model" in own or "full_prompt" in own:
        return _fooocus(own)
    if texts.get("parameters"):
        return None
    if "NovelAI" in texts.get("Software", ""):
        return _novelai(texts.get("Description", ""), _object(texts.get("Comment", "")))
    if "invokeai_metadata" in texts:
        return _invoke(_object(texts["invokeai_metadata"]))
    if "sd-metadata" in texts:
        return _old_invoke(_object(texts["sd-metadata"]))
    return _comfy(_object(texts["prompt"])) if "prompt" in texts else None


# ---------------------------------------------------------------------------------------------------------- programs


def _novelai(description: str, comment: Fields) -> str | None:
    schedule = _text(comment.get("noise_schedule"))
    return _written(
        _text(comment.get("prompt")) or description,
        _text(comment.get("uc")),
        {
            "Steps": _number(comment.get("steps")),
            "Sampler": _NOVELAI_SAMPLERS.get(_text(comment.get("sampler")), _text(comment.get("sampler"))),
            "Schedule type": _NOVELAI_SCHEDULES.get(schedule, ""),
            "CFG scale": _number(comment.get("scale")),
            "CFG rescale": _number(comment.get("cfg_rescale")) if comment.get("cfg_rescale") else "",
            "Seed": _number(comment.get("seed")),
            "Size": _size(comment.get("width"), comment.get("height")),
            # As A1111 reads it.
            "Clip skip": "2",
            "ENSD": "31337",
        },
    )


def _fooocus(values: Fields) -> str | None:
    sides = _SIDES.fullmatch(_text(values.get("resolution")))
    loras = "".join(
        f" <lora:{_model_name(entry[0])}:{_number(entry[1]) or 1}>"
        for entry in _list(values.get("loras"))
        if isinstance(entry, list) and len(entry) >= 2 and _model_name(entry[0])
    )
    refiner = _model_name(values.get("refiner_model"))
    refined = refiner if refiner != "None" else ""
    return _written(
        (_joined(values.get("full_prompt")) or _text(values.get("prompt"))) + loras,
        _joined(values.get("full_negative_prompt")) or _text(values.get("negative_prompt")),
        {
            "Steps": _number(values.get("steps")),
            **_comfy_sampling(values.get("sampler"), values.get("scheduler")),
            "CFG scale": _number(values.get("guidance_scale")),
            "Seed": _number(values.get("seed")),
            "Size": f"{int(sides[1])}x{int(sides[2])}" if sides else "",
            "Model": _model_name(values.get("base_model")),
            "Model hash": _text(values.get("base_model_hash")),
            "Clip skip": _number(values.get("clip_skip")),
            "Refiner": refined,
            "Refiner switch at": _number(values.get("refiner_switch")) if refined else "",
            "RNG": "CPU",
        },
    )


def _invoke(values: Fields) -> str | None:
    scheduler = _text(values.get("scheduler"))
    sampler = scheduler.removesuffix("_k")
    model, vae = _mapping(values.get("model")), _mapping(values.get("vae"))
    skipped = values.get("clip_skip")
    return _written(
        _text(values.get("positive_prompt")) + "".join(_invoke_loras(values)),
        _text(values.get("negative_prompt")),
        {
            "Steps": _number(values.get("steps")),
            "Sampler": _INVOKE_SAMPLERS.get(sampler, scheduler),
            "Schedule type": "Karras" if sampler != scheduler else "",
            "CFG scale": _number(values.get("cfg_scale")),
            "CFG rescale": _number(values.get("cfg_rescale_multiplier"))
            if values.get("cfg_rescale_multiplier")
            else "",
            "Seed": _number(values.get("seed")),
            "Size": _size(values.get("width"), values.get("height")),
            "Model": _model_name(model.get("name") or model.get("model_name")),
            "VAE": _model_name(vae.get("name") or vae.get("model_name")),
            "Clip skip": str(skipped + 1) if isinstance(skipped, int) and skipped > 0 else "",
            "RNG": "GPU" if _text(values.get("rand_device")) == "cuda" else "CPU",
        },
    )


def _invoke_loras(values: Fields) -> Iterator[str]:
    for entry in map(_mapping, _list(values.get("loras"))):
        lora = _mapping(entry.get("model") or entry.get("lora"))
        name = _model_name(lora.get("name") or lora.get("model_name"))
        if name:
            yield f" <lora:{name}:{_number(entry.get('weight')) or 1}>"


def _old_invoke(values: Fields) -> str | None:
    """InvokeAI 2's: one prompt, in which what is not wanted stands in square brackets."""
    image = _mapping(values.get("image"))
    prompts = image.get("prompt")
    words = (
        prompts
        if isinstance(prompts, str)
        else ", ".join(_text(_mapping(part).get("prompt")) for part in _list(prompts))
    )
    unwanted = re.findall(r"\[([^\[\]]*)\]", words)
    sampler = _text(image.get("sampler"))
    return _written(
        re.sub(r"\[[^\[\]]*\]", "", words).strip(),
        ", ".join(unwanted),
        {
            "Steps": _number(image.get("steps")),
            "Sampler": _INVOKE_SAMPLERS.get(sampler, sampler),
            "CFG scale": _number(image.get("cfg_scale")),
            "Seed": _number(image.get("seed")),
            "Size": _size(image.get("width"), image.get("height")),
            "Model": _model_name(values.get("model_weights")),
            "RNG": "CPU",
        },
    )


def _comfy(graph: Fields) -> str | None:
    """The first sampler of ComfyUI's graph that has prompts, and what leads to it."""
    nodes = {str(key): node for key, node in graph.items() if isinstance(node, dict)}
    for node in nodes.values():
        inputs = _mapping(node.get("inputs"))
        if not ({"seed", "noise_seed"} & inputs.keys() and "positive" in inputs):
            continue
        models = list(_upstream(nodes, inputs.get("model")))
        latent = _first(_upstream(nodes, inputs.get("latent_image")), "width")
        skipped = _first(_upstream(nodes, inputs.get("positive")), "stop_at_clip_layer").get("stop_at_clip_layer")
        denoise = inputs.get("denoise", 1)
        vae = _first((_mapping(other.get("inputs")) for other in nodes.values()), "vae_name")
        return _written(
            _comfy_words(nodes, inputs.get("positive")) + "".join(_comfy_loras(models)),
            _comfy_words(nodes, inputs.get("negative")),
            {
                "Steps": _number(inputs.get("steps")),
                **_comfy_sampling(inputs.get("sampler_name"), inputs.get("scheduler")),
                "CFG scale": _number(inputs.get("cfg")),
                "Seed": _number(inputs.get("seed", inputs.get("noise_seed"))),
                "Size": _size(latent.get("width"), latent.get("height")),
                "Model": _model_name(_first(iter(models), "ckpt_name").get("ckpt_name")),
                "VAE": _model_name(vae.get("vae_name")),
                "Denoising strength": _number(denoise) if denoise != 1 else "",
                "Clip skip": str(-skipped) if isinstance(skipped, int) and skipped < -1 else "",
                "RNG": "CPU",
            },
        )
    return None


def _comfy_sampling(sampler: object, schedule: object) -> dict[str, str]:
    """ComfyUI's two names as A1111's; unknown ones stay, so that a warning can name them."""
    name, kind = _text(sampler).removesuffix("_gpu"), _text(schedule)
    return {"Sampler": _COMFY_SAMPLERS.get(name, name), "Schedule type": _COMFY_SCHEDULES.get(kind, kind)}


def _comfy_words(nodes: Mapping[str, Any], link: object) -> str:
    """The first text on the way to `link`."""
    for inputs in _upstream(nodes, link):
        for key in ("text", "text_g", "prompt", "string", "value"):
            if isinstance(inputs.get(key), str) and inputs[key].strip():
                return inputs[key]
    return ""


def _comfy_loras(models: list[Fields]) -> Iterator[str]:
    """The LoRAs on the way to the model, in the order in which they are applied."""
    for inputs in reversed(models):
        name = _model_name(inputs.get("lora_name"))
        if name:
            unet, text = _number(inputs.get("strength_model")) or "1", _number(inputs.get("strength_clip"))
            yield f" <lora:{name}:{unet}>" if text in ("", unet) else f" <lora:{name}:{text}:{unet}>"


def _upstream(nodes: Mapping[str, Any], link: object) -> Iterator[Fields]:
    """The inputs of the node that `link` ([id, output]) points to, and of all before it, nearest first, each once."""
    waiting, seen = deque([link]), set[str]()
    while waiting:
        place = waiting.popleft()
        identity = str(place[0]) if isinstance(place, list) and place else ""
        if identity in seen or identity not in nodes:
            continue
        seen.add(identity)
        inputs = _mapping(nodes[identity].get("inputs"))
        yield inputs
        waiting.extend(value for value in inputs.values() if isinstance(value, list))


# ------------------------------------------------------------------------------------------------------------ values


def _written(prompt: str, negative: str, pairs: Mapping[str, str]) -> str | None:
    """The text, or None where nothing was found. Three pairs make a line parameters, so fewer are not written."""
    found = {key: value for key, value in pairs.items() if value}
    if len(found) < 4:
        return None
    return write_infotext(prompt.strip(), negative.strip(), found)


def _object(text: str) -> Fields:
    """The JSON object that `text` is; an empty one for anything else."""
    try:
        return _mapping(json.loads(text)) if text.lstrip().startswith("{") else {}
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> Fields:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _joined(value: object) -> str:
    return ", ".join(part for part in _list(value) if isinstance(part, str))


def _number(value: object) -> str:
    """A number, or a text that is one, as text; "" for anything else."""
    if isinstance(value, str):
        return value.strip() if re.fullmatch(r"\s*-?[0-9]{1,20}(\.[0-9]{1,20})?\s*", value) else ""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 2**64:
        return ""
    return str(value) if isinstance(value, int) else short_number(value) if value == value else ""  # not NaN


def _size(width: object, height: object) -> str:
    sides = [int(side) if isinstance(side, int | float) and 0 < side < 100_000 else 0 for side in (width, height)]
    return f"{sides[0]}x{sides[1]}" if all(sides) else ""


def _model_name(value: object) -> str:
    """A model file's name without folder and suffix, as A1111 writes "Model"."""
    return _MODEL_FILE.sub("", _text(value).replace("\\", "/").rsplit("/", 1)[-1])


def _first(inputs: Iterator[Fields], key: str) -> Fields:
    """The first of `inputs` that has `key`; an empty one where none does."""
    return next((found for found in inputs if key in found), {})
