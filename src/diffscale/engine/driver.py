"""The driver runs many searches at once: it queues what they ask for, has it computed, and deals out the replies."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import BudgetTooSmall, DiffscaleError, Unsuited
from diffscale._util.fingerprints import name_of
from diffscale._util.progress import Counter, silent
from diffscale.engine.allocation import Account, Threshold, check_shareable
from diffscale.engine.journal import Journal, Reply
from diffscale.engine.output import Output
from diffscale.engine.pool import Deadly, Done, Executor, inline
from diffscale.engine.results import Observer, Result
from diffscale.engine.scoring import check_chooser
from diffscale.engine.search_context import SearchContext
from diffscale.engine.search_run import SearchRun
from diffscale.engine.task import Task
from diffscale.engine.ties import Compare, Pair, Pairs
from diffscale.engine.work import Rows, WorkQueue
from diffscale.engine.worker import Worker
from diffscale.types import Sampler, SetVerifier, Verifier, declares, own_prompt

_CHUNK = 64  # rows that all searches together are told to ask for, for each worker, unless the micro-batch is given


def run_searches(
    tasks: Sequence[Task],
    sampler: Sampler,
    verifier: Verifier,
    batch_size: int | None = None,
    observers: Sequence[Observer] = (),
    *,
    gallery: int = 0,
    keep_best: int = 1,
    journal: Journal | None = None,
    progress: Counter = silent,
    return_errors: bool = False,
    executor: Executor | None = None,
    choose: Verifier | None = None,
    allocation: Threshold | None = None,
) -> list[Any]:
    """Run all `tasks` to their end, their requests batched together; returns their Results in the same order.

    `batch_size`: most rows at once (None: found by itself); halved whenever memory runs out. `gallery`: how many of a
    search's best candidates come back as thumbnails; `keep_best`: how many in full size, for which no more than that
    are held in memory (and of an ensemble those that can still be among them). `journal`: replies are taken from there
    and written there. `progress`: called with the NFE computed so far, the budget and the `best` value, over all tasks.
    `return_errors`: a search that found nothing gives its DiffscaleError in the place of its Result, and none is
    raised. `executor`: computes the micro-batches with `sampler`, `verifier` and `choose`; None computes them in this
    process. `choose`: another verifier, which ranks what is finished in the place of `verifier`; searches do not see
    its scores. `allocation`: deals out the sum of all budgets over the tasks; None: each has its own. What a task was
    given is the budget of its Result's ledger.

    Raises DiffscaleError for a verifier that cannot `choose`, and for an allocation where a search does not declare
    `anytime` or candidates are ranked by no score that compares between prompts; BudgetTooSmall if a budget does not
    pay for one sample (all of these before anything runs) or a search finishes none, AllCandidatesFailed if a search
    got no finite score, and Unsuited if it asked for what the verifier cannot give; the latter only when all other
    searches are done.
    """
    if keep_best < 1:
        raise DiffscaleError(f"A search keeps 1 or more of its best candidates, not {keep_best}.")
    check_chooser(verifier, choose)
    if allocation is not None:
        for task in tasks:
            check_shareable(name_of(task.search), declares(task.search, "anytime"), verifier, choose)
        if journal is None:  # each round goes on from the replies of the one before
            journal, tasks = Journal(Path(":memory:"), {}), [replace(task, name="") for task in tasks]
    context = SearchContext(sampler, verifier, tuple(observers), gallery, journal, keep_best, choose)
    one_by_one = isinstance(verifier, SetVerifier)
    # Fixed for the whole search, so that it asks for the same rows when it is resumed, or among others.
    rows = (batch_size or _CHUNK) * (1 if executor is None else executor.size)
    chunk = max(1, rows // (1 if one_by_one else max(1, len(tasks))))
    for task in tasks:
        if task.budget < sampler.steps:
            raise BudgetTooSmall(
                f"A budget of {task.budget} NFE does not pay for one sample; one costs {sampler.steps} NFE, so give at "
                "least that."
            )
    total = sum(task.budget for task in tasks)
    if allocation is not None and tasks:
        tasks = [replace(task, budget=allocation.first(len(tasks), total, sampler.steps)) for task in tasks]
    searches = [SearchRun(index, task, context, chunk) for index, task in enumerate(tasks)]
    executor = executor or inline(Worker.beside(sampler, verifier, choose), batch_size)
    driver = _Driver(searches, executor, progress, total)
    if isinstance(verifier, SetVerifier):
        _run_in_order(driver, sampler, verifier)
    else:
        driver.run(searches)
        if allocation is not None:
            _run_in_rounds(driver, allocation)
        driver.break_ties(driver.searches)
    outcomes: list[Result | DiffscaleError] = []
    for search in driver.searches:
        try:
            outcomes.append(search.result())
        except DiffscaleError as error:
            if allocation is not None and isinstance(error, BudgetTooSmall):
                pays = f"its budget was what the allocation's minimum of {allocation.minimum} samples pays"
                error = BudgetTooSmall(f"{str(error).removesuffix('.')} ({pays}).")
            if not return_errors:
                raise error
            outcomes.append(error)
    return outcomes


def _run_in_order(driver: _Driver, sampler: Sampler, verifier: SetVerifier) -> None:
    """Run one search after the other, and tell the verifier after each what was chosen."""
    verifier.begin()
    driver.executor.begin()
    for search in driver.searches:
        driver.run([search])
        driver.break_ties([search])
        if (image := search.best_image()) is not None:
            verifier.choose(image, sampler.prompts[search.task.prompt_index])
            driver.executor.choose(image, sampler.prompts[search.task.prompt_index])


def _run_in_rounds(driver: _Driver, rule: Threshold) -> None:
    """Give searches that have spent their budgets more of the total, round by round, as `rule` says.

    A search goes on by being run again with a larger budget: the journal has all that it was answered.
    """
    ended: set[int] = set()
    while True:
        accounts = [
            Account(each.ledger.nfe, each.leaderboard.values().numpy(), each.error is not None or each.index in ended)
            for each in driver.searches
        ]
        spent, steps = [each.nfe for each in accounts], driver.searches[0].sampler.steps if accounts else 1
        grants = rule.grants(accounts, driver.total - sum(spent), steps)
        if not grants:
            return
        for row, nfe in grants.items():
            driver.searches[row] = driver.searches[row].with_budget(spent[row] + nfe)
        driver.run([driver.searches[row] for row in grants])
        ended |= {row for row in grants if driver.searches[row].ledger.nfe == spent[row]}


@dataclass
class _Driver:
    """`searches` are all of one call, `total` is the NFE that they may spend."""

    searches: list[SearchRun]
    executor: Executor
    progress: Counter
    total: int

    def run(self, searches: Sequence[SearchRun]) -> None:
        """Run `searches` to their end: whatever one of them waits for is computed beside what the others wait for."""
        queue = WorkQueue(images=bool(searches and searches[0].context.observers))
        for search in searches:
            search.start()
            _wait(search, queue)
        with closing(self.executor.run(queue)) as computed:
            for done in computed:
                if isinstance(done.result, Unsuited):
                    for rows in queue.drop(done.work.group):  # it suits none of those that ask alike
                        _fail(rows, done.result)
                for rows, mine in done.work.shares():
                    if not rows.is_over:
                        _deal(rows, mine, done, queue)
                self._report()
        assert all(search.request is None for search in searches), "rows were lost"

    def break_ties(self, searches: Sequence[SearchRun]) -> None:
        """Have those compared that share the best score of their search, which is over; a few searches at a time."""
        waiting: list[SearchRun] = []
        for search in searches:
            search.end()
            waiting += [search] if search.ties.missing else []
            if sum(len(each.ties.missing) for each in waiting) >= _CHUNK:
                self._compare(waiting)
                waiting = []
        self._compare(waiting)

    def _compare(self, searches: Sequence[SearchRun]) -> None:
        queue = WorkQueue()
        for each in _loaded(searches):
            bout = _Bout(each)
            queue.add(Rows(bout, bout.request, 0, len(bout.request.state)))
        with closing(self.executor.run(queue)) as computed:
            for done in computed:
                for rows, mine in done.work.shares():
                    assert isinstance(rows.asker, _Bout)
                    rows.asker.deal(rows, mine, done)
                self._report()

    def _report(self) -> None:
        if self.progress is not silent:
            bests = [best[1] for search in self.searches if (best := search.leaderboard.best())]
            spent = sum(each.spent for each in self.searches)
            workers = {"workers": status} if (status := self.executor.status()) else {}
            self.progress(spent, self.total, best=max(bests, default=-math.inf), **workers)


def _wait(search: SearchRun, queue: WorkQueue) -> None:
    """Put what a search asks for into the queue, if it asks for anything."""
    if search.request is not None:
        for start, stop in search.missing:
            queue.add(Rows(search, search.request, start, stop))


def _fail(rows: Rows, error: DiffscaleError) -> None:
    """End the search that `rows` are of, whose result is `error`."""
    assert isinstance(rows.asker, SearchRun)
    if not rows.is_over:
        rows.asker.fail(error)


def _deal(rows: Rows, mine: slice, done: Done, queue: WorkQueue) -> None:
    """Give a search its `rows`, which are `mine` of what was computed, or the error that ends it."""
    search = rows.asker
    assert isinstance(search, SearchRun)
    output = search.without(done.result.why) if isinstance(done.result, Deadly) else done.result
    if isinstance(output, DiffscaleError):
        _fail(rows, output)
        return
    tensors = {name: tensor[mine] for name, tensor in output.tensors.items()}
    tensors["micro_batch"] = torch.full((len(rows),), len(done.work))
    pictures = None if output.pictures is None else output.pictures[mine]
    images = None if output.images is None else output.images[mine]
    search.absorb(Reply(rows.start, rows.stop, tensors, output.costs(mine, len(done.work))), pictures, images)
    if rows.is_over:
        _wait(search, queue)


def _loaded(searches: Sequence[SearchRun]) -> list[list[tuple[SearchRun, dict[int, Tensor]]]]:
    """Searches with their candidates' pictures, by number, that are still to be compared; together what is of one size.

    A search whose pictures are lost fails.
    """
    groups: dict[Hashable, list[tuple[SearchRun, dict[int, Tensor]]]] = {}
    for search in searches:
        try:
            numbers = sorted({number for pair in search.ties.missing for number in pair})
            pictures = {number: search.picture(number) for number in numbers}
        except DiffscaleError as error:
            search.fail(error)
        else:
            groups.setdefault(next(iter(pictures.values())).shape, []).append((search, pictures))
    return list(groups.values())


class _Bout:
    """Searches some of whose candidates are to be compared: all their pairs, end to end, are one request."""

    def __init__(self, members: Sequence[tuple[SearchRun, dict[int, Tensor]]]) -> None:
        self._rows: list[tuple[SearchRun, Pair]] = []
        pictures: list[Tensor] = []
        sides: list[list[int]] = []
        prompts: list[str] = []
        for search, loaded in members:
            place = {number: len(pictures) + row for row, number in enumerate(loaded)}
            pictures += loaded.values()
            for pair in search.ties.missing:
                self._rows.append((search, pair))
                sides.append([place[number] for number in pair])
                prompts.append(own_prompt(search.sampler.prompts[search.task.prompt_index]))
        self.request = Compare(Pairs(torch.stack(pictures), torch.tensor(sides), prompts))

    def wanted(self, start: int) -> None:
        """No pictures come back of comparisons."""

    def deal(self, rows: Rows, mine: slice, done: Done) -> None:
        """Give every search what its pairs among `rows`, which are `mine` of what was computed, gave."""
        output = done.result
        for row, (search, pair) in enumerate(self._rows[rows.start : rows.stop], mine.start):
            if isinstance(output, Output):
                probability = float(output.tensors["probabilities"][row])
                search.decide(pair, probability, output.costs(slice(row, row + 1), len(done.work)))
            else:  # so dear is no comparison that it may end a search
                search.decide(pair, 0.5, {})
