"""Configurations read from shapes, against what the published models' diffusers folders state; no weights."""

import pytest
import torch

from webui.checkpoints.families.diffusers_folder import DIFFUSERS
from webui.checkpoints.families.flow import CHROMA, FLUX, SD3, flow_model
from webui.core.geometry import Size
from webui.hardware import torchvision_operators

SD35 = {"qk_norm": "rms_norm", "in_channels": 16, "out_channels": 16, "joint_attention_dim": 4096}
PUBLISHED = {
    "Stable Diffusion 3 medium": (
        SD3,
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
            "joint_attention_dim": 4096,
            "dual_attention_layers": (),
            "qk_norm": None,
        },
        {"shift": 3.0},
    ),
    "Stable Diffusion 3.5 medium": (
        SD3,
        {
            **SD35,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        {"shift": 3.0},
    ),
    "Stable Diffusion 3.5 large": (
        SD3,
        {
            **SD35,
            "num_layers": 38,
            "num_attention_heads": 38,
            "attention_head_dim": 64,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
        {"shift": 3.0},
    ),
    "FLUX.1 dev": (
        FLUX,
        {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}
        | {"in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True}
        | {"axes_dims_rope": (16, 56, 56)},
        {"shift": 3.0, "use_dynamic_shifting": True, "max_shift": 1.15},
    ),
    "FLUX.1 schnell": (FLUX, {"guidance_embeds": False}, {"shift": 1.0}),
    "Chroma": (
        CHROMA,
        {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}
        | {"in_channels": 64, "joint_attention_dim": 4096, "axes_dims_rope": (16, 56, 56)}
        | {"approximator_num_channels": 64, "approximator_hidden_dim": 5120, "approximator_layers": 5},
        {"use_dynamic_shifting": True},
    ),
}


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_models_configuration_is_read_from_its_shapes(name, header_of):
    torchvision_operators.declare()
    import diffusers

    model, numbers, schedule = PUBLISHED[name]
    with torch.device("meta"):
        module = getattr(diffusers, model.transformer)(**numbers)
    header = header_of(module, model)
    config = model.config(header)

    assert flow_model(header) is model
    stated = {key: value for key, value in module.config.items() if key in config and key != "sample_size"}
    assert {key: config[key] for key in stated} == stated
    assert schedule.items() <= model.scheduler(config).items()
    assert DIFFUSERS.config(header).native_size == Size(1024, 1024)
