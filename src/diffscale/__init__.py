"""Spend compute at inference, get better samples: search over noises and sampling trajectories."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffscale._util.errors import AllCandidatesFailed, BudgetTooSmall, DiffscaleError, UnknownName, Unsuited
    from diffscale.api import make_sampler, search
    from diffscale.api.searched import Searched
    from diffscale.engine.allocation import Threshold
    from diffscale.engine.driver import run_searches
    from diffscale.engine.journal import Journal
    from diffscale.engine.results import Candidate, Result
    from diffscale.engine.task import Task
    from diffscale.models.options import LoadOptions
    from diffscale.registry import plugins, register
    from diffscale.samplers.denoiser import DenoiserSampler
    from diffscale.samplers.noise_schedules import EDM, LinearFlow, VariancePreserving
    from diffscale.types import (
        ClassLabel,
        Compares,
        Decide,
        Draft,
        Drafter,
        Drafts,
        Environment,
        Evaluate,
        Gradient,
        NeedsIntermediateX0,
        PoolVerifier,
        Predict,
        PredictGradient,
        Request,
        Run,
        Sampler,
        Score,
        Search,
        SetVerifier,
        Solve,
        State,
        Teachable,
        Verifier,
        Wording,
        concat,
        search_traits,
    )
    from diffscale.verifiers import load as load_verifier

__all__ = [
    "EDM",
    "AllCandidatesFailed",
    "BudgetTooSmall",
    "Candidate",
    "ClassLabel",
    "Compares",
    "Decide",
    "DenoiserSampler",
    "DiffscaleError",
    "Draft",
    "Drafter",
    "Drafts",
    "Environment",
    "Evaluate",
    "Gradient",
    "Journal",
    "LinearFlow",
    "LoadOptions",
    "NeedsIntermediateX0",
    "PoolVerifier",
    "Predict",
    "PredictGradient",
    "Request",
    "Result",
    "Run",
    "Sampler",
    "Score",
    "Search",
    "Searched",
    "SetVerifier",
    "Solve",
    "State",
    "Task",
    "Teachable",
    "Threshold",
    "UnknownName",
    "Unsuited",
    "VariancePreserving",
    "Verifier",
    "Wording",
    "concat",
    "load_verifier",
    "make_sampler",
    "plugins",
    "register",
    "run_searches",
    "search",
    "search_traits",
]
__version__ = "0.1.0"

_HOMES = {
    "diffscale._util.errors": ("AllCandidatesFailed", "BudgetTooSmall", "DiffscaleError", "UnknownName", "Unsuited"),
    "diffscale.api": ("make_sampler", "search"),
    "diffscale.engine.allocation": ("Threshold",),
    "diffscale.engine.driver": ("run_searches",),
    "diffscale.engine.journal": ("Journal",),
    "diffscale.engine.results": ("Candidate", "Result"),
    "diffscale.engine.task": ("Task",),
    "diffscale.models.options": ("LoadOptions",),
    "diffscale.registry": ("plugins", "register"),
    "diffscale.samplers.denoiser": ("DenoiserSampler",),
    "diffscale.samplers.noise_schedules": ("EDM", "LinearFlow", "VariancePreserving"),
    "diffscale.api.searched": ("Searched",),
    "diffscale.types": (
        *(
            "ClassLabel",
            "Compares",
            "Decide",
            "Draft",
            "Drafter",
            "Drafts",
            "Environment",
            "Evaluate",
            "Gradient",
            "NeedsIntermediateX0",
            "PoolVerifier",
            "Predict",
            "PredictGradient",
        ),
        *(
            "Request",
            "Run",
            "Sampler",
            "Score",
            "Search",
            "SetVerifier",
            "Solve",
            "State",
            "Teachable",
            "Verifier",
            "Wording",
            "concat",
            "search_traits",
        ),
    ),
    "diffscale.verifiers": ("load_verifier",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_CALLED_OTHERWISE = {"load_verifier": "load"}


def __getattr__(name: str) -> Any:
    """What the package offers is imported when it is first used: torch and diffusers take seconds."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'diffscale' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), _CALLED_OTHERWISE.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
