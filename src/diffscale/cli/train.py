"""`diffscale train`: put search into the weights, or fine-tune by the methods that it is compared with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffscale.train.configs import METHODS, TrainConfig, resolve

_MORE = {
    "resume_from_checkpoint": ["--resume"],
    "validation_prompt": ["--validation_prompts"],
    "pretrained_model_name_or_path": ["--model"],
}


def train(method: str, config_file: Path | None, **flags: Any) -> None:
    """Train METHOD on --train_data_dir, --dataset_name or --train_prompts.

    Flags are those of diffusers' training scripts, with _ or - between words. With several processes:
    accelerate launch -m diffscale train METHOD ...
    """
    settings = resolve(method, config_file, flags)

    # Imported late: diffusers takes seconds, and wrong flags should be told at once.
    from diffscale.cli.quiet import quiet
    from diffscale.train import loop

    quiet()
    console = Console(soft_wrap=True)
    with _bar(console) as move:
        ended = loop.train(settings, move)
    if ended.how == "stopped":
        console.print(
            f"stopped at step {ended.step}, which is saved: go on with --resume_from_checkpoint latest", highlight=False
        )
        return
    if not ended.result:
        return  # not the first process
    for note in ended.result["notes"]:
        console.print(f"[yellow]note:[/yellow] {note}", highlight=False)
    for name, gain in ended.result["gains"].items():
        console.print(
            f"{name}: before {gain['before']:.4f}, after {gain['after']:.4f} ({gain['gain']:+.4f}) on "
            f"{gain['pictures']} pictures of the same seeds",
            highlight=False,
        )
    console.print(
        f"{ended.step:,} steps in {ended.result['seconds']:.1f} s; weights, model card, plots and figures are in "
        f"{ended.folder}",
        highlight=False,
    )


def _flags() -> list[inspect.Parameter]:
    """One for each setting."""
    found = []
    for name, setting in TrainConfig.model_fields.items():
        if name == "method":
            continue
        kind, names = _plain(setting.annotation), [f"--{name}", *_MORE.get(name, [])]
        if kind is bool:
            names = [f"--{name}/--no_{name}"]
        extra = setting.json_schema_extra
        panel = str(extra["panel"]) if isinstance(extra, dict) else None
        option = typer.Option(*names, help=setting.description, rich_help_panel=panel, show_default=False)
        found.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )
    return found


def _plain(annotation: Any) -> Any:
    """The type that the command line reads; what is allowed in it is the settings' business."""
    inner = [each for each in get_args(annotation) if each is not type(None)]
    if get_origin(annotation) is list:
        return list[str]
    if get_origin(annotation) is Annotated:
        return _plain(inner[0])
    if annotation in (bool, int, float, str, Path):
        return annotation
    return _plain(inner[0]) if inner and get_origin(annotation) is not None and not isinstance(inner[0], str) else str


def spelt(flag: str) -> str:
    """A flag's name as it is declared, where it was given with - between words."""
    return flag.replace("-", "_")


def command() -> Callable[..., None]:
    """`train` with a flag for each setting."""

    def with_flags(method: str, **given: Any) -> None:
        config_file = given.pop("config_file")
        train(method, config_file, **given)

    kept = [
        inspect.Parameter(
            "method",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=Annotated[
                str,
                typer.Argument(metavar="METHOD", help="; ".join(f"{name}: {what}" for name, what in METHODS.items())),
            ],
        ),
        inspect.Parameter(
            "config_file",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None, typer.Option("--config", help="YAML with these settings; flags override it.")
            ],
        ),
    ]
    signature = inspect.Signature([*kept, *_flags()])
    with_flags.__signature__ = signature  # type: ignore[attr-defined]
    with_flags.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    with_flags.__name__, with_flags.__doc__ = "train", train.__doc__
    return with_flags


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int, dict[str, float]], None]]:
    """A bar for what is encoded, and one for steps with the loss and the reward."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bars: dict[str, Any] = {}

        def move(what: str, done: int, of: int, values: dict[str, float]) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=of, said="")
            said = ", ".join(f"{name} {values[name]:.4g}" for name in ("loss", "reward") if name in values)
            progress.update(bars[what], completed=done, total=of, said=said)

        yield move
