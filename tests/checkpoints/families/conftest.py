"""Tiny random models of every family, in the original layout, made by the libraries that the originals came from.

Sizes keep to what a file without configuration may have: heads of 64 channels (or 8 heads), norms of 32 groups.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from webui.checkpoints import keymap
from webui.hardware import torchvision_operators

CPU = torch.device("cpu")
WIDTH = 16  # of each text encoder
VAE = {
    "block_out_channels": [32, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
}
SMALL_VAE = {
    **VAE,
    "block_out_channels": [32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}


def unet_config(attention, heads, text_width, **more):
    down = ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in attention]
    return {
        "sample_size": 8,
        "block_out_channels": [64] * len(attention),
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "layers_per_block": 1,
        "cross_attention_dim": text_width,
        "attention_head_dim": heads,
        **more,
    }


SD1_UNET = unet_config([True, False], 8, WIDTH)
SD2_UNET = unet_config([True, False], 1, WIDTH, use_linear_projection=True)
X4_UNET = unet_config(
    [False, True, True],
    8,
    WIDTH,
    use_linear_projection=True,
    in_channels=7,
    num_class_embeds=10,
    only_cross_attention=[True, True, False],
)
SDXL_UNET = unet_config(
    [False, True, True],
    1,
    2 * WIDTH,
    use_linear_projection=True,
    transformer_layers_per_block=[1, 1, 2],
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=WIDTH + 6 * 8,
)
REFINER_UNET = {
    **SDXL_UNET,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": WIDTH,
    "transformer_layers_per_block": 2,
    "projection_class_embeddings_input_dim": WIDTH + 5 * 8,
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One model: its UNet and VAE, and the prefix and layout of each text encoder; what our loader should say."""

    family: str
    unet: dict[str, Any]
    texts: dict[str, str]
    vae: dict[str, Any] = field(default_factory=lambda: VAE)
    input: str = "latents"
    conditioning: str = "text"


CLIP = {"cond_stage_model.transformer.text_model.": "clip"}
VIT_H = {"cond_stage_model.model.": "open_clip"}
BOTH = {"conditioner.embedders.0.transformer.text_model.": "clip", "conditioner.embedders.1.model.": "open_clip"}
REFINER = {"conditioner.embedders.0.model.": "open_clip"}

KINDS = {
    "sd1": Kind(family="sd1", unet=SD1_UNET, texts=CLIP),
    "sd1 inpainting": Kind(family="sd1", unet={**SD1_UNET, "in_channels": 9}, texts=CLIP, input="inpaint"),
    "instruct-pix2pix": Kind(family="sd1", unet={**SD1_UNET, "in_channels": 8}, texts=CLIP, input="edit"),
    "sd2": Kind(family="sd2", unet=SD2_UNET, texts=VIT_H),
    "sd2 inpainting": Kind(family="sd2", unet={**SD2_UNET, "in_channels": 9}, texts=VIT_H, input="inpaint"),
    "sd2 depth": Kind(family="sd2", unet={**SD2_UNET, "in_channels": 5}, texts=VIT_H, input="depth"),
    "x4 upscaler": Kind(family="x4-upscaler", unet=X4_UNET, texts=VIT_H, vae=SMALL_VAE, input="low_res"),
    "sdxl": Kind(family="sdxl", unet=SDXL_UNET, texts=BOTH, conditioning="sdxl"),
    "sdxl inpainting": Kind(
        family="sdxl", unet={**SDXL_UNET, "in_channels": 9}, texts=BOTH, input="inpaint", conditioning="sdxl"
    ),
    "sdxl pix2pix": Kind(
        family="sdxl", unet={**SDXL_UNET, "in_channels": 8}, texts=BOTH, input="edit", conditioning="sdxl"
    ),
    "sdxl refiner": Kind(family="sdxl-refiner", unet=REFINER_UNET, texts=REFINER, conditioning="refiner"),
}


@dataclass(frozen=True)
class Original:
    """The modules that a file was written from, and the file's weights."""

    kind: Kind
    unet: Any
    vae: Any
    texts: tuple[Any, ...]
    state: dict[str, torch.Tensor]


@contextlib.contextmanager
def seeded(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@pytest.fixture(scope="session")
def texts():
    """A CLIP text model of transformers and one of open_clip's text towers, under the names of their layouts."""
    torchvision_operators.declare()
    import open_clip
    from transformers import CLIPTextConfig, CLIPTextModel

    with seeded(0):
        clip = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=WIDTH,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=1,
                bos_token_id=49406,
                eos_token_id=49407,
            )
        )
        vision = open_clip.CLIPVisionCfg(layers=1, width=16, head_width=16, patch_size=16, image_size=16)
        text = open_clip.CLIPTextCfg(width=WIDTH, heads=1, layers=3)
        open_clip_model = open_clip.CLIP(WIDTH, vision, text)
        for parameter in open_clip_model.parameters():  # biases and norms start at 0 and 1, which would hide a mix-up
            torch.nn.init.normal_(parameter, std=0.1)
    return {
        "clip": clip.eval().requires_grad_(False),
        "open_clip": open_clip_model.eval().requires_grad_(False),
    }


@pytest.fixture(scope="session")
def vaes():
    torchvision_operators.declare()
    from diffusers import AutoencoderKL

    with seeded(1):
        return {
            len(config["block_out_channels"]): AutoencoderKL(**config).eval().requires_grad_(False)
            for config in (VAE, SMALL_VAE)
        }


def in_original_layout(module, table, prefix):
    """`module`'s weights under the original's names."""
    names = keymap.inverse(table)
    state = {}
    for key, weight in module.state_dict().items():
        if prefix == keymap.VAE_PREFIX and keymap.is_vae_attention_weight(key):
            weight = weight[..., None, None]
        state[f"{prefix}{keymap.translate(key, names)}"] = weight.contiguous()
    return state


@pytest.fixture(scope="session")
def make_original(texts, vaes):
    """Makes the `Original` of one of `KINDS` by name."""
    torchvision_operators.declare()
    from diffusers import UNet2DConditionModel

    def make(name):
        kind = KINDS[name]
        with seeded(2):
            unet = UNet2DConditionModel(**kind.unet).eval().requires_grad_(False)
        vae = vaes[len(kind.vae["block_out_channels"])]
        state = in_original_layout(unet, keymap.unet_table(keymap.UNetShape.from_config(kind.unet)), keymap.UNET_PREFIX)
        state |= in_original_layout(vae, keymap.vae_table(keymap.VaeShape.from_config(kind.vae)), keymap.VAE_PREFIX)
        for prefix, layout in kind.texts.items():
            for key, weight in texts[layout].state_dict().items():
                if not key.startswith("visual."):
                    state[prefix + key] = weight
        return Original(kind, unet, vae, tuple(texts[layout] for layout in kind.texts.values()), state)

    return make


@pytest.fixture
def write_original(make_original, tmp_path):
    """Writes one of `KINDS` as a file; gives its path and the `Original`."""
    from safetensors.torch import save_file

    def write(name, *, metadata=None, marks=()):
        original = make_original(name)
        path = tmp_path / "model.safetensors"
        save_file({**original.state, **{mark: torch.zeros(0) for mark in marks}}, path, metadata=metadata)
        return path, original

    return write


@pytest.fixture(params=KINDS)
def kind(request):
    """The name of each kind in turn."""
    return request.param
