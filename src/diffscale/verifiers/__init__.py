"""Verifiers by name. Each is a factory whose signature is its configuration, or a function of pictures and prompts.

A package offers one by an entry point in the group `diffscale.verifiers`: a function of `images` and `prompts` (see
`function.FunctionVerifier`), or a class or factory that gives a `types.Verifier`. A factory is given `device` and
`image_model` (the model whose pictures will come) where it has arguments of these names. Where it has an attribute
`check`, a function, that is called with the user's arguments before anything is loaded, and raises DiffscaleError.
"""

from collections.abc import Callable
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale.models.shipped import verifier_networks
from diffscale.registry import Registry, plugins
from diffscale.registry.choice import Choice, choose
from diffscale.types import Verifier
from diffscale.verifiers.defaults import counterpart
from diffscale.verifiers.function import as_verifier

VERIFIERS: Final[Registry] = plugins("verifiers")
"""Every verifier by name, those of other packages too; one is imported when it is looked up."""

COUNTERPARTS: Final = {
    **{name: name for name in ("aesthetic", "clip", "image_reward", "inception", "pick_score")},
    **{"clip_ssl": "clip", "clip_zeroshot": "clip", "dino_linear": "dino", "dino_ssl": "dino", "siglip_ssl": "siglip"},
    "oracle_fid": "inception",
}
"""The kind of network that a verifier has for the pictures of a model that names one, see `defaults.counterpart`."""


def load(given: str | Callable[..., Any], *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """The verifier that "name key=value ..." or "package.module:attribute key=value ..." says, or a callable, on
    `device`.

    `image_model` is the model whose pictures it will see, see `COUNTERPARTS`. An object that is a Verifier already is
    taken as it is. Raises UnknownName for an unknown name, DiffscaleError for bad arguments or weights.
    """
    if isinstance(given, Verifier) and not isinstance(given, type):
        return given
    choice = _choose(given)
    kind = COUNTERPARTS.get(choice.name)
    usual = None if kind is None or "model" in choice.arguments else counterpart(image_model, kind)
    context = {"device": device, "image_model": image_model, **({} if usual is None else {"model": usual})}
    return as_verifier(choice.name, choice.make(**context))


def check(given: str | Callable[..., Any]) -> None:
    """Raise DiffscaleError for a name or arguments that `load` would refuse, without loading weights."""
    if isinstance(given, type) or not isinstance(given, Verifier):
        choice = _choose(given)
        if choice.is_factory and callable(further := getattr(choice.thing, "check", None)):
            further(**choice.arguments)


def name_of_verifier(given: str | Callable[..., Any]) -> str:
    """What a journal knows a verifier by: its text, its own name, or that of the function."""
    return given.name if isinstance(given, Verifier) and not isinstance(given, type) else _choose(given).text


def _choose(given: str | Callable[..., Any]) -> Choice:
    if isinstance(given, str):
        # A shipped network is its factory with `model`.
        name, _, rest = given.partition(" ")
        if "," in name and ":" not in name:
            raise DiffscaleError(f"A verifier is one name, not {name}: write `ensemble of={name}` for several.")
        factory = verifier_networks().get(name)
        given = given if factory is None else f"{factory} model={name} {rest}".strip()
    return choose(given, "verifier", VERIFIERS, inputs=("images", "prompts"))
