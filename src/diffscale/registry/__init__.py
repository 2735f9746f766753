"""Things by name: what installed packages offer, and what a program registers by itself.

A package offers a thing of some kind by an entry point in the group `diffscale.KIND`: its name is the thing's name, its
value `module:attribute`, which is imported when the thing is first used. What diffscale brings along is offered in the
same way, see its pyproject.toml. The kinds are `searches` (see `diffscale.searches`), `verifiers` (see
`diffscale.verifiers`), `models` (a folder with a folder for each model), `suites` (a function that gives the prompts),
`metrics` (a `metrics.compared.Compared`), `worlds` (a `types.World`), `datasets` (a `DataSet`) and `commands` (a Typer
app).
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

from diffscale._util.errors import DiffscaleError, first_line

KINDS: Final = ("searches", "verifiers", "models", "suites", "metrics", "worlds", "datasets", "commands")

DEFAULT_SEARCH: Final = "auto"
PLAIN_SEARCH: Final = "random"
DEFAULT_MODEL: Final = "shapes-flux"
DEFAULT_SUITE: Final = "shapes-mini"
"""What is taken where none is named; the latter two are of the package diffscale-shapes, which may not be installed.
`PLAIN_SEARCH` is what all searches are compared with.
"""

HOW_TO_GET_SHAPES: Final = (
    "comes with the package diffscale-shapes, which is not installed: in a checkout of diffscale `pip install "
    "./packages/diffscale-shapes`, or name another one."
)


class DataSet(Protocol):
    """A data set that is made instead of fetched."""

    def __call__(self, folder: Path, size: int | None, cache: Path) -> int:
        """Write pictures and `metadata.jsonl` to the new `folder`; returns the number of its rows.

        `size`: rows, None for the usual number. `cache`: where pictures that networks make are kept between calls.
        """


class Registry(Mapping[str, Any]):
    """The things of one kind, by name; one is imported when it is looked up.

    A name that two packages use is told apart as `package/name`, which is right for every other name too; a name of
    diffscale itself stays its own. Looking up raises KeyError for a name that there is not, DiffscaleError for a thing
    that cannot be imported.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._registered: dict[str, Any] = {}
        entries = [(_package(entry), entry) for entry in entry_points(group=f"diffscale.{kind}")]
        uses = Counter(entry.name for _, entry in entries)
        self._full = {f"{package}/{entry.name}": entry for package, entry in entries}
        # What diffscale brings along keeps its name, so that no package can take it away.
        self._short = {
            entry.name if uses[entry.name] == 1 or package == "diffscale" else f"{package}/{entry.name}": entry
            for package, entry in entries
        }

    def __getitem__(self, name: str) -> Any:
        if name in self._registered:
            return self._registered[name]
        entry = self._entry(name)
        try:
            return entry.load()
        except (Exception, SystemExit) as error:  # whatever a package does when it is imported
            raise DiffscaleError(
                f"{name} of the package {_package(entry)} cannot be imported ({first_line(error)}): mend or uninstall "
                "the package."
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._registered or name in self._short or name in self._full

    def __iter__(self) -> Iterator[str]:
        return iter({**self._short, **self._registered})

    def __len__(self) -> int:
        return len({**self._short, **self._registered})

    def source(self, name: str) -> str:
        """The package that a thing comes from, with its version; "this program" for what was registered."""
        if name in self._registered:
            return "this program"
        dist = self._entry(name).dist
        return f"{dist.name} {dist.version}" if dist is not None else "unknown"

    def summary(self, name: str) -> str:
        """The first line of a thing's docstring, read from its file without importing it where that can be."""
        if name in self._registered or (text := _docstring(self._entry(name))) is None:
            try:
                text = getattr(self[name], "__doc__", None) or ""
            except DiffscaleError as error:
                text = str(error)
        return text.strip().partition("\n")[0]

    def short(self, text: str) -> str:
        """`text`, a name with or without arguments, with the name that listings show in the place of `package/name`."""
        name, space, arguments = text.partition(" ")
        if name in self._registered or name not in self._full:
            return text
        return next(key for key, entry in self._short.items() if entry is self._full[name]) + space + arguments

    def register(self, name: str, thing: Any) -> None:
        """Offer `thing` by `name` in this process; raises DiffscaleError for a name that is taken."""
        if name in self and self._registered.get(name) is not thing:
            raise DiffscaleError(f"The name {name} of {self.kind} is taken by {self.source(name)}: choose another one.")
        self._registered[name] = thing

    def _entry(self, name: str) -> EntryPoint:
        return self._short[name] if name in self._short else self._full[name]


@cache
def plugins(kind: str) -> Registry:
    """The things of `kind`, see above."""
    return Registry(kind)


def register(kind: str, name: str, thing: Any) -> None:
    """Offer `thing` by `name` in this process, as an entry point does in every process; `kind` is one of `KINDS`.

    Raises DiffscaleError for a kind that there is not, a name that is taken or that no text can name, and a thing that
    cannot be called where things of that kind are.
    """
    if kind not in KINDS:
        raise DiffscaleError(f"There is no kind {kind!r}: choose one of {', '.join(KINDS)}.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DiffscaleError(f"{name!r} cannot be a name: choose one of letters, digits, '_', '-' and '.'.")
    if kind in ("searches", "verifiers", "suites", "datasets") and not callable(thing):
        raise DiffscaleError(f"What is registered as one of the {kind} is called, which {thing!r} cannot be.")
    plugins(kind).register(name, thing)


def _docstring(entry: EntryPoint) -> str | None:
    """The docstring of a function or class, or the text below a constant, in its file; None if it is not found so."""
    package, *inner = entry.module.split(".")
    spec = find_spec(package)
    for home in (spec and spec.submodule_search_locations) or ():
        file = Path(home, *inner)
        for path in (file.with_suffix(".py"), file / "__init__.py"):
            if path.is_file():
                try:
                    body = ast.parse(path.read_bytes()).body
                except (SyntaxError, ValueError):
                    return None
                for node, below in pairwise([*body, ast.Pass()]):
                    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == entry.attr:
                        return ast.get_docstring(node)
                    if isinstance(node, ast.AnnAssign | ast.Assign):
                        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                        if [ast.unparse(target) for target in targets] == [entry.attr]:
                            return ast.get_docstring(ast.Module([below], []))
    return None


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"
