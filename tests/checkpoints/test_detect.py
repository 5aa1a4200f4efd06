import json

import pytest

from webui.checkpoints.detect import detect, identify
from webui.checkpoints.header import read_header
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

UNET = "model.diffusion_model."
VAE_KEYS = [
    "first_stage_model.encoder.conv_in.weight",
    "first_stage_model.encoder.down.0.block.0.conv1.weight",
    "first_stage_model.decoder.conv_in.weight",
    "first_stage_model.decoder.conv_out.weight",
]
TEXT_KEYS = [
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
]
OTHERS = {
    "Playground 2.5": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3), "edm_mean": (4,)},
    "a part of Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x": (4,)},
    "a part of FLUX.1": {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
    "FLUX.2": {"single_stream_modulation.lin.weight": (18432, 6144)},
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "an autoencoder": {"decoder.conv_in.weight": (512, 4, 3, 3)},
    "an upscaler": {"conv_first.weight": (64, 3, 3, 3)},
    "a UNet in diffusers' layout": {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
}


@pytest.mark.parametrize("family", OTHERS)
def test_another_family_is_named(family, tmp_path, write_safetensors):
    path = write_safetensors(tmp_path / "other.safetensors", OTHERS[family])

    with pytest.raises(UnsupportedModel, match=rf"^other\.safetensors looks like {family}"):
        detect(read_header(path))


def test_weights_of_nothing_known_are_told_by_their_first_name(tmp_path, write_safetensors):
    with pytest.raises(UnsupportedModel, match="'spam'"):
        identify(write_safetensors(tmp_path / "a.safetensors", {"spam": (1,)}))


def test_a_file_of_any_width_gets_the_sizes_of_its_weights(tmp_path, write_safetensors, sd1_shapes):
    family, config = identify(write_safetensors(tmp_path / "a.safetensors", sd1_shapes))

    assert family.name == "sd1"
    assert config.native_size == Size(512, 512)
    assert config.prediction_type == "epsilon"
    assert config.scaling_factor == 0.18215
    assert config.unet["block_out_channels"] == [32]
    assert config.unet["attention_head_dim"] == 8
    assert config.latent_to_rgb is not None


def test_metadata_says_the_prediction_and_the_size(tmp_path, write_safetensors, sd1_shapes):
    metadata = {"modelspec.prediction_type": "v", "modelspec.resolution": "768x640"}
    _, config = identify(write_safetensors(tmp_path / "a.safetensors", sd1_shapes, metadata))

    assert config.prediction_type == "v_prediction"
    assert config.native_size == Size(768, 640)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({UNET + "input_blocks.0.0.weight": (32, 11, 3, 3)}, "11 input channels"),
        ({UNET + "input_blocks.1.0.out_layers.3.weight": (20, 20, 3, 3)}, r"other sizes \[20\]"),
        ({UNET + "output_blocks.0.0.out_layers.3.weight": None}, "a level without layers"),
        ({UNET + "out.2.weight": None}, "the UNet needs the weight 'out.2.weight', and the file lacks it"),
        ({UNET + "out.2.weight": (4,)}, r"has it in the size \(4,\)"),
        (dict.fromkeys(VAE_KEYS), "without a VAE"),
        (dict.fromkeys(TEXT_KEYS), "without a text encoder"),
        ({TEXT_KEYS[0]: (1000, 1)}, "knows 1000 tokens"),
    ],
)
def test_an_sd1_file_that_cannot_run_says_why(change, words, tmp_path, write_safetensors, sd1_shapes):
    shapes = {key: shape for key, shape in {**sd1_shapes, **change}.items() if shape}

    with pytest.raises(UnsupportedModel, match=words):
        identify(write_safetensors(tmp_path / "a.safetensors", shapes))


@pytest.mark.parametrize("config", ["{", "[]", '{"unet": 5}', '{"latent_to_rgb": {"weights": 3}}'])
def test_a_damaged_own_configuration_is_told(config, tmp_path, write_safetensors, sd1_shapes):
    with pytest.raises(UnsupportedModel, match=r"^a\.safetensors has"):
        identify(write_safetensors(tmp_path / "a.safetensors", sd1_shapes, {"atelier.config": config}))


def test_an_unknown_prediction_is_told(tmp_path, write_safetensors, sd1_shapes):
    with pytest.raises(UnsupportedModel, match="'flow'"):
        identify(write_safetensors(tmp_path / "a.safetensors", sd1_shapes, {"modelspec.prediction_type": "flow"}))


def diffusers_folder(path, pipeline="StableDiffusionPipeline", **unet):
    config = {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "down_block_types": ["DownBlock2D"],
        "layers_per_block": 2,
        **unet,
    }
    files = {
        "model_index.json": {"_class_name": pipeline, "unet": ["diffusers", "UNet2DConditionModel"]},
        "unet/config.json": config,
        "vae/config.json": {"down_block_types": ["D"] * 4, "layers_per_block": 1, "scaling_factor": 0.5},
        "text_encoder/config.json": {"hidden_size": 768},
        "scheduler/scheduler_config.json": {"prediction_type": "v_prediction", "beta_start": 0.001},
    }
    for name, values in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(values), encoding="utf-8")
    return path


def test_a_diffusers_folder_is_recognised(tmp_path):
    family, config = identify(diffusers_folder(tmp_path / "model"))

    assert family.name == "sd1"
    assert config.native_size == Size(512, 512)
    assert config.prediction_type == "v_prediction"
    assert config.scaling_factor == 0.5
    assert config.scheduler == {"beta_start": 0.001}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline": "FluxFillPipeline"}, "FluxFillPipeline"),
        ({"in_channels": 10}, "10 input channels"),
        ({"sample_size": [64, 64]}, "sample_size"),
    ],
)
def test_a_diffusers_folder_of_another_kind_says_why(changes, words, tmp_path):
    with pytest.raises(UnsupportedModel, match=words):
        identify(diffusers_folder(tmp_path / "model", **changes))


def test_an_incomplete_diffusers_folder_names_the_missing_file(tmp_path):
    path = diffusers_folder(tmp_path / "model")
    (path / "vae" / "config.json").unlink()

    with pytest.raises(UnsupportedModel, match=r"folder model lacks vae/config\.json"):
        identify(path)


def pipeline_folder(path, pipeline, components, **index):
    for name, config in components.items():
        (path / name).mkdir(parents=True)
        (path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    named = {name: ["diffusers", "Anything"] for name in components}
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **named, **index}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("pipeline", "components", "side"),
    [
        ("StableDiffusion3Pipeline", {"transformer": {"sample_size": 64}, "vae": {"block_out_channels": [1] * 4}}, 512),
        ("SanaPipeline", {"transformer": {"sample_size": 32}, "vae": {"encoder_block_out_channels": [1] * 6}}, 1024),
        ("FluxPipeline", {"transformer": {}, "vae": {"block_out_channels": [1] * 4}}, 1024),
        ("QwenImagePipeline", {"transformer": {"sample_size": 10**9}, "vae": {}}, 1024),
        ("Kandinsky3Pipeline", {"unet": {"sample_size": 128}}, 1024),
    ],
)
def test_a_folder_of_a_text_to_image_pipeline_is_recognised(pipeline, components, side, tmp_path):
    family, config = identify(pipeline_folder(tmp_path / "model", pipeline, components))

    assert (family.name, config.pipeline) == ("diffusers", pipeline)
    assert config.native_size == Size(side, side)


def test_a_pipelines_folder_without_a_network_is_refused(tmp_path):
    (tmp_path / "model").mkdir()

    with pytest.raises(UnsupportedModel, match="The folder model names no transformer"):
        identify(pipeline_folder(tmp_path / "model", "FluxPipeline", {}))


def test_a_single_file_of_such_a_family_is_sent_to_its_folder(tmp_path, write_safetensors):
    path = write_safetensors(tmp_path / "flux.safetensors", OTHERS["FLUX.2"])

    with pytest.raises(UnsupportedModel, match=r"looks like FLUX\.2, which runs only from a diffusers folder"):
        detect(read_header(path))
