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
from diffscale.engine.worker import Worker

_Act = Callable[[], Event | None]
_Inbox = queue.SimpleQueue[tuple[int, _Act] | None]
"""What a thread is to do, in order, each with the number of the series that it is for; None ends the thread."""


class ThreadTransport:
    """A Transport to a thread for each of `hosts`, by name.

    A thread that hangs is left alone, and so its device is lost: it cannot be stopped, and no other takes its place.
    """

    patient = False

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self.traffic = Traffic()
        self._events: queue.SimpleQueue[tuple[str, int, Event | BaseException]] = queue.SimpleQueue()
        self._inboxes: dict[str, _Inbox] = {}
        self._hosts, self._threads = dict(hosts), []
        self._roles = {host.role for host in hosts.values()}
        self._series = 0
        cores = max(1, torch.get_num_threads() // len(hosts))
        for name in hosts:
            inbox = self._inboxes[name] = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(name, inbox, cores), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def size(self) -> int:
        """How many workers there are that sample."""
        return sum(host.role != "verifier" for host in self._hosts.values())

    def prepare(self, recipe: Recipe) -> None:
        """Have all workers made by `recipe`; each joins when it is. What they still do for others is not heard."""
        self._series += 1
        for name, host in self._hosts.items():
            self._put(name, partial(_prepared, name, host, recipe))

    def rest(self) -> None:
        """Wait until no thread computes what a series left that was stopped, so that its networks can be used here."""
        self._series += 1
        for inbox in self._inboxes.values():
            idle = threading.Event()
            inbox.put((self._series, idle.set))
            idle.wait()

    def ask(self, question: Callable[[Worker], Any]) -> Any:
        """What `question` gives of a worker that samples, of the first that is free; raises what that raises."""
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        for name, host in self._hosts.items():
            if host.role != "verifier":
                self._put(name, partial(_asked, host, question, answers))
        answer, error = answers.get()
        if error is not None:
            raise error
        return answer

    def submit(self, worker: str, number: int, job: Job, pictures: Any = None) -> None:
        """See Transport."""
        if pictures is None:
            self.traffic.count_job(job)
        self._put(worker, partial(_computed, worker, number, self._hosts[worker], job, pictures))

    def tell(self, worker: str, news: Sequence[News]) -> None:
        """See Transport."""
        self._put(worker, partial(self._hosts[worker].tell, list(news)))

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """See Transport; raises what a worker raises."""
        if self._roles - {host.role for host in self._hosts.values()}:
            raise DiffscaleError("Devices hang: end this process, look at them, and run the same command again.")
        try:
            worker, series, event = self._events.get(timeout=seconds)
        except queue.Empty:
            return []
        if series != self._series or worker not in self._hosts:
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

    def end(self) -> None:
        """Have every thread end after the job that it is at, without waiting for it."""
        self._series += 1
        for inbox in self._inboxes.values():
            inbox.put(None)

    def close(self) -> None:
        """See Transport; a job that is being computed is waited for."""
        self.end()
        for thread in self._threads:
            if thread.name in self._inboxes:
                thread.join()

    def _put(self, worker: str, act: _Act) -> None:
        self._inboxes[worker].put((self._series, act))

    def _work(self, worker: str, inbox: _Inbox, cores: int) -> None:
        torch.set_num_threads(cores)  # of this thread alone
        while (told := inbox.get()) is not None:
            self._do(worker, *told)
            del told  # so that what was computed is not kept while nothing is to do

    def _do(self, worker: str, series: int, act: _Act) -> None:
        if series != self._series:
            return  # nobody waits for it
        try:
            event: Event | BaseException | None = act()
        except BaseException as error:
            event = error
        if event is not None:
            self._events.put((worker, series, event))


def _asked(host: Host, question: Callable[[Worker], Any], answers: queue.SimpleQueue[Any]) -> None:
    try:
        answers.put((host.ask(question), None))
    except BaseException as error:
        answers.put((None, error))


def _computed(worker: str, number: int, host: Host, job: Job, pictures: Any) -> Event:
    return answer(worker, number, host.compute(job, pictures))


def _prepared(name: str, host: Host, recipe: Recipe) -> Joined:
    if (error := host.prepare(recipe)) is not None:
        raise error
    return Joined(name, host.role)
