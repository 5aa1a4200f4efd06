"""A Stable Diffusion as a diffusers folder: its configuration, by its `Traits` and the folder's own JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from webui.checkpoints import keymap
from webui.checkpoints.families import sizes
from webui.checkpoints.families.base import Folder, ModelConfig, PredictionType, TextEncoderConfig
from webui.checkpoints.families.traits import TextTraits, Traits, unet_input
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

_PREDICTIONS: dict[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}
# Pipelines around one of our UNets whose other parts Atelier would not run.
_FOREIGN = ("StableDiffusionLatentUpscalePipeline", "StableUnCLIPPipeline", "StableUnCLIPImg2ImgPipeline")
_PREFIXES = ("StableDiffusion", "LatentConsistencyModel")
# The width of the text states in the published models, whose latent colours are known.
_PUBLISHED_WIDTHS = (768, 1024, 1280, 2048)


def stable_diffusion_unet(folder: Folder) -> Mapping[str, Any] | None:
    """The UNet's configuration when the folder holds a Stable Diffusion pipeline with a UNet, else None."""
    pipeline = str(folder.index.get("_class_name"))
    unet = folder.index.get("unet")
    if not pipeline.startswith(_PREFIXES) or pipeline in _FOREIGN or unet is None or "UNet2DConditionModel" not in unet:
        return None
    return folder.component("unet")


def has_component(folder: Folder, name: str) -> bool:
    """Whether the folder's index names a class for this component; the refiner's first text encoder has none."""
    return any(folder.index.get(name) or ())


def folder_config(traits: Traits, folder: Folder) -> ModelConfig:
    """The configuration of the folder; raises `UnsupportedModel` where a part is missing or does not fit."""
    source = f"The folder {folder.path.name}"
    try:
        return _folder_config(traits, folder, source)
    except (TypeError, ValueError, KeyError) as error:
        raise UnsupportedModel(f"{source} has an incomplete configuration: {error}.") from error


def _folder_config(traits: Traits, folder: Folder, source: str) -> ModelConfig:
    unet, vae = dict(folder.component("unet")), dict(folder.component("vae"))
    schedule = folder.component("scheduler", "scheduler_config.json")
    keymap.UNetShape.from_config(unet)  # a configuration that cannot name its levels is told here, not at load
    levels = keymap.VaeShape.from_config(vae).levels
    prediction = _PREDICTIONS.get(schedule.get("prediction_type", "epsilon"))
    if prediction is None:
        raise UnsupportedModel(f"{source} predicts {schedule['prediction_type']!r}; Atelier knows epsilon and v.")
    side = unet.get("sample_size") or traits.side(prediction) // 2 ** (levels - 1)
    if not isinstance(side, int):
        raise UnsupportedModel(f"{source} has a UNet whose sample_size is {side!r}, not a number.")
    pixels = side * 2 ** (levels - 1)
    return ModelConfig(
        unet=unet,
        vae=vae,
        text_encoders=tuple(_text_config(text, folder, source) for text in traits.text_encoders),
        scheduler={key: schedule[key] for key in traits.schedule if key in schedule},
        scaling_factor=float(vae.get("scaling_factor", traits.scaling_factor)),
        prediction_type=prediction,
        zero_terminal_snr=bool(schedule.get("rescale_betas_zero_snr", False)),
        conditioning=traits.conditioning,
        input=unet_input(unet.get("in_channels", 4), vae.get("latent_channels", 4), source),
        native_size=Size(pixels, pixels),
        latent_to_rgb=traits.colours if unet.get("cross_attention_dim") in _PUBLISHED_WIDTHS else None,
    )


def _text_config(text: TextTraits, folder: Folder, source: str) -> TextEncoderConfig:
    return TextEncoderConfig(
        component=text.component,
        name=text.name,
        config=sizes.checked_text(folder.component(text.component), f"{source}"),
        pad_token=text.pad_token,
        layer=text.layer,
        final_norm=text.final_norm,
        pooled=text.pooled,
    )
