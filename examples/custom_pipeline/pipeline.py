"""A custom pipeline of diffusers that searches: the model's own pipeline, whose calls give the best of many samples.

    pipe = DiffusionPipeline.from_pretrained(
        MODEL, custom_pipeline="examples/custom_pipeline/pipeline.py", trust_remote_code=True, nfe=960
    )
    pipe("a cat", num_inference_steps=30, generator=torch.manual_seed(0)).images[0]

It needs `pip install diffscale`, and only what that package makes public.
"""

import functools
import inspect
from collections import defaultdict
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

import diffscale

_SETTINGS = ("search", "verifier", "nfe")


class SearchedPipeline(DiffusionPipeline):
    """What `from_pretrained` builds: a pipeline of the class that `model_index.json` names, see `searched_class`.

    `search`, `verifier`, `nfe`: as of `diffscale.Searched`; they are given to `from_pretrained`, and a call may have
    others. `own`: the model's own class and those of its arguments that are not loaded from its folder, which
    `extract_init_dict` finds.
    """

    def __init__(
        self, search: Any = "auto", verifier: Any = "clip", nfe: int = 1280, own: dict[str, Any] | None = None
    ) -> None:
        """Only read by `from_pretrained`, for the names of the arguments: what `__new__` makes is of another class."""

    def __new__(
        cls, search: Any = "auto", verifier: Any = "clip", nfe: int = 1280, own: Any = None, **components: Any
    ) -> Any:
        if own is None:
            raise diffscale.DiffscaleError(
                "Load this by DiffusionPipeline.from_pretrained(MODEL, custom_pipeline=...); a pipeline that is loaded "
                "already is searched by diffscale.Searched(pipe)."
            )
        pipe = searched_class(own["class"])(**own["arguments"], **components)
        pipe.loaded_verifiers = {}
        pipe.search_settings = {"search": search, "verifier": verifier, "nfe": nfe}
        return pipe

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **given: Any) -> tuple[dict[str, Any], ...]:
        """What of the model's configuration is to be loaded, what is not understood, and what is hidden.

        Raises DiffscaleError if the configuration names no class of diffusers.
        """
        name = config_dict.get("_class_name")
        own = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not (isinstance(own, type) and issubclass(own, DiffusionPipeline)):
            raise diffscale.DiffscaleError(
                f"The model's model_index.json names {name!r}, which is no pipeline of diffusers "
                f"{diffusers.__version__}: load it as its authors say, and search it by diffscale.Searched(pipe)."
            )
        values, unused, hidden = own.extract_init_dict(config_dict, **given)
        _, options = cls._get_signature_keys(own)
        options = set(options) - set(own._optional_components)
        # Components are loaded from their folders but for those that the user gave, and those that were saved as None.
        loaded = {k: v for k, v in values.items() if not (k in given or k in options or v[0] is None)}
        settled = {k: v if k in given or k in options else None for k, v in values.items() if k not in loaded}
        return loaded | {"own": {"class": own, "arguments": settled}}, unused, hidden

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[Any, ...]]:
        # The types of the components are for the model's own class to say.
        return defaultdict(lambda: (inspect.Signature.empty,))


def searched_class(own: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """A subclass of a pipeline's class, of the same name, whose calls search.

    A call takes what the pipeline's own takes, and `search`, `verifier` and `nfe`. `results` and `seeds` are those of
    the last call, as of `diffscale.Searched`. What `save_pretrained` writes is the model's own pipeline.
    """

    @functools.wraps(own.__call__)
    def call(self: Any, *args: Any, **given: Any) -> Any:
        settings = self.search_settings | {k: v for k in _SETTINGS if (v := given.pop(k, None)) is not None}
        plain = object.__new__(own)
        plain.__dict__ = self.__dict__  # the same networks, and all that was set or switched on
        if settings["verifier"] not in self.loaded_verifiers:  # networks, which are loaded once
            name = str(self.name_or_path)
            loaded = diffscale.load_verifier(settings["verifier"], device=str(self._execution_device), image_model=name)
            self.loaded_verifiers[settings["verifier"]] = loaded
        settings["verifier"] = self.loaded_verifiers[settings["verifier"]]
        searched = diffscale.Searched(plain, **settings)
        try:
            return searched(*args, **given)
        finally:
            self.results, self.seeds = searched.results, searched.seeds

    signature = inspect.signature(own.__call__)
    new = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _SETTINGS]
    known = list(signature.parameters.values())
    last = [each for each in known if each.kind is each.VAR_KEYWORD]
    call.__signature__ = signature.replace(parameters=[*known[: len(known) - len(last)], *new, *last])
    return type(own.__name__, (own,), {"__call__": call, "__module__": own.__module__, "__doc__": own.__doc__})
