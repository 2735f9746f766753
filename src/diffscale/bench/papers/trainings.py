"""Makes the trainings of items, each once, by the code of `diffscale train`, with the data sets that they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from accelerate.state import AcceleratorState, GradientState

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import trained
from diffscale.shapes import data as drawn
from diffscale.train import loop
from diffscale.train.configs import TrainConfig

_PAIRS: Final = "pairs"
Told = Callable[[str, int, int], None]


class Trainings:
    """Finished trainings and data sets of Shapes in `cache`."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def make(self, training: Mapping[str, Any], name: str, told: Told | None = None) -> Path:
        """The folder of a training: a finished one as it is, one that was stopped gone on with to its end.

        `told(what, done, of)` hears of progress, `what` beginning with `name`. Raises DiffscaleError as `loop.train`,
        and where SIGTERM stopped it.
        """
        folder = trained.folder_of(trained.id_of(training), self.cache)
        if (folder / "result.json").exists():
            return folder
        config = self._with_data(training).model_copy(
            update={"output_dir": folder, "resume_from_checkpoint": "latest", "checkpoints_total_limit": 1}
        )
        # accelerate keeps the precision of one training for the next.
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        ended = loop.train(config, None if told is None else _bar(told, name, config))
        if ended.how == "stopped":
            raise DiffscaleError(f"{name} stopped at step {ended.step}, which is saved: give the same command again.")
        return folder

    def _with_data(self, training: Mapping[str, Any]) -> TrainConfig:
        """Its settings, with the data set where it is; those of Shapes are drawn if they are not there yet."""
        config, data = trained.config_of(training), str(training["data"])
        change: dict[str, Any]
        if data.split()[0] in (*drawn.RECIPES, _PAIRS):
            change = {"train_data_dir": str(self.drawn(data)), "cache_dir": str(self.cache / "encoded")}
        elif Path(data).expanduser().is_file():
            change = {"train_data_dir": None, "train_prompts": data}
        elif not Path(data).expanduser().is_dir():
            change = {"train_data_dir": None, "dataset_name": data}
        else:
            change = {}
        return config.model_copy(update=change)

    def drawn(self, data: str) -> Path:
        """The folder of a data set of Shapes, "NAME" or "NAME size=N"; raises DiffscaleError for another form."""
        name, _, more = data.partition(" ")
        size = more.removeprefix("size=")
        if more and (size == more or not size.isdigit() or not int(size)):
            raise DiffscaleError(f"Write a data set of Shapes as {name} or {name} size=100, not {data!r}.")
        folder = self.cache / "data" / "-".join([name, size] if size else [name])
        if folder.exists():
            return folder
        if name != _PAIRS:
            drawn.write_dataset(name, folder, int(size) if size else None)
            return folder
        # Imported late, as only one method needs what makes them.
        from diffscale.shapes.train import generated, pairs

        shown = generated.generate_pictures(self.cache / "data" / "generated", int(size) if size else generated.PROMPTS)
        pairs.write(shown, folder)
        return folder


def _bar(told: Told, name: str, config: TrainConfig) -> loop.Told:
    """Steps as a bar of seconds, where these end a training."""
    most, spent = config.max_train_seconds, 0.0

    def move(what: str, done: int, of: int, values: dict[str, float]) -> None:
        nonlocal spent
        if what == "steps" and most is not None:
            spent += values["seconds"]
            told(f"{name}, seconds", min(int(spent), int(most)), int(most))
        else:
            told(f"{name}, {what}", done, of)

    return move
