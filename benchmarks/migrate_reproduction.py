"""Gives the numbers of docs/reproduction the digests that this version makes, and changes no number.

    python benchmarks/migrate_reproduction.py OLD [--folder docs/reproduction]

OLD: the `src` folder of a checkout of the version that made the numbers; where it names modules otherwise, the imports
of `digests` must fit both. Its own code first computes the digest of every item; an item whose digest is not the one
that its files hold is refused, since its numbers are stale. Then `made_of` and the IDs of trainings are replaced in the
texts of `raw.json` and `recipe.json`, of which nothing else changes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


def digests(folder: Path) -> dict[str, list[str]]:
    """By item what the code that is imported calls it: `made_of`, then the models of its trainings."""
    from diffscale.bench.papers import recipe, trainings
    from diffscale.bench.papers.session import made_of

    names = {}
    for path in sorted(folder.glob("*/recipe.json")):
        options = json.loads(path.read_text())["options"]
        setting = recipe.resolved(recipe.load(path.parent.name), **options)
        names[path.parent.name] = [made_of(setting), *map(trainings.called, setting.trainings.values())]
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="`src` of the version that made the numbers")
    parser.add_argument("--folder", type=Path, default=Path("docs/reproduction"))
    parser.add_argument("--print", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.print:
        print(json.dumps(digests(asked.folder)))
        return
    command = [sys.executable, __file__, str(asked.old), "--folder", str(asked.folder), "--print"]
    environment = os.environ | {"PYTHONPATH": str(asked.old)}
    before = json.loads(subprocess.check_output(command, env=environment))
    after = digests(asked.folder)
    for item, (made_of, *_) in before.items():
        for file in ("raw.json", "recipe.json"):
            if json.loads((asked.folder / item / file).read_text())["made_of"] != made_of:
                raise SystemExit(f"{item}/{file} is stale by the version before: run {item} again.")
    for item in before:
        for path in (asked.folder / item / "raw.json", asked.folder / item / "recipe.json"):
            text = path.read_text()
            for old, new in zip(before[item], after[item], strict=True):
                text = text.replace(f'"{old}"', f'"{new}"')
            path.write_text(text)
        print(f"{item}: {before[item][0]} is now {after[item][0]}")


if __name__ == "__main__":
    main()
