"""Which versions of the libraries are installed that decide what a result is."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

_LIBRARIES: Final = ("diffscale", "diffscale-shapes", "torch", "diffusers", "transformers")


@cache
def versions() -> dict[str, str]:
    """The version of each library that is installed, and of Python, by name."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the small world is not needed, and a checkout may not be installed
            continue
    return found | {"python": platform.python_version()}
