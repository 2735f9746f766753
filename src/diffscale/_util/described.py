"""What journals call Python objects: by names that the next process gives them too, so never by an address."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from PIL import Image
from torch import Tensor

_ADDRESS: Final = re.compile(r"\bat 0x[0-9a-fA-F]+")


def name_of(function: Callable[..., Any]) -> str:
    """`module:qualname` of a function, method or class, of an instance that of its class; with the arguments of a
    partial one, as in `module:qualname by=2`.

    Two lambdas of one place, or two instances of one class, have the same name.
    """
    if isinstance(function, partial):
        given = [described(value) for value in function.args]
        given += [f"{key}={described(value)}" for key, value in function.keywords.items()]
        return " ".join([name_of(function.func), *given])
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"


def described(value: Any) -> str:
    """`repr` of a value, with the names of what would show its address there.

    Tensors, arrays and pictures are told by their content, which `repr` leaves out or abridges.
    """
    match value:
        case Mapping():
            return "{" + ", ".join(f"{described(key)}: {described(each)}" for key, each in value.items()) + "}"
        case list():
            return f"[{', '.join(map(described, value))}]"
        case tuple():
            return f"({', '.join(map(described, value))}{',' if len(value) == 1 else ''})"
        case Tensor():
            return f"tensor {_content(value.detach().cpu().float().numpy())} {value.dtype}"
        case np.ndarray():
            return f"array {_content(value)}"
        case Image.Image():
            return f"{value.mode} picture {_content(np.asarray(value))}"
    return repr(value) if not _ADDRESS.search(repr(value)) else name_of(value)


def _content(values: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
    return f"{list(values.shape)} {values.dtype} {digest}"
