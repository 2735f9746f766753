"""Gives the numbers of docs/reproduction the digests that this version makes, and changes no number.

    python benchmarks/migrate_reproduction.py OLD [--folder docs/reproduction]

OLD: a checkout of the version that made the numbers; where it names modules otherwise, the imports of `digests` must
fit both. Its own code first computes the digest of every item; an item whose digest is not the one that its files hold
is refused, since its numbers are stale. Then `made_of` and the IDs of trainings are replaced in the texts of `raw.json`
and `recipe.json`.

Versions from before `auto` did not write beside the numbers which dtype and mixed precision they were made in: these
are put into `raw.json` as the old recipe had them, and `recipe.json` leaves them open where the recipe of today does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


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


def state_dtypes(folder: Path) -> None:
    """Say in the numbers of an item what they were computed in, and leave it open where the recipe of today does."""
    from diffscale.bench.papers import recipe as recipes

    raw, written = (read_exactly(folder / file) for file in ("raw.json", "recipe.json"))
    made = written["setting"]
    for name, part in raw["parts"].items():
        raw["parts"][name] = after("model", part, "dtype", made["parts"][name]["dtype"])
    for name, training in raw.get("trainings", {}).items():
        precision = made["trainings"][name].get("mixed_precision", training.get("mixed_precision"))
        raw["trainings"][name] = after("rows", training, "mixed_precision", precision)
    today = recipes.load(folder.name).settings
    dumped = written["recipe"]["settings"]
    for setting, given in [*dumped.items(), (written["options"]["setting"], made)]:
        for name, part in given["parts"].items():
            part["dtype"] = today[setting].parts[name].dtype
        for name, training in given["trainings"].items():
            if "mixed_precision" not in today[setting].trainings[name]:
                training.pop("mixed_precision", None)
    for file, content in (("raw.json", raw), ("recipe.json", written)):
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_exactly(path: Path) -> dict[str, Any]:
    """What a JSON file holds, which is refused if it would be written otherwise than it is."""
    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    if json.dumps(content, indent=1, ensure_ascii=False) + "\n" != text:
        raise SystemExit(f"{path} was not written by diffscale: restore it.")
    return content


def after(place: str, given: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """`given` with `name` behind `place`, if it is not there yet."""
    if name in given:
        return given
    known = list(given.items())
    known.insert(list(given).index(place) + 1, (name, value))
    return dict(known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="checkout of the version that made the numbers")
    parser.add_argument("--folder", type=Path, default=Path("docs/reproduction"))
    parser.add_argument("--print", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.print:
        print(json.dumps(digests(asked.folder)))
        return
    command = [sys.executable, __file__, str(asked.old), "--folder", str(asked.folder), "--print"]
    sources = [asked.old / "src", *sorted(asked.old.glob("packages/*/src"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(path.resolve()) for path in sources)}
    before = json.loads(subprocess.check_output(command, env=environment))
    after = digests(asked.folder)
    for item, (made_of, *_) in before.items():
        for file in ("raw.json", "recipe.json"):
            if json.loads((asked.folder / item / file).read_text())["made_of"] != made_of:
                raise SystemExit(f"{item}/{file} is stale by the version before: run {item} again.")
    for item in before:
        state_dtypes(asked.folder / item)
        for path in (asked.folder / item / "raw.json", asked.folder / item / "recipe.json"):
            text = path.read_text()
            for old, new in zip(before[item], after[item], strict=True):
                text = text.replace(f'"{old}"', f'"{new}"')
            path.write_text(text)
        print(f"{item}: {before[item][0]} is now {after[item][0]}")


if __name__ == "__main__":
    main()
