"""Trainings of recipes: what settings they have, what names them, and how series call the models that they give.

A recipe's training is `method`, `model`, `data` and any other setting of `TrainConfig`. Series name its model
`training NAME`; resolved, that is `training ID of MODEL`, where the ID changes with all that decides the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, unknown
from diffscale.bench.papers.digests import digest, shipped_verifiers, weights_digest
from diffscale.train import configs
from diffscale.train.configs import TrainConfig

FOLDER: Final = "trainings"
"""In the cache of an output folder, and beside recipes, the settings that several share."""
_MODEL: Final = "training "
_OF: Final = " of "
_PASSING: Final = {"output_dir", "logging_dir", "report_to", "checkpointing_steps", "checkpoints_total_limit",
                   "resume_from_checkpoint", "validation_steps", "cache_dir", "train_data_dir"}  # fmt: skip


def expanded(trainings: Mapping[str, Any], recipes: Path, paper: str, setting: str) -> dict[str, Any]:
    """`trainings` of a recipe, those that say `like: NAME` with what NAME has in `recipes`/trainings/`paper`.yaml.

    Raises UnknownName for a name that is not there.
    """
    found = {}
    for name, given in trainings.items():
        like = given.get("like")
        if like is None:
            found[name] = dict(given)
            continue
        shared = config.read(recipes / FOLDER / f"{paper}.yaml").get(setting, {})
        if like not in shared:
            raise unknown("training", like, shared)
        found[name] = {**shared[like], **{key: value for key, value in given.items() if key != "like"}}
    return found


def config_of(training: Mapping[str, Any]) -> TrainConfig:
    """The settings of a training, its data not made yet; raises DiffscaleError for settings that are wrong."""
    given = dict(training)
    missing = [name for name in ("method", "model", "data") if name not in given]
    if missing:
        raise DiffscaleError(f"A training of a recipe has no {missing[0]}: add it.")
    method, model, data = (str(given.pop(name)) for name in ("method", "model", "data"))
    return configs.resolve(method, None, {**given, "pretrained_model_name_or_path": model, "train_data_dir": data})


def id_of(training: Mapping[str, Any]) -> str:
    """Names what is made by a training: changes with its settings, the base's weights and, on Shapes, the rewards'."""
    found = config_of(training)
    model = found.pretrained_model_name_or_path
    judge_digests = shipped_verifiers() if found.reward and Path(model).name.startswith("shapes-") else {}
    # Settings that are left as they are do not count, so that new ones change no ID.
    usual = config_of({name: training[name] for name in ("method", "model", "data", "reward") if name in training})
    unset = usual.model_dump(mode="json")
    settings = found.model_dump(mode="json", exclude=_PASSING).items()
    changed = {name: value for name, value in settings if value != unset[name]}
    made_of = [found.method, model, found.reward, training["data"], changed, weights_digest(model), judge_digests]
    return f"{found.method}-{digest(made_of)}"


def called(training: Mapping[str, Any]) -> str:
    """The model of a series that is sampled from a training."""
    return f"{_MODEL}{id_of(training)}{_OF}{training['model']}"


def name_in(model: str) -> str | None:
    """The recipe's name of a training, of `training NAME`; None for any other model."""
    return model.removeprefix(_MODEL) if model.startswith(_MODEL) else None


def id_in(model: str) -> str | None:
    """The ID of a training whose model this is, None for any other model."""
    name = name_in(model)
    return None if name is None else name.partition(_OF)[0]


def base_of(model: str) -> str:
    """The model that was trained; any other as it is."""
    name = name_in(model)
    return model if name is None else name.partition(_OF)[2]


def located(model: str, cache: Path | None) -> str:
    """The folder of a model that a training gave, in `cache`; any other as it is."""
    training = id_in(model)
    if training is None:
        return model
    if cache is None:
        raise ValueError(f"{model} lies in a cache, but none is given")
    return str(folder_of(training, cache))


def folder_of(training: str, cache: Path) -> Path:
    """Where the training of that ID is run; what is sampled from it lies beside."""
    return cache / FOLDER / training / "run"


def seconds(found: TrainConfig, sample: int, nfe_per_second: float) -> float:
    """About how long a training takes: its denoiser evaluations, or what it is given if that is less.

    `sample`: NFE of a sample. A step backward counts as two forward; rewards and decoding are left out.
    """
    n, m, own = found.n, found.m, found.sample_steps or sample
    begun, tried = (n, 2) if found.own_samples == "each" else (1, n)
    rows = {
        "sft": 3,
        "dpo": 2 * 4,
        "sharpen-sft": n * m + 3 * m,
        "sharpen-rlhf": begun * own + tried * m + 2 * 4 * m,
        "ddpo": 4 * own,
        "d3po": 2 * 5 * own,
        "iterpo": own + 3,
    }[found.method]
    steps = found.max_train_steps * found.gradient_accumulation_steps * found.train_batch_size
    return min(steps * rows / nfe_per_second, found.max_train_seconds or float("inf"))
