"""Micro-batches whose size finds itself: grow while it pays, halve when memory runs out."""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")
_FIRST, _LARGEST, _GAIN = 8, 256, 1.05


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's or Python's way of saying that memory ran out, on any device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and ("not enough memory" in text or "out of memory" in text or "can't allocate" in text)
    )


class MicroBatch:
    """How many rows go at once (`size`), which finds itself.

    Without `fixed` the size starts at 8 and doubles as long as full micro-batches do at least
    5% more work a second. Out of memory halves it for good.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.size = fixed or _FIRST
        self._growing = fixed is None
        self._pace = 0.0

    def map(self, work: Callable[[slice], T], rows: int) -> Iterator[tuple[slice, T]]:
        """Yield (slice, work(slice)) over all `rows`, in order; what memory runs out for is run again in smaller ones.

        Errors other than out-of-memory pass through, and so does that one for a single row.
        """
        start = 0
        while start < rows:
            part = slice(start, min(start + self.size, rows))
            began = time.perf_counter()
            try:
                done = work(part)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or part.stop - part.start == 1:
                    raise
                failed = str(error)
            else:
                self.succeeded(part.stop - part.start, part.stop - part.start, time.perf_counter() - began)
                start = part.stop
                yield part, done
                continue
            # Outside the except block, where the traceback no longer holds the failed tensors.
            self.failed(part.stop - part.start, failed)

    def succeeded(self, rows: int, amount: int, seconds: float) -> None:
        """Take note that a micro-batch of `rows` took that long.

        `amount`: how much work it was, so that a long run after a short one does not look slow; 0 says nothing of pace.
        """
        if not self._growing or rows < self.size or not amount:
            return
        pace = amount / max(seconds, 1e-9)
        self._growing = self.size < _LARGEST and pace > self._pace * _GAIN
        self._pace = pace
        if self._growing:
            self.size *= 2

    def failed(self, rows: int, why: str) -> None:
        """Take note that memory ran out, as `why` says, with that many `rows`."""
        self.size, self._growing = max(1, rows // 2), False
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"Out of memory with {rows} rows, going on with {self.size}: {why}", stacklevel=4)
