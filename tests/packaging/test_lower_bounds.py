"""Bounds in pyproject.toml, on which `benchmarks/lower_bounds.py` runs the suite outside of CI."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
lowest = runpy.run_path(str(ROOT / "benchmarks" / "lower_bounds.py"))["lowest"]


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").split()
    return dict(line.lower().split("==") for line in lines if "==" in line)


def test_all_libraries_have_a_lower_bound_that_the_pins_keep() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *(each for extra in extras.values() for each in extra)]
    lower = dict(pin.split("==") for pin in lowest(every))
    assert set(lower) == {Requirement(each).name for each in every}
    pinned, pinned_for_ui = pins("constraints.txt"), pins("constraints-ui.txt")
    tested = pinned | pins("constraints-docs.txt")
    assert len(tested) == len(pinned) + len(pins("constraints-docs.txt"))
    for each in map(Requirement, every):
        if each.name != "gradio":  # which caps pillow, so that it has an environment of its own
            assert tested[each.name.lower()] in each.specifier, each
    for each in map(Requirement, [*project["dependencies"], *extras["ui"]]):
        assert pinned_for_ui[each.name.lower()] in each.specifier, each
    assert {name for name in pinned if pinned_for_ui[name] != pinned[name]} == {"pillow"}
    # A library that several extras name has one bound.
    assert len(set(lowest(every))) == len(lower)


def test_a_bound_is_the_lowest_version() -> None:
    assert lowest(["numpy>=2", "httpx2>=2.12,<3"]) == ["numpy==2", "httpx2==2.12"]
    with pytest.raises(ValueError, match="no lower bound"):
        lowest(["numpy<3"])
