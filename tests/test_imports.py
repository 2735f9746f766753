"""Imports point one way: held on the syntax trees of every room of the library."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import diffscale.types

ROOT = Path(diffscale.types.__file__).parent
# From the ground up: a room may import from itself and from the rooms below it, at run time, late, or for the type
# checker alone; rooms of one floor do not know each other.
FLOORS = (
    {"_util"},
    {"types"},
    {"registry"},
    {"engine", "searches", "metrics", "report"},
    {"samplers", "suites"},
    {"models"},
    {"verifiers"},
    {"api", "testing"},
    {"train", "tape"},
    {"bench"},
    {"ui"},
    {"cli"},
)
# Rooms that know less than their floor allows: a search sees the world through its environment alone.
NARROW = {"searches": {"types", "_util.errors", "_util.files", "registry"}, "engine": {"types", "_util"}}
HEAVY = {"diffusers", "transformers"}
MAY_BE_HEAVY = {"samplers", "models", "verifiers", "train", "cli"}


def imported(path):
    """Dotted names of all imports in a file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


FILES = [path for path in sorted(ROOT.rglob("*.py")) if not room_of(path).startswith("__")]


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    room = room_of(path)
    floor = next(i for i, rooms in enumerate(FLOORS) if room in rooms)
    below = NARROW.get(room, set().union(*FLOORS[:floor])) | {room}
    for name in imported(path):
        package, _, rest = name.partition(".")
        assert package != "diffscale_shapes", f"{room} imports a plug-in"
        if package == "diffscale" and rest:
            assert any(f"{rest}.".startswith(f"{one}.") for one in below), f"{room} imports {name}"
        elif package in HEAVY:
            assert room in MAY_BE_HEAVY, f"{room} imports {name}"


def test_no_files_import_each_other_in_a_circle():
    names = {".".join(("diffscale", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    graph = {}
    for name, path in names.items():
        known = ({each, each.rpartition(".")[0]} & names.keys() for each in imported(path))
        graph[name] = set().union(*known) - {name}
    TopologicalSorter(graph).prepare()  # which raises CycleError, with the circle
