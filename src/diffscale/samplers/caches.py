"""Caches of diffusers, by which a network leaves out what it did in the step before: `transformer.enable_cache(...)`.

A cache is what the network's hooks remember from one step of a trajectory to the next. The pipeline forgets it at the
end of its call, so over windows of the steps it would do nothing; and some caches decide by a mean over the batch, so a
row's picture would depend on the others.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from diffscale._util.fingerprints import described
from diffscale.samplers.calls import networks_of


def caches(pipe: Any) -> dict[str, str]:
    """The cache of each part of `pipe` that has one, in words that the next process gives it too."""
    found = {}
    for name, part in pipe.components.items():
        hooks = [hook for registry in _registries(part) for hook in registry.hooks.values() if hook._is_stateful]
        if hooks:
            config = getattr(part, "_cache_config", None)
            # Without `enable_cache`, by one of the functions that it calls, there is no configuration.
            found[name] = " + ".join(sorted({_in_words(each) for each in ([config] if config else hooks)}))
    return found


def forget(pipe: Any) -> None:
    """Have the caches of `pipe` as before the first step, whatever a call that failed left there."""
    for network in networks_of(pipe):
        for registry in _registries(network):
            registry.reset_stateful_hooks(recurse=False)


def _registries(part: Any) -> Iterator[Any]:
    """What holds diffusers' hooks of a network's modules."""
    for module in part.modules() if hasattr(part, "modules") else ():
        if hasattr(module, "_diffusers_hook"):
            yield module._diffusers_hook


def _in_words(thing: Any) -> str:
    if is_dataclass(thing):
        values = {each.name: getattr(thing, each.name) for each in fields(thing)}
    else:
        values = {key: value for key, value in vars(thing).items() if isinstance(value, bool | int | float | str)}
    return f"{type(thing).__name__}({', '.join(f'{key}={described(value)}' for key, value in values.items())})"
