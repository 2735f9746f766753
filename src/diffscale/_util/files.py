"""Files: they are written whole or not at all, and what is wrong with one that is read is told in one sentence."""

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from diffscale._util.errors import DiffscaleError, explained

Kind = TypeVar("Kind")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a free place beside `path`; what is written there takes the place of `path` at the end of the block.

    It may be a file or a folder. Until then, and if the block raises, what was at `path` stays as it was: a kill, a
    full disk or a second process that writes the same leaves a whole file or none. The new content is on the disk
    before the old one is gone. Folders above `path` are made. Errors pass through.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, since pictures and plots are written in the format that it names.
    fresh = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    _remove(fresh)
    try:
        yield fresh
        for each in [*sorted(fresh.rglob("*")), fresh]:
            _sync(each)
        if path.is_dir():  # which no folder can be renamed to
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            _remove(old)
            path.replace(old)
            fresh.replace(path)
            _remove(old)
        else:
            fresh.replace(path)
        _sync(path.parent)
    finally:
        _remove(fresh)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have `folder`, which is made if it is not there, for this process alone until the end of the block.

    A killed process lets go of it. Raises DiffscaleError where another one has it, and for a folder that cannot be
    made or written to.
    """
    with explained(f"{folder} cannot be written to ({{why}}): choose another folder.", OSError, ValueError):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DiffscaleError(
                f"Another run is writing to {folder}: wait for its end, or choose another folder."
            ) from None
        except OSError:  # some network file systems have no locks
            pass
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process, perhaps this one, has `folder` for itself now; see `locked`."""
    with suppress(OSError):
        handle = os.open(folder / ".lock", os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def private(folder: Path) -> Path:
    """Return `folder`, which is made for its user alone if it is not there: caches hold prompts and pictures.

    Where it cannot be made, whoever writes to it will say so.
    """
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    return folder


def user_cache() -> Path:
    """`diffscale` in `$XDG_CACHE_HOME`, else in `~/.cache`, made if it is not there; what is in it may be deleted."""
    return private(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffscale")


def holds_others(folder: Path, ours: Collection[str]) -> bool:
    """Whether `folder` is one with files, none of which has a name that our own folders have."""
    return os.path.isdir(folder) and bool(names := os.listdir(folder)) and not set(names) & set(ours)


def check_writable(path: Path) -> None:
    """Raise DiffscaleError where no file can be written at `path`: before what it is to hold is computed."""
    with explained(f"{path} cannot be written ({{why}}): choose another place.", OSError, ValueError):
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{os.getpid()}.new")
        probe.touch()
        probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 to `path`, whole or not at all; see `replacing`."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write what JSON can hold to `path`, whole or not at all; see `replacing`."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk: without this a power cut may undo a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, whose byte order mark is left out; line ends stay as they are.

    Raises OSError, and UnicodeDecodeError for another encoding.
    """
    return path.read_bytes().decode("utf-8-sig")


def split_lines(text: str) -> list[str]:
    """The lines of a text that are not blank, without blanks around them.

    Lines end with a newline alone: splitlines() would also break within a caption, at U+2028, U+0085 and the like.
    """
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def each_line(path: Path) -> Iterator[str]:
    """The lines of a file that is too large to be read at once, ended and read as `read_text` and `split_lines` do."""
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        yield from lines


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """What a JSON file holds, if that is of `kind`, a type that pydantic can check; it is returned as it was read.

    None where there is no file, or one that holds anything else, such as one that was cut off: what can be made again
    is not worth an error.
    """
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_text(path))
        TypeAdapter(kind).validate_python(content)
        return content
    return None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file with one object; raises DiffscaleError if it is not one."""
    config: dict[str, Any] | None = read_json(path)
    if config is None:
        raise DiffscaleError(f"The file {path} must hold one JSON object.")
    return config


def inside(folder: Path, name: str, said_by: Path) -> Path:
    """The place of a file in `folder` that the file `said_by` names; raises DiffscaleError for one outside of it.

    Files of strangers name files, and none of these may be another one of the user's. Links are followed.
    """
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise DiffscaleError(f"{said_by} names {name!r}, which is not in {folder}: mend or remove that line.")
    return path


def parse_jsonl(text: str, path: Path) -> list[dict[str, Any]]:
    """The objects in the text of a JSONL file, without empty lines; raises DiffscaleError naming the line that is none.

    Lines end as those of `split_lines`.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        with explained(
            f"Line {number} of {path} cannot be read: mend or remove it.", ValueError, TypeError, RecursionError
        ):
            rows += [dict(json.loads(line))] if line.strip() else []
    return rows


def read_lines(path: str, what: str) -> list[str]:
    """The lines of a text file that are not empty; raises DiffscaleError if there are none. `what`: what they are."""
    with explained(f"The file {path!r} of {what}, one a line, could not be read.", OSError, UnicodeDecodeError):
        lines = split_lines(read_text(Path(path).expanduser()))
    if not lines:
        raise DiffscaleError(f"The file {path!r} must have {what}, one a line, but it is empty.")
    return lines


def checked(kind: type[Kind], content: Mapping[str, Any], path: Path) -> Kind:
    """The content of the file `path` as `kind`; raises DiffscaleError that names the first field that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DiffscaleError(f"Mend {where} in {path}: {first['msg']}.") from error
