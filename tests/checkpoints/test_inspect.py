"""`python -m webui inspect`: what it says of weightless files of every kind."""

import json
import subprocess
import sys

import pytest

from webui import cli
from webui.checkpoints.inspect import inspect

LORA = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (16, 768),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (320, 16),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.alpha": (),
}
KOHYA = {
    "ss_tag_frequency": json.dumps({"10_cat": {"cat": 7, "black": 2}, "5_more": {"cat ": 3, "box": 4}}),
    "modelspec.trigger_phrase": "mycat, sitting",
    "ss_network_dim": "16",
}
KINDS = {
    "lora": (LORA, {"family": "sd1", "format": "kohya", "ranks": [16], "changes": ["LoRA"]}),
    "embedding": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, {"family": "sdxl"}),
    "vae": (
        {
            "decoder.conv_in.weight": (512, 4, 3, 3),
            "encoder.conv_in.weight": (128, 3, 3, 3),
            "decoder.conv_out.weight": (3, 128, 3, 3),
        },
        {"in_channels": 3, "out_channels": 3, "latent_channels": 4},
    ),
    "controlnet": (
        {"control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)},
        {"family": "sd2"},
    ),
    "face restorer": (
        {"params_ema.encoder.blocks.0.weight": (64, 3, 3, 3), "params_ema.idx_pred_layer.1.weight": (1024, 512)},
        {"parameters": 526016},
    ),
    "mask model": (
        {"stage1.rebnconvin.conv_s1.weight": (4, 3), "stage6.rebnconvin.conv_s1.weight": (4, 4), "outconv.bias": (1,)},
        {"parameters": 29},
    ),
    "upscaler": ({"conv_first.weight": (64, 3, 3, 3), "conv_first.bias": (64,)}, {"parameters": 1792}),
    "text encoder": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, {}),
    "checkpoint": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, {}),
    "preview decoder": ({"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, {}),
    "unknown": ({"spam": (3,)}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_known_by_its_content(kind, tmp_path, write_safetensors):
    shapes, wanted = KINDS[kind]
    report = inspect(write_safetensors(tmp_path / "a.bin", shapes))

    told = json.loads(json.dumps(report))
    assert told["kind"] == kind
    assert told["dtypes"] == ["F16"]
    assert {key: told.get(key) for key in wanted} == wanted
    assert ("error" in told) == (kind in ("checkpoint", "unknown"))


def test_what_a_trainer_wrote(tmp_path, write_safetensors):
    report = inspect(write_safetensors(tmp_path / "a.safetensors", LORA, KOHYA))

    assert report["trigger_words"] == ("mycat", "sitting")
    assert list(report["tags"].items()) == [("cat", 10), ("box", 4), ("black", 2)]
    assert report["metadata"]["ss_network_dim"] == "16"


def test_damaged_remarks_are_none(tmp_path, write_safetensors):
    assert "tags" not in inspect(write_safetensors(tmp_path / "a.safetensors", LORA, {"ss_tag_frequency": "[1"}))


def test_a_checkpoint_and_what_lies_beside_it(tiny_checkpoint):
    source = tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors"

    report = inspect(source)

    assert (report["kind"], report["family"], report["prediction_type"]) == ("checkpoint", "sd1", "v_prediction")
    assert (report["in_channels"], report["out_channels"], report["native_size"]) == (4, 4, "64x64")
    assert "error" not in report


def test_the_command_prints_a_line_a_file_and_loads_no_torch(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "Lora" / "é.safetensors", LORA)
    write_safetensors(tmp_path / "whole" / "unet" / "model.safetensors", {"x": (1,)})
    (tmp_path / "whole" / "model_index.json").write_text('{"_class_name": "FluxFillPipeline"}')
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    (tmp_path / "notes.txt").write_text("no model")
    program = (
        "import sys; from webui.cli import main; code = main(['inspect', sys.argv[1]]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    reports = {line["path"].rpartition("/")[2]: line for line in map(json.loads, done.stdout.splitlines())}
    assert reports.keys() == {"é.safetensors", "whole", "empty.ckpt", "loop.ckpt"}
    assert reports["é.safetensors"]["kind"] == "lora"
    assert "FluxFillPipeline" in reports["whole"]["error"]
    assert "empty (0 bytes)" in reports["empty.ckpt"]["error"]
    assert "symbolic links" in reports["loop.ckpt"]["error"]


def test_a_path_that_is_not_there_is_an_error_and_the_others_are_told(tmp_path, write_safetensors, capsys):
    there = write_safetensors(tmp_path / "a.safetensors", LORA)

    assert cli.main(["inspect", str(tmp_path / "none"), str(there)]) == 1

    told = capsys.readouterr()
    assert json.loads(told.out)["kind"] == "lora"
    assert "none does not exist" in told.err
