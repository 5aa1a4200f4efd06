"""Opening what people bring, and what pictures say about themselves."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from webui.core.errors import UnreadableImage
from webui.gallery import open_picture, png_bytes, read_infotext

INFOTEXT = "a cat, 画 🐈\nNegative prompt: é\nSteps: 20, Sampler: Euler, Seed: 1, Size: 48x32"


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


# ----------------------------------------------------------------------------------------------------- png_bytes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_keeps_every_pixel(picture, mode):
    image = picture.convert(mode)
    again = Image.open(io.BytesIO(png_bytes(image)))
    assert again.mode == mode
    assert again.tobytes() == image.tobytes()


def test_png_takes_other_modes_as_rgb(picture):
    assert Image.open(io.BytesIO(png_bytes(picture.convert("CMYK")))).mode == "RGB"


@pytest.mark.parametrize("infotext", [INFOTEXT, "plain", "latin é", "nul \0 inside", "line\r\nends\n", "x" * 300_000])
def test_png_carries_its_infotext(picture, infotext, tmp_path):
    data = png_bytes(picture, infotext)
    (tmp_path / "a.png").write_bytes(data)
    assert read_infotext(data) == infotext
    assert read_infotext(tmp_path / "a.png") == infotext


def test_half_a_surrogate_does_not_cost_the_picture(picture):
    assert read_infotext(png_bytes(picture, "half \ud800")) == "half ?"


# -------------------------------------------------------------------------------------------------- read_infotext


def exif_with(comment: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    return exif


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + INFOTEXT.encode("utf-16-be"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16-le"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16"),
        b"\0" * 8 + INFOTEXT.encode() + b"\0\0",
    ],
    ids=["big-endian", "little-endian", "byte-order-mark", "undefined"],
)
def test_reads_the_user_comment(picture, encoded, file_format, comment):
    assert read_infotext(encoded(picture, file_format, exif=exif_with(comment))) == INFOTEXT


def test_reads_an_ascii_user_comment(picture, encoded):
    assert read_infotext(encoded(picture, "JPEG", exif=exif_with(b"ASCII\0\0\0Steps: 3"))) == "Steps: 3"


def hide(image: Image.Image, text: bytes, kind: bytes) -> Image.Image:
    """`image` with `text` in the lowest bits of its alpha channel, column by column."""
    bits = np.unpackbits(np.frombuffer(kind + (len(text) * 8).to_bytes(4, "big") + text, np.uint8))
    made = np.array(image.convert("RGBA"))
    columns = made[..., 3].T.reshape(-1) & 0xFE
    columns[: len(bits)] |= bits
    made[..., 3] = columns.reshape(made.shape[1], made.shape[0]).T
    return Image.fromarray(made)


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_what_is_hidden_in_the_alpha_channel(picture, zipped):
    text = INFOTEXT.encode()
    kind = b"stealth_pngcomp" if zipped else b"stealth_pnginfo"
    hidden = hide(picture.resize((64, 48)), gzip.compress(text) if zipped else text, kind)
    assert read_infotext(png_bytes(hidden)) == INFOTEXT
    assert read_infotext(png_bytes(hidden, "Steps: 3")) == "Steps: 3"


def test_what_is_hidden_badly_is_nothing(picture):
    large = picture.resize((64, 48))
    assert read_infotext(png_bytes(hide(large, b"no gzip", b"stealth_pngcomp"))) is None
    too_long = hide(large, b"x" * 300, b"stealth_pnginfo").crop((0, 0, 20, 48))
    assert read_infotext(png_bytes(too_long)) is None
    bomb = hide(large, gzip.compress(b"x" * 2**23)[:350], b"stealth_pngcomp")
    assert len(read_infotext(png_bytes(bomb)) or "") <= 2**22
    assert read_infotext(png_bytes(Image.new("RGBA", (3, 3)))) is None


def test_reads_what_other_programs_write(picture, encoded):
    graph = {
        "1": {"inputs": {"seed": 3, "steps": 5, "cfg": 2, "sampler_name": "euler", "positive": ["2", 0]}},
        "2": {"inputs": {"text": "a cat"}},
    }
    chunks = PngInfo()
    chunks.add_text("prompt", json.dumps(graph))
    found = read_infotext(encoded(picture, "PNG", pnginfo=chunks))
    assert found == "a cat\nSteps: 5, Sampler: Euler, CFG scale: 2, Seed: 3, RNG: CPU"
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(graph)}"
    assert read_infotext(encoded(picture, "WEBP", exif=exif)) == found


def test_reads_a_gif_comment(picture, encoded):
    assert read_infotext(encoded(picture, "GIF", comment=INFOTEXT.encode())) == INFOTEXT


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_without_infotext_say_none(picture, encoded, file_format):
    assert read_infotext(encoded(picture, file_format)) is None


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_reads_text_behind_the_pixels(picture):
    data = png_bytes(picture)
    assert read_infotext(data[:-12] + chunk(b"tEXt", b"parameters\0Steps: 3") + data[-12:]) == "Steps: 3"


def test_the_text_of_a_picture_cut_off_behind_it_is_still_read(picture):
    data = png_bytes(picture, INFOTEXT)
    assert read_infotext(data[: len(data) // 2]) == INFOTEXT


def test_a_text_bomb_is_refused(picture):
    data = png_bytes(picture)
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 5_000_000))
    with pytest.raises(UnreadableImage, match="damaged"):
        read_infotext(data[:33] + bomb + data[33:])


# ---------------------------------------------------------------------------------------------------- both readers


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_damaged_pictures_open_or_are_refused(picture, encoded, file_format):
    source = random.Random(file_format)
    whole = encoded(picture, file_format, exif=exif_with(b"UNICODE\0" + INFOTEXT.encode("utf-16-be")))
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(source.randint(1, 30)):
            data[source.randrange(min(len(data), 600))] = source.randrange(256)
        for reader in (open_picture, read_infotext):
            try:
                reader(bytes(data), max_pixels=1_000_000)
            except UnreadableImage:
                refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"GIF89a"]
)
def test_what_is_no_picture_is_refused(data, tmp_path):
    (tmp_path / "cat.png").write_bytes(data)
    with pytest.raises(UnreadableImage, match="The data is"):
        open_picture(data)
    with pytest.raises(UnreadableImage, match=r"The file 'cat\.png' is"):
        read_infotext(tmp_path / "cat.png")


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
def test_decompression_bombs_are_refused(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    for reader in (open_picture, read_infotext):
        with pytest.raises(UnreadableImage, match="make it smaller"):
            reader(bomb)
