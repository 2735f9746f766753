"""Run the test suite on the lowest versions of libraries that pyproject.toml allows.

    python benchmarks/lower_bounds.py --environment FOLDER tests -n 2

An environment with these versions is made in FOLDER, where it stays, and pytest runs in it with the arguments that are
left over. It takes a quarter of an hour, so it is not part of .ci/run: run it when a bound in pyproject.toml changes,
and raise a bound that does not pass.
"""

import argparse
import os
import subprocess
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def lowest(requirements: Iterable[str]) -> list[str]:
    """Each of the `requirements` at its lower bound, as "numpy==2" for "numpy>=2"; raises ValueError without one."""
    pins = []
    for requirement in map(Requirement, requirements):
        bounds = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"{requirement} has no lower bound: give it one, as in {requirement.name}>=1.0.")
        pins.append(f"{requirement.name}=={bounds[0]}")
    return pins


def main() -> None:
    """Make the environment where it is not there, and run the suite in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=ROOT / "outputs" / "lower-bounds")
    options, arguments = parser.parse_known_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = lowest([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    home = options.environment.resolve()
    venv.create(home, with_pip=True)
    (home / "lowest.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    # What the surrounding session sets must not reach the new environment.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    chosen = ["-c", str(home / "lowest.txt"), "-e", f"{ROOT}[dev]", "-e", str(ROOT / "packages" / "diffscale-shapes")]
    subprocess.run([home / "bin" / "pip", "install", "-q", *chosen], check=True, env=clean)
    print("\n".join(pins))
    raise SystemExit(subprocess.run([home / "bin" / "pytest", *arguments], cwd=ROOT, env=clean, check=False).returncode)


if __name__ == "__main__":
    main()
