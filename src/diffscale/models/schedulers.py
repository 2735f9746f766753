"""Another scheduler, by the name of its class."""

import inspect
from typing import Any, Final

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffscale._util.errors import DiffscaleError, explained
from diffscale.registry.arguments import parse
from diffscale.samplers import levels

_KINDS: Final = {"flow_prediction": "a flow", "edm": "an EDM (Karras et al. 2022)", "trigflow": "a TrigFlow"}
_EDM: Final = {"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"}


def schedulers() -> dict[str, Any]:
    """Every scheduler class of the installed diffusers that solves step by step."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    return {
        name: kind
        for name, kind in found.items()
        if inspect.isclass(kind) and issubclass(kind, SchedulerMixin) and hasattr(kind, "set_timesteps")
    }


def parse_scheduler(text: str) -> tuple[Any, dict[str, Any]]:
    """Class and arguments of "Name key=value ..."; raises DiffscaleError for what is not there."""
    known = schedulers()
    name, options = parse(text, "scheduler", known)
    return known[name], options


def replace_scheduler(pipe: Any, kind: Any, options: dict[str, Any]) -> None:
    """Give `pipe` a scheduler of class `kind` with its old one's configuration, overridden by `options`.

    Raises DiffscaleError if the network predicts something else than the new scheduler takes it for.
    """
    old = getattr(pipe, "scheduler", None)
    if old is None:
        raise DiffscaleError(f"{type(pipe).__name__} has no scheduler to replace: leave the option scheduler out.")
    unmade = f"{kind.__name__} cannot be made from the model's configuration: {{why}}"
    with explained(unmade, ValueError, TypeError, NotImplementedError, ImportError):
        new = kind.from_config(old.config, **options)
    # Nothing fails if a flow is solved as a diffusion: the pictures are just noise.
    model, taken = (_KINDS.get(levels.prediction_type(each), "a diffusion") for each in (old, new))
    if model == taken:
        pipe.scheduler = new
        return
    if model == "a flow":
        raise DiffscaleError(
            f"This model is a flow, which {kind.__name__} as given does not solve: choose FlowMatchEulerDiscrete"
            'Scheduler, or add "prediction_type=flow_prediction use_flow_sigmas=true" where the class takes these.'
        )
    names = {each.__name__ for each in old.compatibles} | (_EDM if model == _KINDS["edm"] else set())
    raise DiffscaleError(
        f"{kind.__name__} is for {taken}, and this model is {model}: choose one of {', '.join(sorted(names))}."
    )
