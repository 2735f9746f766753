"""Searches that were asked for on the page: one at a time, each in a process of its own, the others wait."""

import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Final

from diffscale.ui.feed import log_file

_PATIENCE: Final = 15.0  # seconds that a search has to end by itself; it may be killed, since its journal has it all


class Jobs:
    """Computes run folders in the order in which they were added.

    A search can neither take down the page nor keep its memory: it is a process, which is told to stop by a signal as
    a command on a terminal is.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Path] = deque()
        self._current: tuple[Path, subprocess.Popen[bytes]] | None = None
        self._stopped = self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, folder: Path) -> None:
        """Compute `folder` when its turn comes; nothing changes if it waits or is computed already."""
        with self._changed:
            if self._place(folder) is None:
                self._waiting.append(folder)
                self._changed.notify_all()

    def place(self, folder: Path) -> int | None:
        """How many searches end before `folder` is computed: 0 while it is, None if nobody asked for it."""
        with self._changed:
            return self._place(folder)

    def stop(self, folder: Path) -> None:
        """Let `folder` wait no more, or stop the process that computes it, which may take some seconds."""
        with self._changed:
            if folder in self._waiting:
                self._waiting.remove(folder)
            elif self._current is not None and self._current[0] == folder:
                self._stopped = True
                _end(self._current[1])

    def close(self) -> list[Path]:
        """Stop everything and wait for it; returns what was stopped."""
        with self._changed:
            self._stopped = self._closed = True
            left = [*([self._current[0]] if self._current else []), *self._waiting]
            self._waiting.clear()
            if self._current is not None:
                _end(self._current[1])
            self._changed.notify_all()
        self._thread.join()
        return left

    def _place(self, folder: Path) -> int | None:
        if self._current is not None and self._current[0] == folder:
            return 0
        return self._waiting.index(folder) + 1 if folder in self._waiting else None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                folder = self._waiting.popleft()
                process = _begin(folder)
                self._current, self._stopped = (folder, process), False
            process.wait()
            with self._changed:
                if not self._stopped and process.returncode not in (0, 2):
                    _explain(folder, process.returncode)
                self._current = None


def _begin(folder: Path) -> "subprocess.Popen[bytes]":
    file = log_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "diffscale.ui.worker", str(folder)]
    with file.open("wb") as log:
        # In a session of its own: an interrupt at the keyboard is for the page, which then stops it.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    killer = threading.Timer(_PATIENCE, process.kill)
    killer.daemon = True
    killer.start()


def _explain(folder: Path, code: int) -> None:
    """Have the log end with a sentence, which a process that was killed could not write."""
    how = f"by {signal.Signals(-code).name}, perhaps since memory ran out" if code < 0 else f"with exit code {code}"
    with log_file(folder).open("a", encoding="utf-8") as log:
        log.write(f"\nerror: The process of this search was ended {how}: go on to take it up where it was.\n")
