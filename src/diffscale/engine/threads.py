"""Workers on several devices of this machine: a thread and a copy of the networks for each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from diffscale._util.errors import DiffscaleError
from diffscale.engine.host import Host, Recipe
from diffscale.engine.transport import Answered, Event, Joined, News, answer
from diffscale.engine.travel import Traffic
from diffscale.engine.work import Job

_Inbox = queue.SimpleQueue[Callable[[], Event | None] | None]
"""What a thread is to do, in order; None ends it."""


class ThreadTransport:
    """A Transport to a thread for each of `hosts`, by name.

    A thread that hangs is left alone, and so its device is lost: it cannot be stopped, and no other takes its place.
    """

    patient = False

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self.traffic = Traffic()
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._inboxes: dict[str, _Inbox] = {}
        self._hosts, self._threads = dict(hosts), []
        cores = max(1, torch.get_num_threads() // len(hosts))
        for name in hosts:
            inbox = self._inboxes[name] = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(inbox, cores), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def size(self) -> int:
        """How many workers there are that sample."""
        return sum(host.role != "verifier" for host in self._hosts.values())

    def prepare(self, recipe: Recipe) -> None:
        """Have all workers made by `recipe`; each joins when it is."""
        for name, host in self._hosts.items():
            self._inboxes[name].put(partial(_prepared, name, host, recipe))

    def submit(self, worker: str, number: int, job: Job, pictures: Any = None) -> None:
        """See Transport."""
        if pictures is None:
            self.traffic.count_job(job)
        self._inboxes[worker].put(partial(_computed, worker, number, self._hosts[worker], job, pictures))

    def tell(self, worker: str, news: Sequence[News]) -> None:
        """See Transport."""
        host, news = self._hosts[worker], list(news)
        self._inboxes[worker].put(lambda: host.tell(news))

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """See Transport; raises what a worker raises."""
        if not self._hosts:
            raise DiffscaleError("All devices hang: end this process, look at them, and run the same command again.")
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return []
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Answered):
            self.traffic.count_output(event.outcome)
        return [event]

    def replace(self, worker: str) -> None:
        """See Transport."""
        del self._hosts[worker]
        self._inboxes.pop(worker).put(None)

    def close(self) -> None:
        """See Transport; a job that is being computed is waited for."""
        for inbox in self._inboxes.values():
            inbox.put(None)
        for thread in self._threads:
            if thread.name in self._inboxes:
                thread.join()

    def _work(self, inbox: _Inbox, cores: int) -> None:
        torch.set_num_threads(cores)  # of this thread alone
        while (act := inbox.get()) is not None:
            try:
                event = act()
            except BaseException as error:
                event = error  # type: ignore[assignment]
            if event is not None:
                self._events.put(event)


def _computed(worker: str, number: int, host: Host, job: Job, pictures: Any) -> Event:
    return answer(worker, number, host.compute(job, pictures))


def _prepared(name: str, host: Host, recipe: Recipe) -> Joined:
    if (error := host.prepare(recipe)) is not None:
        raise error
    return Joined(name, host.role)
