"""Makes headers/*.json.gz: names, shapes and dtypes of every family's files at their true sizes, without weights.

    PYTHONPATH=. .venv/bin/python tests/checkpoints/families/make_headers.py

The networks are those of diffusers, transformers and open_clip on the meta device, in the published sizes of
published.json; names go through the key maps, which the parity tests hold to diffusers' converters.
"""

import gzip
import json
from pathlib import Path

import torch

from webui.checkpoints import keymap
from webui.hardware import torchvision_operators

HERE = Path(__file__).parent


def text_state(prefix, sizes):
    import open_clip
    from transformers import CLIPTextConfig, CLIPTextModel

    if "hidden_size" in sizes:
        state = CLIPTextModel(CLIPTextConfig(**sizes)).state_dict()
        state["embeddings.position_ids"] = torch.zeros(1, 77, dtype=torch.int64)
    else:
        vision = open_clip.CLIPVisionCfg(layers=1, width=16, head_width=16, patch_size=16, image_size=16)
        state = open_clip.CLIP(sizes["width"], vision, open_clip.CLIPTextCfg(**sizes)).state_dict()
    return {prefix + key: tensor for key, tensor in state.items() if not key.startswith("visual.")}


def module_state(prefix, module, table):
    names = keymap.inverse(table)
    state = {}
    for key, weight in module.state_dict().items():
        if prefix == keymap.VAE_PREFIX and keymap.is_vae_attention_weight(key):
            weight = weight[..., None, None]
        state[f"{prefix}{keymap.translate(key, names)}"] = weight
    return state


def main():
    torchvision_operators.declare()
    from diffusers import AutoencoderKL, UNet2DConditionModel

    (HERE / "headers").mkdir(exist_ok=True)
    for name, model in json.loads((HERE / "published.json").read_text()).items():
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**model["unet"]), AutoencoderKL(**model["vae"])
            state = module_state(
                keymap.UNET_PREFIX, unet, keymap.unet_table(keymap.UNetShape.from_config(model["unet"]))
            )
            state |= module_state(keymap.VAE_PREFIX, vae, keymap.vae_table(keymap.VaeShape.from_config(model["vae"])))
            for prefix, sizes in model["texts"].items():
                state |= text_state(prefix, sizes)
        dtypes = {torch.float32: "F16", torch.int64: "I64"}
        tensors = {key: [dtypes[tensor.dtype], list(tensor.shape)] for key, tensor in state.items()}
        raw = json.dumps(tensors, separators=(",", ":")).encode()
        (HERE / "headers" / f"{name}.json.gz").write_bytes(gzip.compress(raw, 9, mtime=0))


if __name__ == "__main__":
    main()
