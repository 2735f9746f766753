"""The vocabulary: states, requests, results, and what samplers, verifiers and searches look like.

A search is a generator of priced requests: it yields what costs something, receives the answer,
and knows nothing of devices, batches, budgets or progress bars.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Final, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from diffscale._util.limits import check_rows


@dataclass(frozen=True)
class State:
    """A batch of B partial trajectories, all at the same noise level.

    `x`: latents [B, ...]. `step`: denoiser evaluations done, 0 (noise) to `sampler.steps` (clean). `level`: where the
    latents are if that is off the sampler's grid, between steps `step` and `step + 1`; None on the grid.
    `key`: random key of each row, int64 [B], on the CPU. `prompt_index`: index of each row's prompt,
    int64 [B], on the CPU. `x0`, `model_output`: clean prediction and raw output (after guidance), shaped
    like `x`, set by `Predict` and cleared by a step. `recorded`: the x0-prediction at a noise level that the verifier
    asked for, once the trajectory has passed it. `solver`: what the solver remembers of earlier
    steps; entries of shape [B] are scalars of the solver, and rows run together only where they
    agree; all others are per row.
    """

    x: Tensor
    step: int
    key: Tensor
    prompt_index: Tensor
    x0: Tensor | None = None
    model_output: Tensor | None = None
    solver: Mapping[str, Tensor] = field(default_factory=dict)
    level: float | None = None
    recorded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor | list[int]) -> State:
        """The rows at `index`: a slice, a list or an int64 or bool tensor."""

        return self._map(lambda value: value[index.to(value.device) if isinstance(index, Tensor) else index])

    def repeat(self, n: int) -> State:
        """Each row `n` times, copies of a row next to each other: [B * n].

        Raises DiffscaleError for more rows than `check_rows` allows.
        """
        check_rows(len(self) * n, self.row_bytes)
        return self._map(lambda value: value.repeat_interleave(n, 0))

    def to(self, device: torch.device | str) -> State:
        """These rows on `device`; keys, indices of prompts and scalars of the solver stay on the CPU."""
        return self._map(lambda value: value if value.ndim == 1 else value.to(device))

    @property
    def row_bytes(self) -> int:
        """Bytes of the latents of one row."""
        return self.x[:1].numel() * self.x.element_size()

    @property
    def batch_key(self) -> Hashable:
        """States with equal `batch_key` can be concatenated and run together."""
        memory = ((name, value[0].item() if value.ndim == 1 else None) for name, value in sorted(self.solver.items()))
        held = self.x0 is not None, self.recorded is not None
        return self.step, self.level, held, tuple(self.x.shape[1:]), tuple(memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> State:
        rows: dict[str, Any] = {name: change(value) for name in _ROWS if (value := getattr(self, name)) is not None}
        return replace(self, **rows, solver={name: change(value) for name, value in self.solver.items()})


_ROWS: Final = ("x", "key", "prompt_index", "x0", "model_output", "recorded")
"""Fields of a `State` that hold something of each row, or None."""


def concat(states: Sequence[State]) -> State:
    """Return one state with the rows of all, in order; raises ValueError if their `batch_key` differs."""
    if len({state.batch_key for state in states}) != 1:
        raise ValueError("only states at the same step and with the same solver history concatenate")
    first = states[0]

    held = {name: [each for state in states if (each := getattr(state, name)) is not None] for name in _ROWS}
    rows: dict[str, Any] = {name: torch.cat(values) for name, values in held.items() if values}
    return replace(first, **rows, solver={name: torch.cat([s.solver[name] for s in states]) for name in first.solver})


def nearest(levels: Sequence[float], level: float) -> int:
    """Index of the noise level nearest to `level`, the first of equals."""
    return min(range(len(levels)), key=lambda i: abs(levels[i] - level))


@dataclass(frozen=True)
class Run:
    """Denoise up to grid step `to` (None: to the end). Answer: the State there. Needs a state on the grid."""

    state: State
    to: int | None = None


@dataclass(frozen=True)
class Solve:
    """Denoise to any cleaner noise `level` in `steps` deterministic steps of equal length. Answer: the State there."""

    state: State
    level: float
    steps: int


@dataclass(frozen=True)
class Predict:
    """One denoiser evaluation a row. Answer: the same State with `x0` and `model_output` set."""

    state: State


@dataclass(frozen=True)
class Score:
    """Judge the pictures of a finished State, or the x0-predictions of an unfinished one.

    Answer: float64 [B], higher is better; -inf where a candidate was dropped. Of an ensemble: its components [B, K],
    which `Environment.value` makes one value each within a pool.
    """

    state: State


@dataclass(frozen=True)
class Evaluate:
    """Run to the end and judge what is there, for who needs no more than the scores. Answer: as of Score.

    Rows are forgotten as soon as they are scored, so that memory is bounded by the micro-batch.
    """

    state: State


FEWER_STEPS: Final = ""
"""The way of drafting that every model with drafts has: itself, on a grid of fewer steps."""


@dataclass(frozen=True)
class Draft:
    """Sample the noises of a state at step 0 in a cheaper way, and judge what comes out; nothing is finished by it.

    `steps`: of the draft, on a grid of its own by the same solver. `via`: "" for the model itself, else another of
    `Environment.drafts`, such as a smaller model. Answer: as of Evaluate. Price: rows * `Environment.draft_nfe`,
    rounded up.
    """

    state: State
    steps: int
    via: str = ""


@dataclass(frozen=True)
class Gradient:
    """Evaluate, and differentiate the scores with respect to the latents, through all steps and the decoder.

    Answer: scores float64 [B] and gradients [B, ...] shaped like `state.x`. Recomputes every step on the way back, so
    that memory does not grow with their number; costs 4 NFE a step and row (forward, again, and twice for backward).
    """

    state: State


@dataclass(frozen=True)
class PredictGradient:
    """Predict, judge the x0-predictions, and differentiate their scores with respect to the latents.

    Answer: the State with `x0` and `model_output` set; scores [B], as of Score; gradients [B, ...] shaped like
    `state.x`, through this one evaluation and the decoder. Costs 3 NFE a row: forward, and twice that for backward, as
    nothing is recomputed.
    """

    state: State


Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
InnerLevel = Annotated[float, Field(gt=0, lt=1)]
"""Ranges of parameters of searches and verifiers, beside those that pydantic has names for: of shares, and of noise
levels between clean and pure noise. What users type, and the keywords of a partial function, are held to them.
"""

Request = Run | Solve | Predict | Score | Evaluate | Draft | Gradient | PredictGradient


@dataclass(frozen=True)
class Decide:
    """Settle on number `choice`; free. Answer: the number that this run settled on first.

    That is journaled before it is used, so that a run that goes on elsewhere does what it began, whatever rounding says
    there. `why`: a sentence for the user, see `Result.decisions`.
    """

    choice: int
    why: str


Search = Generator[Request | Decide, Any, None]
T = TypeVar("T")
Answer = Generator[Request | Decide, Any, T]
"""One request and its answer, of a known type: `answer = yield from ...`."""


F = TypeVar("F", bound=Callable[..., Any])


TRAITS: Final = ("anytime", "independent", "rewords")
"""What a search may say of itself by `search_traits`."""


def search_traits(*, anytime: bool = False, independent: bool = False, rewords: bool = False) -> Callable[[F], F]:
    """A decorator by which a search says what holds of it, so that its users can do less work.

    `anytime`: a larger budget only goes on from a smaller one, so that runs of both share their replies.
    `independent`: it only samples whole pictures, the first, second, third ... noise of the task's key, one like the
    other; so its first candidate is the plain sample that every search is compared with, and searches with other
    verifiers share its samples. `rewords`: it draws from several wordings of a prompt, which are then found for it, see
    `Environment.wordings`. A class says the same by attributes of these names.
    """

    def declare(search: F) -> F:
        for trait, holds in zip(TRAITS, (anytime, independent, rewords), strict=True):
            setattr(search, trait, holds)
        return search

    return declare


def declares(search: Callable[..., Any], trait: str) -> bool:
    """Whether a search, or what a partial one calls, says that it has a trait of `search_traits`."""
    return bool(getattr(search, trait, False)) or (isinstance(search, partial) and declares(search.func, trait))


@runtime_checkable
class Sampler(Protocol):
    """One model with its time grid, solver, guidance and prompts.

    `steps`: denoiser evaluations of one whole trajectory. `prompts`: what `State.prompt_index` points into; other
    wordings of some of them may be among them, each a `Wording`.
    `levels`: the noise level at each of the steps + 1 grid points, see `samplers.formulas`.
    `forwards`: rows sent through the network so far, guidance's extra rows included; only grows.
    `flops_per_forward`: floating point operations of one row through the network.
    """

    @property
    def steps(self) -> int: ...
    @property
    def levels(self) -> Sequence[float]: ...
    @property
    def prompts(self) -> Sequence[str]: ...
    @property
    def forwards(self) -> int: ...
    @property
    def flops_per_forward(self) -> float: ...

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        """Noise at step 0, a function of `keys` (int64 [B]) alone, for prompts `rows` (as long)."""

    def predict(self, state: State) -> State:
        """One denoiser evaluation a row: the state with `x0` and `model_output` set. Costs 1 NFE a row."""

    def predicted(self, state: State, model_output: Tensor) -> State:
        """What `predict` gives where that [B, ...] is the network's output; free."""

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        """The update of a predicted state on the grid; free.

        `eta` None: the solver's own; a stochastic one uses `noise` ([B, ...]), or draws it from the rows' keys.
        Else the first-order step of `formulas.denoise` with that share of `noise`, which any solver allows.
        """

    def renoise(self, state: State, level: float, noise: Tensor) -> State:
        """Forward to the noisier `level`, keeping the marginal law; free. Clears the solver."""

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        """Predict and step until grid step `to` (None: the end).

        On the way the x0-prediction at the grid level nearest to `record` is kept in `State.recorded`.
        """

    def solve(self, state: State, level: float, steps: int, record: float | None = None) -> State:
        """Deterministic steps of equal length to any cleaner `level`; costs `steps` NFE a row. Clears the solver.

        `record`: as in `run`, at the nearest of its own stops, if it lies between.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of clean latents: float32 [B, 3, H, W] in [0, 1]; of videos the frames to score [B, F, 3, H, W]."""

    def gradient(
        self,
        state: State,
        score: Callable[[Tensor, Tensor | None], Tensor],
        record: float | None = None,
        of_prediction: bool = False,
    ) -> tuple[State, Tensor, Tensor, Tensor]:
        """Finished state, pictures, scores [B] and the scores' gradients with respect to `state.x`.

        `score` is given the pictures, and those of the recorded x0-predictions if there is something to `record`.
        `of_prediction`: the same of the x0-predictions that one evaluation of the denoiser makes of `state`, which is
        then returned with these; raises DiffscaleError where a solver evaluates the denoiser elsewhere than at `x`.
        """


@runtime_checkable
class ChecksPictures(Protocol):
    """A Sampler whose finished pictures a safety checker may take out: those candidates are dropped.

    `checks_pictures`: whether there is a checker. `decode` and `gradient` go around it, as their pictures may be
    predictions that nobody is to see.
    """

    @property
    def checks_pictures(self) -> bool: ...

    def decode_checked(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As `decode`, of the pictures that the checker leaves, and which it flagged: bool [B], on the CPU."""


@runtime_checkable
class Drafter(Protocol):
    """A cheaper way from a Sampler's noises to pictures of them.

    `nfe`: what a whole draft of one row costs, in evaluations of the sampler's denoiser: their number, or the share of
    their floating point operations that it was measured to take. `steps`: scheduler steps of one draft.
    `forwards`, `flops_per_forward`: as of a Sampler.
    """

    @property
    def nfe(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def forwards(self) -> int: ...
    @property
    def flops_per_forward(self) -> float: ...

    def run(self, state: State, record: float | None = None) -> State:
        """From noises of the sampler, at step 0, to clean latents; `record`: as in `Sampler.run`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of its clean latents, as `Sampler.decode` gives them."""


@runtime_checkable
class Drafts(Protocol):
    """A Sampler whose noises can be sampled in cheaper ways.

    `drafts`: the names of these ways; "" is the sampler itself on a grid of fewer steps.
    """

    @property
    def drafts(self) -> Sequence[str]: ...

    def draft_steps(self, via: str = "") -> int:
        """The number of steps of a draft where none is asked for: what suits the way, a quarter of all for ""."""

    def drafter(self, steps: int, via: str = "") -> Drafter:
        """The drafter of about that many `steps`, made once; raises DiffscaleError where there is none."""


class ClassLabel(str):
    """The condition of a class-conditional model: the class's name, which is also a string to text verifiers."""

    class_id: int

    def __new__(cls, name: str, class_id: int) -> ClassLabel:
        """Class number `class_id`, called `name`."""
        label = super().__new__(cls, name)
        label.class_id = class_id
        return label

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        """So that a copy, or what another process is sent, has its class too."""
        return str(self), self.class_id


class Wording(str):
    """Another wording of a prompt, in which a model is asked. `own`: the user's own, which alone verifiers see."""

    own: str

    def __new__(cls, text: str, own: str) -> Wording:
        """The wording `text` of the prompt `own`."""
        wording = super().__new__(cls, text)
        wording.own = own
        return wording

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """So that a copy, or what another process is sent, has the user's own too."""
        return str(self), self.own


def own_prompt(prompt: str) -> str:
    """The prompt as its user gave it: that of a Wording, or `prompt` itself."""
    return prompt.own if isinstance(prompt, Wording) else prompt


Aggregate = Callable[[Tensor], Tensor]
"""Values [n] of a pool's components [n, K], all finite; a value rises with each component."""


@runtime_checkable
class Verifier(Protocol):
    """Scores pictures. `name` is what messages, ensembles and journals call it; tables show what was typed.

    A condition is a prompt or a ClassLabel. A verifier says what more it asks for by being a NeedsIntermediateX0 or a
    SetVerifier, that it gives several components by being a PoolVerifier, and that it looks at pictures alone by
    `needs_prompts = False`.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] or [B, 1] of float `images` [B, 3, H, W] in [0, 1] for their conditions; higher is better."""


@runtime_checkable
class PoolVerifier(Protocol):
    """A verifier of several components [B, K], whose worth depends on the pool that a candidate is compared in."""

    @property
    def components(self) -> Sequence[str]:
        """Their names, K of them."""

    def aggregate(self, pool: Tensor) -> Tensor:
        """See `Aggregate`."""


@runtime_checkable
class NeedsIntermediateX0(Protocol):
    """A verifier that also sees the x0-predictions at one noise level, and so finished samples only.

    It is called with a third argument, their pictures [B, 3, H, W] in [0, 1]. They are recorded as the trajectory
    passes, at no NFE.
    """

    @property
    def record_level(self) -> float:
        """Noise level in (0, 1), see `samplers.formulas`; the nearest one on the grid is taken."""


@runtime_checkable
class SetVerifier(Protocol):
    """A verifier whose scores depend on what was chosen before: the searches are run one after another, in order."""

    def begin(self) -> None:
        """Nothing is chosen yet."""

    def choose(self, image: Tensor, prompt: str) -> None:
        """`image` [3, H, W] in [0, 1] is what the search for `prompt` found."""


@runtime_checkable
class Refinable(Verifier, Protocol):
    """A verifier that can go on learning: its scores are differentiable in its weights."""

    def weights(self) -> Iterable[Parameter]:
        """What is to move; nothing that the verifier keeps between calls depends on it."""


@runtime_checkable
class Teachable(Verifier, Protocol):
    """A verifier from whose view of unfinished pictures a value model can learn, see `verifiers.valued`."""

    def view(self, images: Tensor, prompts: list[str]) -> Tensor:
        """What its network sees of `images` [B, 3, H, W] in [0, 1] and their conditions, [B, F]; the last column is the
        score."""


@dataclass(frozen=True)
class Stage:
    """How far an unfinished picture is, which is `done` to a part in [0, 1].

    That is, of an x0-prediction (`via` None), 1 less its noise level, and of a draft by `via`, see `Draft`, its steps
    as a share of all.
    """

    done: float
    via: str | None = None

    @classmethod
    def of_prediction(cls, level: float) -> Stage:
        """That of an x0-prediction at that noise level in [0, 1]."""
        return cls(1 - level)

    @classmethod
    def of_draft(cls, steps: int, whole: int, via: str) -> Stage:
        """That of a draft of `steps` by `via`, of a model whose samples take `whole` steps."""
        return cls(min(1.0, steps / whole), via)


@runtime_checkable
class JudgesUnfinished(Verifier, Protocol):
    """A verifier that judges unfinished pictures by what will become of them, and finished ones as they are."""

    def unfinished(self, stage: Stage) -> Verifier:
        """What judges the pictures of that stage, on the same scale."""


@runtime_checkable
class Compares(Verifier, Protocol):
    """A verifier that can also compare pictures: it decides among a search's best where several share the best score.

    One whose `compare` is None compares nothing.
    """

    def compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        """The probability [B] in [0, 1] that `first` [B, 3, H, W] is better than `second`, for their conditions.

        Both are float in [0, 1], on the CPU; of videos, the frames that were scored, side by side. 0.5 says that they
        are as good. The other way round it should be 1 minus that.
        """


class World(Protocol):
    """A world of pictures that are made by rules, so that a judge can tell exactly what each of them shows.

    `name`: as manifests of models (`diffscale.json`, field `world`) name it. `judge_name`: what tables call its judge.
    `image_model`: a model of such pictures; the verifiers that suit it suit them all. `size`: height and width.
    `categories`: those of `category`, in the order of tables.
    """

    name: str
    judge_name: str
    image_model: str
    size: tuple[int, int]
    categories: Sequence[str]

    def prompt_key(self, prompt: str) -> str | None:
        """A text that is equal for two prompts which ask for the same; None for one that the judge cannot read."""

    def wordings(self, prompt: str) -> Sequence[str]:
        """Some other texts that ask for the same, always the same ones; none for a prompt that it cannot read."""

    def category(self, prompt: str) -> str:
        """The category of a prompt; empty for one that the judge cannot read."""

    def judge(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores in [0, 1], float64 [B] each, of `images` [B, 3, *size] in [0, 1] for prompts that it can read.

        `score` says how well a picture shows what its prompt asks for, the others say more.
        """

    def reference_pictures(self) -> Tensor:
        """Real pictures of all its classes, float32 [N, 3, *size] in [0, 1]: what generated ones are compared with."""


class Environment(Protocol):
    """All that a search sees of the world.

    `evaluate`, `score`, `run`, `solve`, `predict`, `draft`, `gradient` and `predict_gradient` ask for the request of
    that name, and cost what it does: `scores = yield from env.evaluate(state)` is `scores = yield Evaluate(state)` with
    a type. All else is free.

    `steps`: NFE of one whole trajectory. `levels`: noise levels of the grid, steps + 1 of them. `nfe_left`: what the
    budget still pays. `chunk`: how many rows to ask for at once, so that memory stays bounded; `most_rows`: how many
    can be made at once at all. `wanted`: how many finished candidates its user wants to keep. `wordings`: those of the
    prompt that the model can be asked in, see `reword`; the first is the user's own. `drafts`: ways of drafting, see
    `Draft`; empty where the model has none. `predicts`: after which numbers of steps x0-predictions can be had and
    scored; empty for pipelines that are run whole, and for verifiers that compare with them. Every draw is fresh: the
    same call twice gives two draws.
    """

    @property
    def steps(self) -> int: ...
    @property
    def levels(self) -> Sequence[float]: ...
    @property
    def nfe_left(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def most_rows(self) -> int: ...
    @property
    def wanted(self) -> int: ...
    @property
    def wordings(self) -> Sequence[str]: ...
    @property
    def drafts(self) -> Sequence[str]: ...
    @property
    def predicts(self) -> Sequence[int]: ...

    def draft_nfe(self, steps: int, via: str = "") -> float:
        """What a draft of one row costs, see `Drafter.nfe`; raises Unsuited where there is no such draft."""

    def draft_steps(self, via: str = "") -> int:
        """The number of steps of a draft where none is asked for, see `Drafts`; raises Unsuited as `draft_nfe`."""

    def prior(self, n: int) -> State:
        """`n` fresh noises [n, ...] at step 0, with keys never used before in this search."""

    def start(self, x: Tensor) -> State:
        """Latents `x` [B, ...] of the search's own making, at step 0; they should look like draws of `prior`.

        They are brought to the dtype and device of these; raises DiffscaleError for another shape.
        """

    def reword(self, state: State, wordings: Sequence[int]) -> State:
        """The rows of `state` [B], for which the model is asked in these of the `wordings`, by their numbers, from then
        on; verifiers see the user's own. Raises DiffscaleError for a number of none, or fewer numbers than rows.
        """

    def neighbours(self, state: State, n: int, cosine: float) -> State:
        """`n` noises around each noise of `state`: of the same norm and wording, at that cosine similarity, [B * n].

        The neighbours of a draw of the prior are draws of the prior, at whatever scale that has (`prior` of a schedule
        with sigma 80 is 80 times as large as `noise`). Raises DiffscaleError for a `state` after step 0, and for a
        `cosine` outside of [-1, 1].
        """

    def mutate(self, state: State, cosine: float) -> State:
        """One child of each noise of `state` [B], at that cosine similarity to it: `neighbours` with `n` 1."""

    def branch(self, state: State, n: int) -> State:
        """Each row `n` times [B * n], every copy with a fresh key and so its own noise to come."""

    def noise(self, state: State) -> Tensor:
        """Standard normal noise shaped like `state.x`, for `step`; to change noises at step 0, see `mutate`."""

    def uniform(self, n: int) -> Tensor:
        """`n` uniform draws in (0, 1), float64, for choices."""

    def value(self, scores: Tensor) -> Tensor:
        """One value [n] for each row of `scores`: [n] as they are, an ensemble's components [n, K] within this pool."""

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        """The update of a predicted state, see `Sampler.step`; with `eta` and no `noise`, noise is drawn."""

    def renoise(self, state: State, level: float) -> State:
        """Forward to the noisier `level` with fresh noise, see `Sampler.renoise`."""

    def evaluate(self, state: State) -> Answer[Tensor]: ...
    def score(self, state: State) -> Answer[Tensor]: ...
    def run(self, state: State, to: int | None = None) -> Answer[State]: ...
    def solve(self, state: State, level: float, steps: int) -> Answer[State]: ...
    def predict(self, state: State) -> Answer[State]: ...
    def draft(self, state: State, steps: int, via: str = "") -> Answer[Tensor]: ...
    def gradient(self, state: State) -> Answer[tuple[Tensor, Tensor]]: ...
    def predict_gradient(self, state: State) -> Answer[tuple[State, Tensor, Tensor]]: ...
    def decide(self, choice: int, why: str) -> Answer[int]: ...
