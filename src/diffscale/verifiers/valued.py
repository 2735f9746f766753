"""A verifier that judges unfinished pictures by a value model, which foretells the scores that they will end with.

Verifiers are made for finished pictures, so their ranking of x0-predictions and drafts is poor where these are far from
the end (noise-aware verifiers: Yu et al. 2025, arXiv 2511.22242, who fine-tune the verifier; here its own view of a
picture is read by a regression for each stage). `diffscale tune value` makes the file, see `tape.value`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import replacing
from diffscale.types import FEWER_STEPS, Stage, Teachable, Verifier
from diffscale.verifiers.ensemble import alone

_FORMAT: Final = "diffscale value 1"
_ANCHORED: Final = (None, FEWER_STEPS)  # ways that end in the finished picture itself, where the score is what it is


@dataclass(frozen=True)
class ValueModel:
    """What will become of unfinished pictures, as a linear function of `verifier`'s view [B, F] of them.

    `weights` [K, F] and `bias` [K] are of K `stages`, and in between those of the neighbours are interpolated. `about`:
    what it was learned from.
    """

    verifier: str
    stages: Sequence[Stage]
    weights: Tensor
    bias: Tensor
    about: dict[str, Any]

    def at(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Weights [F] and bias [] of a stage; those of the plain score where no stage of its way was learned."""
        plain = torch.zeros_like(self.weights[:1])
        plain[:, -1] = 1
        rows = [i for i, each in enumerate(self.stages) if each.via == stage.via]
        known = [self.stages[i].done for i in rows]
        weights, bias = self.weights[rows], self.bias[rows]
        if not rows or stage.via in _ANCHORED:
            known, weights, bias = [*known, 1.0], torch.cat([weights, plain]), torch.cat([bias, torch.zeros(1)])
        order = sorted(range(len(known)), key=known.__getitem__)
        done = min(max(stage.done, known[order[0]]), known[order[-1]])
        above = next(place for place, i in enumerate(order) if known[i] >= done)
        low, high = order[max(0, above - 1)], order[above]
        share = (done - known[low]) / (known[high] - known[low]) if known[high] > known[low] else 0.0
        return torch.lerp(weights[low], weights[high], share), torch.lerp(bias[low], bias[high], share)

    def save(self, path: Path) -> None:
        """Write it to the safetensors file `path`, whole or not at all."""
        told = {"verifier": self.verifier, "stages": [asdict(each) for each in self.stages], "about": self.about}
        with replacing(path) as fresh:
            tensors = {"weights": self.weights.float().contiguous(), "bias": self.bias.float().contiguous()}
            save_file(tensors, fresh, metadata={"format": _FORMAT, "value": json.dumps(told)})


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    done: float = Field(ge=0, le=1)
    via: str | None


class _Told(BaseModel):
    """What the file says beside the tensors; see `ValueModel`."""

    model_config = ConfigDict(extra="forbid")

    verifier: str
    stages: list[_Stage] = Field(min_length=1)
    about: dict[str, Any]


def read_value(path: Path) -> ValueModel:
    """The value model in the file `path`, which `diffscale tune value` wrote; raises DiffscaleError for one that is
    none."""
    failed = f"{path} is no value model that can be read ({{why}}): make one with `diffscale tune value`."
    with explained(failed, OSError, SafetensorError, ValueError), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT or set(file.keys()) != {"weights", "bias"}:
            raise ValueError("it is of another kind")
        try:
            told = _Told.model_validate_json(metadata.get("value", ""))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "description"
            raise ValueError(f"its {where} is not right") from error
        weights, bias = file.get_tensor("weights"), file.get_tensor("bias")
        count = len(told.stages)
        if weights.ndim != 2 or not weights.numel() or len(weights) != count or bias.shape != (count,):
            raise ValueError("its weights have another shape than it says")
        if any(each.dtype != torch.float32 or not each.isfinite().all() for each in (weights, bias)):
            raise ValueError("its weights are not finite numbers of float32")
        stages = [Stage(each.done, each.via) for each in told.stages]
        return ValueModel(told.verifier, stages, weights, bias, told.about)


@dataclass
class Valued:
    """Finished pictures are scored by `verifier`, and unfinished ones by `model`."""

    verifier: Teachable
    model: ValueModel

    @property
    def name(self) -> str:
        """The verifier's: the scores that count are its own."""
        return self.verifier.name

    @property
    def needs_prompts(self) -> bool:
        """As of the verifier."""
        return bool(getattr(self.verifier, "needs_prompts", True))

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of finished `images` [B, 3, H, W] in [0, 1]."""
        return self.verifier(images, prompts)

    def unfinished(self, stage: Stage) -> Verifier:
        """See `types.JudgesUnfinished`."""
        return _Foretold(self.verifier, *self.model.at(stage))


@dataclass
class _Foretold:
    verifier: Teachable
    weights: Tensor
    bias: Tensor

    @property
    def name(self) -> str:
        return self.verifier.name

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Foretold scores [B] of unfinished `images` [B, 3, H, W] in [0, 1]; differentiable where the view is."""
        view = self.verifier.view(images, prompts)
        return (view @ self.weights.to(view)[:, None])[:, 0] + self.bias.to(view)  # no product that is not counted


def valued(file: str, of: str = "clip", *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """The verifier `of`, by which unfinished pictures are judged by the value model in `file`, of `tune value`.

    `of` as a member of an ensemble is written: clip:model=ID. Raises DiffscaleError for a file that is none, or of
    another verifier, or of one that sees pictures otherwise.
    """
    from diffscale.verifiers import load

    model = read_for(file, of)
    verifier = load(alone(of), device=device, image_model=image_model)
    if not isinstance(verifier, Teachable):
        raise cannot_be_taught(of)
    with torch.no_grad():
        width = verifier.view(torch.zeros(1, 3, 64, 64), [""]).shape[1]
    if width != model.weights.shape[1]:
        raise DiffscaleError(
            f"The value model {file} takes {model.weights.shape[1]} numbers of a picture and {of} sees {width} here: "
            "make one with `diffscale tune value` on a tape of this model."
        )
    return Valued(verifier, model)


def cannot_be_taught(name: str) -> DiffscaleError:
    """The error for a verifier that is no `types.Teachable`."""
    return DiffscaleError(f"No value model can be made of {name}: take clip, pick_score, hps or image_reward.")


def read_for(file: str, of: str = "clip") -> ValueModel:
    """The value model in `file`; raises DiffscaleError where it is of another verifier than `of`."""
    model = read_value(Path(file).expanduser())
    if model.verifier != alone(of):
        raise DiffscaleError(
            f"The value model {file} is of the verifier {model.verifier}, not of {alone(of)}: name it by of=."
        )
    return model


def check_valued(file: str, of: str = "clip") -> None:
    """Raise DiffscaleError for what `valued` would refuse of its arguments; loads no networks."""
    from diffscale.verifiers import check

    check(alone(of))
    read_for(file, of)


valued.check = check_valued  # type: ignore[attr-defined]
