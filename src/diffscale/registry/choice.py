"""What a user chose: a name with arguments, `package.module:attribute`, or a callable of Python."""

import importlib
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from diffscale._util.errors import DiffscaleError, UnknownName, explained, raised
from diffscale._util.fingerprints import name_of
from diffscale.registry import Registry
from diffscale.registry.arguments import check_keywords, parse, required, signature, takes_inputs
from diffscale.types import TRAITS, declares, search_traits


@dataclass(frozen=True)
class Choice:
    """A search or a verifier that was chosen.

    `kind`: which of both. `name`: what tables call it. `text`: name and arguments, what a journal knows it by. `thing`:
    a function that is called with `inputs`, such as images and prompts, and with `arguments`, or a class or factory
    that makes such a function of the arguments.
    """

    kind: str
    name: str
    text: str
    thing: Callable[..., Any]
    arguments: Mapping[str, Any]
    inputs: Sequence[str]

    @property
    def is_factory(self) -> bool:
        """Whether `thing` makes what is called."""
        return not takes_inputs(self.thing, len(self.inputs))

    def declares(self, trait: str) -> bool:
        """Whether `thing` says of itself that it has a trait, see `types.search_traits`."""
        return declares(self.thing, trait)

    def make(self, **context: Any) -> Callable[..., Any]:
        """What is called with the inputs; what of `context` `thing` has arguments for is given to it too."""
        takes = signature(self.thing).parameters
        given = {name: value for name, value in context.items() if name in takes} | dict(self.arguments)
        if not self.is_factory:
            return partial(self.thing, **given) if given else self.thing
        try:
            made, inputs = self.thing(**given), ", ".join(self.inputs)
        except DiffscaleError:
            raise
        except Exception as error:  # whatever somebody's class or factory does
            mend = "mend it, or its arguments"
            raise DiffscaleError(f"The {self.kind} {self.name} cannot be made ({raised(error)}): {mend}.") from error
        if isinstance(made, Generator):
            raise DiffscaleError(f"The {self.kind} {self.name} must take ({inputs}), before arguments of its own.")
        if not callable(made):
            mend = f"let it take ({inputs}), or return a function that does"
            mend = f"give the class a method __call__(self, {inputs})" if isinstance(self.thing, type) else mend
            what = f"gives {type(made).__name__}, which cannot be called"
            raise DiffscaleError(f"The {self.kind} {self.name} {what}: {mend}.")
        traits = {trait: True for trait in TRAITS if self.declares(trait)}
        # What a factory makes is told from others by what the factory declares.
        return search_traits(**traits)(partial(made)) if traits else made


def choose(given: str | Callable[..., Any], kind: str, things: Mapping[str, Any], inputs: Sequence[str]) -> Choice:
    """What `given` means: "name key=value ..." of `things`, "package.module:attribute key=value ..." or a callable.

    `inputs`: the names of what a function of this `kind` is called with. An attribute is looked for in the current
    folder too. Raises UnknownName for an unknown name, DiffscaleError for arguments that are wrong or missing, and for
    what cannot be imported or called.
    """
    if isinstance(given, str):
        choice = _named(given, kind, things, inputs)
    else:
        if not callable(given):
            raise DiffscaleError(f"A {kind} is a name or something that can be called, not {type(given).__name__}.")
        check_keywords(given, kind)
        choice = Choice(kind, name_of(given), name_of(given), given, {}, inputs)
    needed = required(choice.thing)[0 if choice.is_factory else len(inputs) :]
    if missing := [name for name in needed if name not in choice.arguments]:
        if missing[0] in inputs and not isinstance(choice.thing, type):
            takes = ", ".join(inputs)
            raise DiffscaleError(f"The {kind} {choice.name} must take ({takes}), before arguments of its own.")
        how = f"write {choice.text} " + " ".join(f"{name}=VALUE" for name in missing)
        if not isinstance(given, str):
            made, values = getattr(given, "__name__", choice.name), ", ".join(f"{name}=..." for name in missing)
            how = f"give {made}({values})" if isinstance(given, type) else f"give functools.partial({made}, {values})"
        raise DiffscaleError(f"The {kind} {choice.name} needs {', '.join(missing)}: {how}.")
    return choice


def _named(given: str, kind: str, things: Mapping[str, Any], inputs: Sequence[str]) -> Choice:
    """What a text means, see `choose`."""
    given = things.short(given) if isinstance(things, Registry) else given
    name = given.split()[0] if given.split() else ""
    if ":" in name and not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise DiffscaleError(
            f"{name} is no module:attribute: arguments follow after a space, as in {name.split(':')[0]}:f n=2."
        )
    known = {name: _imported(name, kind)} if ":" in name else things
    if name in known and not callable(known[name]):
        raise DiffscaleError(f"The {kind} {name} is no function and no class: its package must mend it.")
    if name not in known and name.isidentifier() and Path(f"{name}.py").is_file():
        raise UnknownName(f"There is no {kind} {name}: write {name}:FUNCTION for what {name}.py has.")
    if name not in known and "." in name:
        module, _, attribute = name.rpartition(".")
        raise DiffscaleError(f"There is no {kind} {name}: write {module}:{attribute} for what a module has.")
    name, arguments = parse(given, kind, known, len(inputs))
    return Choice(kind, name, given, known[name], arguments, inputs)


def _imported(where: str, kind: str) -> Callable[..., Any]:
    """What "package.module:attribute" names."""
    module, _, attribute = where.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    mend = "give package.module:attribute, in this folder or an installed package."
    # Whatever a module does when it is imported.
    with explained(f"The {kind} {where} cannot be imported ({{why}}): {mend}", Exception, SystemExit):
        thing = attrgetter(attribute)(importlib.import_module(module))
    if not callable(thing):
        raise DiffscaleError(f"The {kind} {where} is no function and no class: give one that can be called.")
    return thing
