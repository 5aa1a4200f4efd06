"""Flow models of a few thousand random numbers, beside the files that would hold them in the original layout."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from webui.checkpoints import keymap
from webui.checkpoints.families.flow import CHROMA, FLUX, SD3
from webui.checkpoints.tokenizer import clip_vocabulary

MODELS = {"sd3": SD3, "flux": FLUX, "chroma": CHROMA}
WORDS = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁circle", "▁blue"]
SLOTS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}


def tokenizer_json(path):
    """A tokenizer of T5's kind with a handful of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.Unigram([(word, -1.0) for word in WORDS], unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path.parent.mkdir(parents=True, exist_ok=True)
    words.save(str(path))
    return path


def clip(width, *, pooled, activation):
    import transformers

    made = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
    return made(
        transformers.CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=1,
            projection_dim=width,
            hidden_act=activation,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )


def t5(width):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=8,
            d_model=width,
            d_kv=4,
            d_ff=20,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )


def vae(diffusers, channels, numbers):
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **numbers,
    )


def transformer(diffusers, name):
    if name == "sd3":
        return diffusers.SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=40,
            caption_projection_dim=16,
            pooled_projection_dim=24,
            pos_embed_max_size=24,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    common = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32}
    common |= {"num_attention_heads": 1, "joint_attention_dim": 24, "axes_dims_rope": (4, 14, 14)}
    if name == "flux":
        return diffusers.FluxTransformer2DModel(**common, pooled_projection_dim=8, guidance_embeds=True)
    small = {"approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 2}
    return diffusers.ChromaTransformer2DModel(**common, **small)


@dataclass
class Tiny:
    """diffusers' pipeline, and its parts in the original layout: the transformer's and the VAE's names without prefix,
    the text encoders' as they are.
    """

    pipeline: Any
    transformer: dict
    vae: dict
    texts: dict

    def whole(self):
        """All of it as one file."""
        parts = {f"model.diffusion_model.{key}": weight for key, weight in self.transformer.items()}
        parts |= {f"first_stage_model.{key}": weight for key, weight in self.vae.items()}
        for name, text in self.texts.items():
            parts |= {f"text_encoders.{SLOTS[name]}.transformer.{key}": weight for key, weight in text.items()}
        return parts


def tiny_model(diffusers, name, words):
    """The tiny pipeline called `name`; `words` is the path of T5's tokenizer."""
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    model = MODELS[name]
    vocabulary, merges = clip_vocabulary()
    widths = {"clip_l": 8, "clip_g": 16, "t5": 40 if name == "sd3" else 24}
    pooled = name == "sd3"
    texts, components = {}, {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        components["transformer"] = transformer(diffusers, name)
        components["vae"] = vae(diffusers, 4, model.vae)
        for component, text in model.texts.items():
            slot = component.replace("text_encoder", "tokenizer")
            if text == "t5":
                texts[text] = t5(widths[text])
                components[slot] = PreTrainedTokenizerFast(
                    tokenizer_file=str(words),
                    pad_token="<pad>",
                    eos_token="</s>",
                    unk_token="<unk>",
                    model_max_length=512,
                )
            else:
                activation = "gelu" if text == "clip_g" else "quick_gelu"
                texts[text] = clip(widths[text], pooled=pooled, activation=activation)
                padding = {"pad_token": "!"} if text == "clip_g" else {}
                components[slot] = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **padding)
            components[component] = texts[text]
        if pooled:
            texts["clip_l"].text_projection.weight.data = torch.eye(widths["clip_l"])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**model.scheduler(components["transformer"].config))
    pipeline = getattr(diffusers, model.pipeline)(scheduler=scheduler, **components)
    pipeline.set_progress_bar_config(disable=True)
    for module in components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    return Tiny(
        pipeline=pipeline,
        transformer=original(components["transformer"], model.names(components["transformer"].config)),
        vae=original_vae(components["vae"]),
        texts={text: plain(module) for text, module in texts.items()},
    )


def original(module, names):
    """The module's weights in the layout that `names` reads: what it cuts is joined, what it swaps swapped back."""
    state, found = module.state_dict(), {}
    norms = ("query_norm", "key_norm")
    for key, targets in names.table.items():
        for parameter in ("", ".weight", ".bias"):
            own = [target + parameter for target in targets]
            if all(name in state for name in own):
                weight = torch.cat([state[name] for name in own])
                if targets[0] in names.swapped:
                    weight = torch.cat(weight.chunk(2)[::-1])
                scale = key.endswith(norms) or ".norms." in key
                found[key + (".scale" if scale else parameter)] = weight
    assert sum(weight.numel() for weight in found.values()) == sum(weight.numel() for weight in state.values())
    return found


def original_vae(module):
    """With the original's names, and its 1×1 convolutions where diffusers has linear layers."""
    table = keymap.inverse(keymap.vae_table(keymap.VaeShape.from_config(module.config)))
    found = {keymap.translate(name, table): weight for name, weight in module.state_dict().items()}
    return {
        name: weight[..., None, None] if ".attn_1." in name and weight.ndim == 2 else weight
        for name, weight in found.items()
    }


def plain(module):
    """A text encoder's weights as its file has them: CLIP's below "text_model.", and nothing twice."""
    state = {key: weight for key, weight in module.state_dict().items() if key != "encoder.embed_tokens.weight"}
    if "shared.weight" in state or any(key.startswith("text_model.") for key in state):
        return state
    return {f"text_model.{key}": weight for key, weight in state.items()}


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """The file of T5's tokenizer."""
    return tokenizer_json(tmp_path_factory.mktemp("words") / "tokenizer.json")


@pytest.fixture(scope="session")
def tiny(words):
    """Makes the tiny model called "sd3", "flux" or "chroma", once each."""
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    import diffusers

    made = {}

    def make(name):
        if name not in made:
            made[name] = tiny_model(diffusers, name, words)
        return made[name]

    return make


@pytest.fixture(scope="session")
def save():
    """Writes weights as safetensors."""
    from safetensors.torch import save_file

    def save(weights, path, metadata=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: weight.contiguous() for key, weight in weights.items()}, path, metadata=metadata)
        return path

    return save


@pytest.fixture(autouse=True)
def offline(no_network):
    """Nothing here asks the network."""


@pytest.fixture
def header_of():
    """The header of a file with all weights of a transformer on the meta device, in the original layout."""
    from webui.checkpoints.header import Header, TensorHeader

    def header_of(module, model):
        weights = original(module, model.names(module.config))
        tensors = {key: TensorHeader("BF16", tuple(weight.shape)) for key, weight in weights.items()}
        return Header(path=Path("model.safetensors"), tensors=tensors, metadata={})

    return header_of


@pytest.fixture
def piece_file():
    """Writes the tokenizer's words as SentencePiece would."""

    def message(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    def write(path):
        pieces = (message(1, word.encode()) + b"\x15" + struct.pack("<f", -1.0) + b"\x18\x01" for word in WORDS)
        path.write_bytes(b"".join(message(1, piece) for piece in pieces) + message(2, b"\x18\x01"))
        return path

    return write
