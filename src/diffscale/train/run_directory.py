"""Before a training: names checked, accelerate set up, and the folder of the run opened."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError, first_line
from diffscale.registry import parse
from diffscale.searches import SEARCHES
from diffscale.train import checkpoints, configs, logs, optimisation, rewards
from diffscale.train.configs import TrainConfig

PATIENCE: Final = timedelta(days=7)
"""That a process waits for the others: the first one encodes the data and samples alone, for hours where there are
many; by default the others would give up after ten minutes on GPUs."""
_SHARDED: Final = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


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
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.report_to) or None,
            project_config=project,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (ValueError, ImportError) as error:
        raise DiffscaleError(f"accelerate cannot run as asked: {first_line(error)}") from error
    if accelerator.distributed_type in _SHARDED:
        raise DiffscaleError(
            f"accelerate is configured for {accelerator.distributed_type.value}, and trainings here keep whole weights "
            "in every process: choose multi-GPU, or none, with `accelerate config`."
        )
    return accelerator


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
            # A checkpoint may be of another folder.
            for run in () if resumed is None else dict.fromkeys((folder, resumed.parent)):
                before = run / file.name
                if before.exists() and not configs.load(before).same_run(config):
                    raise DiffscaleError(
                        f"{run} holds a training with other settings (see its config.yaml): go on with those, or "
                        "choose another --output_dir."
                    )
            folder.mkdir(parents=True, exist_ok=True)
            configs.save(config, file)
    except OSError as error:
        raise DiffscaleError(f"{folder} cannot be written to ({error.strerror}): choose another folder.") from error
    return resumed
