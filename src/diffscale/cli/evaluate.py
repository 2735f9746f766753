"""`diffscale evaluate`: metrics of a folder of pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from diffscale._util.errors import explained
from diffscale._util.files import check_writable, write_json
from diffscale._util.numbers import rounded
from diffscale.bench.config import EvaluateConfig
from diffscale.cli.flags import settings_from_flags
from diffscale.cli.terminal import print_table, print_warning, progress_bars, quiet_console


@settings_from_flags(EvaluateConfig)
def evaluate(
    settings: EvaluateConfig,
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("outputs/evaluate.json"),
) -> None:
    """Measure the pictures in FOLDER: distances to a reference, diversity, and what verifiers say."""
    # Imported late: diffusers takes seconds.
    from diffscale.bench.evaluation import evaluate as job

    check_writable(output)
    console = quiet_console()
    with progress_bars(console, "pictures", transient=True) as progress:
        results = job.run(settings, progress)
    with explained(f"The results could not be written to {output}: choose another place ({{why}}).", OSError):
        write_json(output, results)
    _print_results(console, results)
    for note in results["warnings"]:
        print_warning(console, note)
    if settings.save_reference is not None:
        console.print(f"statistics for --reference are in {settings.save_reference}")
    console.print(f"results are in {output}")


def _print_results(console: Console, results: dict[str, Any]) -> None:
    rows: list[tuple[str, str, str, str]] = []
    for name, result in results["metrics"].items():
        if "value" in result:
            spread = f" ±{result['std']:.3f}" if "std" in result else ""
            rows.append((name, f"{result['value']:.4g}{spread}", "", result["features"]))
        elif "mean" in result:
            rows.append((name, *_mean(result), f"{result['dropped']} pictures dropped" if result["dropped"] else ""))
            rows += [(f"  {each}", *_mean(interval), "") for each, interval in result.get("categories", {}).items()]
            if "over_categories" in result:
                rows.append(("  mean of categories", rounded(result["over_categories"]), "", ""))
        else:
            rows += [(f"{name}, {category}", *_mean(interval), "") for category, interval in result.items()]
    print_table(console, ("metric", "value", "95% interval", "features"), rows, ("value", "95% interval"))
    if rows:
        count = results["pictures"]
        console.print(f"{count} {'picture' if count == 1 else 'pictures'}; intervals are of means over prompts")


def _mean(interval: dict[str, float]) -> tuple[str, str]:
    mean, low, high = (rounded(interval[name]) for name in ("mean", "low", "high"))
    # Of one prompt the interval is a point, which tells nothing.
    return mean, "-" if interval["low"] == interval["high"] else f"{low} to {high}"
