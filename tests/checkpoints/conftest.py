"""Files made by hand, byte by byte, and tiny modules beside the file that holds them."""

import json
import math
import shutil
import struct

import pytest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small lose more time than they win when threads wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BYTES = {"F16": 2, "F32": 4}


@pytest.fixture
def write_safetensors():
    """Writes a safetensors file of zeros with the given names and shapes; no torch needed."""

    def write(path, shapes, metadata=None, dtype="F16"):
        header, offset = {}, 0
        for name, shape in shapes.items():
            end = offset + BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        if metadata:
            header["__metadata__"] = metadata
        raw = json.dumps(header).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))
        return path

    return write


SD1_SHAPES = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
}


@pytest.fixture
def sd1_shapes():
    """Enough names and shapes to be recognised as an ordinary Stable Diffusion 1 file."""
    return dict(SD1_SHAPES)


@pytest.fixture
def tiny_file(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint's file, alone in a models folder of its own."""
    folder = tmp_path / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    return shutil.copy(tiny_checkpoint / "Stable-diffusion" / "tiny-random.safetensors", folder / "tiny.safetensors")
