"""`diffscale train`: put search into the weights, or fine-tune by the methods that it is compared with."""

from pathlib import Path
from typing import Any, Final

from diffscale._util.signals import Stopped
from diffscale.cli.flags import settings_from_flags
from diffscale.cli.terminal import print_warning, progress_bars, quiet_console
from diffscale.train.configs import CONFIGS, resolve
from diffscale.train.settings import TrainConfig

GO_ON: Final = "go on with --resume_from_checkpoint latest"


def declared(flag: str) -> str:
    """A flag's name as it is declared, where it was given with - between words."""
    return flag.replace("-", "_")


def _resolve(file: Path | None, flags: dict[str, Any]) -> TrainConfig:
    return resolve(flags.pop("method"), file, flags)


@settings_from_flags(*CONFIGS.values(), TrainConfig, resolve=_resolve, separator="_")
def train(settings: TrainConfig) -> None:
    """Train METHOD on --train_data_dir, --dataset_name or --train_prompts.

    Flags are those of diffusers' training scripts, with _ or - between words. Recipes, with published settings for a
    GPU: --config sdxl, sd3.5-medium or flux.1-dev, of group-dpo, nft and awm. With several processes:
    accelerate launch -m diffscale train METHOD ...
    """
    # Imported late: diffusers takes seconds, and wrong flags should be told at once.
    from diffscale.train import loop
    from diffscale.train.run_directory import list_checkpoints

    console = quiet_console()
    try:
        with progress_bars(console) as progress:
            ended = loop.train(settings, progress)
    except Stopped as stopped:
        if list_checkpoints(settings.output_dir):
            raise Stopped(stopped.number, GO_ON) from None
        raise
    if ended.how == "stopped":
        console.print(f"stopped at step {ended.step}, which is saved: {GO_ON}")
        return
    if not ended.result:
        return  # not the first process
    for note in ended.result["notes"]:
        print_warning(console, note, "note")
    for name, gain in ended.result["gains"].items():
        console.print(
            f"{name}: before {gain['before']:.4f}, after {gain['after']:.4f} ({gain['gain']:+.4f}) on "
            f"{gain['pictures']} pictures of the same seeds"
        )
    console.print(
        f"{ended.step:,} steps in {ended.result['seconds']:.1f} s; weights, model card, plots, figures and report.html "
        f"are in {ended.folder}"
    )
