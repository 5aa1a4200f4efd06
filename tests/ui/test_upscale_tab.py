"""The upscale tab's menu begins with what is shipped, and the offer's words are shown as text."""

from __future__ import annotations

import pytest

from webui.core.paths import REPOSITORY
from webui.core.ports import OfferStatus
from webui.ui.tabs.upscale import first_upscaler, offer_note


def test_a_fresh_form_shows_the_quick_network_that_is_shipped():
    from webui.checkpoints.scan import CheckpointFolder

    names = CheckpointFolder(REPOSITORY / "models").upscalers()
    assert {"realesr-animevideov3-x4", "realesrgan-x4plus-anime"} <= set(names)
    assert first_upscaler(names) == "realesr-animevideov3-x4"


def test_a_models_folder_without_networks_begins_with_a_filter():
    assert first_upscaler(("Lanczos", "Nearest")) == "Lanczos"


@pytest.mark.parametrize(
    ("phase", "detail", "note"),
    [
        ("offered", "", ""),
        ("fetching", "Fetching it.", "<p class='note' role='status'>Fetching it.</p>"),
        ("failed", "<b>no</b>", "<p class='extension-error' role='alert'>&lt;b&gt;no&lt;/b&gt;</p>"),
    ],
)
def test_what_is_said_about_the_offer(phase, detail, note):
    assert offer_note(OfferStatus(phase=phase, detail=detail)) == note
