"""A pool keeps its workers busy, and loses nothing when they are lost; who hangs is replaced, who kills is dropped."""

import random as chance
import re
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffscale.engine.pool
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.leaderboard import Leaderboard
from diffscale.engine.pool import LostWorker, Pool, inline
from diffscale.engine.scoring import DroppedCandidate
from diffscale.engine.task import Task
from diffscale.engine.transport import Answered, Joined, Lost, Passed, attempt
from diffscale.engine.travel import Traffic
from diffscale.engine.wanted import wanted_pictures
from diffscale.engine.work import Rows, WorkQueue
from diffscale.engine.worker import Worker
from diffscale.samplers.toy import ToySampler
from diffscale.searches import choose_search
from diffscale.testing import NearPoint, assert_same, shuffled
from diffscale.types import Evaluate, Run

PROMPTS = ("a point", "another point")


def tasks(search, budget=120, count=2):
    made = choose_search(search).make()
    return [Task(made, row, noise.fold(noise.root(0), row), budget, f"{row}") for row in range(count)]


class Simulated:
    """A Transport whose workers compute when their answer is due; `seconds(worker, rows)` is how long a job takes."""

    patient = False

    def __init__(self, names, seconds=lambda worker, rows: rows, trouble=lambda worker, job: None):
        self.samplers = {name: ToySampler(PROMPTS, 6) for name in names}
        self.workers = {name: Worker.beside(sampler, NearPoint()) for name, sampler in self.samplers.items()}
        self.events = [Joined(name) for name in names]
        self.traffic = Traffic()
        self.due, self.now, self.seconds, self.trouble = [], 0.0, seconds, trouble
        self.ends, self.jobs, self.replaced = dict.fromkeys(names, 0.0), [], []

    def submit(self, worker, number, job, pictures=None):
        self.jobs.append((worker, len(job)))
        due = self.now + self.seconds(worker, len(job))
        trouble = self.trouble(worker, job)
        if trouble == "hangs":
            return
        event = Lost(worker, trouble) if trouble else Answered(worker, number, attempt(self.workers[worker], job))
        self.due.append((due, len(self.jobs), event))

    def tell(self, worker, news):
        pass

    def wait(self, seconds):
        events, self.events = self.events, []
        if events or not self.due:
            return events
        first = min(self.due)
        self.due.remove(first)
        self.now = first[0]
        event = first[2]
        self.ends[event.worker] = self.now
        if isinstance(event, Lost):
            self.join()
        return [event]

    def join(self):
        name = f"new {len(self.workers)}"
        self.workers[name] = Worker.beside(ToySampler(PROMPTS, 6), NearPoint())
        self.ends[name] = self.now
        self.events.append(Joined(name))

    def replace(self, worker):
        self.replaced.append(worker)
        self.join()


def pool(transport, batch_size=4, **options):
    return Pool(transport, ToySampler(PROMPTS, 6), batch_size, **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("search", ["random", "zero_order n=3", "svdd", "halving", "fk", "first_order"])
def test_workers_may_be_lost_and_repeat_themselves(search, seed):
    wanted = run_searches(tasks(search), ToySampler(PROMPTS, 6), NearPoint(), 6, gallery=3)
    workers = shuffled(3, prompts=PROMPTS, losses=2, seed=seed)
    with pytest.warns(LostWorker):
        found = run_searches(tasks(search), ToySampler(PROMPTS, 6), NearPoint(), 6, gallery=3, executor=workers)
    for one, other in zip(wanted, found, strict=True):
        assert_same(one, other)
    assert {name for name, _ in (*workers._paces, *workers._batches)} | workers._told.keys() <= workers._flights.keys()


def test_samplers_wait_for_verifiers_that_are_still_to_come():
    class Late:
        patient, made = True, 0

        def __init__(self):
            self.events = [Joined("s", "sampler")]

        def submit(self, worker, number, job, pictures=None):
            self.made += 1
            self.events.append(Passed(worker, number, None))

        def wait(self, seconds):
            events, self.events = self.events, []
            if not events:
                raise KeyboardInterrupt  # nobody does anything any more
            return events

    transport, asker, queue = Late(), Asker(40), WorkQueue()
    queue.add(Rows(asker, asker.request, 0, 40))
    with pytest.raises(KeyboardInterrupt):
        list(pool(transport).run(queue))
    assert transport.made == 2


def test_a_worker_that_hangs_is_given_up_and_what_it_says_later_is_not_heard():
    hung = []

    def trouble(worker, job):
        if worker == "b" and len(transport.jobs) > 6 and not hung:
            hung.append(worker)
            return "hangs"
        return None

    transport = Simulated("abc", lambda worker, rows: 0.001, trouble)
    transport_wait = transport.wait

    def wait(seconds):
        if not transport.events and not transport.due:  # nobody says anything any more
            time.sleep(seconds)
            return []
        return transport_wait(seconds)

    transport.wait = wait
    wanted = run_searches(tasks("random"), ToySampler(PROMPTS, 6), NearPoint(), 2)
    with pytest.warns(LostWorker, match="The worker b is lost: it took many times as long as usual"):
        executor = pool(transport, 2, least_patience=0.05)
        found = run_searches(tasks("random"), ToySampler(PROMPTS, 6), NearPoint(), 2, executor=executor)
    assert transport.replaced == ["b"]
    for one, other in zip(wanted, found, strict=True):
        assert_same(one, other)


def of_key(request, key):
    return bool((request.state.key == key).any())


def test_a_row_that_two_workers_died_of_is_dropped_and_all_others_are_as_they_were():
    wanted = run_searches(tasks("random"), ToySampler(PROMPTS, 6), NearPoint(), 6, gallery=3)
    poison = wanted[1].best.key
    transport = Simulated("abc", trouble=lambda worker, job: "it died" if of_key(job.request, poison) else None)
    with pytest.warns(DroppedCandidate, match="'another point': two workers died of it [(]it died[)]"), pytest.warns(
        LostWorker
    ) as lost:  # fmt: skip
        found = run_searches(
            tasks("random"), ToySampler(PROMPTS, 6), NearPoint(), 6, gallery=3, executor=pool(transport)
        )
    assert sum(issubclass(each.category, LostWorker) for each in lost) == 2
    assert_same(wanted[0], found[0])
    assert found[1].dropped == 1 and found[1].candidates == wanted[1].candidates
    left = wanted[1].pool[:, 0].clone()
    left[wanted[1].best.number] = -torch.inf
    assert torch.equal(found[1].pool[:, 0], left)
    assert found[1].best.number == int(left.argmax())


def test_a_search_whose_state_is_lost_for_good_says_so_and_the_others_go_on():
    wanted = run_searches(tasks("svdd"), ToySampler(PROMPTS, 6), NearPoint(), 6)
    poison = torch.tensor(noise.fold(noise.fold(noise.root(0), 1), "candidate", 0))
    transport = Simulated("ab", trouble=lambda worker, job: "it died" if of_key(job.request, poison) else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostWorker)
        found = run_searches(
            tasks("svdd"), ToySampler(PROMPTS, 6), NearPoint(), 6, executor=pool(transport), return_errors=True
        )
    assert_same(wanted[0], found[0])
    what = "The search diffscale.searches.svdd:svdd for 'another point' is over: two workers died of one of its rows"
    assert str(found[1]) == f"{what} (it died)."


def test_uneven_workers_end_together(monkeypatch):
    slow = {"a": 1.0, "b": 4.0, "c": 1.0}
    transport = Simulated("abc", lambda worker, rows: slow[worker] * rows)
    # The pool measures by the clock, which is made to show the simulated time.
    monkeypatch.setattr(diffscale.engine.pool, "time", SimpleNamespace(monotonic=lambda: transport.now))
    executor = pool(transport, 8)
    run_searches(tasks("random", 6 * 200, 1), ToySampler(PROMPTS, 6), NearPoint(), 200, executor=executor)
    rows = {name: sum(count for worker, count in transport.jobs if worker == name) for name in "abc"}
    assert sum(rows.values()) == 200
    best = 200 / sum(1 / seconds for seconds in slow.values())
    assert max(transport.ends.values()) <= 1.1 * best
    assert min(transport.ends.values()) >= 0.9 * best
    assert rows["b"] < rows["a"] / 3


class Asker:
    def __init__(self, rows, to=None):
        x = torch.zeros(rows, 2)
        self.sampler = ToySampler(PROMPTS, 6)
        state = self.sampler.prior(torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
        self.request = Evaluate(state) if to is None else Run(state, to)
        self.seen = [0] * len(x)

    def wanted(self, start):
        return None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([None, 2, 3])), min_size=1, max_size=6), st.integers(0, 99)
)
def test_a_queue_gives_every_row_once_whatever_is_put_back(sizes, seed):
    draw, queue = chance.Random(seed), WorkQueue()
    askers = [Asker(*each) for each in sizes]
    for asker in askers:
        queue.add(Rows(asker, asker.request, 0, len(asker.seen)))
    assert queue.rows == sum(len(asker.seen) for asker in askers)
    dead = 0
    while (work := queue.take(lambda request, waiting: draw.randint(1, 5))) is not None:
        assert len({type(piece.request) for piece in work.pieces}) == 1
        assert len(work.job) == sum(map(len, work.pieces))
        for piece, mine in work.shares():
            keys = piece.request.state.key[piece.start : piece.stop]
            assert torch.equal(work.job.request.state.key[mine], keys)
        happens = draw.choice(["done", "done", "out of memory", "died"])
        if happens == "done":
            for piece in work.pieces:
                for row in range(piece.start, piece.stop):
                    piece.asker.seen[row] += 1
        else:
            for rows in queue.put_back(work, died=happens == "died"):
                assert len(rows) == 1 and rows.deaths == 2
                rows.asker.seen[rows.start] += 1
                dead += 1
    assert queue.rows == 0 and all(count == 1 for asker in askers for count in asker.seen)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=24), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3),
    st.integers(1, 6), st.integers(0, 99),
)  # fmt: skip
def test_pictures_that_can_win_come_back_whoever_scores_them(values, components, keep, shown, size, seed):
    draw = chance.Random(seed)
    rows = torch.tensor([[value, *(draw.randint(0, 3) for _ in range(components - 1))] for value in values]).double()
    rows[[i for i in range(len(rows)) if not draw.randrange(6)]] = -torch.inf
    board = Leaderboard(None if components == 1 else (lambda pool: pool.sum(1)), shown, keep, ties=4)
    images, came, flights = torch.rand(len(rows), 3, 2, 2), {}, []
    starts = list(range(0, len(rows), size))
    draw.shuffle(starts)
    while starts or flights:
        # What is wanted is said when a micro-batch leaves; others may have come back before it does.
        if starts and (not flights or draw.randrange(2)):
            start = starts.pop()
            flights.append((start, board.wanted(start, True)))
            continue
        start, wanted = flights.pop(draw.randrange(len(flights)))
        part = slice(start, start + size)
        pictures = wanted_pictures(wanted, rows[part], images[part], images[part])
        for number, (ranking, picture) in enumerate(zip(rows[part], pictures, strict=True), start):
            board.add(number, ranking)
            came[number] = picture
    # And those of every run that ended sooner.
    for end in range(1, len(rows) + 1):
        sooner = Leaderboard(board.aggregate, shown, keep, ties=4)
        for number in range(end):
            sooner.add(number, rows[number])
        assert all({"image", "latents"} <= came[number].keys() for number in sooner.full_size)
        assert all("thumbnail" in came[number] for number in sooner.thumbnails)
    assert all({"image", "latents"} <= came[number].keys() for number in board.full_size)
    assert all("thumbnail" in came[number] for number in board.thumbnails)
    usable = rows.isfinite().all(1).nonzero().flatten().tolist()
    if usable:
        assert "image" in came[usable[0]]
    assert not any(came[number] for number in range(len(rows)) if number not in usable)


def test_a_line_tells_what_workers_do():
    transport = Simulated("ab")
    executor, seen = pool(transport), []
    run_searches(
        tasks("random"), ToySampler(PROMPTS, 6), NearPoint(), 6, executor=executor,
        progress=lambda done, total, **figures: seen.append(figures.get("workers", "")),
    )  # fmt: skip
    assert any(re.fullmatch(r"a [\d.e+]+ NFE/s, b( [\d.e+]+ NFE/s)?( waits)?", line) for line in seen)
    many = Simulated([f"{i}" for i in range(6)])
    executor = pool(many)
    run_searches(tasks("random"), ToySampler(PROMPTS, 6), NearPoint(), 6, executor=executor)
    assert re.fullmatch(r"6 workers, [\d.e+]+ NFE/s, \d wait", executor.status())
    many.traffic.sent, many.traffic.received, many.traffic.candidates = 3_000_000, 1_000_000, 10
    assert executor.status().endswith(", 0.4 MB a candidate")
    assert inline(Worker.beside(ToySampler(PROMPTS, 6), NearPoint())).status() == ""
