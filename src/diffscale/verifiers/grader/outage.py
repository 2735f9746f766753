"""Telling a server that is down from a picture that it stumbles over."""

from __future__ import annotations

import threading
from typing import Final

from diffscale._util.errors import DiffscaleError

_LIMIT: Final = 4


class Outage:
    """Counts pictures in a row that the server at `url` gave up on, over all threads and calls.

    One such picture is one lost candidate; a row of them is a server that loses every candidate of the search, and
    then stopping is cheaper, as a run goes on where it was.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._row = 0
        self._lock = threading.Lock()

    def answered(self) -> None:
        """The server answered, usably or not."""
        with self._lock:
            self._row = 0

    def failed(self, reason: str) -> None:
        """Raises DiffscaleError with the last reason if this is the fourth picture in a row."""
        with self._lock:
            self._row += 1
            if self._row < _LIMIT:
                return
            self._row = 0
        raise DiffscaleError(
            f"The grader's server {self._url} gave no answer for {_LIMIT} pictures in a row ({reason}): check it, its "
            "quota and that the model takes pictures, then give the same command again."
        )
