"""The files that a finished training leaves: weights, the model card, pictures, plots and figures."""

import resource
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from pydantic import BaseModel

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, first_line
from diffscale._util.files import read_json, replacing, write_json, write_text
from diffscale._util.hardware import device_name
from diffscale._util.versions import versions
from diffscale.models.load import base_model
from diffscale.models.shipped import manifests, shipped
from diffscale.registry import plugins
from diffscale.report import pictures
from diffscale.report.plots import training_curve
from diffscale.report.text import drawing
from diffscale.train import page, validation
from diffscale.train.base import Base
from diffscale.train.data.dataset import Dataset
from diffscale.train.run_directory import DISK_ERRORS, TrainState, name_last_checkpoint
from diffscale.train.settings import METHODS, TrainConfig
from diffscale.train.training_data import TrainingData
from diffscale.train.validation import Validation

_ESSENTIAL = (
    "learning_rate", "train_batch_size", "gradient_accumulation_steps", "lr_scheduler", "proportion_empty_prompts",
    "mixed_precision", "use_ema", "seed",
)  # fmt: skip


def write(
    settings: TrainConfig,
    base: Base,
    data: TrainingData,
    state: TrainState,
    lines: Sequence[dict[str, Any]],
    validations: Sequence[dict[str, Any]],
    why_stopped: str,
) -> dict[str, Any]:
    """Write all of it to the folder of the run, and return what `result.json` holds.

    `validations`: what `Guard` saw on the way; `why_stopped`: a sentence, if the training ended by itself.
    What is drawn of the results is written after them. Raises DiffscaleError if the disk does not take these; the last
    checkpoint has the weights.
    """
    folder = settings.output_dir
    try:
        _write_weights(folder, settings, base)
        before, after = (validation.load(folder, name) for name in ("before", "after"))
        result = _result(settings, base, data, state, lines) | {"validations": list(validations)}
        result["notes"] += [why_stopped] if why_stopped else []
        if before is not None and after is not None:
            result["gains"] = validation.gains(before.scores, after.scores)
        write_json(folder / "result.json", result)
    except DISK_ERRORS as error:
        raise DiffscaleError(
            f"The training is done, but {folder} cannot be written to ({first_line(error)}): "
            f"{name_last_checkpoint(folder)}; make room and give the same command with --resume_from_checkpoint latest."
        ) from error
    title, drawn = f"{settings.method} of {Path(base.name).name}", []
    if before is not None and after is not None and len(before.images) == len(after.images):
        with drawing("The pictures before and after"):
            captions = validation.prompts_of_samples(data, settings)
            _write_strip(folder / "validation.png", before, after, captions, title)
            drawn.append(("before and after", "validation.png"))
    for name, file, of in (
        ("reward", "rewards.png", f"{title}, by {', '.join(settings.rewards)}"), ("loss", "loss.png", title),
    ):  # fmt: skip
        with drawing(f"The plot of the {name}"):
            if training_curve(lines, name, of, folder / file):
                drawn.append((name, file))
    with drawing("The model card"):
        _write_card(folder / "README.md", settings, base.name, data.dataset, result, drawn)
    page.write(folder)
    return result


def _write_weights(folder: Path, settings: TrainConfig, base: Base) -> None:
    """A LoRA, or a whole pipeline."""
    manifest: dict[str, Any] = {"description": f"{METHODS[settings.method]}, of {base.name}"}
    with TemporaryDirectory(prefix=".weights-", dir=folder) as name:
        fresh = Path(name)
        manifest["call"] = {"num_inference_steps": base.call.steps, **base.call.args}
        if settings.adapter is not None:
            base.save_lora(fresh)
            manifest["base"] = base.name
        else:
            base.pipe.save_pretrained(fresh)
            for _, stated in manifests(base.name):  # a whole pipeline names no base that could state these for it
                manifest = {key: stated[key] for key in ("world", "counterparts") if key in stated} | manifest
        write_json(fresh / "diffscale.json", manifest)
        for path in sorted(fresh.iterdir()):
            with replacing(folder / path.name) as place:
                path.replace(place)


def _write_strip(path: Path, before: Validation, after: Validation, captions: Sequence[str], title: str) -> None:
    """Two rows of pictures of the same seeds: before above, after below, with the prompts."""
    labels = [f"{when}: {caption}" for when in ("before", "after") for caption in captions]
    images = [pictures.to_pil(image) for image in (*before.images, *after.images)]
    title = f"{title}: the same seeds before and after"
    with replacing(path) as fresh:
        pictures.grid(images, labels, title, columns=len(before.images)).save(fresh)


def _write_card(
    path: Path,
    settings: TrainConfig,
    base: str,
    dataset: Dataset,
    result: dict[str, Any],
    drawn: Sequence[tuple[str, str]],
) -> None:
    """Write a README.md in the Hub's format. `drawn`: what pictures there are, and their files."""
    kind, lora = type(settings), settings.adapter is not None
    tags = ["diffscale", "text-to-image", settings.method, *(["lora"] if lora else [])]
    of_method = [name for name in kind.model_fields if config.panel(kind, name) == "Method" and name != "reward"]
    card = ModelCard.from_template(
        ModelCardData(library_name="diffusers", base_model=base, tags=tags),
        str(Path(__file__).with_name("model_card.md")),
        name=Path(base).name,
        base=base,
        base_is_lora=base_model(base) != base,
        base_is_shipped=base in shipped(),
        folder=settings.output_dir.name,
        lora=lora,
        settings=settings,
        summary=METHODS[settings.method],
        shown=settings.model_dump(mode="json", include={*_ESSENTIAL, *(["rank"] if lora else []), *of_method}),
        dataset=dataset,
        result=result,
        dropped=result["dropped_evaluation_prompts"],
        known_prompts=[*plugins("suites"), *settings.held_out_prompts],
        drawn=drawn,
    )
    write_text(path, f"{card.content}\n")


def _result(
    settings: TrainConfig, base: Base, data: TrainingData, state: TrainState, lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    leaked = data.dataset.leaked
    steps = max(1, state.step)
    rows = settings.gradient_accumulation_steps * settings.train_batch_size * data.batches.order.processes
    evaluations = state.step * rows * settings.evaluations(base.sampler.steps)
    return {
        "method": settings.method,
        "base": base.name,
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "seconds_per_step": state.seconds / steps,
        # The first steps warm caches up.
        "median_seconds_per_step": statistics.median_high(line["seconds"] for line in lines) if lines else None,
        "reward": {
            "verifiers": settings.rewards,
            "seconds_per_step": state.rewards.seconds / steps,
            "decode_seconds_per_step": state.decoding.seconds / steps,
            "share_of_time": (state.rewards.seconds + state.decoding.seconds) / max(state.seconds, 1e-9),
            "pictures": state.rewards.pictures,
        },
        "peak_memory_bytes": peak_memory(),
        "trained_parameters": sum(p.numel() for p in base.trainable.values()),
        "cost": {"evaluations": evaluations, "flops": evaluations * base.sampler.flops_per_forward},
        "nfe": int(sum(line.get("nfe", 0) for line in lines)),  # of the groups that were learned from
        "rows": len(data.dataset),
        "dropped_evaluation_prompts": {"rows": leaked.count, "suites": leaked.suites, "first": list(leaked.first)},
        "notes": list(data.dataset.notes),
        "gains": {},
        "validation_prompts": validation.prompts_of_samples(data, settings),
        "versions": versions(),
        "hardware": device_name(str(next(iter(base.trainable.values())).device)),
        "last": {name: value for name, value in (lines[-1] if lines else {}).items() if name != "step"},
    }


class _Result(BaseModel):
    """What `result.json` holds at least."""

    method: str
    base: str
    steps: int
    seconds: float
    rows: int
    reward: dict[str, Any]


def read_result(folder: Path) -> dict[str, Any] | None:
    """The `result.json` of the finished training in `folder`; None where there is none that is whole."""
    found: dict[str, Any] | None = read_json(folder / "result.json", _Result)
    return found


def peak_memory() -> int:
    """Most memory used so far by this process, in bytes: of its GPU where it has one, else in all."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
