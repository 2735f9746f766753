"""What holds for every search and every verifier, as checks that a plug-in's tests call.

They run on an analytic model (`samplers.toy.ToySampler`), so that a check takes a second and needs no weights:

    from diffscale.testing import check_search, check_verifier

    def test_my_search():
        check_search("my_search b=2")

All checks raise AssertionError with a sentence that says what does not hold.
"""

import copy
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.pool import LostWorker, Pool
from diffscale.engine.results import Result
from diffscale.engine.sampler_worker import SamplerWorker
from diffscale.engine.scoring import DroppedCandidate, UndecidedPair, recording_of, safe_compare, safe_score
from diffscale.engine.task import Task
from diffscale.engine.ties import Pairs
from diffscale.engine.transport import Event, Joined, Lost, News, Role, answer, attempt
from diffscale.engine.travel import Traffic
from diffscale.engine.verifier_worker import VerifierWorker
from diffscale.engine.work import Job, Kind
from diffscale.engine.worker import Worker
from diffscale.samplers.toy import ToySampler
from diffscale.searches import choose_search
from diffscale.types import Compares, PoolVerifier, Verifier, Wording
from diffscale.verifiers import load as load_verifier

PROCESSES: Final = ("flow", "vp", "ve")
"""Noise schedules that a search is tried on; the prior of `ve` has a standard deviation of 80."""
_PROMPTS: Final = ("a point", "another point", "a third point")
_EXTENT: Final = 6.0


class WordedToy(ToySampler):
    """A ToySampler each of whose prompts has two other wordings, behind all prompts, for searches that reword."""

    def __init__(self, prompts: Sequence[str] = _PROMPTS, *args: Any, **kwargs: Any) -> None:
        others = [Wording(f"{prompt}, {how}", prompt) for prompt in dict.fromkeys(prompts) for how in ("said", "told")]
        super().__init__([*prompts, *others], *args, **kwargs)


class NearPoint:
    """A verifier of the toy's pictures: the negative squared distance of their point to `target`."""

    name = "near_point"

    def __init__(self, target: tuple[float, float] = (4.2, 0.3)) -> None:
        self.target = torch.tensor(target, dtype=torch.float64)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores float64 [B] of `images` [B, 3, H, W] in [0, 1]."""
        return -(points(images) - self.target).square().sum(1)


class Killed(BaseException):
    """Ends a run as a signal would end the process: nothing may catch it."""


class _KilledVerifier(NearPoint):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls_left = calls

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed
        return super().__call__(images, prompts)


class _MoodyVerifier(NearPoint):
    """It cannot score every third of its pictures, told by what they show."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = super().__call__(images, prompts)
        return torch.where((images[:, 0, 0, 0] * 1000).long() % 3 == 0, torch.nan, scores)


class ShuffledWorkers:
    """A Transport to `count` workers, each with its own sampler, whose answers come in an order by chance.

    An answer may come twice, and about one in `losses` is lost with its worker, for which another one joins.
    `verifier`: that of all of them; None: a NearPoint.
    """

    patient = True

    def __init__(
        self, count: int, prompts: Sequence[str] = _PROMPTS, verifier: Verifier | None = None, losses: int = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.samplers = [WordedToy(prompts, steps=6) for _ in range(count)]
        self._workers = {f"{i}": Worker.beside(each, verifier or NearPoint()) for i, each in enumerate(self.samplers)}
        self._events: list[Event] = [Joined(name) for name in self._workers]
        self._held: list[Any] = []
        self._rows: dict[int, set[tuple[int, Kind]]] = {}
        self._lost: set[tuple[int, Kind]] = set()
        self._chance, self._losses, self.traffic = random.Random(seed), losses, Traffic()

    def submit(self, worker: str, number: int, job: Job, pictures: Any = None) -> None:
        """See `Transport.submit`."""
        state = job.request.state
        self._rows[number] = set() if isinstance(state, Pairs) else {(key, job.kind) for key in state.key.tolist()}
        self._held.append(answer(worker, number, attempt(self._workers[worker], job)))

    def tell(self, worker: str, news: Sequence[News]) -> None:
        """See `Transport.tell`: the verifier is that of all."""

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """See `Transport.wait`."""
        if not self._events:
            answer = self._held.pop(self._chance.randrange(len(self._held)))
            rows = self._rows.pop(answer.number)
            # No rows are lost twice, or they would be dropped.
            if self._losses and not self._chance.randrange(self._losses) and not rows & self._lost:
                self._lost |= rows
                name = f"{len(self._workers)}"
                self._workers[name] = self._workers[answer.worker]
                self._events = [Lost(answer.worker, "it was unlucky"), Joined(name), answer]
            else:
                self._events = [answer] * (1 + self._chance.randrange(2))
        events, self._events = self._events, []
        return events

    def replace(self, worker: str) -> None:
        """See `Transport.replace`."""

    def close(self) -> None:
        """See `Transport.close`."""


@dataclass(frozen=True)
class ToyRecipe:
    """A `engine.host.Recipe` of toys with these `prompts`, which can be sent to workers of any kind.

    `pause`: seconds that each picture takes to be scored besides.
    """

    verifier: Verifier
    chooser: Verifier | None = None
    prompts: Sequence[str] = _PROMPTS
    pause: float = 0.0

    def build(self, device: str, networks: dict[Any, Any], role: Role) -> Worker:
        """See `engine.host.Recipe`; each worker has verifiers of its own."""
        verifier, chooser = copy.deepcopy((self.verifier, self.chooser))
        sampler = _Slow(self.pause, self.prompts, 6)
        if role == "both":
            return Worker.beside(sampler, verifier, chooser)
        if role == "verifier":
            return Worker(None, VerifierWorker(verifier, chooser))
        return Worker(SamplerWorker(sampler, recording_of(verifier, chooser)), None)


class _Slow(WordedToy):
    """A WordedToy whose pictures take `pause` seconds each."""

    def __init__(self, pause: float, *args: Any) -> None:
        super().__init__(*args)
        self._pause = pause

    def decode(self, latents: Tensor) -> Tensor:
        time.sleep(self._pause * len(latents))
        return super().decode(latents)


def shuffled(count: int, batch_size: int | None = 2, **options: Any) -> Pool:
    """An Executor with ShuffledWorkers."""
    transport = ShuffledWorkers(count, **options)
    return Pool(transport, transport.samplers[0], batch_size)


def points(images: Tensor) -> Tensor:
    """The points float64 [B, 2] that pictures [B, 3, H, W] of the toy stand for."""
    return images[:, :2, 0, 0].double() * 2 * _EXTENT - _EXTENT


def assert_same(one: Result, other: Result, what: str = "two runs") -> None:
    """The results are equal to the last bit, but for the seconds."""
    for name in ("score", "value", "key", "number", "nfe"):
        a, b = getattr(one.best, name), getattr(other.best, name)
        assert a == b, f"The {name} of the best candidate differs between {what}: {a} and {b}."
    assert torch.equal(one.best.latents, other.best.latents), f"The latents of the best differ between {what}."
    assert torch.equal(one.best.image, other.best.image), f"The best picture differs between {what}."
    for name in ("pool", "ranking"):
        equal = torch.equal(getattr(one, name), getattr(other, name))
        assert equal, f"The scores of all candidates ({name}) differ between {what}."
    assert one.trace == other.trace, f"The traces differ between {what}: {one.trace} and {other.trace}."
    for name in ("nfe", "network_forwards", "decodes"):
        a, b = getattr(one.ledger, name), getattr(other.ledger, name)
        assert a == b, f"The costs ({name}) differ between {what}: {a} and {b}."
    assert one.compared == other.compared, f"The comparisons differ between {what}: {one.compared}, {other.compared}."
    shown = [[(each.score, each.value, each.number) for each in result.gallery] for result in (one, other)]
    assert shown[0] == shown[1], f"The galleries differ between {what}."
    numbers = [[each.number for each in result.best_candidates] for result in (one, other)]
    assert numbers[0] == numbers[1], f"The best few candidates differ between {what}: {numbers[0]} and {numbers[1]}."
    for a, b in zip(one.best_candidates, other.best_candidates, strict=True):
        assert torch.equal(a.latents, b.latents), f"The latents of candidate {a.number} differ between {what}."


def check_search(search: str | Callable[..., Any], budget: int = 120) -> None:
    """All checks of searches, for a text or a callable that `diffscale.search` takes; `budget`: NFE of each run."""
    for process in PROCESSES:
        check_budget(search, budget, process)
    check_budget(search, budget, dtype=torch.float32)  # pipelines have no latents of float64, which scores are
    check_determinism(search, budget)
    check_order_of_replies(search, budget)
    for calls in (0, 1, 3):
        check_resume(search, budget, calls)
    check_dropped_candidates(search, budget)
    if choose_search(search).declares("anytime"):
        check_anytime(search, budget)


def check_budget(
    search: str | Callable[..., Any], budget: int = 120, process: str = "flow", dtype: torch.dtype = torch.float64
) -> None:
    """The search finds something, spends no more than its budget, and the network runs no more than is charged.

    `process`, `dtype`: the noise schedule and the latents of the model that it is tried on.
    """
    sampler = WordedToy(_PROMPTS, 6, process, dtype=dtype)
    result: Result = run_searches(tasks(search, budget, 1), sampler, NearPoint())[0]
    spent, ran = result.ledger.nfe, sampler.forwards
    assert 0 < spent <= budget, f"The search spent {spent} of {budget} NFE."
    assert ran <= spent, f"The network ran {ran} rows, but {spent} NFE were charged."


def check_determinism(search: str | Callable[..., Any], budget: int = 120, rows: int = 6) -> None:
    """The result is a function of the seed: at any batch size, alone and among others; and another seed has another."""

    def run(chosen: Sequence[Task], batch_size: int | None) -> list[Result]:
        return run_searches(chosen, WordedToy(_PROMPTS * rows, 6), NearPoint(), batch_size, gallery=3)

    every = tasks(search, budget, rows)
    together = run(every, None)
    for size in (1, 7):
        for one, other in zip(together, run(every, size), strict=True):
            assert_same(one, other, f"batches of many and of {size} (is all chance drawn from `env`?)")
    for row in (0, rows - 1):
        assert_same(together[row], run([every[row]], None)[0], "a run alone and one among others")
    pictures = {tuple(points(each.best.image[None])[0].tolist()) for each in together}
    assert len(pictures) > 1, "Searches with other seeds all find the same picture: draw noise from the environment."


def check_order_of_replies(search: str | Callable[..., Any], budget: int = 120) -> None:
    """The result does not depend on who computes replies, nor on their order, nor on workers that are lost."""
    every = tasks(search, budget, 2)
    wanted = run_searches(every, WordedToy(_PROMPTS, 6), NearPoint(), 6, gallery=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostWorker)
        for executor in (shuffled(3), shuffled(3, losses=4)):
            found = run_searches(every, WordedToy(_PROMPTS, 6), NearPoint(), 6, gallery=3, executor=executor)
            for one, other in zip(wanted, found, strict=True):
                assert_same(one, other, "one worker and three")


def check_resume(
    search: str | Callable[..., Any], budget: int = 120, calls: int = 1, batch_size: int | None = 2
) -> None:
    """Killed before the verifier's call number `calls`, the search goes on from its journal and ends alike.

    A finished run is replayed without computing anything.
    """
    every = tasks(search, budget, 2)
    whole = run_searches(every, WordedToy(_PROMPTS, 6), NearPoint(), batch_size, gallery=3)
    with tempfile.TemporaryDirectory() as folder:
        for verifier in (_KilledVerifier(calls), NearPoint(), NearPoint()):
            journal, sampler = Journal(Path(folder, "journal.sqlite"), {}), WordedToy(_PROMPTS, 6)
            try:
                resumed = run_searches(every, sampler, verifier, batch_size, gallery=3, journal=journal)
            except Killed:
                continue
            finally:
                journal.close()
            for one, other in zip(whole, resumed, strict=True):
                assert_same(one, other, "a run in one go and one that was killed")
    assert not sampler.forwards, "A finished run that is run again computes something again."


def check_dropped_candidates(search: str | Callable[..., Any], budget: int = 120) -> None:
    """Pictures that cannot be scored cost themselves alone: the search goes on, or says in a sentence why it cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedCandidate)
        outcomes = run_searches(tasks(search, budget, 3), WordedToy(_PROMPTS, 6), _MoodyVerifier(), return_errors=True)
    for outcome in outcomes:
        found = isinstance(outcome, Result) and outcome.best.components.isfinite().all()
        assert found or isinstance(outcome, DiffscaleError), f"A search with dropped candidates gave {outcome}."


def check_anytime(search: str | Callable[..., Any], budget: int = 120) -> None:
    """A larger budget only goes on from a smaller one, as a search that declares `anytime` says of itself."""

    def candidates(nfe: int) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []

        def observe(search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
            found.extend(zip(keys.tolist(), scores.tolist(), strict=True))

        run_searches(tasks(search, nfe, 1), WordedToy(_PROMPTS, 6), NearPoint(), observers=[observe])
        return found

    few, many = candidates(budget // 2), candidates(budget)
    first = next((i for i, (a, b) in enumerate(zip(few, many, strict=False)) if a != b), min(len(few), len(many)))
    assert first == len(few), (
        f"Candidate {first} of a budget of {budget // 2} is another one with {budget}: leave `anytime` out, or do not "
        "let what is asked for depend on how much is left."
    )


def check_verifier(
    verifier: str | Verifier | Callable[..., Any],
    images: Tensor | None = None,
    prompts: Sequence[str] = _PROMPTS,
    image_model: str = "",
) -> None:
    """Scores are one number a picture (or one for each component), and do not depend on what else is in the batch.

    Of a `types.Compares` the same holds of comparisons, which are probabilities and say the same in both orders.

    `verifier`: a text or a callable that `diffscale.search` takes. `images`: float32 [B, 3, H, W] in [0, 1], as many as
    `prompts`; by default noise of 64x64. `image_model`: the model whose pictures a verifier that loads a network is
    for; without it that is the published network, from the Hub.
    """
    verifier = load_verifier(verifier, image_model=image_model)
    if images is None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(len(prompts), 3, 64, 64, generator=generator)
    together = safe_score(verifier, images, list(prompts))
    size = (len(prompts), len(verifier.components)) if isinstance(verifier, PoolVerifier) else (len(prompts),)
    assert tuple(together.shape) == size, f"Scores have the shape {tuple(together.shape)} instead of {size}."
    assert together.isfinite().all(), f"Some scores are not finite ({together.tolist()}): see the warnings for why."
    alone = torch.cat(
        [safe_score(verifier, image[None], [prompt]) for image, prompt in zip(images, prompts, strict=True)]
    )
    worst = float((alone - together).abs().max() / together.abs().max().clamp(min=1e-12))
    assert worst < 1e-3, f"The score of a picture depends on the batch that it is in (by {worst:.1%})."
    if isinstance(verifier, Compares):
        _check_compare(verifier, images, list(prompts))


def _check_compare(verifier: Compares, images: Tensor, prompts: list[str]) -> None:
    """Each picture against the next: probabilities that do not depend on the batch, and agree with the other order."""
    others = images.roll(-1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndecidedPair)
        try:
            together = safe_compare(verifier, images, others, prompts)
            swapped = safe_compare(verifier, others, images, prompts)
            alone = [
                safe_compare(verifier, a[None], b[None], [p]) for a, b, p in zip(images, others, prompts, strict=True)
            ]
        except UndecidedPair as warning:
            raise AssertionError(f"Some pictures cannot be compared: {warning}") from warning
    worst = float((torch.cat(alone) - together).abs().max())
    assert worst < 1e-3, f"The comparison of two pictures depends on the batch that they are in (by {worst:.1%})."
    worst = float((swapped - (1 - together)).abs().max())
    assert worst < 1e-3, f"The comparison of two pictures depends on which comes first (by {worst:.1%})."


def tasks(search: str | Callable[..., Any], budget: int, count: int) -> list[Task]:
    """`count` tasks of a search, each with its own prompt and seed."""
    made = choose_search(search).make()
    return [Task(made, row, noise.fold(noise.root(0), row), budget, f"{row}") for row in range(count)]
