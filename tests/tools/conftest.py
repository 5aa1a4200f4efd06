"""A pack of six little drawings in place of the real one."""

import io
import json
import zipfile

import pytest
from PIL import Image, ImageDraw

from tools.builtin_model.art import Art
from tools.builtin_model.pictures import Studio

SUBJECTS = ("cat", "fish", "house")


def drawing(subject: str) -> Image.Image:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    if subject == "cat":
        pen.ellipse((8, 8, 56, 56), fill=(240, 150, 40, 255))
    elif subject == "fish":
        pen.polygon([(4, 32), (60, 10), (60, 54)], fill=(40, 90, 220, 255))
    else:
        pen.rectangle((12, 20, 52, 60), fill=(200, 30, 30, 255))
        pen.rectangle((26, 40, 38, 60), fill=(250, 240, 90, 255))
    return image


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "art.zip"
    rows = []
    with zipfile.ZipFile(path, "w") as target:
        for style in ("3d", "flat"):
            for subject in SUBJECTS:
                data = io.BytesIO()
                drawing(subject).save(data, "WEBP", lossless=True)
                name = f"{subject}-{style}.webp"
                target.writestr(name, data.getvalue())
                rows.append({"subject": subject, "words": [], "style": style, "file": name})
        target.writestr("index.json", json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def studio(pack):
    return Studio(Art(pack), SUBJECTS)
