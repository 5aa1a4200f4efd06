"""Stable Diffusion 1: files in the original layout, of any width, and diffusers folders.

Ordinary files carry no configuration and have the published sizes (sd1.json). A file of other sizes says them in its
metadata under "atelier.config", as the built-in model does. The published latent colours in sd1.json are Keturn's fit
for version 1.4, https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from webui.checkpoints import keymap
from webui.checkpoints.families.base import ComponentLayout, Family, Folder, LatentToRgb, ModelConfig, PredictionType
from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

CONFIG_KEY = "atelier.config"
PREDICTION_KEY = "modelspec.prediction_type"
RESOLUTION_KEY = "modelspec.resolution"

# Some trainers leave out the last part of the text model's prefix; both spellings are everywhere.
_TEXT_PREFIXES = (keymap.TEXT_PREFIX, "cond_stage_model.transformer.")
_CONV_IN = keymap.UNET_PREFIX + "input_blocks.0.0.weight"
_PREDICTIONS: dict[str, PredictionType] = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")


def published_config() -> dict[str, Any]:
    """The configuration of Stable Diffusion 1 as its authors published it, with the metadata entry's structure."""
    text = resources.files("webui.checkpoints.families").joinpath("sd1.json").read_text(encoding="utf-8")
    return json.loads(text)


def _recognises(header: Header) -> bool:
    """A UNet whose transformers begin with a convolution: Stable Diffusion 2 and XL use a linear layer there."""
    if header.shape(_CONV_IN) is None or header.has("control_model."):
        return False
    entries = (header.tensors[key].shape for key in header.tensors if _is_transformer_entry(key))
    return all(len(shape) == 4 for shape in entries)


def _is_transformer_entry(key: str) -> bool:
    return key.startswith(keymap.UNET_PREFIX) and key.endswith(".1.proj_in.weight")


def _config(header: Header) -> ModelConfig:
    for what, present in (
        ("a text encoder", any(header.has(prefix) for prefix in _TEXT_PREFIXES)),
        ("an autoencoder (VAE)", header.has(keymap.VAE_PREFIX)),
    ):
        if not present:
            raise UnsupportedModel(
                f"{header.path.name} is a Stable Diffusion 1 model without {what}; use a complete checkpoint."
            )
    published = published_config()
    own = header.metadata.get(CONFIG_KEY)
    values = published if own is None else _own_config(header, own)
    if own is None:
        _check_published_sizes(header, published)
    try:
        prediction = _PREDICTIONS[header.metadata.get(PREDICTION_KEY, "epsilon")]
    except KeyError as error:
        raise UnsupportedModel(f"{header.path.name} predicts {error}; Atelier knows epsilon and v.") from error
    return _model_config(values, prediction=prediction, native_size=_native_size(header), source=header.path.name)


def _own_config(header: Header, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{header.path.name} has a damaged {CONFIG_KEY!r} in its metadata: {error}.") from error
    if not isinstance(values, dict):
        raise UnsupportedModel(f"{header.path.name} has metadata {CONFIG_KEY!r} that is not a JSON object.")
    return values


def _check_published_sizes(header: Header, published: Mapping[str, Any]) -> None:
    unet = published["unet"]
    shape = header.shape(_CONV_IN) or ()
    channels = shape[1] if len(shape) == 4 else 0
    if channels in (8, 9):
        kind = "an inpainting model" if channels == 9 else "an instruct-pix2pix model"
        raise UnsupportedModel(
            f"{header.path.name} is {kind} ({channels} input channels), which Atelier cannot run yet; use an ordinary"
            " Stable Diffusion 1 checkpoint, which the inpaint tab can use."
        )
    if shape[:2] != (unet["block_out_channels"][0], unet["in_channels"]):
        raise UnsupportedModel(
            f"{header.path.name} has Stable Diffusion 1's layout in other sizes {shape} and no {CONFIG_KEY!r} in its"
            " metadata, so its attention heads are unknown; export it with that entry or as a diffusers folder."
        )


def _native_size(header: Header) -> Size:
    match = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", header.metadata.get(RESOLUTION_KEY, "512x512"))
    return Size(int(match[1]), int(match[2])) if match else Size(512, 512)


def _model_config(
    values: Mapping[str, Any], *, prediction: PredictionType, native_size: Size, source: str
) -> ModelConfig:
    try:
        vae = dict(values["vae"])
        unet = dict(values["unet"])
        colours = values.get("latent_to_rgb")
        keymap.UNetShape.from_config(unet)  # a configuration that cannot name its weights is told here, not at load
        keymap.VaeShape.from_config(vae)
        return ModelConfig(
            unet=unet,
            vae=vae,
            text_encoder=dict(values["text_encoder"]),
            scheduler=dict(values["scheduler"]),
            scaling_factor=float(vae.get("scaling_factor", 0.18215)),
            prediction_type=prediction,
            native_size=native_size,
            latent_to_rgb=None if colours is None else _latent_to_rgb(colours),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"{source} has an incomplete configuration: {error}.") from error


def _latent_to_rgb(values: Mapping[str, Any]) -> LatentToRgb:
    rows = tuple((float(red), float(green), float(blue)) for red, green, blue in values["weights"])
    red, green, blue = values["bias"]
    return LatentToRgb(rows, (float(red), float(green), float(blue)))


def _recognises_folder(folder: Folder) -> bool:
    if folder.index.get("_class_name") not in _PIPELINES:
        return False
    return not folder.component("unet").get("use_linear_projection", False)  # Stable Diffusion 2 has them


def _folder_config(folder: Folder) -> ModelConfig:
    unet = folder.component("unet")
    schedule = folder.component("scheduler", "scheduler_config.json")
    values = {
        "unet": unet,
        "vae": folder.component("vae"),
        "text_encoder": folder.component("text_encoder"),
        "scheduler": {key: schedule[key] for key in published_config()["scheduler"] if key in schedule},
    }
    if unet.get("in_channels", 4) != 4:
        raise UnsupportedModel(
            f"The folder {folder.path.name} holds a UNet with {unet['in_channels']} input channels, which Atelier"
            " cannot run yet; use an ordinary Stable Diffusion 1 model."
        )
    if unet.get("cross_attention_dim") == 768:  # the published sizes, so the published colours
        values["latent_to_rgb"] = published_config()["latent_to_rgb"]
    prediction = _PREDICTIONS.get(schedule.get("prediction_type", "epsilon"))
    if prediction is None:
        raise UnsupportedModel(
            f"The folder {folder.path.name} predicts {schedule['prediction_type']!r}; Atelier knows epsilon and v."
        )
    side = unet.get("sample_size") or 64
    if not isinstance(side, int):
        raise UnsupportedModel(f"The folder {folder.path.name} has a UNet whose sample_size is {side!r}, not a number.")
    return _model_config(
        values, prediction=prediction, native_size=Size(side * 8, side * 8), source=f"The folder {folder.path.name}"
    )


def _layout(config: ModelConfig) -> dict[str, ComponentLayout]:
    return {
        "unet": ComponentLayout(
            prefixes=(keymap.UNET_PREFIX,), table=keymap.unet_table(keymap.UNetShape.from_config(config.unet))
        ),
        "vae": ComponentLayout(
            prefixes=(keymap.VAE_PREFIX,),
            table=keymap.vae_table(keymap.VaeShape.from_config(config.vae)),
            surplus=("loss.", "model_ema."),
        ),
        "text_encoder": ComponentLayout(
            prefixes=_TEXT_PREFIXES,
            table=keymap.text_table(),
            surplus=("embeddings.position_ids", "text_projection.", "logit_scale"),
        ),
    }


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1",
    recognises=_recognises,
    config=_config,
    recognises_folder=_recognises_folder,
    folder_config=_folder_config,
    layout=_layout,
)
