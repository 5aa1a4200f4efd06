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
    return {"task": task_name(request), **_encode(request)}


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Choice):
        return value.value
    if dataclasses.is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def request_from_json(values: dict[str, Any]) -> Request:
    """The request that `request_to_json` came from; unknown tasks, fields and kinds raise `InvalidRequest`."""
    task = TASKS.get(str(values.get("task")))
    if task is None:
        raise InvalidRequest(f"The task {values.get('task')!r} is not known; choose one of {', '.join(TASKS)}.")
    fields = {name: value for name, value in values.items() if name != "task"}
    try:
        return task(**_arguments(task, fields, str(values["task"])))
    except TypeError as error:
        raise InvalidRequest(f"The {values['task']} request is incomplete: {error}.") from error


def _arguments(kind: type, values: dict[str, Any], what: str) -> dict[str, Any]:
    """`values` as the fields of the dataclass `kind`, which `what` names in sentences."""
    kinds = typing.get_type_hints(kind)
    for name in values:
        if name not in kinds:
            raise InvalidRequest(f"The field {name!r} does not belong to {what}; leave it out.")
    return {name: _decode(name, value, kinds[name]) for name, value in values.items()}


def _nested(kind: Any, value: Any, what: str) -> Any:
    return kind(**_arguments(kind, dict(value), what))


def _decode(name: str, value: Any, kind: Any) -> Any:
    options = typing.get_args(kind)  # of a union with None
    if options:
        return None if value is None else _decode(name, value, options[0])
    try:
        if dataclasses.is_dataclass(kind):
            return _nested(kind, value, name)
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
