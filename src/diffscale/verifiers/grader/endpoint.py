"""Which model at which address, with which key; from arguments or from the environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Final

import httpx2
from pydantic import AfterValidator

from diffscale._util.errors import DiffscaleError

_LEAST: Final = 8  # characters below which a key is a local server's placeholder, and may be part of any text
_HOW: Final = (
    "give base_url, or set OPENAI_BASE_URL, such as https://api.openai.com/v1 or http://localhost:11434/v1 (Ollama)"
)


class Key:
    """A key that only `header` gives away; neither printing nor `dataclasses.asdict` shows it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Key(***)"

    def header(self) -> dict[str, str]:
        """The Authorization header; none without a key."""
        return {"Authorization": f"Bearer {self._text}"} if self._text else {}

    def hide(self, text: str) -> str:
        """`text` without the key: servers may send back what they were sent."""
        return text.replace(self._text, "***") if len(self._text) >= _LEAST else text


@dataclass(frozen=True)
class Endpoint:
    """`base`: address below which `/chat/completions` lies; `key_env`: the variable that `key` is from."""

    base: str
    model: str
    key: Key
    key_env: str

    @property
    def url(self) -> str:
        """Where chat completions are asked for."""
        return f"{self.base}/chat/completions"


def resolve(model: str | None, base_url: str | None, key_env: str, key: str | None = None) -> Endpoint:
    """The endpoint by arguments, and where they are None by DIFFSCALE_GRADER_MODEL, OPENAI_BASE_URL and `key_env`.

    Raises DiffscaleError for what is missing or wrong; never quotes a key.
    """
    model = model or os.environ.get("DIFFSCALE_GRADER_MODEL", "")
    if not model:
        raise DiffscaleError("The grader needs a model: give model=NAME, or set DIFFSCALE_GRADER_MODEL.")
    base = _address(base_url or os.environ.get("OPENAI_BASE_URL", ""))
    return Endpoint(base, model, _key(_variable(key_env), key), key_env)


def _address(given: str) -> str:
    if not given:
        raise DiffscaleError(f"The grader needs an address: {_HOW}.")
    try:
        url = httpx2.URL(given)
    except httpx2.InvalidURL:
        # Not quoted, here and below: there may be a key in it.
        raise DiffscaleError(f"The grader's base URL cannot be read: {_HOW}.") from None
    if url.userinfo or url.query or url.fragment:
        raise DiffscaleError(
            "The grader's base URL must hold no user, password, query or fragment: put the key in an environment "
            "variable and name it with key_env."
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise DiffscaleError(f"The grader's base URL is not an http or https address: {_HOW}.")
    return str(url).rstrip("/")


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise DiffscaleError(
            "key_env is the name of an environment variable in capitals, such as OPENAI_API_KEY, and never the key."
        )
    return name


def _key(variable: str, given: str | None) -> Key:
    text = (os.environ.get(variable, "") if given is None else given).strip()
    # What is no header would be quoted by the error that it makes further down.
    if not re.fullmatch(r"[!-~]*", text):
        where = f"in the environment variable {variable}" if given is None else "given"
        raise DiffscaleError(f"The key {where} has blanks or odd characters: set it again.")
    return Key(text)


# These check when a command is read: what passes is written to the run's folder.
BaseUrl = Annotated[str | None, AfterValidator(lambda given: given if given is None else _address(given))]
KeyVariable = Annotated[str, AfterValidator(_variable)]
