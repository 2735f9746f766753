"""The code of searches and verifiers that users wrote, which may have changed since a run began."""

import hashlib
import inspect
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from diffscale._util.fingerprints import name_of
from diffscale.registry.arguments import innermost

_IN_MODULE: Final = re.compile(r"(?<![\w./:-])([A-Za-z_][\w.]*):[A-Za-z_]\w*(?!\w*=)")


def sources(*given: str | Callable[..., Any]) -> dict[str, str]:
    """Digests of what users wrote of these searches and verifiers, all of which were chosen before.

    Of `module:attribute`, also as a member of an ensemble, it is the module's file, with all that the function may call
    there; of a callable of Python its own text. What packages offer by a name has a version, and is none of it.
    """
    found: dict[str, bytes] = {}
    for each in given:
        with suppress(OSError, TypeError):  # typed into an interpreter, or written in C
            if isinstance(each, str):
                modules = {name: getattr(sys.modules.get(name), "__file__", None) for name in _IN_MODULE.findall(each)}
                found |= {f"module {name}": Path(file).read_bytes() for name, file in modules.items() if file}
            else:
                thing = innermost(each)
                thing = thing if hasattr(thing, "__qualname__") else type(thing)
                if thing.__module__.partition(".")[0] != "diffscale":
                    found[name_of(thing)] = inspect.getsource(thing).encode()
    return {name: hashlib.sha256(code).hexdigest()[:16] for name, code in found.items()}
