"""What a field of a form may hold, as a value of a known kind: numbers may come as None, as text or with a fraction.

Pure functions. They only settle kinds; ranges are the business of `webui.core.validation`, so that every edge of the
program gives the same sentence.
"""

from __future__ import annotations

import math

from webui.core.errors import InvalidRequest


def number(what: str, value: object) -> float:
    """`value` as a finite number; raises `InvalidRequest` naming `what` where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise InvalidRequest(f"{what} is {value!r}, which is not a number; fill it in." if value else f"{what} is empty.")


def whole(what: str, value: object) -> int:
    """`value` as a whole number; raises `InvalidRequest` naming `what` where it has a fraction or is none."""
    found = number(what, value)
    if not found.is_integer():
        raise InvalidRequest(f"{what} is {found:g}; a whole number is needed.")
    return int(found)


def text(value: object) -> str:
    """`value` as text; an empty field is ""."""
    return value if isinstance(value, str) else ""
