"""The extras of a request: bounds, JSON, and the names that other programs gave them."""

import pytest

from webui.core.codec import request_from_json, request_to_json
from webui.core.errors import InvalidRequest
from webui.core.infotext import KnownModels, infotext_to_request, parse_infotext
from webui.core.requests import Extras, Txt2Img
from webui.core.validation import validate


@pytest.mark.parametrize(
    ("extras", "sentence"),
    [
        (Extras(freeu_b1=3.0), "FreeU b1 is 3, outside 0 to 2; choose a value in that range."),
        (Extras(freeu_s2=-1.0), "FreeU s2 is -1, outside 0 to 4; choose a value in that range."),
        (Extras(epsilon_scaling=0.0), "Epsilon scaling is 0, outside 0.9 to 1.1; choose a value in that range."),
        (Extras(mimic_scale=31.0), "Mimic scale is 31, outside 0 to 30; choose a value in that range."),
        (
            Extras(threshold_percentile=50.0),
            "Threshold percentile is 50, outside 90 to 100; choose a value in that range.",
        ),
        (Extras(token_merging=1.0), "Token merging ratio is 1, outside 0 to 0.9; choose a value in that range."),
        (Extras(pag_scale=-1.0), "PAG scale is -1, outside 0 to 100; choose a value in that range."),
        (Extras(sag_scale=6.0), "SAG scale is 6, outside 0 to 5; choose a value in that range."),
    ],
    ids=lambda value: "" if isinstance(value, str) else "extras",
)
def test_what_is_out_of_bounds_is_said(extras, sentence):
    with pytest.raises(InvalidRequest) as raised:
        validate(Txt2Img(extras=extras))
    assert str(raised.value) == sentence


def test_json_brings_them_back():
    request = Txt2Img(seed=1, extras=Extras(tiling=True, freeu_s2=0.2, mimic_scale=7.0))
    assert request_from_json(request_to_json(request)) == request


@pytest.mark.parametrize("tiling", ["Tiling", "Tiling: True"])
def test_texts_of_other_programs_are_read(tiling):
    text = f"a\nSteps: 3, Sampler: Euler, {tiling}, freeu_enabled: True, freeu_b1: 1.01, freeu_s2: 0.95, Mimic scale: 7"
    pasted = infotext_to_request(parse_infotext(text), Txt2Img(), KnownModels())
    assert pasted.request.extras == Extras(tiling=True, freeu_b1=1.01, freeu_s2=0.95, mimic_scale=7.0)
