"""Verifiers by name. Each is a factory whose signature is its configuration."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from diffscale.models.files import read_manifest, shipped, shipped_folders
from diffscale.registry import parse, plugins
from diffscale.types import Verifier
from diffscale.verifiers.aesthetic import aesthetic
from diffscale.verifiers.clip import clip, pick_score
from diffscale.verifiers.clip_zeroshot import clip_zeroshot
from diffscale.verifiers.composition import composition
from diffscale.verifiers.defaults import build
from diffscale.verifiers.detector import detector
from diffscale.verifiers.dino import dino_linear
from diffscale.verifiers.ensemble import ensemble, weighted
from diffscale.verifiers.function import load_function
from diffscale.verifiers.grader.verifier import LlmGrader
from diffscale.verifiers.hps import hps
from diffscale.verifiers.image_reward import image_reward
from diffscale.verifiers.inception import inception
from diffscale.verifiers.oracle_fid import oracle_fid
from diffscale.verifiers.self_supervised import clip_ssl, dino_ssl, siglip_ssl
from diffscale.verifiers.vqa import vqa

_FACTORIES = (
    *(aesthetic, clip, clip_ssl, clip_zeroshot, composition, detector, dino_linear, dino_ssl, ensemble, hps),
    *(image_reward, inception, oracle_fid, pick_score, siglip_ssl, vqa, weighted),
)
OWN: Final[dict[str, Callable[..., Verifier]]] = {
    **{factory.__name__: factory for factory in _FACTORIES},
    LlmGrader.name: LlmGrader,
}

VERIFIERS: Final[Mapping[str, Callable[..., Verifier]]] = ChainMap(OWN, plugins("verifiers"))
"""Every factory by name: ours and those of plug-ins, which are imported when they are looked up."""

COUNTERPARTS: Final = {
    **{name: name for name in ("aesthetic", "clip", "image_reward", "inception", "pick_score")},
    **{"clip_ssl": "clip", "clip_zeroshot": "clip", "dino_linear": "dino", "dino_ssl": "dino", "siglip_ssl": "siglip"},
    "oracle_fid": "inception",
}
"""The kind of network that a verifier has for the pictures of a model that names one, see `defaults.counterpart`."""


@cache
def shipped_verifiers() -> dict[str, str]:
    """The shipped networks that are verifiers by their own names, and the factory that loads each.

    A network's folder states its factory in diffscale.json, as `verifier`.
    """
    manifests = {name: read_manifest(str(folder)) for name, folder in shipped_folders().items()}
    return {name: manifest["verifier"] for name, manifest in manifests.items() if manifest.get("verifier")}


def load(text: str, *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """The verifier that "name key=value ..." says, on `device`; a function for "package.module:function ...".

    `image_model` is the model whose pictures it will see, see `COUNTERPARTS`.
    Raises UnknownName for an unknown name, DiffscaleError for bad arguments or weights.
    """
    if is_function(text):
        return load_function(text)
    text = _by_factory(text)
    name, arguments = parse(text, "verifier", VERIFIERS)
    verifier: Verifier = build(
        VERIFIERS[name], arguments, COUNTERPARTS.get(name), device=device, image_model=image_model
    )
    return verifier


def check(text: str) -> None:
    """Raise DiffscaleError for a name or arguments that `load` would refuse, without loading weights."""
    if is_function(text):
        load_function(text)
    else:
        parse(_by_factory(text), "verifier", VERIFIERS)


def is_function(text: str) -> bool:
    """Whether a verifier is named as `package.module:function`."""
    return ":" in text.split()[0] if text.split() else False


def _by_factory(text: str) -> str:
    """`text` with the name of a shipped network as its factory and `model`."""
    name, _, rest = text.partition(" ")
    factory = shipped_verifiers().get(name)
    return text if factory is None else f"{factory} model={name} {rest}".strip()


def describe(name: str) -> str:
    """The first line of what a verifier says of itself."""
    if name in shipped_verifiers():
        return shipped()[name]
    return (VERIFIERS[name].__doc__ or "").strip().splitlines()[0]
