"""The process that computes one run for the page: `python -m diffscale.ui.worker FOLDER`.

It does what `diffscale generate --config FOLDER/config.yaml --output FOLDER` does, and writes the feed beside it. Its
last line says why there is no result, if there is none: "error: ..." with what to do.
"""

import sys
import traceback
import warnings
from pathlib import Path

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, raised
from diffscale._util.signals import Stopped, signals_raised
from diffscale.bench import generate
from diffscale.bench.config import GenerateConfig
from diffscale.ui.feed import Feed


def compute(folder: Path) -> None:
    """Compute the run that `folder` has the settings of, or go on with it; nothing if it is finished.

    Raises DiffscaleError as `bench.generate` does.
    """
    saved = config.resolve(GenerateConfig, folder / "config.yaml")
    settings = generate.settle(folder, saved, lambda choice: print(choice.why, flush=True) if choice.why else None)
    if generate.prepare(folder, settings) is None:
        feed = Feed(folder)
        generate.run(settings, folder, feed.progress, [feed.observe])


def main(folder: Path) -> int:
    """The exit code of the process: 0, 2 after an error, 128 and the number of a signal that ended it."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        with signals_raised():
            compute(folder)
    except Stopped as stopped:
        return 128 + stopped.number
    except DiffscaleError as error:
        print(f"error: {error}", flush=True)
    except Exception as error:  # told on the page, whose log has all of it
        traceback.print_exc()
        print(f"error: The search ended by an error of the program ({raised(error)}).", flush=True)
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
