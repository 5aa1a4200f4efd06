"""Requests as JSON and back; the composition is the identity (bytes travel as base64)."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import typing
from typing import Any

from webui.core.errors import InvalidRequest
from webui.core.requests import TASKS, Choice, Request, task_name


def request_to_json(request: Request) -> dict[str, Any]:
    """A dictionary of JSON values, the task's name under "task"."""
    values: dict[str, Any] = {"task": task_name(request)}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode("ascii")
        elif isinstance(value, Choice):
            value = value.value
        values[field.name] = value
    return values


def request_from_json(values: dict[str, Any]) -> Request:
    """The request that `request_to_json` came from; unknown tasks, fields and kinds raise `InvalidRequest`."""
    task = TASKS.get(str(values.get("task")))
    if task is None:
        raise InvalidRequest(f"The task {values.get('task')!r} is not known; choose one of {', '.join(TASKS)}.")
    kinds = typing.get_type_hints(task)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name == "task":
            continue
        if name not in kinds:
            raise InvalidRequest(f"The field {name!r} does not belong to {values['task']}; leave it out.")
        arguments[name] = _decode(name, value, kinds[name])
    try:
        return task(**arguments)
    except TypeError as error:
        raise InvalidRequest(f"The {values['task']} request is incomplete: {error}.") from error


def _decode(name: str, value: Any, kind: type) -> Any:
    try:
        if kind is bytes:
            return base64.b64decode(value, validate=True)
        if issubclass(kind, Choice):
            return kind(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidRequest(f"The field {name!r} holds {str(value)[:80]!r}, which is not allowed: {error}.") from error
    if type(value) is not kind:
        raise InvalidRequest(f"The field {name!r} holds {value!r}, which is not {kind.__name__}; give one.")
    return value
