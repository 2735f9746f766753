"""The model card of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from diffscale.models.load import base_model
from diffscale.models.locate import shipped
from diffscale.registry import plugins
from diffscale.train.configs import DEFAULTS, METHODS, TrainConfig
from diffscale.train.data.dataset import Dataset

_ESSENTIAL = (
    "learning_rate", "train_batch_size", "gradient_accumulation_steps", "lr_scheduler", "proportion_empty_prompts",
    "mixed_precision", "use_ema", "seed",
)  # fmt: skip
_SHARPEN = ("n", "m", "search", "form", "snr_gamma")


def card(settings: TrainConfig, base: str, dataset: Dataset, result: dict[str, Any], rewarded: bool) -> str:
    """A README.md in the Hub's format. `rewarded`: whether there is a plot of rewards."""
    lora, what = settings.adapter is not None, METHODS[settings.method]
    head: dict[str, Any] = {
        "library_name": "diffusers",
        "base_model": base,
        "tags": ["diffscale", "text-to-image", settings.method, *(["lora"] if lora else [])],
    }
    shown = settings.model_dump(mode="json")
    names = [*_ESSENTIAL, *(["rank"] if lora else [])]
    names += [*(_SHARPEN if settings.method.startswith("sharpen") else ())]
    names += (
        ["own_samples", "sample_steps", "samples_per_round", "num_inner_epochs"]
        if settings.method == "sharpen-rlhf"
        else []
    )
    names += [name for name in ("beta", "sample_steps") if name in DEFAULTS[settings.method]]
    names += [name for name in shown if name.startswith("refine_")] if settings.refine_by is not None else []
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {Path(base).name}, {settings.method}",
        f"{what[0].upper()}{what[1:]}. {'A LoRA of' if lora else 'All weights of'} `{base}`, "
        f"trained by diffscale for {result['steps']:,} steps.",
        _use(settings, base),
        "## Reward\n\n" + _list(f"`{text}`" for text in settings.reward) if settings.reward else "",
        "## Data\n\n" + _data(settings, dataset, result),
        "## Settings\n\n" + _table(["setting", "value"], [[f"`{n}`", f"`{shown[n]}`"] for n in names])
        + "\n\nAll of them are in `config.yaml`.",
        "## Gains\n\n" + _gains(settings, result["gains"]),
        "![before and after](validation.png)",
        "![rewards](rewards.png)" if rewarded else "",
        "![loss](loss.png)",
        "## Cost\n\n" + _cost(result),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(settings: TrainConfig, base: str) -> str:
    folder, imports = settings.output_dir.name, "from diffusers import DiffusionPipeline\n"
    command = f"`diffscale generate PROMPT --model {folder}`"
    if settings.adapter is None:
        load = f'pipe = DiffusionPipeline.from_pretrained("{folder}")'
    elif base_model(base) != base:
        return f"The base is a LoRA itself, which is loaded with it: {command}."
    else:
        source = json.dumps(base)
        if base in shipped():
            imports, source = imports + "from diffscale.models.locate import locate\n", f"locate({source})"
        load = f'pipe = DiffusionPipeline.from_pretrained({source})\npipe.load_lora_weights("{folder}")'
    return f"```python\n{imports}\n{load}\n```\n\nor {command}."


def _data(settings: TrainConfig, dataset: Dataset, result: dict[str, Any]) -> str:
    dropped = result["dropped_evaluation_prompts"]
    suites = ", ".join(f"{count} of {suite}" for suite, count in dropped["suites"].items())
    said = [f"{result['rows']:,} rows of `{dataset.source}`."]
    said.append(
        f"{dropped['rows']} rows with evaluation prompts were dropped ({suites})."
        if dropped["rows"]
        else f"None of them has a prompt of {', '.join((*plugins('suites'), *settings.held_out_prompts))}."
    )
    return "\n".join([" ".join(said), *(f"\n* {note}" for note in dataset.notes)])


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"


def _gains(settings: TrainConfig, gains: dict[str, dict[str, Any]]) -> str:
    if not gains:
        return "Not measured."
    rows = [
        [f"`{name}`", f"{g['before']:.4f}", f"{g['after']:.4f}", f"{g['gain']:+.4f}{_error(g['standard_error'])}"]
        for name, g in gains.items()
    ]
    count = next(iter(gains.values()))["pictures"]
    prompts = "" if settings.validation_prompt else ", for prompts of the training data"
    return (
        f"Means over the {count} pictures below, of the same seeds{prompts}; the error is the standard error of the "
        "difference. A gain in what was trained for says little: measure with `diffscale evaluate` too.\n\n"
        + _table(["verifier", "before", "after", "gain"], rows)
    )


def _cost(result: dict[str, Any]) -> str:
    reward = result["reward"]
    said = (
        f"{result['seconds_per_step']:.3g} s a step, {result['peak_memory_bytes'] / 2**30:.2f} GiB at most, "
        f"{result['trained_parameters']:,} trained parameters."
    )
    if reward["verifiers"]:
        said += (
            f" Of a step {reward['seconds_per_step']:.3g} s are the reward's and "
            f"{reward['decode_seconds_per_step']:.3g} s decoding for it; {reward['pictures']:,} pictures were rewarded."
        )
    return said


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _list(items: Any) -> str:
    return "\n".join(f"* {item}" for item in items)
