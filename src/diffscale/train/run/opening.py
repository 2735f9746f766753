"""Before a training: names checked, accelerate set up, and the folder of the run opened."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from diffscale import verifiers
from diffscale.errors import DiffscaleError, first_line
from diffscale.named import parse
from diffscale.searches import SEARCHES
from diffscale.train.run import checkpoints, logs, optimisation, rewards, settings
from diffscale.train.run.settings import TrainConfig


def check(config: TrainConfig) -> None:
    """Raises DiffscaleError for names that are none, before anything is loaded."""
    for text in config.reward:
        verifiers.check(rewards.split(text)[0])
    if config.search is not None:
        parse(config.search, "search", SEARCHES)
    logs.check(config.report_to)
    optimisation.check(config)


def accelerator_of(config: TrainConfig) -> Accelerator:
    """The process as accelerate sees it; raises DiffscaleError for what it cannot do."""
    project = ProjectConfiguration(str(config.output_dir), str(config.output_dir / config.logging_dir))
    try:
        return Accelerator(
            mixed_precision=config.mixed_precision, log_with=list(config.report_to) or None, project_config=project
        )
    except (ValueError, ImportError) as error:
        raise DiffscaleError(f"accelerate cannot run as asked: {first_line(error)}") from error


def opened(config: TrainConfig, first: bool) -> Path | None:
    """The checkpoint to go on from, None if there is none; the folder is made, and the settings written there."""
    folder, asked = config.output_dir, config.resume_from_checkpoint
    file = folder / "config.yaml"
    try:
        resumed = None if asked is None else checkpoints.chosen(folder, asked)
        if first:
            if resumed is None and (checkpoints.found(folder) or (folder / "result.json").exists()):
                raise DiffscaleError(
                    f"{folder} holds a training: go on with --resume_from_checkpoint latest, or choose another "
                    "--output_dir."
                )
            if resumed is not None and file.exists() and not settings.load(file).same_run(config):
                raise DiffscaleError(
                    f"{folder} holds a training with other settings (see its config.yaml): go on with those, or choose "
                    "another --output_dir."
                )
            folder.mkdir(parents=True, exist_ok=True)
            settings.save(config, file)
    except OSError as error:
        raise DiffscaleError(f"{folder} cannot be written to ({error.strerror}): choose another folder.") from error
    return resumed
