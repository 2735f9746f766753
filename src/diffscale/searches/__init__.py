"""The search algorithms by name, each a plain function in a file of its own."""

from collections.abc import Callable

from diffscale._util.errors import check_name
from diffscale.searches.bayes import bayes
from diffscale.searches.demon import demon
from diffscale.searches.first_order import first_order
from diffscale.searches.fk import fk
from diffscale.searches.free2guide import free2guide
from diffscale.searches.paths import paths
from diffscale.searches.random import random
from diffscale.searches.svdd import svdd
from diffscale.searches.zero_order import zero_order
from diffscale.types import Search

SEARCHES: dict[str, Callable[..., Search]] = {
    search.__name__: search for search in (random, zero_order, paths, first_order, demon, free2guide, bayes, fk, svdd)
}


def get(name: str) -> Callable[..., Search]:
    """The search called `name`; raises UnknownName with the nearest match."""
    check_name("search", name, SEARCHES)
    return SEARCHES[name]


def describe(name: str) -> tuple[str, str]:
    """One-line description of the search `name` and its price formula in NFE."""
    line = (get(name).__doc__ or "").strip().splitlines()[0]
    description, _, formula = line.partition(" Price: ")
    return description, formula.rstrip(".")
