"""A flow model in one file → diffusers' pipeline: transformer, autoencoder, text encoders, tokenizers and scheduler.

Modules are made without memory and take their weights as those of other checkpoints do, so that a missing, surplus or
damaged weight is refused by name. (diffusers' own single-file code passes over them, and knows no width but the
published one.) Nothing is fetched: what the file does not bring must lie in the models folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from webui.checkpoints import keymap
from webui.checkpoints.families import sizes
from webui.checkpoints.families.flow import PREFIXES, FlowModel, TextName, flow_model
from webui.checkpoints.families.sizes import Part
from webui.checkpoints.flow_names import Names, t5_name
from webui.checkpoints.header import Header
from webui.checkpoints.load import fill
from webui.checkpoints.sentencepiece_model import read_pieces
from webui.checkpoints.single_pipeline_parts import Parts, Source, find_parts
from webui.checkpoints.tokenizer import clip_vocabulary
from webui.checkpoints.weights import Stored, Weights, dense, open_weights
from webui.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

WITHOUT_T5 = (
    "The text encoder T5-XXL or its tokenizer (spiece.model) is not in models/text_encoder, so the words go through"
    " both CLIPs alone; with it, pictures follow long texts better."
)
# Comfy's fp8 files keep numbers that are to be multiplied by a factor of their own, and remarks for its kernels.
_FACTOR = ".scale_weight"
_REMARKS = ("scaled_fp8", ".scale_input", _FACTOR)
_CLIP_LENGTH, _T5_LENGTH = 77, 512
_CLIP_SURPLUS = ("embeddings.position_ids", "logit_scale")
_VAE_SURPLUS = ("loss.", "model_ema.")
_UNMAKEABLE = (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, RuntimeError, AttributeError)

Rename = Callable[[str, Stored], Iterator[tuple[str, Stored]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """How weights are read for one pipeline; `files` are open until all of them are copied.

    Those of its network lie in the format `weights` (see `webui.checkpoints.load.fill`).
    """

    name: str
    dtype: torch.dtype
    weights: str
    conversions: Path | None
    files: ExitStack
    opened: dict[Path, Weights]

    def fill(
        self, make: Callable[[], nn.Module], source: Source, rename: Rename, what: str, *, packs: bool = False
    ) -> nn.Module:
        """What `make` makes, with the weights of `source` under the names that `rename` gives them.

        Where it `packs`, they may lie in few bits.
        """
        from accelerate import init_empty_weights

        path = source.header.path
        if path not in self.opened:
            self.opened[path] = self.files.enter_context(open_weights(path, conversions=self.conversions))
        try:
            with init_empty_weights(include_buffers=False):
                module = make()
        except _UNMAKEABLE as error:
            raise UnsupportedModel(f"{path.name} has sizes that make no model for its {what}: {error}.") from error
        fill(
            module,
            (pair for key, weight in _plain(self.opened[path], source.prefix) for pair in rename(key, weight)),
            dtype=self.dtype,
            device=torch.device("cpu"),
            what=f"{what} of {path.name}",
            weights=self.weights if packs else None,
        )
        return module


def load_single_pipeline(
    header: Header, *, dtype: torch.dtype, models: Path, conversions: Path | None, weights: str
) -> tuple[DiffusionPipeline, tuple[str, ...]]:
    """The pipeline of the flow model in the file with `header`, in `dtype` in main memory; what people should know.

    The weights of its transformer and of T5 lie in the format `weights` (see `webui.checkpoints.load.fill`). Raises
    `UnsupportedModel` where parts are missing, damaged or do not fit each other.
    """
    import diffusers
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    model = flow_model(header)
    if model is None:
        raise UnsupportedModel(f"{header.path.name} has changed into another model; reload the list of models.")
    config = model.config(header)
    parts = find_parts(model, config, header, models)
    with ExitStack() as files:
        load = _Load(
            name=header.path.name, dtype=dtype, weights=weights, conversions=conversions, files=files, opened={}
        )
        components: dict[str, Any] = {
            "transformer": _transformer(load, model, config, header),
            "vae": _vae(load, model, parts.vae),
            "scheduler": FlowMatchEulerDiscreteScheduler(**model.scheduler(config)),
            **_texts(load, model, parts),
        }
    pipeline = getattr(diffusers, model.pipeline)(**components)
    used = {source.header.path.name for source in (parts.vae, *parts.texts.values())} - {header.path.name}
    logger.info("%s takes %s from beside it", header.path.name, ", ".join(sorted(used)) or "nothing")
    return pipeline, (WITHOUT_T5,) if "t5" in model.optional and "t5" not in parts.texts else ()


def _plain(weights: Weights, prefix: str) -> Iterator[tuple[str, Stored]]:
    """The weights below `prefix`, those of 8 bits with a factor of their own multiplied by it."""
    tensors = weights.header.tensors
    for key in tensors:
        if not key.startswith(prefix) or key.endswith(_REMARKS):
            continue
        factor = key.removesuffix(".weight") + _FACTOR
        if factor in tensors:
            yield key[len(prefix) :], weights.tensor(key).float() * weights.tensor(factor).float()
        else:
            yield key[len(prefix) :], weights.stored(key)


# ----------------------------------------------------------------------------------------- transformer and autoencoder


def _transformer(load: _Load, model: FlowModel, config: Mapping[str, Any], header: Header) -> nn.Module:
    import diffusers

    made = getattr(diffusers, model.transformer)
    expected: dict[str, int] = {}

    def make() -> nn.Module:
        module = made(**config)
        expected.update((name, weight.shape[0]) for name, weight in module.state_dict().items() if weight.ndim)
        return module

    prefix = next(prefix for prefix in PREFIXES if header.has(prefix))
    source = Source(header=header, prefix=prefix)
    return load.fill(make, source, _by_rows(model.names(config), expected), "transformer", packs=True)


def _by_rows(names: Names, expected: Mapping[str, int]) -> Rename:
    def rename(key: str, weight: Stored) -> Iterator[tuple[str, Stored]]:
        targets, swapped = names.own(key)
        if swapped:
            shift, scale = dense(weight).chunk(2)
            weight = torch.cat([scale, shift])
        rows = [expected.get(target, 0) for target in targets]
        if len(targets) == 1 or sum(rows) != weight.shape[0]:
            yield targets[0], weight
        else:
            yield from zip(targets, weight.split(rows), strict=True)

    return rename


def _vae(load: _Load, model: FlowModel, source: Source) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    found = _vae_sizes(source.part("an autoencoder (VAE)"))
    quantised = f"{source.prefix}quant_conv.weight" in source.header.tensors
    config = {
        "norm_num_groups": min(32, *found["block_out_channels"]),
        "use_quant_conv": quantised,
        "use_post_quant_conv": quantised,
        **found,
        **model.vae,
    }
    table = keymap.vae_table(keymap.VaeShape.from_config(config))

    def rename(key: str, weight: Stored) -> Iterator[tuple[str, Stored]]:
        if not key.startswith(_VAE_SURPLUS):
            yield keymap.translate(key, table) or keymap.modern_vae_key(key), weight

    return load.fill(lambda: cast("nn.Module", AutoencoderKL(**config)), source, rename, "VAE")


def _vae_sizes(part: Part) -> dict[str, Any]:
    """As `sizes.vae_sizes`, also where the names are diffusers'."""
    levels = part.numbers(r"encoder\.down_blocks\.(\d+)\.")
    if not levels:
        return sizes.vae_sizes(part)
    return {
        "in_channels": part.shape("encoder.conv_in.weight", 4)[1],
        "out_channels": part.shape("decoder.conv_out.weight", 4)[0],
        "latent_channels": part.shape("decoder.conv_in.weight", 4)[1],
        "block_out_channels": [part.shape(f"encoder.down_blocks.{n}.resnets.0.conv1.weight", 4)[0] for n in levels],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": len(part.numbers(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
    }


# -------------------------------------------------------------------------------------------------------- text encoders


def _texts(load: _Load, model: FlowModel, parts: Parts) -> dict[str, Any]:
    """Text encoders and tokenizers by the names that the pipeline gives them, None for what may be missing."""
    components: dict[str, Any] = {}
    for component, name in model.texts.items():
        tokenizer = component.replace("text_encoder", "tokenizer")
        source = parts.texts.get(name)
        if source is None:
            components |= {component: None, tokenizer: None}
        elif name == "t5":
            words = _t5_tokenizer(cast("Path", parts.t5_tokenizer))
            components |= {component: _t5(load, source, len(words)), tokenizer: words}
        else:
            pooled = "clip_g" in model.texts.values()
            components |= {component: _clip(load, source, name, pooled=pooled), tokenizer: _clip_tokenizer(name)}
    return components


def _clip(load: _Load, source: Source, name: TextName, *, pooled: bool) -> nn.Module:
    """CLIP's text model; a pooled one has a projection, which for CLIP-L changes nothing (sd3-ref leaves it out)."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    inside = Source(header=source.header, prefix=f"{source.prefix}text_model.")
    found = sizes.clip_sizes(inside.part("a text encoder"))
    if name == "clip_g":
        found["hidden_act"] = "gelu"
    config = CLIPTextConfig(**sizes.checked_text(found, source.header.path.name))
    made = CLIPTextModelWithProjection if pooled else CLIPTextModel
    projects = pooled and name == "clip_g"
    expected: set[str] = set()

    def make() -> nn.Module:
        module = made(config)
        expected.update(module.state_dict())
        return module

    def rename(key: str, weight: Stored) -> Iterator[tuple[str, Stored]]:
        plain = key.removeprefix("text_model.")
        if plain.startswith(_CLIP_SURPLUS) or (plain.startswith("text_projection") and not projects):
            return
        if plain == "embeddings.token_embedding.weight" and pooled and not projects:
            yield "text_projection.weight", torch.eye(weight.shape[1])
        yield (plain if plain in expected else key), weight

    return load.fill(make, source, rename, f"text encoder {name}")


def _clip_tokenizer(name: TextName) -> object:
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    padding = {"pad_token": "!"} if name == "clip_g" else {}
    return CLIPTokenizer(vocab=vocabulary, merges=cast("list[str]", merges), model_max_length=_CLIP_LENGTH, **padding)


def _t5(load: _Load, source: Source, words: int) -> nn.Module:
    """T5's encoder, version 1.1: gated."""
    from transformers import T5Config, T5EncoderModel

    part = _t5_part(source)
    rows, width = part.shape("shared.weight", 2)
    if rows < words:
        raise UnsupportedModel(
            f"{source.header.path.name} knows {rows} tokens and the tokenizer beside it has {words}; take T5's own."
        )
    first = "encoder.block.0.layer"
    buckets, heads = part.shape(f"{first}.0.SelfAttention.relative_attention_bias.weight", 2)
    config = T5Config(
        vocab_size=rows,
        d_model=width,
        d_kv=part.shape(f"{first}.0.SelfAttention.q.weight", 2)[0] // heads,
        d_ff=part.shape(f"{first}.1.DenseReluDense.wi_0.weight", 2)[0],
        num_layers=len(part.numbers(r"encoder\.block\.(\d+)\.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )

    def rename(key: str, weight: Stored) -> Iterator[tuple[str, Stored]]:
        name = t5_name(key)
        if name == "shared.weight":
            yield "encoder.embed_tokens.weight", weight
        if name != "encoder.embed_tokens.weight":
            yield name, weight

    module = load.fill(lambda: T5EncoderModel(config), source, rename, "text encoder t5", packs=True)
    cast("T5EncoderModel", module).tie_weights()
    if load.dtype == torch.float16:
        for layer in (layer for name, layer in module.named_modules() if name.endswith(".wo")):
            layer.float()  # its sums overflow half precision, so transformers too keeps it wide
    return module


def _t5_part(source: Source) -> Part:
    """The shapes under transformers' names, whatever the file calls them."""
    header = source.header
    own = {
        t5_name(key[len(source.prefix) :]): tensor
        for key, tensor in header.tensors.items()
        if key.startswith(source.prefix)
    }
    return Part(Header(path=header.path, tensors=own, metadata={}), "", what="the text encoder T5")


def _t5_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_from_pieces(path) if path.suffix.lower() == ".model" else Tokenizer.from_file(str(path)),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=_T5_LENGTH,
    )


def _from_pieces(path: Path) -> Tokenizer:
    """T5's tokenizer out of SentencePiece's own file: words begin with a mark, and a text ends with "</s>"."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    found = read_pieces(path)
    pieces = list(found.pieces)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=[piece for piece, _ in pieces].index("<unk>")))
    if found.characters:
        tokenizer.normalizer = normalizers.Precompiled(found.characters)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    end = [piece for piece, _ in pieces].index("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return tokenizer
