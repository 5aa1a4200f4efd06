"""A Stable Diffusion in one file of the original layout: its configuration and its weights' names, by its `Traits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from webui.checkpoints import keymap
from webui.checkpoints.families import markers, sizes
from webui.checkpoints.families.base import ComponentLayout, LatentToRgb, ModelConfig, TextEncoderConfig
from webui.checkpoints.families.traits import SIZE_NUMBERS, TextTraits, Traits, unet_input
from webui.checkpoints.header import Header
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

CONV_IN = keymap.UNET_PREFIX + "input_blocks.0.0.weight"
# The groups of every norm, in the UNet and in the autoencoder.
_GROUPS = 32
# What trainers leave below the prefixes.
_VAE_SURPLUS = ("loss.", "model_ema.")
_CLIP_SURPLUS = ("embeddings.position_ids", "logit_scale")
_OPEN_CLIP_SURPLUS = ("logit_scale", "attn_mask", "visual.")


def file_config(traits: Traits, header: Header) -> ModelConfig:
    """The configuration of the file with `header`; raises `UnsupportedModel` naming what is missing or does not fit."""
    source = header.path.name
    try:
        return _file_config(traits, header, source)
    except (TypeError, ValueError, KeyError) as error:
        raise UnsupportedModel(f"{source} has an incomplete configuration: {error}.") from error


def _file_config(traits: Traits, header: Header, source: str) -> ModelConfig:
    own, sidecar = markers.own_config(header), markers.read_sidecar(header.path)
    texts = tuple(_text_config(text, header, own) for text in traits.text_encoders)
    vae = _vae_config(traits, header, sidecar, own)
    unet = _unet_config(traits, header, sidecar, own, texts)
    kind = unet_input(unet["in_channels"], vae["latent_channels"], source)
    prediction = markers.prediction_of(header, sidecar) or traits.prediction
    if kind != "latents" and prediction is None:
        prediction = "epsilon"  # what files differ in is only whether text alone was trained further to v
    side = traits.side(prediction)
    return ModelConfig(
        unet=unet,
        vae=vae,
        text_encoders=texts,
        scheduler={**traits.schedule, **(sidecar.scheduler if sidecar else {}), **own.get("scheduler", {})},
        scaling_factor=float(vae["scaling_factor"]),
        prediction_type=prediction,
        zero_terminal_snr=markers.zero_terminal_snr_of(header),
        conditioning=traits.conditioning,
        input=kind,
        native_size=markers.size_of(header) or Size(side, side),
        latent_to_rgb=_colours(traits, own),
    )


def _text_config(text: TextTraits, header: Header, own: Mapping[str, Any]) -> TextEncoderConfig:
    part = sizes.Part(header, *text.prefixes, what="a text encoder")
    # An encoder in a file of its own mostly has transformers' names, whoever made it.
    naming = "clip" if "embeddings.token_embedding.weight" in part else "open_clip"
    config = sizes.clip_sizes(part) if naming == "clip" else sizes.open_clip_sizes(part)
    config["hidden_act"] = "quick_gelu" if text.naming == "clip" else "gelu"
    if text.drops_last and keymap.TRANSPOSED in part:  # a file that went through diffusers has neither
        config["num_hidden_layers"] -= 1
    return TextEncoderConfig(
        component=text.component,
        name=text.name,
        config=sizes.checked_text({**config, **own.get(text.component, {})}, header.path.name),
        pad_token=text.pad_token,
        layer=text.layer,
        final_norm=text.final_norm,
        pooled=text.pooled,
        naming=naming,
    )


def _vae_config(
    traits: Traits, header: Header, sidecar: markers.Sidecar | None, own: Mapping[str, Any]
) -> dict[str, Any]:
    found = sizes.vae_sizes(sizes.Part(header, keymap.VAE_PREFIX, what="an autoencoder (VAE)"))
    said = sidecar.scaling_factor if sidecar else None
    config = {"norm_num_groups": _GROUPS, "scaling_factor": traits.scaling_factor if said is None else said, **found}
    return {**config, **own.get("vae", {})}


def _unet_config(
    traits: Traits,
    header: Header,
    sidecar: markers.Sidecar | None,
    own: Mapping[str, Any],
    texts: tuple[TextEncoderConfig, ...],
) -> dict[str, Any]:
    found = sizes.unet_sizes(sizes.Part(header, keymap.UNET_PREFIX, what="the UNet"))
    heads = [traits.heads(channels) for channels in found["block_out_channels"]]
    config = {"norm_num_groups": _GROUPS, "attention_head_dim": sizes.one_if_equal(heads), **found}
    if traits.conditioning != "text":
        numbers = found["projection_class_embeddings_input_dim"] - texts[-1].config["projection_dim"]
        config["addition_time_embed_dim"] = numbers // SIZE_NUMBERS[traits.conditioning]
    config |= {**(sidecar.unet if sidecar else {}), **own.get("unet", {})}
    given = config["attention_head_dim"]
    groups = config["norm_num_groups"]
    if not all(given if isinstance(given, list) else [given]) or any(c % groups for c in config["block_out_channels"]):
        raise UnsupportedModel(
            f"{header.path.name} has the layout of {traits.title} in other sizes {found['block_out_channels']} and no"
            f" {markers.CONFIG_KEY!r} in its metadata, so its attention heads and norms are unknown; export it with"
            " that entry or as a diffusers folder."
        )
    return config


def _colours(traits: Traits, own: Mapping[str, Any]) -> LatentToRgb | None:
    """The file's own map; a file with a configuration of its own has other latents than the published."""
    if not own:
        return traits.colours
    values = own.get("latent_to_rgb")
    if values is None:
        return None
    rows = tuple((float(red), float(green), float(blue)) for red, green, blue in values["weights"])
    red, green, blue = values["bias"]
    return LatentToRgb(rows, (float(red), float(green), float(blue)))


def file_layout(traits: Traits, config: ModelConfig) -> dict[str, ComponentLayout]:
    """Where a single file keeps each module's weights, and under which names."""
    layouts = {
        "unet": ComponentLayout(
            prefixes=(keymap.UNET_PREFIX,), table=keymap.unet_table(keymap.UNetShape.from_config(config.unet))
        ),
        "vae": ComponentLayout(
            prefixes=(keymap.VAE_PREFIX,),
            table=keymap.vae_table(keymap.VaeShape.from_config(config.vae)),
            surplus=_VAE_SURPLUS,
        ),
    }
    for text, its in zip(traits.text_encoders, config.text_encoders, strict=True):
        layouts[text.component] = _text_layout(text, its)
    return layouts


def _text_layout(text: TextTraits, its: TextEncoderConfig) -> ComponentLayout:
    inside = "text_model." if text.pooled else ""
    if its.naming == "clip":
        surplus = _CLIP_SURPLUS if text.pooled else (*_CLIP_SURPLUS, "text_projection.")
        return ComponentLayout(prefixes=text.prefixes, table=keymap.text_table(inside=inside), surplus=surplus)
    layers = its.config["num_hidden_layers"]
    unread = (f"transformer.resblocks.{layers}.",) if text.drops_last else ()
    if not text.pooled:
        unread += (keymap.TRANSPOSED,)
    return ComponentLayout(
        prefixes=text.prefixes,
        table=keymap.open_clip_table(layers, inside=inside),
        surplus=(*_OPEN_CLIP_SURPLUS, *unread),
    )


def transformer_entries(header: Header) -> list[tuple[int, ...]]:
    """The shapes of the layers by which the UNet's transformers begin: a convolution's in version 1, then linear."""
    return [
        tensor.shape
        for key, tensor in header.tensors.items()
        if key.startswith(keymap.UNET_PREFIX) and key.endswith(".1.proj_in.weight")
    ]
