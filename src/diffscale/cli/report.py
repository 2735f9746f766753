"""`diffscale report`: the page of a finished run, made again from its files."""

from pathlib import Path
from typing import Annotated

import typer

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import check_writable
from diffscale.cli.terminal import plain_console


def report(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of generate, bench or train.")]) -> None:
    """Make report.html of a finished run anew from the files in FOLDER; nothing is computed."""
    # Imported late: diffusers takes seconds.
    from diffscale.bench import bench_page, generate_page
    from diffscale.bench.generate import read_summary
    from diffscale.report.page import REPORT
    from diffscale.train import page as train_page
    from diffscale.train.output import read_result

    if (folder / "results.json").is_file():
        write = bench_page.write
    elif read_result(folder) is not None:
        write = train_page.write
    elif read_summary(folder) is not None:
        write = generate_page.write
    else:
        raise DiffscaleError(
            f"{folder} holds no finished run of generate, bench or train: give the folder of one. A run that was "
            "broken off makes its report at its end: give its command again."
        )
    check_writable(folder / REPORT)
    write(folder)
    plain_console().print(f"{folder / REPORT} is made")
