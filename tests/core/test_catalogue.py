"""Names as programs wrote them, taken apart."""

import pytest

from webui.core.catalogue import SAMPLERS, SCHEDULE_TYPES, sampler_and_schedule


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M SDE Heun Exponential", ("DPM++ 2M SDE Heun", "Exponential")),
        ("DPM++ 3M SDE Karras", ("DPM++ 3M SDE", "Karras")),
        ("DPM2 a Karras", ("DPM2 a", "Karras")),
        ("LMS Karras", ("LMS", "Karras")),
        ("Restart SGM Uniform", ("Restart", "SGM Uniform")),
        ("DPM++ 2M SDE Polyexponential", ("DPM++ 2M SDE", "Polyexponential")),
        (" euler A ", ("Euler a", "Automatic")),
        ("ddim cfg++", ("DDIM CFG++", "Automatic")),
        ("Sampler of 2031 karras", ("Sampler of 2031", "Karras")),
        ("Sampler of 2031", ("Sampler of 2031", "Automatic")),
        ("", ("", "Automatic")),
    ],
)
def test_old_joined_names_are_read(written, meant):
    assert sampler_and_schedule(written) == meant


def test_every_name_of_today_is_itself():
    assert all(sampler_and_schedule(name) == (name, "Automatic") for name in SAMPLERS)
    assert len(set(SAMPLERS)) == len(SAMPLERS)
    assert len(set(SCHEDULE_TYPES)) == len(SCHEDULE_TYPES)
