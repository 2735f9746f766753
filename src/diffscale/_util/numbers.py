"""Numbers as people read them, and as they give them."""

from numbers import Integral
from typing import Any

from diffscale._util.errors import DiffscaleError


def rounded(value: float, digits: int = 3, sign: bool = False) -> str:
    """`value` with `digits` after the point; a small one, of which that would leave little, with as many that count."""
    kind = "f" if value == 0 or abs(value) >= 10.0 ** (1 - digits) else "g"
    return f"{value:{'+' if sign else ''}.{digits}{kind}}"


def whole(name: str, given: Any, least: int | None = None) -> int:
    """`given` as an int; raises DiffscaleError, which calls it `name`, for what is none or below `least`."""
    if isinstance(given, bool) or not isinstance(given, Integral) or (least is not None and int(given) < least):
        range_of_it = "" if least is None else f", {least} or more"
        raise DiffscaleError(f"Give {name} as a whole number{range_of_it}, not {given!r}.")
    return int(given)
