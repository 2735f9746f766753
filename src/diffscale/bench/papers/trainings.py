"""Trainings of recipes: what settings they have, what names them, how series call the models that they give, and how
they are made, each once, by the code of `diffscale train`.

A recipe's training is `method`, `model`, `data` and any other setting of `TrainConfig`. A `mixed_precision` that it
leaves open is chosen where it is run, and counts nowhere. One of `tflop` has as many steps as make up so many counted
operations, of `gflop_a_step` each, whatever the machine and its load. Series name its model
`training NAME`; resolved, that is `training ID of MODEL`, where the ID changes with all that decides the weights.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from accelerate.state import AcceleratorState, GradientState

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, check_name
from diffscale._util.files import inside
from diffscale._util.fingerprints import json_digest
from diffscale._util.progress import Progress, silent
from diffscale.bench.papers.digests import shipped_verifiers, weights_digest
from diffscale.bench.series import safe_name
from diffscale.models import dtypes
from diffscale.models.load import best_device, warn_of_slow_dtype, world_of
from diffscale.models.options import LoadOptions
from diffscale.registry import DataSet, plugins
from diffscale.train import configs, loop, run_directory
from diffscale.train.base import DTYPES
from diffscale.train.output import read_result
from diffscale.train.run_directory import list_checkpoints
from diffscale.train.settings import TrainConfig
from diffscale.train.traits import InnerEpochs

FOLDER: Final = "trainings"
"""In the cache of an output folder, and beside recipes, the settings that several share."""
_RESOLVED: Final = re.compile(r"training (?P<id>\S+) of (?P<base>.+)")
_PASSING: Final = {"output_dir", "logging_dir", "report_to", "checkpointing_steps", "checkpoints_total_limit",
                   "resume_from_checkpoint", "validation_steps", "cache_dir", "train_data_dir"}  # fmt: skip
_CONFIG: Final = "config.yaml"
_STATED: Final = {"method", "pretrained_model_name_or_path", "reward"}
_TFLOP: Final = "tflop"
_CONSTANT: Final = ("constant", "constant_with_warmup")
"""Schedules by which the first steps of a training are those of a shorter one."""


def expanded(trainings: Mapping[str, Any], recipes: Path, paper: str, setting: str) -> dict[str, Any]:
    """`trainings` of a recipe, those that say `like: NAME` with what NAME has in `recipes`/trainings/`paper`.yaml.

    Raises UnknownName for a name that is not there.
    """
    full = {}
    for name, given in trainings.items():
        own, like = dict(given), given.get("like")
        if own.pop("like", None) is not None:
            shared = config.read(recipes / FOLDER / f"{paper}.yaml").get(setting, {})
            check_name("training", like, shared)
            own = {**shared[like], **own}
        full[name] = _with_steps(own, name)
    return full


def _with_steps(training: dict[str, Any], name: str) -> dict[str, Any]:
    """A training with the steps that make up its `tflop`, if it has one; raises DiffscaleError without a cost."""
    step = training.pop("gflop_a_step", None)
    if _TFLOP not in training:
        return training
    if step is None:
        raise DiffscaleError(f"The training {name!r} has a tflop and no gflop_a_step: add it.")
    steps = max(1, round(1000 * training[_TFLOP] / step))
    return {**training, "max_train_steps": steps, "max_train_seconds": None}


def config_of(training: Mapping[str, Any]) -> TrainConfig:
    """The settings of a training, its data not made yet; raises DiffscaleError for settings that are wrong."""
    given = {name: value for name, value in training.items() if name != _TFLOP}
    missing = [name for name in ("method", "model", "data") if name not in given]
    if missing:
        raise DiffscaleError(f"A training of a recipe has no {missing[0]}: add it.")
    method, model, data = (str(given.pop(name)) for name in ("method", "model", "data"))
    return configs.resolve(method, None, {**given, "pretrained_model_name_or_path": model, "train_data_dir": data})


def id_of(training: Mapping[str, Any]) -> str:
    """Names what is made by a training: changes with its settings, the base's weights and, on Shapes, the rewards'."""
    full = config_of(training)
    model = full.pretrained_model_name_or_path
    judge_digests = shipped_verifiers() if full.rewards and world_of(model) is not None else {}
    # Settings that are left as they are do not count, so that new ones change no ID.
    changed = full.model_dump(mode="json", exclude=_PASSING | _STATED, exclude_defaults=True)
    made_of = [full.method, model, full.rewards, training["data"], changed, weights_digest(model), judge_digests]
    return f"{full.method}-{json_digest(made_of)}"


def called(training: Mapping[str, Any]) -> str:
    """The model of a series that is sampled from a training."""
    return f"training {id_of(training)} of {training['model']}"


def id_in(model: str) -> str | None:
    """The ID of a training whose model this is, None for any other model."""
    resolved = _RESOLVED.fullmatch(model)
    return resolved and resolved["id"]


def base_of(model: str) -> str:
    """The model that was trained; any other as it is."""
    resolved = _RESOLVED.fullmatch(model)
    return resolved["base"] if resolved else model


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


def seconds(training: Mapping[str, Any], sample: int, nfe_per_second: float, flops_per_nfe: float) -> float:
    """About how long a training takes: its `tflop` at the speed of samples, or its denoiser evaluations, or what it is
    given if that is less.

    `sample`: NFE of a sample. Of evaluations a step backward counts as two forward; rewards and decoding are left out.
    """
    if _TFLOP in training:
        return float(training[_TFLOP]) * 1e12 / (nfe_per_second * flops_per_nfe)
    full = config_of(training)
    steps = full.max_train_steps * full.gradient_accumulation_steps * full.train_batch_size
    return min(steps * full.evaluations(sample) / nfe_per_second, full.max_train_seconds or float("inf"))


def make(
    training: Mapping[str, Any], name: str, cache: Path, progress: Progress = silent,
    among: Iterable[Mapping[str, Any]] = (),
) -> Path:  # fmt: skip
    """The folder of a training in `cache`: a finished one as it is, one that was stopped gone on with to its end.

    One that is new goes on from the longest finished one `among` others that is the same but for fewer steps.
    `progress` is called with what is done, which begins with `name`. Raises DiffscaleError as `loop.train`, and where
    a signal stopped it.
    """
    folder = folder_of(id_of(training), cache)
    if read_result(folder) is not None:
        return folder
    begin = "latest" if list_checkpoints(folder) else _shorter(training, folder, cache, among)
    update = {"output_dir": folder, "resume_from_checkpoint": begin, "checkpoints_total_limit": 1}
    full = config_of(training).model_copy(update={**_data(str(training["data"]), cache), **update})
    if full.mixed_precision is None:
        full = full.model_copy(update={"mixed_precision": _precision(folder)})
    # accelerate keeps the precision of one training for the next.
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    ended = loop.train(full, _by_seconds(progress, name, full.max_train_seconds))
    if ended.how == "stopped":
        raise DiffscaleError(f"{name} stopped at step {ended.step}, which is saved: give the same command again.")
    return folder


def _shorter(training: Mapping[str, Any], folder: Path, cache: Path, among: Iterable[Mapping[str, Any]]) -> str:
    """The checkpoint of a shorter training to go on from, whose log is put in the `folder` of this one; or latest."""
    for each in sorted(among, key=lambda other: -config_of(other).max_train_steps):
        before = folder_of(id_of(each), cache)
        if begins_with(training, each) and read_result(before) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (_CONFIG, run_directory.LOG_FILE):
                shutil.copyfile(before / file, folder / file)
            return str(list_checkpoints(before)[-1])
    return "latest"


def begins_with(training: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the first steps of a training are all steps of another, neither of which is ended by its seconds."""
    if any(training.get(key) != other.get(key) for key in ("method", "data", "seed")):
        return False
    one, two = config_of(training), config_of(other)
    if one.max_train_seconds or two.max_train_seconds or one.lr_scheduler not in _CONSTANT:
        return False
    return one.max_train_steps > two.max_train_steps and not one.difference(two)


def _precision(folder: Path) -> str | None:
    """The mixed precision of a training that its recipe leaves open.

    It is that of the run in `folder` if one was begun there. Else it is on a CPU bf16 where the processor multiplies it
    in hardware; None elsewhere: as accelerate is configured. It warns where a run goes on in one that is slow here.
    """
    before = folder / _CONFIG
    recorded = configs.load(before).mixed_precision if before.exists() else None
    if recorded is None and best_device() != "cpu":
        return None
    choice = dtypes.choose(LoadOptions(), best_device(), str, recorded and DTYPES[recorded])
    warn_of_slow_dtype(choice)
    return recorded or ("bf16" if choice.dtype == "bfloat16" else None)


def _data(data: str, cache: Path) -> dict[str, Any]:
    """The settings that say where a data set is; those of Shapes are drawn if they are not there yet."""
    path = Path(data).expanduser()
    if data.split()[0] in plugins("datasets"):
        return {"train_data_dir": str(draw(data, cache / "data")), "cache_dir": str(cache / "encoded")}
    if path.is_dir():
        return {}
    return {"train_data_dir": None, "train_prompts" if path.is_file() else "dataset_name": data}


def draw(data: str, home: Path) -> Path:
    """The folder of a data set of Shapes, "NAME" or "NAME size=N", in `home`; raises DiffscaleError for others."""
    name, _, more = data.partition(" ")
    size = more.removeprefix("size=")
    if more and (size == more or not size.isdigit() or not int(size)):
        raise DiffscaleError(f"Write a data set of Shapes as {name} or {name} size=100, not {data!r}.")
    folder = home / "-".join([name, size] if size else [name])
    if not folder.exists():
        write: DataSet = plugins("datasets")[name]
        write(folder, int(size) if size else None, home)
    return folder


def _by_seconds(progress: Progress, name: str, most: float | None) -> Progress:
    """Steps as a bar of seconds, where these end a training."""
    spent = 0.0

    def move(what: str, done: int, total: int, **figures: float) -> None:
        nonlocal spent
        if what == "steps" and most is not None:
            spent += figures["seconds"]
            progress(f"{name}, seconds", min(int(spent), int(most)), int(most))
        else:
            progress(f"{name}, {what}", done, total)

    return move


def keep_log(training: Path, item: Path, name: str) -> dict[str, Any]:
    """Copy the log of the finished `training` into the folder of an item; what is to be known of it, for JSON."""
    result = read_result(training)
    assert result is not None  # it was made, or found, by `make`
    file = f"{safe_name(name)}.jsonl"
    (item / "trainings").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(training / run_directory.LOG_FILE, item / "trainings" / file)
    known = {key: result[key] for key in ("method", "base", "steps", "seconds", "rows")}
    precision = configs.load(training / _CONFIG).mixed_precision
    return {"log": file, **known, "mixed_precision": precision, "reward": result["reward"]["verifiers"]}


def read_logs(
    item: Path, raw: Mapping[str, Any], trainings: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the logs that an item's numbers name, by training; `trainings` has the settings of each.

    Rows have `again`: whether the step was on samples that a step before it was on.
    """

    def again(settings: TrainConfig, step: int) -> bool:
        first = (step - 1) * settings.gradient_accumulation_steps
        return isinstance(settings, InnerEpochs) and settings.place_in_round(first)[1] > 0

    rows = {}
    for name, kept in raw.get("trainings", {}).items():
        settings = config_of(trainings[name])
        lines = run_directory.read_log(inside(item / "trainings", kept["log"], item / "raw.json"))
        rows[name] = [{**line, "again": again(settings, line["step"])} for line in lines]
    return rows
