"""The upscalers in models/ESRGAN do what the package that they come from does with them."""

from __future__ import annotations

import pytest
from PIL import Image

from tools.upscalers.__main__ import SHIPPED
from tools.upscalers.pictures import pictures
from tools.upscalers.references import ours, psnr, reference
from webui.core.paths import REPOSITORY


@pytest.mark.parametrize("name", ["photo", "drawing"])
@pytest.mark.parametrize("upscaler", SHIPPED, ids=lambda upscaler: upscaler.name)
def test_our_network_gives_the_packages_own_result(upscaler, name):
    file = REPOSITORY / "models" / "ESRGAN" / f"{upscaler.name}.safetensors"
    made = ours(file, pictures()[name])
    with Image.open(reference(upscaler.name, name)) as wanted:
        # Both compute in single precision: only the order of sums differs, which moves a few pixels by one level of
        # 255 (85 dB measured). 60 dB is one level everywhere or less; a wrong weight or name costs far more.
        assert psnr(made, wanted) >= 60


def test_the_measure_tells_networks_apart():
    with (
        Image.open(reference(SHIPPED[0].name, "photo")) as one,
        Image.open(reference(SHIPPED[1].name, "photo")) as other,
    ):
        assert psnr(one, other) < 40
