"""The library's one call: search for a better sample of any diffusers pipeline."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from diffscale._util.errors import DiffscaleError, unknown
from diffscale._util.fingerprints import described
from diffscale._util.numbers import whole
from diffscale._util.progress import Counter, silent
from diffscale.api.wordings import Given, arguments_with_wordings, check_rewords, wordings_of
from diffscale.api.workers import Crew, ModelRecipe, worker_options
from diffscale.engine import noise
from diffscale.engine.batching import out_of_memory
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal, recorded_settings, recorded_sources
from diffscale.engine.pool import Executor
from diffscale.engine.results import Observer, Result, among
from diffscale.engine.scoring import check_chooser, recording_of
from diffscale.engine.task import Task, baseline_task
from diffscale.models.class_conditional import class_model
from diffscale.models.drafting import DraftOptions
from diffscale.models.load import (
    best_device,
    check_negative,
    dtype_of_pipeline,
    load_pipeline,
    plain_call,
    settle_dtype,
)
from diffscale.models.options import LoadOptions
from diffscale.registry import DEFAULT_SEARCH
from diffscale.registry.sources import sources
from diffscale.samplers.arguments import explain_failure
from diffscale.samplers.solvers import SOLVERS
from diffscale.samplers.whole import sampler_of
from diffscale.searches import choose_search
from diffscale.types import Sampler, Search, Verifier, Wording
from diffscale.verifiers import check as check_verifier
from diffscale.verifiers import load as load_verifier
from diffscale.verifiers import name_of_verifier

_PLAIN: Final = DraftOptions()


def make_sampler(
    model: Any,
    prompts: Sequence[str],
    *,
    steps: int | None,
    pipe_args: Mapping[str, Any],
    loading: LoadOptions,
    load: Callable[[str, LoadOptions], Any] | None = None,
    drafting: DraftOptions = _PLAIN,
) -> Sampler:
    """The sampler of a pipeline or model name, called as its folder states where `steps` and `pipe_args` are silent.

    The `prompts` of class-conditional models are names or ids of classes, and become ClassLabels; of others, Wordings
    may come after all that are none. `load` gives the pipeline of a name, None: as `load_pipeline` does. `drafting`:
    further ways of drafting.
    Raises DiffscaleError if it cannot be loaded, or does not run as `loading` says.
    """
    drafting.check(loading)
    if not isinstance(model, str) and (asked := sorted(loading.asked().keys() - {"device"})):
        raise DiffscaleError(
            f"The pipeline is loaded already and used as it is: set {', '.join(asked)} on it, or give its name."
        )
    pipe = (load or load_pipeline)(model, loading) if isinstance(model, str) else model
    call, by_class = plain_call(pipe), class_model(pipe)
    args = {**call.args, **pipe_args}
    if by_class is None:
        check_negative(pipe, args)
        args = arguments_with_wordings(args, prompts)
    elif any(isinstance(prompt, Wording) for prompt in prompts):
        raise DiffscaleError(
            "A class-conditional model takes a class, which has no other wordings: take another search."
        )
    elif loading.scheduler is not None:
        raise DiffscaleError(
            "A class-conditional model runs on solvers of diffscale: leave the scheduler out and choose by --pipe-arg "
            f"solver= one of {', '.join(SOLVERS)}."
        )
    inference_steps = call.steps if steps is None else steps
    if inference_steps < 1:
        raise DiffscaleError(f"A sample takes 1 step or more, not {inference_steps}.")
    try:
        if by_class is not None:
            sampler: Sampler = by_class.sampler(prompts, inference_steps, args)
        else:
            sampler = sampler_of(pipe, prompts, inference_steps, args)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        # The first call of a pipeline is where an option or an argument turns out not to suit it.
        options = loading.asked().keys() & {"scheduler", "compile", "attention", "quantize", "offload"}
        said = explain_failure(pipe, inference_steps, args, sorted({*options, *pipe_args}), error)
        if not said or out_of_memory(error):
            raise
        raise DiffscaleError(said) from error
    ready = drafting.loaded(pipe, loading)

    def sibling(prompts: Sequence[str]) -> Sampler:
        return make_sampler(ready.model, prompts, steps=None, pipe_args=pipe_args, loading=LoadOptions())

    ready.attach(sampler, sibling)
    return sampler


def merged_options(loading: LoadOptions | None, device: str | None, dtype: str | None) -> LoadOptions:
    """`loading` with `device` and `dtype` in the place of its own, where they are given."""
    short = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
    return LoadOptions(**((loading or LoadOptions()).asked() | short))


def search(
    pipe_or_id: Any,
    prompt: str | int,
    *,
    search: str | Callable[..., Search] = DEFAULT_SEARCH,
    verifier: str | Verifier | Callable[[Tensor, list[str]], Any] = "clip",
    nfe: int = 1280,
    seed: int = 0,
    steps: int | None = None,
    pipe_args: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    loading: LoadOptions | None = None,
    observers: Sequence[Observer] = (),
    gallery: int = 0,
    keep_best: int = 1,
    journal: str | Path | None = None,
    progress: Counter = silent,
    choose: str | Verifier | Callable[[Tensor, list[str]], Any] | None = None,
    draft_model: Any = None,
    draft_cache: Any = None,
    draft_decoder: Any = None,
    wordings: Given = None,
    workers: str | None = None,
    verifier_workers: int = 0,
) -> Result:
    """Search for the sample of `prompt` that the verifier likes best; or, of what it leads to, that `choose` does.

    `pipe_or_id`: a diffusers pipeline already loaded (used where and as it is), a Sampler, such as a
    `samplers.denoiser.DenoiserSampler`, one of whose prompts is `prompt`, or a shipped name (`shapes-flux`), a folder
    or a Hub id, loaded as `loading` says; `device` and `dtype` are short for its fields. Without a dtype, or with
    "auto", weights are on a GPU in the one that they are published in, and on a CPU in bfloat16 where the processor
    multiplies it in hardware, else in float32; `Result.dtype` says which, and a `journal` keeps it.
    `prompt`: of a class-conditional model (`class_models`) the name of a class, or its id.
    `search`, `verifier`: "name key=value ..." as `diffscale list` shows them, "package.module:attribute key=value ...",
    or a callable of Python: for a search a generator function of an Environment, for a verifier any object
    as `types.Verifier` describes, or a function of pictures [B, 3, H, W] in [0, 1] and their prompts that gives scores
    [B], as a tensor, an array or a list; a class is called without arguments. `nfe`: the whole budget in denoiser
    evaluations. `steps`: denoising steps of one sample, `pipe_args`: further arguments of the pipeline's call; what
    they leave open is as the model's folder states, else the pipeline's default. `batch_size`: most rows at once, None
    finds it by itself. `gallery`: how many of the best candidates come back as thumbnails, `keep_best`: how many in
    full size, as `Result.best_candidates`. `journal`: a file in which everything paid for is kept; the same call with
    the same file goes on where the last one was stopped. It knows a verifier by its `name`, and functions by
    module:qualname (see `fingerprints.name_of`): give another one to what scores otherwise. A function whose code has
    changed since, or a file that an argument names, is refused. `progress`: called
    with the NFE spent so far, the budget and the `best` value. `choose`: another verifier, given in the same ways, by
    which the best of the finished candidates is chosen: the search, which it does not steer, cannot exploit it. Scores
    and traces stay those of `verifier`; `Candidate.value` is what the candidates are ranked by. `draft_model`,
    `draft_cache`, `draft_decoder`: what searches such as "draft via=cache" draft by, see `DraftOptions`. `wordings`:
    for searches that draw from several wordings of the prompt, such as "rewrites": {prompt: [texts]}, a JSONL file,
    "llm model=NAME ..." (see `Rewriter`), or None for those that the world of the model's pictures has. Verifiers see
    `prompt` alone; `Result.wordings` says what each candidate was drawn from. `device` may name several, by commas or
    as "cuda:all": each computes a part with a copy of the networks. `workers`: in their place those of Ray, on this
    machine or a cluster: "ray", "ray://host:port", a number, or "ray n=4 gpus=1 cpus=2". `verifier_workers`: how many
    workers more only score, so that a slow verifier does not hold up the others.

    `Result.baseline` is one plain sample of the first noise, with `number` -1 and not in the ledger if the search did
    not sample it. The result is a function of the arguments up to `dtype` and of what of `loading` is decisive, not of
    `batch_size`. Raises DiffscaleError
    (UnknownName, BudgetTooSmall, AllCandidatesFailed) with a sentence that says what to do.
    """
    nfe, seed = whole("nfe", nfe, 1), whole("seed", seed)
    gallery, keep_best = whole("gallery", gallery, 0), whole("keep_best", keep_best, 1)
    steps = None if steps is None else whole("steps", steps, 1)
    batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
    chosen = choose_search(search)
    loading = merged_options(loading, device, dtype)
    where = worker_options(loading.device, workers, whole("verifier_workers", verifier_workers, 0))
    device = best_device(loading.device) if where.is_inline else "cpu"
    check_verifier(verifier)
    if choose is not None:
        check_verifier(choose)
    check_rewords(wordings, chosen.declares("rewords"))
    if isinstance(pipe_or_id, str):
        recorded = {} if journal is None else recorded_settings(Path(journal))
        loading = settle_dtype(pipe_or_id, loading, recorded.get("dtype"))
    # A ClassLabel is a string, and stays what it is.
    condition = prompt if isinstance(prompt, str) else str(prompt)
    prompt_index, drafting = 0, DraftOptions(draft_model, draft_cache, draft_decoder)
    name = pipe_or_id if isinstance(pipe_or_id, str) else str(getattr(pipe_or_id, "name_or_path", ""))
    prompts: list[str] = [condition]
    worded: dict[str, str] = {}
    if isinstance(pipe_or_id, Sampler):
        made = drafting != _PLAIN or steps is not None or pipe_args or wordings is not None
        if made or loading.asked().keys() - {"device"}:
            raise DiffscaleError("A Sampler is used as it was made: give steps and other settings where it is made.")
        prompt_index = _prompt_index(pipe_or_id, condition)
    elif chosen.declares("rewords"):
        known = {} if journal is None else recorded_sources(Path(journal))
        prompts += wordings_of(wordings, name).find([condition], known, worded.update)

    @cache
    def verifiers() -> tuple[Verifier, Verifier | None]:
        loaded = load_verifier(verifier, device=device, image_model=name)
        chooser = None if choose is None else load_verifier(choose, device=device, image_model=name)
        check_chooser(loaded, chooser)
        return loaded, chooser

    asked = {"prompts": prompts, "steps": steps, "pipe_args": pipe_args or {}, "drafting": drafting}
    recorded_by = recording_of(*verifiers()) if where.verifiers else None
    recipe = ModelRecipe(pipe_or_id, loading, make_sampler, asked, verifier, choose, name, recorded_by)
    with Crew(where) as crew:
        sampler, executor = crew.serve(recipe, batch_size)
        settings = {
            "model": pipe_or_id if isinstance(pipe_or_id, str) else type(pipe_or_id).__name__,
            "prompt": sampler.prompts[prompt_index],
            "search": chosen.text,
            "verifier": name_of_verifier(verifier),
            "nfe": nfe,
            "seed": seed,
            "steps": sampler.steps,
            "pipe_args": {name: described(value) for name, value in (pipe_args or {}).items()},
            "gallery": gallery,
            **({} if keep_best == 1 else {"keep_best": keep_best}),
            **({} if choose is None else {"choose": name_of_verifier(choose)}),
            **drafting.decisive(),
        }
        if isinstance(pipe_or_id, str):
            settings |= loading.decisive()
        elif not isinstance(pipe_or_id, Sampler):
            settings["dtype"] = dtype_of_pipeline(pipe_or_id)
        if cached := getattr(sampler, "caches", None):
            settings["caches"] = cached
        # After the model: what is wrong with its name, or its call, is told before another network loads.
        # And before a journal is there, which other settings could not use.
        loaded, chooser = verifiers()
        # A class by its id and by its name is the same search.
        key = noise.fold(noise.root(seed), sampler.prompts[prompt_index], 0)
        task = Task(chosen.make(device=device), prompt_index=prompt_index, key=key, budget=nfe)
        written = sources(search, verifier, *([] if choose is None else [choose])) | worded
        opened = nullcontext() if journal is None else closing(Journal(Path(journal), settings, written))
        with opened as kept:
            (result,) = run_searches(
                [task], sampler, loaded, batch_size, observers,
                gallery=gallery, keep_best=keep_best, journal=kept, progress=progress, choose=chooser,
                executor=executor,
            )  # fmt: skip
            result = replace(result, dtype=settings.get("dtype", ""))
            if chosen.declares("independent"):
                return result
            return _with_baseline(result, task, sampler, loaded, chooser, batch_size, kept, executor)


def _prompt_index(sampler: Sampler, prompt: str) -> int:
    if prompt not in sampler.prompts:
        raise unknown("prompt of the sampler", prompt, sampler.prompts)
    return list(sampler.prompts).index(prompt)


def _with_baseline(
    result: Result, task: Task, sampler: Sampler, verifier: Verifier, choose: Verifier | None, batch_size: int | None,
    journal: Journal | None, executor: Executor | None,
) -> Result:  # fmt: skip
    """`result` with a plain sample as its baseline: a search may never sample its first noise as it is."""
    (first,) = run_searches(
        [baseline_task(task)], sampler, verifier, batch_size, journal=journal, return_errors=True, choose=choose,
        executor=executor,
    )  # fmt: skip
    if not isinstance(first, Result):  # the verifier fails on it alone
        return result
    return replace(result, baseline=replace(among(result, first.best, verifier, choose), number=-1))
