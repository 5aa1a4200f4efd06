"""Requests as JSON: the way there and back is the identity, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
import random
import typing

import pytest

from webui.core.codec import request_from_json, request_to_json
from webui.core.errors import InvalidRequest
from webui.core.requests import (
    TASKS,
    Choice,
    Img2Img,
    Inpaint,
    Txt2Img,
    Upscale,
    task_name,
)


def random_value(source: random.Random, kind):
    if typing.get_args(kind):
        return None if source.random() < 0.3 else random_value(source, typing.get_args(kind)[0])
    if dataclasses.is_dataclass(kind):
        return random_filled(source, kind)
    if issubclass(kind, Choice):
        return source.choice(list(kind))
    return {
        str: lambda: "".join(source.choice('a é🐈\n"\\\0') for _ in range(9)),
        int: lambda: source.randint(-1, 2**40),
        float: lambda: source.choice([source.uniform(-10, 10), 1.0, 1e-9]),
        bool: lambda: source.random() < 0.5,
        bytes: lambda: source.randbytes(source.randrange(50)),
    }[kind]()


def random_filled(source: random.Random, kind):
    return kind(**{name: random_value(source, hint) for name, hint in typing.get_type_hints(kind).items()})


def random_request(seed: int):
    source = random.Random(seed)
    return random_filled(source, source.choice(list(TASKS.values())))


@pytest.mark.parametrize("seed", range(100))
def test_request_to_json_and_back_is_the_identity(seed):
    request = random_request(seed)
    again = request_from_json(json.loads(json.dumps(request_to_json(request))))
    assert again == request
    assert type(again) is type(request)
    assert [type(getattr(again, field.name)) for field in dataclasses.fields(again)] == [
        type(getattr(request, field.name)) for field in dataclasses.fields(request)
    ]


def test_every_task_has_its_name():
    assert [task_name(request) for request in (Txt2Img(), Upscale(image=b""))] == ["txt2img", "upscale"]
    assert task_name(Inpaint(init_image=b"", mask=b"")) == "inpaint"
    assert task_name(Img2Img(init_image=b"")) == "img2img"


def test_whole_numbers_are_taken_for_fractions():
    request = request_from_json({"task": "txt2img", "cfg_scale": 7})
    assert isinstance(request, Txt2Img)
    assert isinstance(request.cfg_scale, float)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "task None"),
        ({"task": "sing"}, "'sing'"),
        ({"task": ["txt2img"]}, "is not known"),
        ({"task": "txt2img", "colour": 1}, "'colour'"),
        ({"task": "txt2img", "steps": "20"}, "'steps' holds '20'"),
        ({"task": "txt2img", "steps": 20.0}, "'steps' holds 20.0"),
        ({"task": "txt2img", "steps": True}, "'steps' holds True"),
        ({"task": "txt2img", "cfg_scale": True}, "'cfg_scale' holds True"),
        ({"task": "txt2img", "prompt": None}, "'prompt' holds None"),
        ({"task": "img2img"}, "incomplete"),
        ({"task": "img2img", "init_image": "not base64!"}, "'init_image'"),
        ({"task": "img2img", "init_image": 5}, "'init_image'"),
        ({"task": "img2img", "init_image": "", "resize_mode": "Squeeze"}, "'Squeeze'"),
        ({"task": "img2img", "init_image": "", "mask": ""}, "'mask' does not belong"),
    ],
)
def test_what_is_wrong_is_named(values, said):
    with pytest.raises(InvalidRequest, match=said):
        request_from_json(values)
