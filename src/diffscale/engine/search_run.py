"""One search on its way: its generator, its account, what it asks for, and the best so far."""

import math
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import torch
from torch import Tensor

from diffscale._util.errors import AllCandidatesFailed, BudgetTooSmall, DiffscaleError, raised, users_line
from diffscale._util.fingerprints import name_of
from diffscale.engine.answers import answer_of, answers_itself, finishes
from diffscale.engine.batching import out_of_memory
from diffscale.engine.environment import SearchEnvironment
from diffscale.engine.journal import Reply
from diffscale.engine.kept_pictures import KeptPictures
from diffscale.engine.leaderboard import Leaderboard, Scores, by_rows
from diffscale.engine.ledger import BudgetSpent, Ledger, price
from diffscale.engine.output import Output
from diffscale.engine.requests import check_request
from diffscale.engine.results import Candidate, Result, Thumbnail
from diffscale.engine.scoring import DroppedCandidate, dropped_scores
from diffscale.engine.search_context import SearchContext, aggregate_of
from diffscale.engine.task import Task
from diffscale.engine.ties import Pair, RoundRobin
from diffscale.engine.wanted import Picture, Wanted
from diffscale.types import Decide, Draft, Evaluate, NeedsIntermediateX0, Predict, Request, Run, Score

_REFUSALS: Final = 100  # how often a search may ask for too much in a row before it is ended


@dataclass
class SearchRun:
    """A search that is run by feeding it replies, rows at a time, until it asks for nothing more.

    `chunk`: rows that it is told to ask for at once, unless the journal knows what it began with. `request` is what it
    waits for, None when it is over; `missing` are the rows [start, stop) of it that are still to be computed. Whatever
    the journal knows is replayed before anything is missing. `ties` are the candidates that share the best score, once
    that is to be decided.
    """

    index: int
    task: Task
    context: SearchContext
    chunk: int
    request: Request | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)
    dropped: int = 0
    error: DiffscaleError | None = None
    finished: int = 0
    finished_nfe: int = 0
    requests: int = -1
    ties: RoundRobin = field(default_factory=RoundRobin)
    decisions: list[str] = field(default_factory=list)
    rounds: list[tuple[int, int, float]] = field(default_factory=list)
    _first: int | None = None
    _parts: list[Reply] = field(default_factory=list)
    _refused: str = ""
    # Of each key (step, rows) wherever it went on, see `Candidate.micro_batches`.
    _micro_batches: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sampler, self.journal = self.context.sampler, self.context.journal
        self.name = self.task.name or str(self.index)
        self.ledger = Ledger(self.task.budget)
        self.pictures = KeptPictures(self.journal, self.name)
        context = self.context
        self.scores = Scores(context.aggregate)
        self.leaderboard = Leaderboard(
            aggregate_of(context.ranker), context.gallery, context.keep_best, context.most_tied
        )
        chunk = self.chunk if self.journal is None else self.journal.chunk(self.name, self.chunk)
        predictable = getattr(self.sampler, "predictable", range(1, self.sampler.steps))
        predicts = () if isinstance(context.verifier, NeedsIntermediateX0) else predictable
        environment = SearchEnvironment(
            self.sampler, self.task.prompt_index, self.task.key, self.ledger, chunk, context.aggregate, predicts,
            context.keep_best,
        )  # fmt: skip
        self.generator = self.task.search(environment)
        if not isinstance(self.generator, Generator):
            raise DiffscaleError(
                f"A search is a generator function that yields requests, but {name_of(self.task.search)} gave "
                f"{type(self.generator).__name__}: mend it."
            )

    @property
    def spent(self) -> int:
        """NFE of what has been computed; `ledger.nfe` has all that was asked for."""
        if self.request is None:
            return self.ledger.nfe
        missing = sum(stop - start for start, stop in self.missing)
        return self.ledger.nfe - price(self.request, self.sampler) * missing // len(self.request.state)

    def start(self) -> None:
        """Take the first request."""
        self._advance(None)

    def with_budget(self, budget: int) -> Self:
        """This search with another budget, not started; with a journal, one that is anytime goes on from this."""
        return type(self)(self.index, replace(self.task, budget=budget), self.context, self.chunk)

    def wanted(self, start: int) -> Wanted | None:
        """Which pictures of the rows of the request from `start` on can be kept; None where they finish none."""
        if self.request is None or not finishes(self.request, self.sampler):
            return None
        number = self.finished + start
        return self.leaderboard.wanted(number, self._first is None or number < self._first)

    def absorb(self, reply: Reply, pictures: Sequence[Picture] | None = None, images: Tensor | None = None) -> None:
        """Take rows of the answer, `pictures` and `images` [rows, ...] of candidates that they finish."""
        assert self.request is not None
        # One transaction, as each is waited for.
        with nullcontext() if self.journal is None else self.journal.together():
            if finishes(self.request, self.sampler):
                self._rank(reply, pictures, images)
            if self.journal is not None:
                self.journal.write(self.name, self.requests, type(self.request).__name__, reply)
        self._take(reply)
        if not self.missing:
            self._advance(self._answer())

    def without(self, why: str) -> Output | DiffscaleError:
        """What a row is worth that was dropped, as `why` says, since no worker could compute it.

        It loses one candidate, or the search where others depend on it.
        """
        assert self.request is not None
        if not isinstance(self.request, Score | Evaluate | Draft):
            return DiffscaleError(f"The search {self.described} is over: two workers died of one of its rows ({why}).")
        prompt = self.sampler.prompts[self.task.prompt_index]
        warnings.warn(
            f"Dropped a candidate of {prompt!r}: two workers died of it ({why}).", DroppedCandidate, stacklevel=2
        )
        tensors = {"scores": dropped_scores(self.context.verifier, 1)}
        if not finishes(self.request, self.sampler):
            return Output(tensors)
        if self.context.choose is not None:
            tensors["choice"] = dropped_scores(self.context.choose, 1)
        return Output(tensors, pictures=[{}])

    def fail(self, error: DiffscaleError) -> None:
        """End the search, which has no result but `error`."""
        self.error, self.request, self.missing = error, None, []
        self.generator.close()

    def end(self) -> None:
        """Draw up who shares the best score of the search, which is over; what the journal knows of them is taken."""
        if self.error is not None:
            return
        self.ties = RoundRobin(self.leaderboard.tied())
        known = self.journal.compared(self.name) if self.journal and self.ties.missing else {}
        for pair in self.ties.missing:
            if pair in known:
                self._enter(pair, *known[pair])

    def decide(self, pair: Pair, probability: float, costs: dict[str, float]) -> None:
        """Take the probability that the first of two candidates that share the best score is better."""
        if self.journal is not None:
            self.journal.compare(self.name, pair, probability, costs)
        self._enter(pair, probability, costs)

    def _enter(self, pair: Pair, probability: float, costs: dict[str, float]) -> None:
        self.ledger.add(costs)
        self.ties.take(pair, probability)

    def picture(self, number: int) -> Tensor:
        """Candidate `number`, one of those that can be the best: uint8 [3, H, W].

        Raises DiffscaleError if the journal has lost it; the search is then computed again the next time.
        """
        return self._whole(number)["image"]

    def result(self) -> Result:
        """What was found; raises AllCandidatesFailed or BudgetTooSmall if nothing was, or the search's own error."""
        if self.error is not None:
            self._forget()
            raise self.error
        found = self.leaderboard.best()
        if found is None:
            if self.dropped:
                self._forget()
                raise AllCandidatesFailed(
                    f"None of the {self.dropped} candidates of the search {self.described} got a finite score; see the "
                    "warnings above and mend the verifier or the model."
                )
            raise BudgetTooSmall(self._nothing_found())
        scores, values, pool = self.scores.values(), self.leaderboard.values(), self.scores.components
        points = self.scores.trace()
        if points[-1][1] < self.ledger.nfe:
            points.append((points[-1][0], self.ledger.nfe, points[-1][2]))
        order = self._best_first(self.leaderboard.full_size, values)
        best = [self._candidate(number, scores, values) for number in order[: self.context.keep_best]]
        return Result(
            best[0],
            self._candidate(found[0] if self._first is None else self._first, scores, values),
            best,
            self._gallery(scores, values),
            [(nfe, value) for _, nfe, value in points],
            {
                name: [(nfe, float(pool[number, k])) for number, nfe, _ in points]
                for k, name in enumerate(self.context.components)
            },
            pool.clone(),
            self.leaderboard.components.clone(),
            self.ledger,
            self.finished,
            self.dropped,
            self.sampler.prompts[self.task.prompt_index],
            compared=self.ties.compared,
            decisions=list(self.decisions),
            wordings=[self._wording(number) for number in range(self.scores.count)],
            rounds=list(self.rounds),
        )

    def _forget(self) -> None:
        """Let what is mended run anew: the replies of a search that failed would only make it fail again."""
        if self.journal is not None:
            self.journal.forget(self.name)

    def _nothing_found(self) -> str:
        """Why no sample was finished, and what to do."""
        found_none = f"The search {self.described} finished no sample: "
        if self._refused:
            return found_none + self._refused
        spent = f"{self.ledger.nfe} of {self.ledger.budget} NFE"
        how = "its function must write `scores = yield from env.evaluate(state)`, or give it a larger budget"
        return f"{found_none}it ended by itself after {spent}, and one sample costs {self.sampler.steps}; {how}."

    def _too_dear(self, request: Request) -> str:
        return (
            f"it asked for {type(request).__name__} of {len(request.state)} rows, which costs "
            f"{price(request, self.sampler)} NFE, and {self.ledger.left} of {self.task.budget} were left; give it a "
            "larger budget, or let it ask for fewer rows."
        )

    @property
    def described(self) -> str:
        """The search and what it is for, as sentences name it."""
        return f"{name_of(self.task.search)} for {self.sampler.prompts[self.task.prompt_index]!r}"

    def best_image(self) -> Tensor | None:
        """The best candidate so far, float32 [3, H, W] in [0, 1]; None if there is none."""
        scores, values = self.scores.values(), self.leaderboard.values()
        order = self._best_first(self.leaderboard.full_size, values)
        return self._candidate(order[0], scores, values).image if order else None

    def _gallery(self, scores: Tensor, values: Tensor) -> list[Thumbnail]:
        """The best candidates that can be shown, best first, as `_candidate` takes them."""
        order = self._best_first(self.leaderboard.thumbnails, values)
        images = {number: self.pictures.of(number).get("thumbnail") for number in order[: self.context.gallery]}
        shown = [(n, image) for n, image in images.items() if image is not None]
        table = self.scores
        return [
            Thumbnail(image, float(scores[n]), float(values[n]), n, table.key(n), table.nfe(n), self._together(n))
            for n, image in shown
        ]

    def _best_first(self, numbers: Iterable[int], values: Tensor) -> list[int]:
        """Candidates by their `values` (those of all candidates); of equals the stronger first, then the first."""
        strength = self.ties.strengths()
        return sorted(numbers, key=lambda n: (-float(values[n]), -strength.get(n, -math.inf), n))

    def _candidate(self, number: int, scores: Tensor, values: Tensor) -> Candidate:
        """Candidate `number`, which is one of the best or the baseline, see `picture`; `scores` and `values`: those of
        all candidates."""
        kept, table = self._whole(number), self.scores
        return Candidate(
            kept["image"].float() / 255,
            kept["latents"],
            table.key(number),
            float(scores[number]),
            table.nfe(number),
            number,
            table.components[number].clone(),
            float(values[number]),
            self.leaderboard.components[number].clone(),
            self._wording(number),
            kept.get("noise"),
            self._together(number),
        )

    def _together(self, number: int) -> tuple[tuple[int, int], ...]:
        """The micro-batches that candidate `number` was in."""
        return tuple(self._micro_batches.get(self.scores.key(number), ()))

    def _wording(self, number: int) -> str:
        return self.sampler.prompts[self.scores.prompt_index(number)]

    def _whole(self, number: int) -> dict[str, Tensor]:
        kept = self.pictures.of(number)
        if "image" not in kept:
            self._forget()
            raise DiffscaleError(
                f"The journal has lost picture {number} of the search {self.described}: run the same command again, "
                "and that search is computed anew."
            )
        return kept

    def _advance(self, answer: Any) -> None:
        """Hand over `answer` and take requests until one needs computing, or the search ends."""
        while True:
            if (request := self._ask(answer)) is None:
                self.request = None
                return
            if isinstance(request, Decide):
                answer = self._settled(request)
                continue
            if answers_itself(request, self.sampler):
                answer = request.state
                continue
            self.requests += 1
            self.request, self._parts, self.missing = request, [], [(0, len(request.state))]
            for reply in self.journal.replies(self.name, self.requests) if self.journal else []:
                if reply.start >= len(request.state):
                    continue
                # It may be of a larger budget, whose last request has more rows.
                reply = reply.until(len(request.state))
                if finishes(request, self.sampler):
                    self._rank(reply, None, None)
                self._take(reply)
            if self.missing:
                return
            answer = self._answer()

    def _settled(self, decision: Decide) -> int:
        """What the journal says that this run settled on, else what is decided now, which it then says."""
        self.requests += 1
        choice, why = decision.choice, decision.why
        if self.journal is not None:
            if known := self.journal.replies(self.name, self.requests):
                told = known[0].tensors
                choice, why = int(told["choice"]), bytes(told["why"].tolist()).decode()
            else:
                sentence = torch.tensor(list(why.encode()), dtype=torch.uint8)
                reply = Reply(0, 1, {"choice": torch.tensor([choice]), "why": sentence}, {})
                self.journal.write(self.name, self.requests, "Decide", reply)
        self.decisions.append(why)
        return choice

    def _ask(self, answer: Any) -> Request | Decide | None:
        """The next request that the budget pays for, which it then has; None at the end of the search."""
        try:
            request = self.generator.send(answer)
            for _ in range(_REFUSALS):
                try:
                    check_request(request, self.sampler, self.task.search)
                    if isinstance(request, Decide):
                        return request
                    self.ledger.charge(price(request, self.sampler))
                    return request
                except (DiffscaleError, BudgetSpent) as refusal:
                    if isinstance(refusal, BudgetSpent) and not isinstance(request, Decide):
                        self._refused = self._too_dear(request)
                    request = self.generator.throw(refusal)  # so that it is raised in the line that yielded it
            self.generator.close()
        except (StopIteration, BudgetSpent):
            pass
        except DiffscaleError as error:
            place = users_line(error)
            self.error = type(error)(f"{str(error).removesuffix('.')} (in {place}).") if place else error
            self.error.__cause__ = error if place else error.__cause__
        except Exception as error:  # whatever a search may do wrong
            if out_of_memory(error):
                raise
            self.error = DiffscaleError(f"The search {self.described} failed ({raised(error)}): mend it.")
            self.error.__cause__ = error
        return None

    def _take(self, reply: Reply) -> None:
        self._note_micro_batch(reply)
        self.ledger.add(reply.costs)
        given = [reply.tensors[name] for name in ("scores", "choice") if name in reply.tensors]
        if given:
            self.dropped += int(torch.stack([by_rows(each)[:, 0].isinf() for each in given]).any(0).sum())
        self._parts.append(reply)
        left = []
        for start, stop in self.missing:
            left += [(a, b) for a, b in ((start, min(stop, reply.start)), (max(start, reply.stop), stop)) if a < b]
        self.missing = left

    def _note_micro_batch(self, reply: Reply) -> None:
        """Note in how many rows the trajectories of `reply` went on from where they were.

        Those that did not begin with the noises of their keys have none at step 0.
        """
        request, rows = self.request, reply.tensors.get("micro_batch")
        if rows is None or not isinstance(request, Run | Predict | Evaluate | Score) or request.state.level is not None:
            return
        if isinstance(request, Score) and not finishes(request, self.sampler):
            return
        # Of a state that holds its prediction the evaluation at this step was made before.
        step = request.state.step + (request.state.x0 is not None)
        state = request.state[reply.start : reply.stop]
        own = [True] * len(state)
        if step == 0:
            noises = self.sampler.prior(state.key, state.prompt_index).x
            own = (noises == state.x.to(noises)).flatten(1).all(1).tolist()
        for key, count, is_own in zip(state.key.tolist(), rows.tolist(), own, strict=True):
            before = [each for each in self._micro_batches.get(key, ()) if each[0] < step]
            self._micro_batches[key] = [*before, (step, count)] if is_own else []

    def _answer(self) -> Any:
        """The whole answer to the request, put together from its parts."""
        request = self.request
        assert request is not None
        if finishes(request, self.sampler):
            self.finished += len(request.state)
            self.finished_nfe = self.ledger.nfe
            self.rounds.append((self.finished, self.ledger.nfe, sum(self.ledger.seconds.values())))
        parts = sorted(self._parts, key=lambda part: part.start)
        names = parts[0].tensors.keys() - {"micro_batch"}
        joined = {name: _joined([part.tensors[name] for part in parts]) for name in names}
        return answer_of(request, joined, self.sampler, self.context.record)

    def _rank(self, reply: Reply, pictures: Sequence[Picture] | None, images: Tensor | None) -> None:
        """Enter the finished candidates, and keep what can be kept of their `pictures`, see `wanted`.

        `pictures` are None where the journal is replayed, which has those that were kept.
        """
        assert self.request is not None
        state = self.request.state[reply.start : reply.stop]
        keys, scores = state.key, reply.tensors["scores"]
        rows, ranking = by_rows(scores), by_rows(scores if self.context.choose is None else reply.tensors["choice"])
        since, size = self.ledger.nfe - self.finished_nfe, len(self.request.state)
        # The NFE since the last finished candidates, dealt out evenly, so that traces do not depend on the batch.
        nfe = [self.finished_nfe + since * (i + 1) // size for i in range(reply.start, reply.stop)]
        # Whatever they are ranked by, those that the verifier drops are not chosen.
        ranking = ranking.masked_fill(~rows.isfinite().all(1, keepdim=True), -math.inf)
        usable = ranking.isfinite().all(1).tolist()
        for i, (key, prompt) in enumerate(zip(keys.tolist(), state.prompt_index.tolist(), strict=True)):
            number = self.finished + reply.start + i
            self.scores.add(number, rows[i], nfe[i], key, prompt)
            full_size, shown = self.leaderboard.add(number, ranking[i])
            # In whatever order they come, the baseline is the first of them that can be chosen.
            first = usable[i] and (self._first is None or number < self._first)
            self._first = number if first else self._first
            if pictures is not None:
                self._keep(number, pictures[i], full_size or first, shown, state.x[i] if state.step == 0 else None)
        if images is not None:
            for observe in self.context.observers:
                observe(self.index, keys, scores, images, nfe)

    def _keep(self, number: int, picture: Picture, full_size: bool, shown: bool, noise: Tensor | None) -> None:
        """Keep of a candidate's `picture` what is wanted; a journal keeps all that came, for smaller budgets."""
        names = {*(("image", "latents") if full_size else ()), *(("thumbnail",) if shown else ())}
        kept = {name: tensor for name, tensor in picture.items() if name in names or self.journal is not None}
        if "latents" in kept and noise is not None:
            kept["noise"] = noise.detach().cpu().clone()
        if kept:
            best = {*self.leaderboard.full_size, *([] if self._first is None else [self._first])}
            self.pictures.keep(number, kept, best, self.leaderboard.thumbnails)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all `parts`; on the CPU where these are on several devices, as those of a journal are."""
    together = len({part.device for part in parts}) == 1
    return torch.cat([part if together else part.cpu() for part in parts])
