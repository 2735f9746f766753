"""`Searched`, a drop-in for a diffusers pipeline: its calls search and give the best samples, as the pipeline would."""

import inspect
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Generator, Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.numbers import whole
from diffscale.api import make_sampler, merged_options
from diffscale.api.wordings import Given, check_rewords, wordings_of
from diffscale.api.workers import Crew, ModelRecipe, worker_options
from diffscale.engine import noise
from diffscale.engine.allocation import ALLOCATIONS, Threshold, check_shareable
from diffscale.engine.driver import run_searches
from diffscale.engine.results import Candidate, Result
from diffscale.engine.scoring import check_chooser, recording_of
from diffscale.engine.task import Task
from diffscale.models.class_conditional import class_model
from diffscale.models.drafting import DraftOptions
from diffscale.models.load import dtype_of_pipeline, load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.registry import DEFAULT_SEARCH
from diffscale.registry.arguments import made
from diffscale.samplers.arguments import call_parameters, count_prompts, embeddings, not_a_pipeline, unknown_argument
from diffscale.samplers.whole import WholeSampler
from diffscale.searches import choose_search
from diffscale.types import Search, State, Verifier, Wording
from diffscale.verifiers import check as check_verifier
from diffscale.verifiers import load as load_verifier

_log = logging.getLogger(__name__)

_COUNTS: Final = ("num_images_per_prompt", "num_videos_per_prompt")
_OUTPUT_TYPES: Final = ("pil", "np", "pt", "latent")
_PIECES: Final = "the search runs the pipeline's steps in batches and in pieces, and calls nothing after each"
_REFUSED: Final = {
    "latents": "the search draws the latents itself, from the seed of the generator",
    "callback_on_step_end": _PIECES,
    "callback_on_step_end_tensor_inputs": _PIECES,
    "callback": _PIECES,
    "callback_steps": _PIECES,
    "denoising_end": "a search scores finished pictures",
}
"""Arguments of pipelines' calls that a search cannot heed, and why."""
_OWN: Final = (
    "pipe", "results", "seeds", "_verifier", "_choose", "_make_search", "_independent", "_nfe", "_batch_size",
    "_allocation", "_drafting", "_wordings", "_worded", "_crew", "_scored_by", "_image_model",
)  # fmt: skip
"""Attributes of a `Searched` that are not its pipeline's."""


class Searched:
    """A diffusers pipeline whose calls search for samples that a verifier likes best, instead of drawing any.

        pipe = Searched(pipe, search="zero_order", verifier="image_reward", nfe=960)
        pipe("a cat", num_inference_steps=30, num_images_per_prompt=4, generator=torch.manual_seed(0)).images

    `pipe_or_id`: a pipeline already loaded, or a shipped name, folder or Hub id, loaded as `loading` says; `device`
    and `dtype` are short for its fields. `search`, `verifier`, `choose`, `batch_size`: as of `diffscale.search`.
    `nfe`: the budget for each prompt of a call, in denoiser evaluations. `allocation`: how the prompts of a call share
    the budgets of all, as "threshold score=.9", see `Threshold`; None: each has its own. `draft_model`, `draft_cache`,
    `draft_decoder`, `wordings`: as of `diffscale.search`; a language model is asked once for each prompt. With several
    devices ("cuda:0,cuda:1", "cuda:all") the pipeline is on the first, and copied to the others at the first call, and
    again after an attribute of it was set here, or a method or a network asked for. `verifier_workers`: as of
    `diffscale.search`.

    A call takes what the pipeline's own takes, in its order, and gives its output: the best `num_images_per_prompt` (or
    `num_videos_per_prompt`) samples of each prompt, best first, prompt by prompt. Prompts are searched together. The
    seed of a search is `generator.initial_seed()`, of however many draws the generator has given, so that the same call
    twice gives the same samples; a list of generators has one for each prompt; without one a fresh seed is drawn,
    logged, and kept in `seeds`. Noises are of seed and prompt: one generator serves all prompts, and each prompt alone,
    with that seed, gives its samples again. The best sample of a prompt is that of `diffscale.search` with the same
    seed and arguments. Where the model's folder states how it is called,
    that is the default.

    `results`: the `Result` of each prompt of the last call, and `seeds` their seeds. All other attributes are the
    pipeline's, to read and to set. Raises DiffscaleError for class-conditional models, which `diffscale.search` takes.
    """

    pipe: Any
    results: list[Result]
    seeds: list[int]

    def __init__(
        self,
        pipe_or_id: Any,
        *,
        search: str | Callable[..., Search] = DEFAULT_SEARCH,
        verifier: str | Verifier | Callable[[Tensor, list[str]], Any] = "clip",
        nfe: int = 1280,
        allocation: str | Threshold | None = None,
        batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        loading: LoadOptions | None = None,
        choose: str | Verifier | Callable[[Tensor, list[str]], Any] | None = None,
        draft_model: Any = None,
        draft_cache: Any = None,
        draft_decoder: Any = None,
        wordings: Given = None,
        verifier_workers: int = 0,
    ) -> None:
        nfe, batch_size = whole("nfe", nfe, 1), None if batch_size is None else whole("batch_size", batch_size, 1)
        chosen, options = choose_search(search), merged_options(loading, device, dtype)
        check_verifier(verifier)
        drafting = DraftOptions(draft_model, draft_cache, draft_decoder)
        drafting.check(options)
        if choose is not None:
            check_verifier(choose)
        check_rewords(wordings, chosen.declares("rewords"))
        shared = made(allocation, "allocation", ALLOCATIONS)
        if shared is not None:
            check_shareable(chosen.name, chosen.declares("anytime"))
        where = worker_options(options.device, None, whole("verifier_workers", verifier_workers, 0))
        if options.device is not None:
            options = options.model_copy(update={"device": where.devices[0]})
        device, by_name = where.devices[0], isinstance(pipe_or_id, str)
        if not by_name and (asked := sorted(options.asked().keys() - {"device"})):
            raise DiffscaleError(f"The pipeline is loaded already: set {', '.join(asked)} on it, or give its name.")
        pipe = load_pipeline(pipe_or_id, options) if by_name else pipe_or_id
        if class_model(pipe) is not None:
            raise DiffscaleError(
                f"{type(pipe).__name__} is class-conditional and takes no prompt: search it by diffscale.search."
            )
        if not (callable(pipe) and hasattr(pipe, "components") and hasattr(pipe, "progress_bar")):
            raise not_a_pipeline(pipe)
        name = pipe_or_id if by_name else str(getattr(pipe, "name_or_path", ""))
        self._crew, self._scored_by, self._image_model = Crew(where), (verifier, choose), name
        self.pipe, self.results, self.seeds = pipe, [], []
        self._wordings = wordings_of(wordings, name) if chosen.declares("rewords") else None
        self._worded: dict[str, str] = {}
        self._drafting = drafting.loaded(pipe, options)
        self._verifier = load_verifier(verifier, device=device, image_model=name)
        self._choose = None if choose is None else load_verifier(choose, device=device, image_model=name)
        check_chooser(self._verifier, self._choose)
        self._make_search, self._independent = chosen.make(device=device), chosen.declares("independent")
        self._nfe, self._batch_size, self._allocation = nfe, batch_size, shared

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The best samples, in the pipeline's output class, or as its tuple if `return_dict` is False.

        Raises DiffscaleError with a sentence for arguments that the pipeline does not take or that a search cannot
        heed, and if more samples are asked for than the search finished; BudgetTooSmall and AllCandidatesFailed.
        """
        call = _read_call(self.pipe, args, kwargs)
        prompts = _read_prompts(call, [self._verifier, *([] if self._choose is None else [self._choose])])
        seeds, keys = _keys(call.generator, prompts)
        if call.generator is None:
            _log.warning("No generator was given: the seed is %d, as of torch.manual_seed(%d).", seeds[0], seeds[0])
        self.results, self.seeds = [], seeds
        others = [] if self._wordings is None else self._wordings.find(prompts, self._worded, self._worded.update)
        asked = {
            "prompts": [*prompts, *others],
            "steps": call.inference_steps,
            "pipe_args": call.pipe_args,
            "drafting": self._drafting,
        }
        recording = recording_of(self._verifier, self._choose)
        recipe = ModelRecipe(
            self.pipe, LoadOptions(), make_sampler, asked, *self._scored_by, self._image_model, recording
        )
        sampler, executor = self._crew.serve(recipe, self._batch_size)
        if self._independent and self._nfe // sampler.steps < call.count != 1:
            raise DiffscaleError(
                f"{call.count} samples of a prompt cost {call.count * sampler.steps} NFE, and nfe is {self._nfe}: ask "
                "for fewer, or give a larger nfe."
            )
        if self._allocation is not None and self._independent and self._allocation.minimum < call.count:
            raise DiffscaleError(
                f"{call.count} samples of a prompt are asked for, and the allocation's minimum is "
                f"{self._allocation.minimum}: ask for fewer, or give a larger minimum."
            )
        tasks = [Task(self._make_search, row, key, self._nfe) for row, key in enumerate(keys)]
        with self.pipe.progress_bar(total=self._nfe * len(prompts)) as bar:

            def show(spent: int, budget: int, best: float, **more: str) -> None:
                bar.update(spent - bar.n)
                bar.set_postfix(best=f"{best:.4g}", **more)

            found = run_searches(
                tasks, sampler, self._verifier, self._batch_size, keep_best=call.count, progress=show,
                choose=self._choose, allocation=self._allocation, executor=executor,
            )  # fmt: skip
        self.results = [replace(result, dtype=dtype_of_pipeline(self.pipe)) for result in found]
        rows: list[tuple[int, Candidate]] = []
        for row, result in enumerate(self.results):
            if len(result.best_candidates) < call.count:
                raise DiffscaleError(
                    f"The search for {prompts[row]!r} finished {len(result.best_candidates)} usable samples and "
                    f"{call.count} were asked for: ask for fewer, or give a larger nfe; `results` has what was found."
                )
            rows += [(row, candidate) for candidate in result.best_candidates]
        # One at a time, so that it fits where the search did.
        return joined([_output(sampler, row, candidate, call) for row, candidate in rows])

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline, as its own `to` does; the verifier stays where it is."""
        self.pipe = self.pipe.to(*args, **kwargs)
        return self

    def __getattr__(self, name: str) -> Any:
        """What the pipeline has."""
        if name in _OWN or name == "__setstate__":  # a copy that is not filled yet
            raise AttributeError(name)
        found = getattr(self.pipe, name)
        if callable(found):  # a network, or a method such as load_lora_weights, may be used to change it
            self._crew.forget()
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is ours here, and all else, such as `scheduler`, on the pipeline."""
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)
        if name == "pipe" or name not in _OWN:
            self._crew.forget()

    def __repr__(self) -> str:
        """The pipeline, and what searches it."""
        chosen = "" if self._choose is None else f", choose={self._choose.name!r}"
        return f"Searched(nfe={self._nfe}, verifier={self._verifier.name!r}{chosen}, pipe={self.pipe!r})"


@dataclass(frozen=True)
class _Call:
    """A call of a pipeline, read. `count`: samples for each prompt. `pipe_args`: what only the pipeline looks at."""

    prompt: Any
    generator: Any
    inference_steps: int | None
    count: int
    output_type: str
    return_dict: bool
    pipe_args: Mapping[str, Any]


def _read_call(pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Call:
    name, known = type(pipe).__name__, call_parameters(pipe)
    if not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        for unknown in sorted(kwargs.keys() - known.keys()):
            raise unknown_argument(pipe, unknown)
    try:
        bound = inspect.signature(type(pipe).__call__).bind(pipe, *args, **kwargs).arguments
    except TypeError as error:
        raise DiffscaleError(f"{name} cannot be called so, as it {_without_subject(error)}; see its call.") from error
    given = dict(list(bound.items())[1:])
    for extra in [each.name for each in known.values() if each.kind is each.VAR_KEYWORD]:
        given |= given.pop(extra, {})
    for refused, why in _REFUSED.items():
        if refused in given and given.pop(refused) not in (None, getattr(known.get(refused), "default", None)):
            raise DiffscaleError(f"Leave {refused} out of the call: {why}.")

    def take(argument: str, default: Any = None) -> Any:
        own = known[argument].default if argument in known else default
        value = given.pop(argument, own)
        return default if value is None or value is inspect.Parameter.empty else value

    counts = [take(each, 1) for each in _COUNTS]
    if wrong := [each for each in counts if not isinstance(each, int) or each < 1]:
        raise DiffscaleError(f"Give the number of samples for each prompt as 1 or more, not {wrong[0]!r}.")
    output_type = take("output_type", "pil")
    if output_type not in _OUTPUT_TYPES:
        raise DiffscaleError(f"Give output_type as one of {', '.join(_OUTPUT_TYPES)}, not {output_type!r}.")
    steps = given.pop("num_inference_steps", None)
    if not (steps is None or isinstance(steps, int)):
        raise DiffscaleError(f"Give num_inference_steps as a whole number, not {steps!r}.")
    prompt, generator, as_class = take("prompt"), take("generator"), bool(take("return_dict", True))
    return _Call(prompt, generator, steps, max(counts), output_type, as_class, given)


def _without_subject(error: TypeError) -> str:
    return str(error).replace("got", "gets", 1) if str(error).startswith("got") else f"says: {error}"


def _read_prompts(call: _Call, verifiers: Sequence[Verifier]) -> list[str]:
    """The prompts of a call, empty ones for embeddings alone and verifiers that do not look at prompts."""
    counts = {name: count_prompts(name, value) for name, value in embeddings(call.pipe_args).items()}
    if call.prompt is None:
        if not counts:
            raise DiffscaleError("Give a prompt, or a list of prompts.")
        for verifier in verifiers:
            if getattr(verifier, "needs_prompts", True):
                raise DiffscaleError(
                    f"The verifier {verifier.name!r} reads prompts: give `prompt` too, which the pipeline does not get."
                )
        return [""] * max(counts.values())
    prompts = [call.prompt] if isinstance(call.prompt, str) else call.prompt
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise DiffscaleError(f"Give prompt as a text, or as a list of texts, not as {call.prompt!r}.")
    for name, count in counts.items():
        if count != len(prompts):
            raise DiffscaleError(f"Give one row of {name} for each of the {len(prompts)} prompts, not {count}.")
    return list(prompts)


def _keys(generator: Any, prompts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The seed and the key of each prompt's search.

    A prompt that is listed twice is searched from other noises the second time, unless each has a generator.
    """
    if isinstance(generator, list | tuple):
        if len(generator) != len(prompts) or not all(isinstance(each, Generator) for each in generator):
            raise DiffscaleError(
                f"Give one generator, or one for each of the {len(prompts)} prompts, not {len(generator)}; all samples "
                "of a prompt come from one search."
            )
        seeds = [each.initial_seed() for each in generator]
        repeats = [0] * len(prompts)
    else:
        if not (generator is None or isinstance(generator, Generator)):
            raise DiffscaleError(f"Give generator as a torch.Generator or a list of them, not as {generator!r}.")
        seed = secrets.randbits(32) if generator is None else generator.initial_seed()
        seeds = [seed] * len(prompts)
        before: Counter[str] = Counter()
        repeats = []
        for prompt in prompts:
            repeats.append(before[prompt])
            before[prompt] += 1
    each = zip(seeds, prompts, repeats, strict=True)
    return seeds, [noise.fold(noise.root(seed), prompt, repeat) for seed, prompt, repeat in each]


def _output(sampler: Any, row: int, candidate: Candidate, call: _Call) -> Any:
    """The pipeline's own output of one candidate."""
    whole = isinstance(sampler, WholeSampler)
    x = candidate.noise if whole else candidate.latents
    if x is None:
        raise DiffscaleError(
            "This pipeline can only be run whole, and the search gave finished samples without their noise: use a "
            "search that yields Evaluate, such as random or zero_order."
        )
    row = sampler.prompts.index(candidate.wording) if isinstance(candidate.wording, Wording) else row
    state = State(x[None], 0 if whole else sampler.steps, torch.tensor([candidate.key]), torch.tensor([row]))
    return sampler.pipeline_output(state, call.output_type, call.return_dict)


def joined(parts: Sequence[Any]) -> Any:
    """One output of a pipeline from several of the same kind, in order; see `diffusers.utils.BaseOutput`.

    Tensors and arrays are joined along the batch, lists end to end; tuples and output classes field by field. What is
    none of these, such as None, is taken from the first.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, list):
        return [item for part in parts for item in part]
    if is_dataclass(first) and not isinstance(first, type):
        names = [each.name for each in fields(first)]
        return type(first)(**{name: joined([getattr(part, name) for part in parts]) for name in names})
    if isinstance(first, tuple):
        return tuple(joined(column) for column in zip(*parts, strict=True))
    return first
