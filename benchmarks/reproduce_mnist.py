"""The papers' questions on networks that nobody here made: recipes/elsewhere, on a flow on handwritten digits.

    python benchmarks/reproduce_mnist.py --weights ../shared/third_party/mnist [--output docs/reproduction]
        [--estimate] [--quick]

The network, the judge (`lenet`) and their licence are told in examples/mnist; the verifier is the OCR of
`diffscale[ocr]`. They are offered to diffscale as a package would (`diffscale.plugins`), under the names that the
recipes say; the rest is `diffscale reproduce`: a run that was stopped goes on, and the page is built of the output
folder, with its verdicts beside those on Shapes. Without the weights nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from diffscale import DenoiserSampler
from diffscale._util.errors import DiffscaleError
from diffscale._util.files import write_json
from diffscale.bench.networks import Networks
from diffscale.bench.papers import page, recipe
from diffscale.bench.papers.plan import check, plan
from diffscale.bench.papers.session import CACHE, Session, run
from diffscale.cli.terminal import progress_bars
from diffscale.models.class_conditional import ClassModel
from diffscale.models.options import LoadOptions
from diffscale.registry import plugins

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "mnist"))
from mnist import DIGITS, DigitProbability, digit_sampler

SETTING: Final = "digits"
FILES: Final = ("diffusion_vit.safetensors", "lenet.safetensors")
STEPS: Final = 25


class DigitModel(ClassModel):
    """The flow, as the class-conditional models that diffscale knows; `name_or_path` is the folder of its weights."""

    def sampler(self, classes: Sequence[str], steps: int, args: Mapping[str, Any]) -> DenoiserSampler:
        """A sampler of `classes`, digits, in so many steps of Euler."""
        return digit_sampler(Path(self.name_or_path), steps, digits=[self.label(each) for each in classes], **args)


class DigitNetworks(Networks):
    """Networks whose pipeline is the flow."""

    def pipeline(self, model: str, loading: LoadOptions) -> Any:
        """The flow; `recipe` names no other model."""
        folder = str(plugins("models")["digits"] / model)
        return DigitModel(None, None, [str(digit) for digit in DIGITS], STEPS, {}, name_or_path=folder)  # type: ignore[arg-type]


def offer(weights: Path, home: Path) -> None:
    """Offer the model `mnist`, the suite `digits` and the verifier `lenet` in this process.

    `home` gets a folder of the model, with links to the files in `weights` and how it is called.
    """
    folder = home / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((weights / name).resolve())
    stated = {"description": "a flow on handwritten digits, by others", "call": {"num_inference_steps": STEPS}}
    write_json(folder / "diffscale.json", stated)

    def lenet() -> DigitProbability:
        """LeNet's probability of the digit."""
        return DigitProbability(weights)

    plugins("models").register("digits", home)
    plugins("suites").register("digits", lambda: DIGITS)
    plugins("verifiers").register("lenet", lenet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of the two files, see examples/mnist")
    parser.add_argument("--output", type=Path, default=Path("outputs/reproduction"))
    parser.add_argument("--estimate", action="store_true", help="say what it would take, and end")
    parser.add_argument("--quick", action="store_true", help="2 pictures a digit, too few for verdicts")
    options = parser.parse_args()
    console = Console(stderr=True)
    missing = [name for name in FILES if not (options.weights / name).is_file()]
    if missing:
        console.print(f"{', '.join(recipe.elsewhere())} is left out: {options.weights} has no {missing[0]}.")
        return
    try:
        reproduce(options.weights, options.output, options.quick, options.estimate, console)
    except DiffscaleError as error:
        parser.exit(2, f"{error}\n")


def reproduce(weights: Path, output: Path, quick: bool, estimate: bool, console: Console) -> None:
    """Tell what the items take, and run them into `output` unless only the `estimate` is asked for."""
    session = Session(output, LoadOptions(device="cpu"), networks=DigitNetworks("cpu"))
    offer(weights, output / CACHE / "networks")
    given = {"setting": SETTING, "quick": quick}
    loaded = {name: recipe.load(name) for name in recipe.elsewhere()}
    settings = {name: recipe.resolved(each, SETTING, quick=quick) for name, each in loaded.items()}
    for name, setting in settings.items():
        check(setting)
        told = session.speeds.estimate(plan([setting]))
        console.print(f"{name}: {told.nfe:,} NFE, {told.seconds / 3600:.1f} hours of this core from a cold start")
        if not estimate:
            page.check(output, name, {**given, "limit": None})
            with progress_bars(console) as progress:
                run(name, setting, session, progress)
            page.write_recipe(output, name, loaded[name], setting, given)
    if not estimate:
        console.print(f"{page.build(output)} has all of it")


if __name__ == "__main__":
    main()
