"""Every family, tiny and random, in the original layout: what we load computes what the original modules compute.

References: diffusers' UNet and VAE, transformers' CLIP, open_clip's text tower. Loading computes nothing, so outputs
may differ by the order of additions only: 1e-5 in float32.
"""

import socket

import pytest
import torch

from webui.checkpoints.detect import identify
from webui.checkpoints.load import load_checkpoint
from webui.core.ports import CheckpointInfo

TOLERANCE = 1e-5


def load(path):
    family, config = identify(path)
    info = CheckpointInfo(name=path.stem, family=family.name, native_size=config.native_size)
    return load_checkpoint(path, info, dtype=torch.float32, device=torch.device("cpu"))


def close(got, wanted):
    assert got.shape == wanted.shape
    return (got - wanted).abs().max() <= TOLERANCE


@torch.no_grad()
def unet_output(unet, config):
    generator = torch.Generator().manual_seed(3)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    more = {}
    if "num_class_embeds" in config:
        more["class_labels"] = torch.tensor([1, 9])
    if "addition_embed_type" in config:
        numbers = 6 if config["projection_class_embeddings_input_dim"] == 64 else 5
        told = {"text_embeds": noise(2, 16), "time_ids": torch.arange(2.0 * numbers).reshape(2, numbers)}
        more["added_cond_kwargs"] = told
    sample = noise(2, config.get("in_channels", 4), 8, 8)
    return unet(sample, torch.tensor([7, 900]), noise(2, 5, config["cross_attention_dim"]), **more).sample


@torch.no_grad()
def vae_outputs(vae):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 4, 4, generator=generator)
    pixels = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    return torch.cat([vae.decode(latents).sample.flatten(), vae.encode(pixels).latent_dist.mean.flatten()])


@pytest.fixture
def tokens():
    """Two rows as the engine makes them: start, words, end, then padding with 0."""
    rows = torch.zeros(2, 77, dtype=torch.long)
    rows[0, :5] = torch.tensor([49406, 320, 1234, 2368, 49407])
    rows[1, :3] = torch.tensor([49406, 11, 49407])
    return rows


@torch.no_grad()
def states_as_read(encoder, tokens):
    """What the family reads from one of our encoders: states and the pooled vector."""
    output = encoder.module(tokens, output_hidden_states=True)
    states = output.hidden_states[-encoder.layer]
    if encoder.final_norm:
        model = encoder.module.text_model if encoder.pooled else encoder.module
        states = model.final_layer_norm(states)
    return states, output.text_embeds if encoder.pooled else None


@torch.no_grad()
def open_clip_states(model, tokens, *, final_norm):
    """The last layer but one, as FrozenOpenCLIPEmbedder of Stability's stablediffusion reads it."""
    x = model.token_embedding(tokens) + model.positional_embedding
    for block in model.transformer.resblocks[:-1]:
        x = block(x, attn_mask=model.attn_mask)
    return model.ln_final(x) if final_norm else x


def test_it_computes_what_the_original_computes(kind, write_original, tokens):
    path, original = write_original(kind)
    wanted = original.kind

    checkpoint = load(path)

    assert (checkpoint.family, checkpoint.input) == (wanted.family, wanted.input)
    assert checkpoint.conditioning == wanted.conditioning
    assert close(unet_output(checkpoint.unet, wanted.unet), unet_output(original.unet, wanted.unet))
    assert close(vae_outputs(checkpoint.vae), vae_outputs(original.vae))
    assert len(checkpoint.text_encoders) == len(original.texts)
    for encoder, model, layout in zip(checkpoint.text_encoders, original.texts, wanted.texts.values(), strict=True):
        states, pooled = states_as_read(encoder, tokens)
        if layout == "open_clip":
            assert close(states, open_clip_states(model, tokens, final_norm=encoder.final_norm))
            assert pooled is None or close(pooled, model.encode_text(tokens))
        else:
            hidden = model(tokens, output_hidden_states=True).hidden_states[-encoder.layer]
            assert close(states, model.final_layer_norm(hidden) if encoder.final_norm else hidden)


def test_names_are_those_that_diffusers_converts(kind, make_original):
    """The independent check: diffusers' own single-file converters give the same tensors."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    original = make_original(kind)
    config = {"class_embed_type": None, "addition_embed_type": None, **original.unet.config}
    converted = (
        (convert_ldm_unet_checkpoint(dict(original.state), config), original.unet),
        (convert_ldm_vae_checkpoint(dict(original.state), original.vae.config), original.vae),
    )
    for state, module in converted:
        wanted = module.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], weight) for key, weight in wanted.items())


def test_what_each_family_reads_of_its_texts(write_original):
    read = {}
    for kind in ("sd1", "sd2", "sdxl", "sdxl refiner"):
        encoders = load(write_original(kind)[0]).text_encoders
        read[kind] = [(e.name, e.pad_token, e.module.config.num_hidden_layers, e.layer, e.pooled) for e in encoders]

    assert read == {
        "sd1": [("clip_l", 49407, 3, 1, False)],
        "sd2": [("clip_h", 0, 2, 1, False)],
        "sdxl": [("clip_l", 49407, 3, 2, False), ("clip_g", 0, 3, 2, True)],
        "sdxl refiner": [("clip_g", 0, 3, 2, True)],
    }


def test_a_v_prediction_model_with_zero_terminal_snr_is_marked_by_empty_tensors(write_original):
    path, _ = write_original("sdxl", marks=("v_pred", "ztsnr"))

    checkpoint = load(path)

    assert checkpoint.prediction_type == "v_prediction"
    assert checkpoint.zero_terminal_snr
    assert checkpoint.alphas_cumprod[-1] == 0


def test_loading_asks_no_network(write_original, monkeypatch):
    path, _ = write_original("sdxl")

    def refuse(*_):
        raise AssertionError("loading opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    assert load(path).family == "sdxl"
