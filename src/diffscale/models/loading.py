"""What every loader of networks by transformers and diffusers goes through: whole weights, and errors in a sentence."""

import pickle
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from safetensors import SafetensorError

from diffscale._util.errors import DiffscaleError, explained

LOADING_ERRORS: Final = (
    OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError, AttributeError, KeyError,
    TypeError, ImportError,
)  # fmt: skip
"""What libraries raise for files of networks that are not there, or not as they should be."""


_LOCK: Final = threading.RLock()  # what is set on the libraries' classes meanwhile is there for all threads


@contextmanager
def loading(sentence: str) -> Iterator[None]:
    """Within it LOADING_ERRORS are told by `sentence`, see `explained`.

    A network that transformers or diffusers load there must find all its weights in its files: both fill what is
    missing with random numbers, and warn at most. One thread loads at a time. Raises DiffscaleError.
    """
    with _LOCK, explained(sentence, *LOADING_ERRORS), _whole_networks(sentence):
        yield


@contextmanager
def _whole_networks(sentence: str) -> Iterator[None]:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    with ExitStack() as stack:
        for family in (ModelMixin, PreTrainedModel):
            own = vars(family)["from_pretrained"]
            family.from_pretrained = classmethod(_checked(own.__func__, sentence))
            stack.callback(setattr, family, "from_pretrained", own)
        yield


def _checked(own: Any, sentence: str) -> Any:
    def from_pretrained(cls: type, *args: Any, **options: Any) -> Any:
        network, found = own(cls, *args, **{**options, "output_loading_info": True})
        if missing := sorted(found.get("missing_keys", ())):
            more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            why = (
                f"the weights of {cls.__name__} lack {missing[0]}{more}; they may be of another version of the library"
            )
            raise DiffscaleError(sentence.replace("{why}", why))
        return (network, found) if options.get("output_loading_info") else network

    return from_pretrained
