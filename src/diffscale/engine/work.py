"""What searches wait for, row by row, until workers take it in micro-batches.

Rows that can run together wait in one group, whoever asks for them. A worker that is free takes as many of the group
that has waited longest as it wants. So it does not matter how many workers there are, nor how fast each is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from diffscale.engine.ties import Compare
from diffscale.engine.wanted import Wanted
from diffscale.types import Gradient, PredictGradient, Request, Score, State, concat

Kind = Literal["denoise", "score", "gradient", "compare"]
"""Kinds of work that differ in how many rows are best computed at once."""
DEADLY: Final = 2
"""Of how many workers rows may be the end before they are dropped."""


class Asker(Protocol):
    """Somebody who waits for the answer to `request`, in any order of its rows; None when that is over."""

    @property
    def request(self) -> Request | Compare | None: ...

    def wanted(self, start: int) -> Wanted | None:
        """Which pictures of the rows from `start` on are to come back; None where there are none."""


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of what `asker` asks for by `request`; `deaths`: how many workers died while they had them."""

    asker: Asker
    request: Request | Compare
    start: int
    stop: int
    deaths: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for them any more."""
        return self.asker.request is not self.request

    def split(self, count: int) -> tuple[Rows, Rows]:
        """The first `count` rows, and the others."""
        middle = self.start + count
        return replace(self, stop=middle), replace(self, start=middle)


@dataclass(frozen=True)
class Job:
    """What a worker is told: to answer `request`, and which pictures to send back.

    `wanted`: of each piece of its rows, end to end, their number, and which of their pictures are wanted. `images`:
    whether all of them are, as they are.
    """

    request: Request | Compare
    wanted: Sequence[tuple[int, Wanted | None]] = ()
    images: bool = False

    @property
    def kind(self) -> Kind:
        return kind_of(self.request)

    def __len__(self) -> int:
        return len(self.request.state)

    def rows(self, part: slice) -> Job:
        """The job of its rows `part` alone."""
        wanted, start = [], 0
        for count, each in self.wanted:
            inside = min(start + count, part.stop) - max(start, part.start)
            wanted += [(inside, each)] if inside > 0 else []
            start += count
        request: Any = self.request
        return replace(self, request=replace(request, state=request.state[part]), wanted=wanted)


@dataclass(frozen=True, eq=False)
class Work:
    """A micro-batch: `job` is what its `pieces`, end to end, ask for; `group`: what all of these have in common."""

    group: Hashable
    pieces: Sequence[Rows]
    job: Job

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def shares(self) -> Iterator[tuple[Rows, slice]]:
        """Each piece, and which rows of the micro-batch are its own."""
        start = 0
        for piece in self.pieces:
            yield piece, slice(start, start + len(piece))
            start += len(piece)


def kind_of(request: Request | Compare) -> Kind:
    """The kind of work that a request is."""
    if isinstance(request, Compare):
        return "compare"
    if isinstance(request, Gradient | PredictGradient):
        return "gradient"
    return "score" if isinstance(request, Score) else "denoise"


def group_of(request: Request | Compare) -> Hashable:
    """Requests with an equal group can be computed together."""
    if isinstance(request, Compare):
        return id(request)
    asked = (*(getattr(request, name, None) for name in ("to", "level", "steps", "via")),)
    return type(request), asked, request.state.batch_key


@dataclass
class WorkQueue:
    """Rows that wait, by group; the group that has waited longest comes first.

    `images`: whether all pictures are to come back as they are. `rows`: how many rows wait in all.
    """

    images: bool = False
    rows: int = field(default=0, init=False)
    _groups: dict[Hashable, deque[Rows]] = field(default_factory=dict, init=False)

    def add(self, rows: Rows) -> None:
        """Let `rows` wait behind those of their group."""
        self._groups.setdefault(group_of(rows.request), deque()).append(rows)
        self.rows += len(rows)

    def take(self, size: Callable[[Request | Compare, int], int]) -> Work | None:
        """The next micro-batch, None where nothing waits.

        `size` says how many rows it is to have at most, of a request like this one, while so many wait in all. Rows
        that a worker died of come one by one, so that the second time it is known which of them it was.
        """
        while self._groups:
            group, waiting = next(iter(self._groups.items()))
            pieces: list[Rows] = []
            left = 0
            while waiting and (not pieces or (left and _join(waiting[0]))):
                rows = waiting.popleft()
                self.rows -= len(rows)
                if rows.is_over:
                    continue
                if not pieces:
                    left = 1 if rows.deaths else max(1, size(rows.request, self.rows + len(rows)))
                now, rest = rows.split(min(len(rows), left))
                pieces.append(now)
                left -= len(now)
                if rest:
                    waiting.appendleft(rest)
                    self.rows += len(rest)
            if not waiting:
                del self._groups[group]
            if pieces:
                return Work(group, pieces, self._job(pieces))
        return None

    def put_back(self, work: Work, died: bool = False) -> list[Rows]:
        """Let the rows of `work`, which nobody computed, wait again, before all others; returns those that may not.

        `died`: whether the worker that had them did; rows of which DEADLY workers died are returned.
        """
        again = [replace(piece, deaths=piece.deaths + died) for piece in work.pieces]
        if alive := [rows for rows in again if rows.deaths < DEADLY]:
            waiting = deque([*alive, *self._groups.pop(work.group, ())])
            self._groups = {work.group: waiting, **self._groups}
            self.rows += sum(map(len, alive))
        return [rows for rows in again if rows.deaths >= DEADLY]

    def drop(self, group: Hashable) -> list[Rows]:
        """Take all rows of a group out of the queue."""
        dropped = self._groups.pop(group, ())
        self.rows -= sum(map(len, dropped))
        return list(dropped)

    def _job(self, pieces: Sequence[Rows]) -> Job:
        """What the rows of `pieces`, end to end, ask for."""
        first = pieces[0].request
        if isinstance(first, Compare):
            (piece,) = pieces
            return Job(Compare(first.state[piece.start : piece.stop]))
        states: list[State] = [piece.request.state[piece.start : piece.stop] for piece in pieces]  # type: ignore[misc]
        wanted = [(len(piece), piece.asker.wanted(piece.start)) for piece in pieces]
        return Job(replace(first, state=concat(states)), wanted, self.images)


def _join(rows: Rows) -> bool:
    """Whether rows may share a micro-batch with others."""
    return not rows.deaths and not isinstance(rows.request, Compare)
