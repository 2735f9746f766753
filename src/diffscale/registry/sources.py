"""What users wrote, and may have changed since a run began: code of searches and verifiers, and files these read."""

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from diffscale._util.fingerprints import name_of
from diffscale.registry.arguments import innermost, words

_IN_MODULE: Final = re.compile(r"(?<![\w./:-])([A-Za-z_][\w.]*):[A-Za-z_]\w*(?!\w*=)")
_OF_A_MEMBER: Final = re.compile(r":\w+=")
_TOLD: Final = ("diffscale.json", "README.md")  # of a folder with weights: a description, which decides nothing


def sources(*given: str | Callable[..., Any]) -> dict[str, str]:
    """Digests of what users wrote of these searches and verifiers, all of which were chosen before.

    Of `module:attribute`, also as a member of an ensemble, it is the module's file, with all that the function may call
    there; of a callable of Python its own text. What packages offer by a name has a version, and is none of it. And of
    every argument, also of a member or of a partial function, that is the path of a file, or of a folder with weights
    (which has a JSON file), it is what that holds.
    """
    found: dict[str, str] = {}
    for each in given:
        with suppress(OSError, TypeError):  # typed into an interpreter, or written in C
            if isinstance(each, str):
                modules = {name: getattr(sys.modules.get(name), "__file__", None) for name in _IN_MODULE.findall(each)}
                found |= {
                    f"code of module {n}": _digest(Path(file).read_bytes()) for n, file in modules.items() if file
                }
            else:
                thing = innermost(each)
                thing = thing if hasattr(thing, "__qualname__") else type(thing)
                if thing.__module__.partition(".")[0] != "diffscale":
                    found[f"code of {name_of(thing)}"] = _digest(inspect.getsource(thing).encode())
        for value in _values(each):
            with suppress(OSError, ValueError, RuntimeError):  # names that no file system takes, no home folder
                path = Path(value).expanduser()
                if value and path.is_file():
                    found[f"file {value}"] = _content(path)
                elif value and path.is_dir() and any(path.glob("*.json")):
                    files = sorted(file for file in path.iterdir() if file.is_file() and file.name not in _TOLD)
                    of_all = "\n".join(f"{_content(file)} {file.name}" for file in files)
                    found[f"folder {value}"] = _digest(of_all.encode())
    return found


def _values(given: str | Callable[..., Any]) -> Iterator[str]:
    """All that may be the path of a file among the arguments of a search or verifier, and of an ensemble's members."""
    if not isinstance(given, str):
        while isinstance(given, partial):
            yield from (str(each) for each in (*given.args, *given.keywords.values()) if isinstance(each, str | Path))
            given = given.func
        return
    for word in words(given)[1:]:
        value = word.partition("=")[2]
        yield value
        for member in _OF_A_MEMBER.finditer(value):
            rest = value[member.end() :]  # which goes on behind a comma or a colon, or ends there
            yield from (rest[: end.start()] for end in re.finditer(r"[,:]|$", rest))


def _content(path: Path) -> str:
    """The digest of a file; one of gigabytes is read once in a process, as long as it stays as it is."""
    status = path.stat()
    return _read(path.absolute(), status.st_size, status.st_mtime_ns)


@cache
def _read(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
