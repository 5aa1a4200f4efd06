"""Loading against the modules that the file was written from, and against every way in which a file can be wrong."""

import json
import shutil
import weakref

import pytest
import torch

from webui.checkpoints import load as loading
from webui.checkpoints.detect import identify
from webui.checkpoints.load import alphas_cumprod, load_checkpoint
from webui.checkpoints.scan import CheckpointFolder
from webui.core.errors import CheckpointNotFound, UnsupportedModel
from webui.core.geometry import Size
from webui.core.ports import CheckpointInfo
from webui.hardware import torchvision_operators
from webui.hardware.low_bits import FULL, main_kind, pack_layer, pack_weights

CPU = torch.device("cpu")
INFO = CheckpointInfo(name="tiny", family="sd1", native_size=Size(64, 64))
# Loading moves numbers and computes none, so outputs may differ only by the order of additions.
TOLERANCE = 1e-5


def load(path, dtype=torch.float32, **how):
    return load_checkpoint(path, INFO, dtype=dtype, device=CPU, **how)


@pytest.fixture(scope="session")
def networks():
    """Random modules of the built-in model's kind, of half precision's numbers, and their configuration."""
    torchvision_operators.declare()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = {
        "sample_size": 8,
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 2,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    vae = {
        "latent_channels": 4,
        "block_out_channels": [8, 8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.7,
    }
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        modules = (UNet2DConditionModel(**unet), AutoencoderKL(**vae), CLIPTextModel(CLIPTextConfig(**text)))
    for module in modules:
        module.half().float().eval().requires_grad_(False)
    return modules, {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": {}}


@pytest.fixture
def single_file(networks, tmp_path):
    from tools.builtin_model.export import metadata, original_layout, write

    (unet, vae, text), config = networks
    path = tmp_path / "single.safetensors"
    write(path, original_layout(unet, vae, text, config), metadata(config, prediction="epsilon", side=64, title="t"))
    return path


@pytest.fixture
def folder(networks, tmp_path):
    """The modules as diffusers' own `save_pretrained` writes them."""
    from diffusers import DDIMScheduler

    path = tmp_path / "folder"
    names = ("unet", "vae", "text_encoder")
    for name, module in zip(names, networks[0], strict=True):
        module.save_pretrained(path / name)
    DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(path / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@torch.no_grad()
def outputs(unet, vae, text_encoder):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 49408, (2, 77), generator=generator)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = text_encoder(ids).last_hidden_state
    return {
        "text": states,
        "unet": unet(latents, torch.tensor([7, 900]), states).sample,
        "decode": vae.decode(latents).sample,
        "encode": vae.encode(torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1).latent_dist.mean,
    }


def assert_same_pictures(checkpoint, networks):
    got = outputs(checkpoint.unet, checkpoint.vae, checkpoint.text_encoders[0].module)
    wanted = outputs(*networks[0])
    for name, tensor in wanted.items():
        assert (got[name] - tensor).abs().max() <= TOLERANCE, name


def test_a_single_file_gives_the_modules_it_was_written_from(single_file, networks):
    checkpoint = load(single_file)

    assert_same_pictures(checkpoint, networks)
    assert checkpoint.scaling_factor == 0.7
    assert checkpoint.prediction_type == "epsilon"
    assert checkpoint.bytes_by_component.keys() == {"unet", "vae", "text_encoder"}
    assert checkpoint.bytes_by_component["unet"] == 4 * sum(p.numel() for p in networks[0][0].parameters())


def test_a_diffusers_folder_gives_the_modules_it_was_written_from(folder, networks):
    checkpoint = load(folder)

    assert_same_pictures(checkpoint, networks)
    assert checkpoint.prediction_type == "v_prediction"


def test_diffusers_own_single_file_loaders_read_our_file(single_file, networks):
    """The independent check: the same file through diffusers' converters gives the same tensors."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    weights = load_file(single_file)
    (unet, vae, _), config = networks
    converted = (
        (convert_ldm_unet_checkpoint(dict(weights), config["unet"]), unet),
        (convert_ldm_vae_checkpoint(dict(weights), config["vae"]), vae),
    )
    for state, module in converted:
        wanted = module.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key].float(), weight) for key, weight in wanted.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_in_the_asked_precision_ready_to_run(tiny_file, dtype):
    checkpoint = load(tiny_file, dtype)

    for module in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoders[0].module):
        assert not module.training
        assert all(weight.dtype == dtype and not weight.requires_grad for weight in module.parameters())
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_a_loaded_checkpoint_outlives_its_file(tiny_file):
    """Overwriting a mapped file in place would kill the process, so nothing stays mapped."""
    checkpoint = load(tiny_file, torch.float16)
    before = checkpoint.unet.conv_in.weight.clone()

    tiny_file.write_bytes(b"")

    assert torch.equal(checkpoint.unet.conv_in.weight, before)


def test_the_tiny_checkpoint_says_what_its_metadata_says(tiny_checkpoint):
    catalogue = CheckpointFolder(tiny_checkpoint)
    checkpoint = load_checkpoint(catalogue.path(""), catalogue.checkpoint(""), dtype=torch.float32, device=CPU)

    assert checkpoint.info.name == "tiny-random"
    assert checkpoint.prediction_type == "v_prediction"
    assert checkpoint.scaling_factor == 0.9
    assert checkpoint.latent_to_rgb is not None
    weights, bias = checkpoint.latent_to_rgb
    assert weights[0] == (0.3, 0.2, 0.2)
    assert bias == (0.0, 0.1, -0.1)


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
def test_noise_levels_are_those_of_diffusers(schedule):
    """diffusers sums in float32, over a thousand factors: hence 1e-5."""
    torchvision_operators.declare()
    from diffusers import DDIMScheduler

    values = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": schedule, "num_train_timesteps": 1000}
    got = alphas_cumprod(values)

    assert got.dtype == torch.float64
    assert torch.allclose(got, DDIMScheduler(**values).alphas_cumprod.double(), atol=1e-5, rtol=0)


def test_an_unknown_schedule_is_told():
    with pytest.raises(UnsupportedModel, match="squaredcos"):
        alphas_cumprod({"beta_schedule": "squaredcos_cap_v2"})


def rewrite(path, change):
    """Changes the weights of a file by `change(state)`, keeping its metadata."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    state = {key: weight.clone() for key, weight in state.items()}
    change(state)
    save_file(state, path, metadata=metadata)


CONV = "model.diffusion_model.input_blocks.0.0.weight"
TEXT = "cond_stage_model.transformer."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("model.diffusion_model.out.0.weight"), r"unet of tiny.* lacks 1 weights, 'conv_norm"),
        (lambda state: state.pop("first_stage_model.decoder.conv_in.bias"), "vae of tiny.* lacks"),
        (lambda state: state.pop(TEXT + "text_model.final_layer_norm.bias"), "text encoder of tiny.* lacks"),
        (lambda state: state.update({"model.diffusion_model.spam": torch.zeros(1)}), "'model.diffusion_model.spam'"),
        (lambda state: state.update({CONV: torch.zeros(16, 4, 1, 1)}), r"\(16, 4, 1, 1\) instead of \(16, 4, 3, 3\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tiny_file, change, words):
    rewrite(tiny_file, change)

    with pytest.raises(UnsupportedModel, match=words):
        load(tiny_file)


def test_what_trainers_leave_in_files_is_no_harm(tiny_file):
    extra = {
        TEXT + "text_model.embeddings.position_ids": torch.arange(77)[None],
        "first_stage_model.loss.logvar": torch.zeros(1),
        "model_ema.decay": torch.zeros(1),
        "alphas_cumprod": torch.zeros(1000),
    }
    rewrite(tiny_file, lambda state: state.update(extra))

    load(tiny_file)


def test_the_text_models_shorter_prefix_is_read(tiny_file):
    wanted = load(tiny_file).text_encoders[0].module.state_dict()

    def shorten(state):
        for key in [key for key in state if key.startswith(TEXT)]:
            state[key.replace("text_model.", "")] = state.pop(key)

    rewrite(tiny_file, shorten)

    got = load(tiny_file).text_encoders[0].module.state_dict()
    assert all(torch.equal(got[key], weight) for key, weight in wanted.items())


def test_an_autoencoder_from_before_diffusers_0_17_is_read(folder, networks):
    modern = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for new, old in modern.items():
            for key in [key for key in state if f"attentions.0.{new}." in key]:
                state[key.replace(new, old)] = state.pop(key)

    rewrite(folder / "vae" / "diffusion_pytorch_model.safetensors", rename)

    assert_same_pictures(load(folder), networks)


def test_half_precision_and_split_weights_of_a_folder_are_found(folder, networks):
    from safetensors.torch import load_file, save_file

    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    names = sorted(state)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / "unet" / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    del state
    whole.unlink()

    assert_same_pictures(load(folder), networks)

    (folder / "unet" / "part-2.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="unet of folder cannot be read"):
        load(folder)


def test_a_folder_without_some_weights_is_told(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()

    with pytest.raises(UnsupportedModel, match="vae of folder cannot be read: vae holds no weights"):
        load(folder)


def test_a_configuration_that_makes_no_model_is_told(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_num_groups": 5}))

    with pytest.raises(UnsupportedModel, match="makes no model"):
        load(folder)


def test_a_file_that_went_away_is_told(tmp_path):
    with pytest.raises(CheckpointNotFound, match="'tiny' is no longer at"):
        load(tmp_path / "gone.safetensors")


def test_a_folder_in_the_models_folder_is_listed_and_loaded(folder, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(folder, models / "Stable-diffusion" / "mine")
    catalogue = CheckpointFolder(models)

    assert identify(catalogue.path("mine"))[0].name == "sd1"
    assert load_checkpoint(
        catalogue.path("mine"), catalogue.checkpoint("mine"), dtype=torch.float32, device=CPU
    ).info.native_size == Size(64, 64)


def test_weights_are_packed_one_after_another_as_they_are_read(single_file, monkeypatch):
    """None lies in full beside the next, memory is given back on the way, and they are those of the whole network."""
    dense, given_back = [], []

    def pack(network, parameter, weight, format_name):
        assert not any(earlier() is not None for earlier in dense)
        dense.append(weakref.ref(weight))
        return pack_layer(network, parameter, weight, format_name)

    wanted = load(single_file).unet
    pack_weights(wanted, "int8")
    monkeypatch.setattr(loading, "pack_layer", pack)
    monkeypatch.setattr(loading, "WINDOW_BYTES", 10_000)
    monkeypatch.setattr(loading, "give_back", given_back.append)
    loaded = load(single_file, weights="int8")

    got = loaded.unet.state_dict()
    for key, weight in wanted.state_dict().items():
        assert torch.equal(weight.view(-1).view(torch.uint8), got[key].view(-1).view(torch.uint8)), key
    assert len(dense) > 20
    assert len(given_back) > 3
    assert main_kind(loaded.unet) == "int8"
    assert main_kind(loaded.vae) == FULL
