"""LoRAs by the names that prompts use, and what their files say they were made for."""

import struct

import pytest

from webui.checkpoints.lora.names import ModulePlaces, Place, read_key
from webui.checkpoints.lora.scan import LoraFolder, family_title
from webui.core.errors import LoraNotFound

DOWN = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"


@pytest.fixture
def models(tmp_path, write_safetensors):
    for name, alias in (("Lora/ink", "hand_drawn"), ("Lora/a/line", ""), ("Lora/b/line", ""), ("LyCORIS/fog", "ink")):
        metadata = {"ss_output_name": alias} if alias else None
        write_safetensors(tmp_path / f"{name}.safetensors", {DOWN: (4, 768)}, metadata)
    (tmp_path / "Lora" / "old.pt").write_bytes(b"not looked into")
    (tmp_path / "Lora" / "broken.safetensors").write_bytes(struct.pack("<Q", 10**9))
    return tmp_path


def test_all_are_listed_with_their_folders(models):
    assert [file.name for file in LoraFolder(models).files()] == ["a/line", "b/line", "broken", "fog", "ink", "old"]


@pytest.mark.parametrize(
    ("name", "expected"), [("ink", "ink"), ("a/line", "a/line"), ("hand_drawn", "ink"), ("fog", "fog"), ("old", "old")]
)
def test_found_by_file_name_then_path_then_alias(models, name, expected):
    assert LoraFolder(models).find(name).name == expected


def test_two_of_one_name_must_be_told_apart(models):
    with pytest.raises(LoraNotFound, match="'line' could be a/line or b/line"):
        LoraFolder(models).find("line")


@pytest.mark.parametrize(
    ("name", "words"), [("INKK", "did you mean ink"), ("hand_drown", "mean hand_drawn"), ("xyzzy", "take it out")]
)
def test_what_is_not_there(models, name, words):
    with pytest.raises(LoraNotFound, match=words):
        LoraFolder(models).find(name)


def test_a_folder_without_any_says_so(tmp_path):
    with pytest.raises(LoraNotFound, match="there are none yet"):
        LoraFolder(tmp_path).find("ink")


def test_new_files_and_new_names_count_at_once(models, write_safetensors):
    folder = LoraFolder(models)
    folder.alias(folder.find("ink"))
    write_safetensors(models / "Lora" / "new.safetensors", {DOWN: (4, 768)})
    write_safetensors(models / "Lora" / "ink.safetensors", {DOWN: (4, 768)}, {"ss_output_name": "another_name"})
    assert folder.find("new").name == "new"
    assert folder.find("another_name").name == "ink"


def test_a_link_back_up_the_tree_ends(models):
    (models / "Lora" / "loop").symlink_to(models / "Lora")
    assert len(LoraFolder(models).files()) == 6


@pytest.mark.parametrize(
    ("shapes", "metadata", "title"),
    [
        ({DOWN: (4, 768)}, {}, "Stable Diffusion 1"),
        ({"unet.down_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 1024)}, {}, "Stable Diffusion 2"),
        ({"unet.down_blocks.1.attn2.to_k.lora_A.weight": (4, 2048)}, {}, "Stable Diffusion XL"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.hada_w1_b": (4, 768)}, {}, "Stable Diffusion 1"),
        ({"lora_te2_text_model_x.alpha": ()}, {}, "Stable Diffusion XL"),
        ({"transformer.single_transformer_blocks.0.x.lora_A.weight": (4, 3072)}, {}, "FLUX"),
        ({"lora_unet_x.alpha": ()}, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl_base_v1-0"),
        ({"lora_unet_x.alpha": ()}, {}, ""),
    ],
)
def test_the_family_is_told_from_content(shapes, metadata, title):
    assert family_title(shapes, metadata) == title


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0.alpha",
            ("unet", "down.attn.blocks.0.to_out.0"),
        ),
        ("unet.down.attn.blocks.0.processor.to_out_lora.up.weight", ("unet", "down.attn.blocks.0.to_out.0")),
        ("unet.down.attn.blocks.0.to_out.lora.up.weight", ("unet", "down.attn.blocks.0.to_out.0")),
        ("lora_te1_text_model_encoder_fc1.lora_up.weight", ("clip_l", "encoder.fc1")),
        ("lora_te_text_model_encoder_fc1.lora_up.weight", ("clip_l", "encoder.fc1")),
        ("lora_te2_text_model_encoder_fc1.lora_up.weight", ("clip_g", "text_model.encoder.fc1")),
        ("text_encoder.text_model.encoder.fc1.lora_linear_layer.down.weight", ("clip_l", "encoder.fc1")),
        ("text_encoder_2.text_model.encoder.fc1.lora_B.weight", ("clip_g", "text_model.encoder.fc1")),
        ("text_encoder_2.text_projection.lora_B.weight", ("clip_g", "text_projection")),
        ("base_model.model.encoder.fc1.lora_B.weight", ("clip_l", "encoder.fc1")),
        ("lora_te3_encoder_fc1.lora_up.weight", None),
    ],
)
def test_keys_lead_to_modules_of_unet_and_both_text_encoders(key, place):
    places = ModulePlaces(
        unet=["down.attn.blocks.0.to_out.0"],
        text_encoders={"clip_l": ["encoder.fc1"], "clip_g": ["text_model.encoder.fc1", "text_projection"]},
        original={"input_blocks.4.1.transformer_blocks.0.attn1": "down.attn.blocks.0"},
    )
    assert places.find(read_key(key).address) == (None if place is None else Place(component=place[0], path=place[1]))


@pytest.mark.parametrize("key", ["model.diffusion_model.out.2.weight", "lora_unet_x.unknown", "", "alpha"])
def test_other_keys_are_none(key):
    assert read_key(key) is None
