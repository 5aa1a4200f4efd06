"""A file on disk → modules with weights: the only place where weights are read.

Modules are made without memory ("meta" device) and take their weights from memory-mapped files, so that loading needs
the size of the weights once. Nothing is ever downloaded and no pickle is opened here (see `webui.checkpoints.weights`).
What does not fit exactly is refused: a model with a missing or a surplus weight paints pictures that nobody meant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from webui.checkpoints import keymap
from webui.checkpoints.completion import borrowed_notices, complete_header
from webui.checkpoints.containers.shards import INDEX_SUFFIX
from webui.checkpoints.detect import identify
from webui.checkpoints.families.base import ComponentLayout, Family, ModelConfig, TextEncoderConfig
from webui.checkpoints.load_depth import FOLDER as DEPTH_FOLDER
from webui.checkpoints.load_depth import file_depth, folder_depth
from webui.checkpoints.loaded import LoadedCheckpoint, TextEncoder
from webui.checkpoints.modules import empty_modules
from webui.checkpoints.prediction import measured_prediction
from webui.checkpoints.tokenizer import ClipTokenizer
from webui.checkpoints.weights import WINDOW_BYTES, Stored, Weights, dense, open_weights, refuse_nan
from webui.core.errors import CheckpointNotFound, UnsupportedModel
from webui.core.ports import CheckpointInfo
from webui.hardware.gguf_blocks import Blocks
from webui.hardware.low_bits import FULL, can_be_packed, keep_blocks, pack_layer
from webui.hardware.memory import give_back

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, DPTForDepthEstimation

logger = logging.getLogger(__name__)

# The names under which diffusers and transformers save weights, best first; ".index.json" lists the shards.
_FOLDER_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16")
_ENDINGS = (".safetensors", INDEX_SUFFIX, ".bin")


def load_checkpoint(
    path: Path,
    info: CheckpointInfo,
    *,
    dtype: torch.dtype,
    device: torch.device,
    conversions: Path | None = None,
    unet_dtype: torch.dtype | None = None,
    weights: str = FULL,
) -> LoadedCheckpoint:
    """Loads the single file or diffusers folder at `path` in `dtype` on `device`, the UNet in `unet_dtype` if given.

    The UNet's weights lie in the format `weights`, see `fill`. Pickles are converted on the way, and kept in the folder
    `conversions` for the next time if there is one. Raises `UnsupportedModel` when the weights are damaged or do not
    fit the architecture, `CheckpointNotFound` when the file is gone.
    """
    started = time.monotonic()
    if not path.exists():
        raise CheckpointNotFound(f"The checkpoint {info.name!r} is no longer at {path}; reload the list of models.")
    family, config = identify(path)
    if not isinstance(family, Family) or not isinstance(config, ModelConfig):
        raise UnsupportedModel(
            f"{info.name!r} runs through its own pipeline, from words alone; choose another checkpoint."
        )
    modules = empty_modules(config, path.name)
    layouts = family.layout(config)
    with ExitStack() as stack:
        header = None if path.is_dir() else complete_header(path)
        file = header and stack.enter_context(open_weights(path, conversions=conversions, header=header))
        for component, module in modules.items():
            if file is None:
                stored = _folder_weights(path, component, module.state_dict().keys(), conversions)
            else:
                stored = _file_weights(file, layouts[component])
            is_unet = component == "unet"
            fill(
                module,
                stored,
                dtype=(unet_dtype or dtype) if is_unet else dtype,
                device=device,
                what=f"{component.replace('_', ' ')} of {path.name}",
                weights=weights if is_unet else None,
            )
        depth = _depth(path, file, conversions) if config.input == "depth" else None
    logger.info("Loaded %s (%s) in %.1f s", info.name, family.title, time.monotonic() - started)
    alphas = alphas_cumprod(config.scheduler, zero_terminal_snr=config.zero_terminal_snr)
    unet = cast("UNet2DConditionModel", modules["unet"])
    return LoadedCheckpoint(
        info=info,
        family=family.name,
        prediction_type=config.prediction_type or measured_prediction(unet, len(alphas) - 1),
        alphas_cumprod=alphas,
        zero_terminal_snr=config.zero_terminal_snr,
        conditioning=config.conditioning,
        input=config.input,
        text_encoders=tuple(_text_encoder(text, modules[text.component]) for text in config.text_encoders),
        unet=unet,
        vae=cast("AutoencoderKL", modules["vae"]),
        scaling_factor=config.scaling_factor,
        latent_to_rgb=config.latent_to_rgb,
        depth=depth,
        notices=() if header is None else borrowed_notices(header),
        bytes_by_component={
            component: sum(weight.nbytes for weight in module.parameters()) for component, module in modules.items()
        },
    )


def _depth(path: Path, file: Weights | None, conversions: Path | None) -> DPTForDepthEstimation | None:
    def give(module: nn.Module, weights: Iterator[tuple[str, Stored]]) -> None:
        fill(module, weights, dtype=torch.float32, device=torch.device("cpu"), what=f"depth network of {path.name}")

    if file is not None:
        return file_depth(file, give)
    return folder_depth(path, lambda: _folder_weights(path, DEPTH_FOLDER, (), conversions), give)


def _text_encoder(text: TextEncoderConfig, module: nn.Module) -> TextEncoder:
    return TextEncoder(
        name=text.name,
        module=cast("CLIPTextModel | CLIPTextModelWithProjection", module),
        tokenizer=ClipTokenizer(pad_token=text.pad_token),
        pad_token=text.pad_token,
        layer=text.layer,
        final_norm=text.final_norm,
        pooled=text.pooled,
    )


def alphas_cumprod(scheduler: Mapping[str, Any], *, zero_terminal_snr: bool = False) -> Tensor:
    """The products ᾱ_t of DDPM's 1 - β_t (arXiv 2006.11239, section 2): (T,) float64 on the CPU, falling with t.

    "scaled_linear" is Stable Diffusion's schedule, linear in the square root of β. Raises `UnsupportedModel` for a
    schedule that is neither that nor "linear". With `zero_terminal_snr` the roots are shifted and scaled so that the
    first stays and the last is 0 (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    """
    kind = scheduler.get("beta_schedule", "scaled_linear")
    start, end = float(scheduler.get("beta_start", 0.00085)), float(scheduler.get("beta_end", 0.012))
    steps = int(scheduler.get("num_train_timesteps", 1000))
    if kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise UnsupportedModel(f"The noise schedule {kind!r} is not known; Atelier knows scaled_linear and linear.")
    alphas = (1 - betas).cumprod(0)
    if not zero_terminal_snr:
        return alphas
    roots = alphas.sqrt()
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2


def fill(
    module: nn.Module,
    stored: Iterator[tuple[str, Stored]],
    *,
    dtype: torch.dtype,
    device: torch.device,
    what: str,
    weights: str | None = None,
) -> None:
    """Gives `module` the weights that are `stored`, in `dtype` on `device`, and makes it ready to run.

    Those of the layers of its blocks are packed in the format `weights` as they come (see `webui.hardware.low_bits`):
    at no time is there more than one of them in full. `FULL` leaves those that come in blocks as they are; with None,
    all are widened. Raises `UnsupportedModel` naming the weight that does not fit, is missing, or is not finite.
    """
    expected = {name: weight.shape for name, weight in module.state_dict().items()}
    missing = dict.fromkeys(expected)
    state: dict[str, Tensor] = {}
    dropped = 0  # bytes, since they were last given back
    for name, weight in stored:
        fitting = _fitting(weight, name, expected, what)
        missing.pop(name, None)
        packs = weights is not None and can_be_packed(module, name)
        if isinstance(fitting, Blocks) and packs and weights == FULL:
            refuse_nan(fitting, name, what)
            keep_blocks(module, name, fitting.to(device), dtype=dtype)
            continue
        # A copy even where nothing changes: a mapped file that is overwritten would take the program with it.
        own = dense(fitting).to(device=device, dtype=dtype, copy=True)
        refuse_nan(own, name, what)
        if not (weights is not None and packs and pack_layer(module, name, own, weights)):
            state[name] = own
            continue
        dropped += own.nbytes
        if dropped > WINDOW_BYTES:
            # What is kept lies between what was dropped, so that the allocator would keep that too.
            give_back(device)
            dropped = 0
    if missing:
        raise UnsupportedModel(
            f"The {what} lacks {len(missing)} weights, {next(iter(missing))!r} first; download it again."
        )
    module.load_state_dict(state, assign=True, strict=False)  # what is packed is there already
    module.requires_grad_(False).eval().to(device)


def _fitting(weight: Stored, name: str, expected: Mapping[str, torch.Size], what: str) -> Stored:
    """`weight` in the shape that the module has for it; raises `UnsupportedModel` where it has none, or another."""
    if name not in expected:
        raise UnsupportedModel(f"The {what} has the weight {name!r}, which the architecture lacks.")
    wanted = expected[name]
    if len(weight.shape) == 4 and (*wanted, 1, 1) == tuple(weight.shape):
        return weight.reshape(wanted)  # the original's 1×1 convolution
    if tuple(weight.shape) != tuple(wanted):
        sizes = f"{tuple(weight.shape)} instead of {tuple(wanted)}"
        raise UnsupportedModel(f"The {what} has the weight {name!r} in the size {sizes}.")
    return weight


def _file_weights(file: Weights, layout: ComponentLayout) -> Iterator[tuple[str, Stored]]:
    """One component's weights in a single file, under the module's own names."""
    prefix = next(prefix for prefix in layout.prefixes if file.header.has(prefix))
    for key in file.header.tensors:
        if key.startswith(prefix) and not key.startswith(layout.surplus, len(prefix)):
            yield from _apart(_own_name(key, prefix, layout), file.stored(key))


def _apart(name: str, weight: Stored) -> Iterator[tuple[str, Stored]]:
    """The weights of transformers' text model in one of open_clip's, mostly itself."""
    if keymap.PACKED in name:
        for part, rows in zip("qkv", dense(weight).chunk(3), strict=True):
            yield name.replace(keymap.PACKED, f".{part}_proj."), rows
    elif name == keymap.TRANSPOSED:
        yield f"{name}.weight", dense(weight).T.contiguous()
    else:
        yield name, weight


def _own_name(key: str, prefix: str, layout: ComponentLayout) -> str:
    own = keymap.translate(key[len(prefix) :], layout.table)
    return key if own is None else own  # an unknown key goes on under its whole name, to be refused by it


def _folder_weights(
    path: Path, component: str, expected: Collection[str], conversions: Path | None
) -> Iterator[tuple[str, Tensor]]:
    """One component's weights in a diffusers folder, under the module's own names of today."""
    try:
        with open_weights(_weight_file(path, component), conversions=conversions) as file:
            for key in file.header.tensors:
                name = _folder_name(key, component, expected)
                if not name.endswith("embeddings.position_ids"):
                    yield name, file.tensor(key)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"The {component.replace('_', ' ')} of {path.name} cannot be read: {error}") from error


def _folder_name(key: str, component: str, expected: Collection[str]) -> str:
    """The module's own name for a weight, which other versions of the libraries call otherwise."""
    if component == "vae":
        return keymap.modern_vae_key(key)
    plain = key.removeprefix("text_model.")
    return plain if plain in expected else key


def _weight_file(path: Path, component: str) -> Path:
    """The file with one component's weights, or the index of its shards."""
    for ending in _ENDINGS:
        for stem in (name + variant for variant in _VARIANTS for name in _FOLDER_WEIGHTS):
            file = path / component / f"{stem}{ending}"
            if file.is_file():
                return file
    raise UnsupportedModel(f"{component} holds no weights; copy the whole model again.")
