"""Which model at which address, with which key; from arguments or from the environment. The key is shown nowhere."""

import logging
import os
import re
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

import httpx2
from pydantic import AfterValidator, SecretStr

from diffscale._util.errors import DiffscaleError

_SHORTEST: Final = 8  # characters below which a key is a local server's placeholder, and may be part of any text
_HOW: Final = (
    "give base_url, or set OPENAI_BASE_URL, such as https://api.openai.com/v1 or http://localhost:11434/v1 (Ollama)"
)
_KEY: Final = re.compile(
    r"((sk|pk|rk|key|xai|token|bearer)[-_]|(hf|gsk|api)_).{8,}|[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$", re.IGNORECASE
)
# Filters do not pass on to the loggers below, so all that speak of requests and answers are named.
_LOGGERS: Final = (
    *("openai._base_client", "openai._response", "openai._legacy_response"),
    *("httpx2", "httpcore2.http11", "httpcore2.http2", "httpcore2.proxy", "httpcore2.connection"),
)


@dataclass(frozen=True)
class Endpoint:
    """`base`: address below which `/chat/completions` lies; `key_env`: the variable that `key` is from."""

    base: str
    model: str
    key: SecretStr
    key_env: str

    @property
    def url(self) -> str:
        """The address that chat completions are asked for at."""
        return f"{self.base}/chat/completions"

    def redact(self, text: str) -> str:
        """Return `text` without the key, and what in the address may be one: servers may send back what they got."""
        key = self.key.get_secret_value()
        for secret in ([key] if len(key) >= _SHORTEST else []) + _keys_in(self.base):
            text = text.replace(secret, "***")
        return text


class RedactedLogs(logging.Filter):
    """Hides the key of `endpoint` in the HTTP clients' own logs: they log what servers send, headers included."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._endpoint = endpoint
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def close(self) -> None:
        """Leave the loggers as they were."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with the key hidden."""
        message = record.getMessage()
        if (redacted := self._endpoint.redact(message)) != message:
            record.msg, record.args = redacted, ()
        return True


def resolve(model: str | None, base_url: str | None, key_env: str, key: str | None = None) -> Endpoint:
    """The endpoint by arguments, and where they are None by DIFFSCALE_GRADER_MODEL, OPENAI_BASE_URL and `key_env`.

    Raises DiffscaleError for what is missing or wrong; never quotes a key.
    """
    model = model or os.environ.get("DIFFSCALE_GRADER_MODEL", "")
    if not model:
        raise DiffscaleError("The language model needs a name: give model=NAME, or set DIFFSCALE_GRADER_MODEL.")
    base = _address(base_url or os.environ.get("OPENAI_BASE_URL", ""))
    return Endpoint(base, model, _key(_variable(key_env), key), key_env)


def _address(given: str) -> str:
    if not given:
        raise DiffscaleError(f"The language model needs an address: {_HOW}.")
    try:
        url = httpx2.URL(given)
    except httpx2.InvalidURL:
        # Not quoted, here and below: there may be a key in it.
        raise DiffscaleError(f"The language model's base URL cannot be read: {_HOW}.") from None
    if url.userinfo or url.query or url.fragment:
        raise DiffscaleError(
            "The language model's base URL must hold no user, password, query or fragment: put the key in an "
            "environment variable and name it with key_env."
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise DiffscaleError(f"The language model's base URL is not an http or https address: {_HOW}.")
    return str(url).rstrip("/")


def _keys_in(base: str) -> list[str]:
    """The parts of an address's path that may be keys, as some gateways have them there.

    These are long words of mixed letters, or of letters and digits, UUIDs, and what begins as keys do.
    """

    def mixed(word: str) -> bool:
        return not word.isalpha() or (word != word.lower() and sum(map(str.isupper, word)) > 2 and not word.isupper())

    parts = urlsplit(base).path.split("/")
    words = {part: re.findall(r"[A-Za-z0-9]{16,}", unquote(part)) for part in parts}
    return [part for part in parts if _KEY.match(unquote(part)) or any(map(mixed, words[part]))]


def _written_address(given: str) -> str:
    """An address that is kept with the results; raises DiffscaleError where a key may be in it."""
    address = _address(given)
    if _keys_in(address):
        raise DiffscaleError(
            "The language model's base URL may hold a key in its path, and is written to files: set the address in "
            "OPENAI_BASE_URL instead, which is written nowhere."
        )
    return address


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise DiffscaleError(
            "key_env is the name of an environment variable in capitals, such as OPENAI_API_KEY, and never the key."
        )
    return name


def _key(variable: str, given: str | None) -> SecretStr:
    text = (os.environ.get(variable, "") if given is None else given).strip()
    # What is no header would be quoted by the error that it makes further down.
    if not re.fullmatch(r"[!-~]*", text):
        where = f"in the environment variable {variable}" if given is None else "given"
        raise DiffscaleError(f"The key {where} has blanks or odd characters: set it again.")
    return SecretStr(text)


# These check when a command is read: what passes is written to the run's folder.
BaseUrl = Annotated[str | None, AfterValidator(lambda given: given if given is None else _written_address(given))]
KeyVariable = Annotated[str, AfterValidator(_variable)]
