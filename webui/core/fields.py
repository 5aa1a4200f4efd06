"""The fields of a request by dotted names, such as "sampler_options.eta": for texts and forms, which are flat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from webui.core.requests import Request

AnyRequest = TypeVar("AnyRequest", bound=Request)


def get_field(request: Request, name: str) -> Any:
    """The value under a dotted name; raises AttributeError for one that the request does not have."""
    value: Any = request
    for part in name.split("."):
        value = getattr(value, part)
    return value


def whole_fields(request: Request, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` by the request's own names: what lies in a group becomes the request's group with those changed."""
    whole = {name: value for name, value in changes.items() if "." not in name}
    for group in {name.partition(".")[0] for name in changes if "." in name}:
        inner = {name.partition(".")[2]: value for name, value in changes.items() if name.startswith(f"{group}.")}
        whole[group] = dataclasses.replace(getattr(request, group), **inner)
    return whole


def replaced(request: AnyRequest, changes: Mapping[str, Any]) -> AnyRequest:
    """`request` with the fields of dotted names in `changes` replaced."""
    return dataclasses.replace(request, **whole_fields(request, changes))
