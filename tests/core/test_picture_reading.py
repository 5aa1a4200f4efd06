"""Opening what people bring: every kind of file gives the right picture or one sentence."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from webui.core.errors import UnreadableImage
from webui.core.pictures import flattened, open_picture


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_opens_bytes_and_files_of_any_name(picture, encoded, file_format, tmp_path):
    data = encoded(picture, file_format)
    (tmp_path / "wrong.gif").write_bytes(data)
    for source in (data, tmp_path / "wrong.gif", str(tmp_path / "wrong.gif")):
        opened = open_picture(source)
        assert opened.mode == "RGB"
        assert (pixels(opened) == pixels(picture)).all()


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF"])
def test_opens_lossy_formats(encoded, file_format):
    opened = open_picture(encoded(Image.new("RGB", (48, 32), (200, 60, 20)), file_format, quality=95))
    assert opened.size == (48, 32)
    assert np.abs(pixels(opened).astype(int) - (200, 60, 20)).max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_pictures_upright(picture, encoded, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (pixels(open_picture(data)) == pixels(expected)).all()


def test_an_unknown_orientation_is_none(picture, encoded):
    exif = Image.Exif()
    exif[0x0112] = 77
    assert open_picture(encoded(picture, "JPEG", exif=exif)).size == picture.size


def test_damaged_exif_does_not_cost_the_picture(picture, encoded):
    opened = open_picture(encoded(picture, "PNG", exif=b"Exif\0\0not a TIFF header at all"))
    assert (pixels(opened) == pixels(picture)).all()


MODES = {"1": "RGB", "L": "RGB", "P": "RGB", "LA": "RGBA", "RGBA": "RGBA"}


@pytest.mark.parametrize(
    ("file_format", "mode", "expected"),
    [(kind, *modes) for kind in ("PNG", "TIFF") for modes in MODES.items()] + [("TIFF", "CMYK", "RGB")],
)
def test_every_mode_becomes_rgb_or_rgba(picture, encoded, file_format, mode, expected):
    source = picture.convert(mode)
    opened = open_picture(encoded(source, file_format))
    assert opened.mode == expected
    assert (pixels(opened) == pixels(source.convert(expected))).all()


def test_a_transparent_palette_keeps_its_transparency(encoded):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    opened = open_picture(encoded(image, "PNG", transparency=0))
    assert opened.mode == "RGBA"
    assert opened.getpixel((0, 0))[3] == 0
    assert opened.getpixel((1, 1)) == (255, 0, 0, 255)


def test_sixteen_bit_grey_is_scaled(encoded):
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    opened = open_picture(encoded(Image.fromarray(levels), "PNG"))
    assert pixels(opened)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_that_are_not_colours_are_refused(encoded, mode):
    with pytest.raises(UnreadableImage, match="32-bit numbers"):
        open_picture(encoded(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(encoded, file_format):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    opened = open_picture(encoded(first, file_format, save_all=True, append_images=[second], duration=100))
    red, _, blue = opened.convert("RGB").getpixel((4, 4))
    assert red > 200
    assert blue < 50


def test_the_picture_carries_nothing_of_the_file_but_its_parameters(picture, encoded):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"\0" * 8 + b"secret"
    assert open_picture(encoded(picture, "JPEG", comment=b"secret", exif=exif)).info == {}
    chunks = PngInfo()
    chunks.add_text("parameters", "Steps: 3")
    chunks.add_text("comment", "secret")
    assert open_picture(encoded(picture, "PNG", pnginfo=chunks)).info == {"parameters": "Steps: 3"}


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF"])
def test_pictures_cut_off_are_refused(picture, encoded, file_format):
    data = encoded(picture.resize((480, 320)), file_format)
    for share in (0.0, 0.01, 0.5, 0.9):
        with pytest.raises(UnreadableImage):
            open_picture(data[: int(len(data) * share)])


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UnreadableImage, match=r"'none\.png' does not exist"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(UnreadableImage, match=tmp_path.name):
        open_picture(tmp_path)


def test_too_many_pixels_are_refused_before_they_are_decoded(picture, encoded):
    assert open_picture(encoded(picture, "PNG"), max_pixels=48 * 32).size == (48, 32)
    with pytest.raises(UnreadableImage, match="has 48x32 pixels, more than the 1,535 that are allowed"):
        open_picture(encoded(picture, "PNG"), max_pixels=48 * 32 - 1)


# ---- sixteen bits, by hand: Pillow writes no colours of that depth ---------------------------------------------------


def png16(levels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel: (h, w, channels), 1 grey, 2 with alpha, 3 colours, 4 with alpha."""
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_pictures_keep_their_upper_half(channels):
    levels = np.random.default_rng(channels).integers(0, 2**16, (5, 7, channels))
    opened = pixels(open_picture(png16(levels))).astype(int)
    wanted = levels / 257
    if channels < 3:
        colours = wanted[..., :1].repeat(3, -1)
        wanted = colours if channels == 1 else np.concatenate([colours, wanted[..., 1:]], -1)
    assert opened.shape == wanted.shape
    assert np.abs(opened - wanted).max() <= 1


def test_the_sentence_names_what_was_read():
    with pytest.raises(UnreadableImage, match=r"^The mask is not a picture .*; use a PNG, JPEG or WebP file\.$"):
        open_picture(b"", what="The mask")
    with pytest.raises(UnreadableImage, match=r"^The mask has 7x5 pixels"):
        open_picture(png16(np.zeros((5, 7, 1), int)), 34, what="The mask")


# ---- flattened -------------------------------------------------------------------------------------------------------


def test_transparent_pictures_lie_on_the_background():
    picture = Image.new("RGBA", (3, 1), (200, 100, 0, 255))
    picture.putpixel((1, 0), (9, 9, 9, 0))
    picture.putpixel((2, 0), (255, 0, 0, 128))
    assert [flattened(picture, "#0000ff").getpixel((x, 0)) for x in range(3)] == [
        (200, 100, 0),
        (0, 0, 255),
        (128, 0, 127),
    ]
    assert flattened(picture).getpixel((1, 0)) == (255, 255, 255)


def test_opaque_pictures_stay_as_they_are(picture):
    assert flattened(picture, "#00ff00").tobytes() == picture.tobytes()
    assert flattened(picture.convert("RGBA")).tobytes() == picture.tobytes()
