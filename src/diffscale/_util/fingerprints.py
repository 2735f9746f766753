"""Fingerprints: digests of contents, and names of Python objects that the next process gives them too.

All digests are the first hexadecimal digits of a SHA-256.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

_ADDRESS: Final = re.compile(r"\bat 0x[0-9a-fA-F]+")


def json_digest(content: Any, digits: int = 12) -> str:
    """The digest of what JSON can hold; mappings of equal content have one digest, whatever their order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:digits]


def array_digest(*values: Tensor | np.ndarray[Any, Any] | str, digits: int = 24) -> str:
    """The digest of tensors, arrays and texts, one after the other, with their shapes and types."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, str):
            digest.update(f"text {len(value)} {value}".encode())
            continue
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(_bytes(value))
        else:
            digest.update(f"{value.shape} {value.dtype}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:digits]


def network_digest(network: nn.Module) -> str:
    """12 digits of all weights: the same network from elsewhere has the same, another one has not."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:12]


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
    return f"{list(values.shape)} {values.dtype} {array_digest(values, digits=16)}"


def _bytes(tensor: Tensor) -> memoryview:
    """What a tensor holds; NumPy knows no bfloat16, so its bytes are looked at as such."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
