"""`diffscale shapes`: the embedded world, a plug-in command."""

from pathlib import Path
from typing import Annotated

import typer

from diffscale._util.errors import check_name

app = typer.Typer(no_args_is_help=True, help="The embedded world: train its networks, draw data sets.")


@app.command()
def train(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="flux, pixart, sdxl, sdxl-dpo, sdxl-sharpened, sit-s, sit-b or sit-l, or of the verifiers clip, "
            "aesthetic, reward, pick, grader, dino, siglip or inception.",
        ),
    ],
    checkpoints: Annotated[Path, typer.Option(help="Kept between calls; training goes on from there.")] = Path(
        "checkpoints"
    ),
    output: Annotated[Path | None, typer.Option(help="Where the folder goes. Default: the package's weights.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Training steps of the network itself; stages before and after, such as the BLIP that reward and "
            "grader start from, keep their own. Default: those of the recipe.",
        ),
    ] = None,
) -> None:
    """Train a Shapes network from nothing, or go on from its checkpoint, and write its folder."""
    from diffscale_shapes import MODELS
    from diffscale_shapes.train import recipes

    check_name("network", network, recipes.RECIPES)
    folder = (output or MODELS) / f"shapes-{network}"
    recipes.train(network, checkpoints, folder, steps)
    typer.echo(f"{folder} is written, its figures in figures.json")


@app.command()
def data(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="plain (20,000 short captions), detailed (5,000 that say everything), stars (800 of one domain), or "
            "pairs (preference pairs of pictures that shapes-flux makes, as Pick-a-Pic).",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Where the folder goes; it must be empty or not there.")],
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures, for pairs prompts (2,000, of up to three pairs each).", show_default=False),
    ] = None,
    checkpoints: Annotated[Path, typer.Option(help="For pairs: where generated pictures are kept.")] = Path(
        "checkpoints"
    ),
) -> None:
    """Draw a data set of Shapes to train on, as a folder of pictures with metadata.jsonl."""
    from diffscale_shapes.datasets import DATASETS

    check_name("data set", name, DATASETS)
    rows = DATASETS[name](output, size, checkpoints)
    typer.echo(f"{rows} {'pairs' if name == 'pairs' else 'pictures'} are in {output}")
