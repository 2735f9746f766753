"""Around a pipeline's call: attributes and draws replaced, rows through networks counted, its answer as pictures."""

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffscale._util.errors import DiffscaleError, first_line
from diffscale.engine import noise
from diffscale.engine.batching import out_of_memory

_log = logging.getLogger(__name__)
T = TypeVar("T")

FRAMES: Final = 4
"""Frames of a video that are scored and shown: the first, the last, and evenly spaced ones between."""


_ROUNDING: Final = 0.01  # of a picture's values in half precision


@contextmanager
def overridden(target: Any, **attributes: Any) -> Iterator[None]:
    """Within it `target` has these attributes of its own; afterwards it is as before."""
    own = vars(target)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(before)


class NormalDraws(TorchFunctionMode):
    """Within it torch's normal draws are what `replacement` makes of each, and of its number from 0 on.

    Code of others draws in its own ways, some through a generator, some not; this catches them all.

    `shapes`: of the draws so far. `batches_only`: tensors of less than 2 dimensions are left as they are drawn.
    """

    def __init__(self, replacement: Callable[[Tensor, int], Tensor], batches_only: bool = True) -> None:
        super().__init__()
        self._replacement, self._batches_only = replacement, batches_only
        self.shapes: list[torch.Size] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if func not in (torch.randn, torch.randn_like) or (self._batches_only and drawn.ndim < 2):
            return drawn
        self.shapes.append(drawn.shape)
        return self._replacement(drawn, len(self.shapes) - 1)


def same_in_every_row(drawn: Tensor, number: int) -> Tensor:
    """Noise like `drawn` [B, ...], the same for every row, and for every draw of that `number` in a call."""
    key = torch.tensor([noise.fold(0, "opening", number)])
    return noise.normal(key, drawn.shape[1:]).to(drawn).expand_as(drawn)


@contextmanager
def counted_rows(networks: Sequence[torch.nn.Module]) -> Iterator[list[tuple[torch.nn.Module, int]]]:
    """Within it every call of `networks` is listed with its rows; no hook outlives it.

    These are the rows of its first batched input, a tensor or a list with a tensor for each row; 1 if there is none.
    """
    called: list[tuple[torch.nn.Module, int]] = []

    def note(network: torch.nn.Module, args: Any, kwargs: Any) -> None:
        inputs = [*args, *kwargs.values()]
        rows = next((len(v) for v in inputs if isinstance(v, list) or (isinstance(v, Tensor) and v.ndim > 1)), 1)
        called.append((network, rows))

    with ExitStack() as hooks:
        for network in networks:
            hooks.enter_context(network.register_forward_pre_hook(note, with_kwargs=True))
        yield called


@contextmanager
def answering(
    networks: Sequence[torch.nn.Module], said: dict[tuple[int, Any, Any], Any], again: bool
) -> Iterator[None]:
    """Within it `said` is told what `networks` answer, the first time that they are called with inputs so shaped; and
    if they are asked so `again`, that is what they answer, and nothing is computed."""

    def noted(network: torch.nn.Module) -> Any:
        own = network.forward

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            key = id(network), _shaped(args), _shaped(kwargs)
            if again and key in said:
                return copy.deepcopy(said[key])
            answer = own(*args, **kwargs)
            if key not in said:
                said[key] = copy.deepcopy(answer)
            return answer

        return forward

    with ExitStack() as stack:
        for network in networks:  # what was compiled would not come by its own forward
            stack.enter_context(overridden(network, forward=noted(network), _compiled_call_impl=None))
        yield


def _shaped(value: Any) -> Any:
    """How an input of a network looks, whatever numbers it holds."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((name, _shaped(each)) for name, each in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_shaped, value))
    return value if isinstance(value, bool | str) else type(value)


def together_or_alone(owner: Any, name: str, rows: int, work: Callable[[], T]) -> T:
    """What `work` gives for `rows`, which it runs in batches, or each alone if `owner.alone` is set.

    Some pipelines cannot run a batch (PRX with guidance tells its network two times, however many rows there are). If
    `work` fails, and does not with each row alone, `alone` stays set, and is told of by the pipeline's `name`. Rows
    of the batch that failed are taken from `owner.forwards`.
    """
    before = owner.forwards
    try:
        return work()
    except DiffscaleError:
        raise
    except Exception as error:
        if owner.alone or rows == 1 or out_of_memory(error):
            raise
        owner.alone, owner.forwards = True, before
        try:
            done = work()
        except Exception:
            owner.alone = False
            raise error from None
        _log.warning("%s cannot run a batch (%s): each row is run alone.", name, first_line(error).rstrip("."))
        return done


def networks_of(pipe: Any) -> list[torch.nn.Module]:
    """The networks of a pipeline, and of the pipelines that it is made of."""
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def pictures(answer: Any, frames: int = FRAMES) -> Tensor:
    """`answer` of a pipeline as float32 [B, 3, H, W] in [0, 1], or of videos [B, F, 3, H, W].

    `answer`: tensor [B, 3, H, W], of videos [B, F', 3, H, W]; or an array with channels last; or a list with a picture
    (a PIL image or any of these without B), or a list of frames, for each row; whole numbers are of 0 to 255. F is
    `frames`, or F' if that is less. Raises DiffscaleError for numbers outside of [0, 1], of which nobody knows what
    they mean; those that are not finite are left as they are.
    """
    images = _tensor(answer)
    images = images.float() if images.is_floating_point() else images.float() / 255
    if (outside := images[images.isfinite() & ((images < -_ROUNDING) | (images > 1 + _ROUNDING))]).numel():
        raise DiffscaleError(
            f"The pipeline gives pictures with values such as {float(outside[0]):.3g}, not of [0, 1], so what they "
            "mean is not known and they cannot be scored: use another pipeline."
        )
    if images.shape[-3] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.movedim(-1, -3)
    if images.ndim == 5 and images.shape[1] > frames:
        chosen = torch.linspace(0, images.shape[1] - 1, frames).round().long()
        images = images[:, chosen.to(images.device)]
    if images.shape[-3] == 1:
        images = images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    return images.clamp(0, 1).contiguous()


def _tensor(answer: Any) -> Tensor:
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, np.ndarray):
        return torch.from_numpy(answer)
    if isinstance(answer, list | tuple):
        return torch.stack([_tensor(item) for item in answer])
    return torch.from_numpy(np.asarray(answer.convert("RGB"), dtype=np.float32) / 255)
