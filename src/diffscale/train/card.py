"""The model card of a training: the template card.md, filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from diffscale._util import config
from diffscale.models.files import shipped
from diffscale.models.load import base_model
from diffscale.registry import plugins
from diffscale.train.configs import METHODS, TrainConfig
from diffscale.train.data.dataset import Dataset

_ESSENTIAL = (
    "learning_rate", "train_batch_size", "gradient_accumulation_steps", "lr_scheduler", "proportion_empty_prompts",
    "mixed_precision", "use_ema", "seed",
)  # fmt: skip


def write_card(
    path: Path, settings: TrainConfig, base: str, dataset: Dataset, result: dict[str, Any], rewarded: bool
) -> None:
    """Write a README.md in the Hub's format. `rewarded`: whether there is a plot of rewards."""
    kind, lora = type(settings), settings.adapter is not None
    tags = ["diffscale", "text-to-image", settings.method, *(["lora"] if lora else [])]
    of_method = [name for name in kind.model_fields if config.panel(kind, name) == "Method" and name != "reward"]
    card = ModelCard.from_template(
        ModelCardData(library_name="diffusers", base_model=base, tags=tags),
        str(Path(__file__).with_suffix(".md")),
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
        rewarded=rewarded,
    )
    path.write_text(f"{card.content}\n")
