"""Searches by name. Each is a generator function of an Environment, in a file of its own.

A search yields requests (`types.Request`) and receives their answers; its further arguments, all with defaults, are its
configuration. A package offers one by an entry point in the group `diffscale.searches`.
"""

from collections.abc import Callable
from typing import Any, Final

from diffscale.registry import Registry, plugins
from diffscale.registry.choice import Choice, choose

SEARCHES: Final[Registry] = plugins("searches")
"""Every search by name, those of other packages too; one is imported when it is looked up."""


def choose_search(given: str | Callable[..., Any]) -> Choice:
    """The search that "name key=value ..." or "package.module:attribute key=value ..." says, or a callable.

    A class, or a function that needs no argument, is called to make the search. Raises UnknownName for an unknown name,
    DiffscaleError for arguments that are wrong or missing.
    """
    return choose(given, "search", SEARCHES, inputs=("env",))
