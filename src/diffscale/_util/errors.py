"""Errors a user can act on: every message is one sentence that says what to do."""

import difflib
import pickle
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_SHOWN: Final = 80  # characters of a name that is none
_LISTED: Final = 30  # names to choose from


class DiffscaleError(Exception):
    """Base of all errors of this library that a user can mend; the command line exits with 2."""


class UnknownName(DiffscaleError):
    """A model, search, verifier or suite was named that does not exist."""


class BudgetTooSmall(DiffscaleError):
    """The budget does not pay for one finished sample."""


class AnotherRun(DiffscaleError):
    """A folder holds a run with other settings or other code, which is not touched."""


class AllCandidatesFailed(DiffscaleError):
    """No candidate of a search got a finite score."""


class Unsuited(DiffscaleError):
    """A search asked for what its verifier cannot give; other searches and verifiers are none the worse for it."""


def unknown(kind: str, given: str, allowed: Iterable[str], advice: str = "") -> UnknownName:
    """The error for a wrong name: names `given`, the nearest match and all that is `allowed`, or else the `advice`."""
    names = sorted(allowed)
    given = given if len(given) <= _SHOWN else given[: _SHOWN - 3] + "..."
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    advice = advice or (f"Choose one of: {', '.join(names[:_LISTED])}{more}." if names else "There are none.")
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return UnknownName(f"Unknown {kind} {given!r}{hint} {advice}")


def check_name(kind: str, given: str, allowed: Collection[str]) -> None:
    """Raises the error of `unknown` for a name that is not `allowed`."""
    if given not in allowed:
        raise unknown(kind, given, allowed)


@contextmanager
def explained(sentence: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Within it errors of these `kinds` become a DiffscaleError of that `sentence`.

    Its part "{why}" becomes the first line of the error.
    """
    try:
        yield
    except kinds as error:
        raise DiffscaleError(sentence.replace("{why}", first_line(error))) from error


def raised(error: BaseException) -> str:
    """What an error is and where it was raised, in a line: for errors in code that a user wrote."""
    calls = traceback.extract_tb(error.__traceback__)
    place = users_line(error) or (f"line {calls[-1].lineno} of {calls[-1].filename}" if calls else "")
    return f"{type(error).__name__}: {first_line(error)}" + (f", in {place}" if place else "")


def users_line(error: BaseException) -> str:
    """Where in a user's code an error comes from, as in "line 12 of mine.py"; empty if it is of no such code.

    That is the last line of the first file outside of this library and of torch, which may have called it.
    """
    calls = traceback.extract_tb(error.__traceback__)
    theirs = [call for call in calls if not any(Path(call.filename).is_relative_to(each) for each in _libraries())]
    last = next((call for call in reversed(theirs) if call.filename == theirs[0].filename), None)
    return f"line {last.lineno} of {last.filename}" if last else ""


@cache
def _libraries() -> list[Path]:
    found = find_spec("torch")
    return [Path(__file__).parents[1], *map(Path, (found and found.submodule_search_locations) or ())]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, its type where it has none.

    torch's refusal of a pickle goes on to say how to open it all the same, which is bad advice.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it is a pickle that is broken or holds more than weights, such as code, and was not opened"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
