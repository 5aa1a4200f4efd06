"""Descriptors read from weightless files of the true sizes (headers/, made by make_headers.py) and from folders."""

import gzip
import json
import math
from pathlib import Path

import pytest

from webui.checkpoints import keymap
from webui.checkpoints.detect import detect, identify
from webui.checkpoints.header import Header, TensorHeader
from webui.core.errors import UnsupportedModel
from webui.core.geometry import Size

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
CONV_IN = keymap.UNET_PREFIX + "input_blocks.0.0.weight"


@pytest.fixture(scope="session")
def tensors():
    """The tensors of each published file."""

    def read(name):
        values = json.loads(gzip.decompress((HERE / "headers" / f"{name}.json.gz").read_bytes()))
        return {key: TensorHeader(dtype, tuple(shape)) for key, (dtype, shape) in values.items()}

    return {name: read(name) for name in PUBLISHED}


def described(tensors, tmp_path, **metadata):
    header = Header(path=tmp_path / "model.safetensors", tensors=tensors, metadata=metadata)
    family = detect(header)
    return family, family.config(header)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_gives_the_published_configuration(name, tensors, tmp_path):
    published, expected = PUBLISHED[name], PUBLISHED[name]["expected"]

    family, config = described(tensors[name], tmp_path)

    assert {key: config.unet.get(key) for key in published["unet"]} == published["unet"]
    assert config.unet.get("mid_block_type") == "UNetMidBlock2DCrossAttn"
    assert {key: config.vae.get(key) for key in published["vae"]} == published["vae"]
    assert config.scaling_factor == published["vae"]["scaling_factor"]
    assert {
        "family": family.name,
        "prediction_type": config.prediction_type,
        "side": config.native_size.width,
        "input": config.input,
        "conditioning": config.conditioning,
    } == {key: value for key, value in expected.items() if key != "weights"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_of_a_published_file_has_its_place(name, tensors, tmp_path):
    family, config = described(tensors[name], tmp_path)

    for layout in family.layout(config).values():
        prefix = layout.prefixes[0]
        keys = [key[len(prefix) :] for key in tensors[name] if key.startswith(prefix)]
        used = [key for key in keys if not key.startswith(layout.surplus)] if layout.surplus else keys
        assert len(used) > 100
        assert None not in {keymap.translate(key, layout.table) for key in used}


def test_files_have_the_published_numbers_of_weights(tensors):
    """2515 tensors is sd_xl_base_1.0.safetensors; 686 and 248 are the UNet's and the VAE's of v1-5-pruned-emaonly."""
    assert len(tensors["sdxl"]) == 2515
    assert sum(key.startswith(keymap.UNET_PREFIX) for key in tensors["sd1"]) == 686
    assert sum(key.startswith(keymap.VAE_PREFIX) for key in tensors["sd1"]) == 248
    prefixes = {"unet": keymap.UNET_PREFIX, "vae": keymap.VAE_PREFIX}
    for name, model in PUBLISHED.items():
        for part, count in model["expected"]["weights"].items():
            shapes = (tensor.shape for key, tensor in tensors[name].items() if key.startswith(prefixes[part]))
            assert sum(math.prod(shape) for shape in shapes) == count


def test_text_encoders_have_the_published_sizes(tensors, tmp_path):
    sizes = {}
    for name in PUBLISHED:
        _, config = described(tensors[name], tmp_path)
        for text in config.text_encoders:
            values = text.config
            sizes[name, text.name] = (
                values["hidden_size"],
                values["num_hidden_layers"],
                values["num_attention_heads"],
                values["projection_dim"],
                values["hidden_act"],
            )

    assert sizes == {
        ("sd1", "clip_l"): (768, 12, 12, 768, "quick_gelu"),
        ("sd2", "clip_h"): (1024, 23, 16, 1024, "gelu"),
        ("x4-upscaler", "clip_h"): (1024, 23, 16, 1024, "gelu"),
        ("sdxl", "clip_l"): (768, 12, 12, 768, "quick_gelu"),
        ("sdxl", "clip_g"): (1280, 32, 20, 1280, "gelu"),
        ("sdxl-refiner", "clip_g"): (1280, 32, 20, 1280, "gelu"),
    }


@pytest.mark.parametrize(
    ("name", "channels", "wanted"),
    [
        ("sd1", 9, "inpaint"),
        ("sd1", 8, "edit"),
        ("sd2", 9, "inpaint"),
        ("sd2", 5, "depth"),
        ("sdxl", 9, "inpaint"),
        ("sdxl", 8, "edit"),
    ],
)
def test_the_first_convolution_tells_what_it_takes(name, channels, wanted, tensors, tmp_path):
    out, _, *kernel = tensors[name][CONV_IN].shape
    conv_in = TensorHeader("F16", (out, channels, *kernel))

    family, config = described({**tensors[name], CONV_IN: conv_in}, tmp_path)

    assert (family.name, config.input, config.prediction_type) == (name, wanted, "epsilon")
    assert config.native_size == Size(1024, 1024) if name == "sdxl" else Size(512, 512)


def test_a_v_prediction_mark_is_believed(tensors, tmp_path):
    marks = {"v_pred": TensorHeader("F32", (0,)), "ztsnr": TensorHeader("F32", (0,))}

    _, config = described({**tensors["sdxl"], **marks}, tmp_path)

    assert (config.prediction_type, config.zero_terminal_snr) == ("v_prediction", True)


def test_layers_that_a_distilled_xl_left_out_are_read(tensors, tmp_path):
    """As in Segmind's SSD-1B: no attention in the middle, fewer transformers, not as many in each layer."""

    def kept(key):
        deep = ".transformer_blocks."
        if not key.startswith(keymap.UNET_PREFIX) or deep not in key:
            return "middle_block.1." not in key and "middle_block.2." not in key
        place, number = key.removeprefix(keymap.UNET_PREFIX).split(deep)
        limit = {"input_blocks.7.1": 4, "input_blocks.8.1": 4, "output_blocks.0.1": 4, "output_blocks.1.1": 4}
        return "middle_block" not in key and int(number.split(".")[0]) < limit.get(place, 10)

    _, config = described({key: tensor for key, tensor in tensors["sdxl"].items() if kept(key)}, tmp_path)

    assert config.unet["mid_block_type"] == "UNetMidBlock2D"
    assert config.unet["transformer_layers_per_block"] == [[1, 1], [2, 2], [4, 4]]
    assert config.unet["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 2, 2], [1, 1, 1]]


def write_folder(path, pipeline, unet, *, text_encoders=("text_encoder",), schedule=None):
    index = {"_class_name": pipeline, "unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": [None, None]}
    texts = {name: ["transformers", "CLIPTextModel"] for name in text_encoders}
    files = {
        "model_index.json": {**index, **texts},
        "unet/config.json": {"down_block_types": ["CrossAttnDownBlock2D"], "layers_per_block": 1, **unet},
        "vae/config.json": {"down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 1},
        "scheduler/scheduler_config.json": schedule or {},
        **{f"{name}/config.json": {"hidden_size": 8, "eos_token_id": 2} for name in text_encoders},
    }
    for name, values in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(values), encoding="utf-8")
    return path


XL = {"addition_embed_type": "text_time", "sample_size": 128, "use_linear_projection": True}
BOTH = ("text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("pipeline", "unet", "text_encoders", "wanted"),
    [
        ("StableDiffusionPipeline", {}, BOTH[:1], ("sd1", "latents", 512)),
        ("LatentConsistencyModelPipeline", {"time_cond_proj_dim": 256}, BOTH[:1], ("sd1", "latents", 512)),
        ("StableDiffusionInpaintPipeline", {"in_channels": 9}, BOTH[:1], ("sd1", "inpaint", 512)),
        ("StableDiffusionInstructPix2PixPipeline", {"in_channels": 8}, BOTH[:1], ("sd1", "edit", 512)),
        (
            "StableDiffusionPipeline",
            {"use_linear_projection": True, "sample_size": 96},
            BOTH[:1],
            ("sd2", "latents", 768),
        ),
        (
            "StableDiffusionDepth2ImgPipeline",
            {"use_linear_projection": True, "in_channels": 5},
            BOTH[:1],
            ("sd2", "depth", 512),
        ),
        (
            "StableDiffusionUpscalePipeline",
            {"in_channels": 7, "num_class_embeds": 1000},
            BOTH[:1],
            ("x4-upscaler", "low_res", 512),
        ),
        ("StableDiffusionXLPipeline", XL, BOTH, ("sdxl", "latents", 1024)),
        ("StableDiffusionXLInpaintPipeline", {**XL, "in_channels": 9}, BOTH, ("sdxl", "inpaint", 1024)),
        ("StableDiffusionXLInstructPix2PixPipeline", {**XL, "in_channels": 8}, BOTH, ("sdxl", "edit", 1024)),
        ("StableDiffusionXLImg2ImgPipeline", XL, BOTH[1:], ("sdxl-refiner", "latents", 1024)),
    ],
)
def test_a_diffusers_folder_of_each_pipeline_is_known(pipeline, unet, text_encoders, wanted, tmp_path):
    family, config = identify(write_folder(tmp_path / "model", pipeline, unet, text_encoders=text_encoders))

    assert (family.name, config.input, config.native_size.width) == wanted
    assert [text.component for text in config.text_encoders] == list(text_encoders)
    assert config.text_encoders[0].config["eos_token_id"] == 49407  # published folders say 2, as transformers once did


def test_a_folders_schedule_says_prediction_and_zero_terminal_snr(tmp_path):
    schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_schedule": "linear"}

    _, config = identify(write_folder(tmp_path / "model", "StableDiffusionPipeline", {}, schedule=schedule))

    assert (config.prediction_type, config.zero_terminal_snr) == ("v_prediction", True)
    assert config.scheduler == {"beta_schedule": "linear"}


@pytest.mark.parametrize(
    "pipeline", ["StableUnCLIPPipeline", "StableDiffusionLatentUpscalePipeline", "KandinskyPipeline"]
)
def test_a_folder_of_another_pipeline_is_refused_by_name(pipeline, tmp_path):
    with pytest.raises(UnsupportedModel, match=f"a model for {pipeline} of another family"):
        identify(write_folder(tmp_path / "model", pipeline, {}))
