"""Imports point one way: held on the syntax trees of the library."""

import ast
from pathlib import Path

import pytest

import diffscale.types

ROOT = Path(diffscale.types.__file__).parent
# What each part may import of the library; parts that are not named here stand above all of these.
ALLOWED = {
    "errors": set(),
    "named": {"errors"},
    "types": set(),
    "pixels": set(),
    "noise": set(),
    "batching": set(),
    "ledger": {"types"},
    "standing": {"types"},
    "flops": set(),
    "statistics": {"errors", "statistics"},
    "environment": {"types", "noise", "ledger", "standing"},
    "searches": {"types", "noise", "errors", "searches"},
    "nets": {"errors", "nets"},
    "samplers": {"types", "noise", "errors", "flops", "nets", "samplers"},
    "weights": {"errors"},
    "files": {"errors", "weights"},
    "loading": {"errors", "named", "weights", "samplers", "loading"},
    "metrics": {
        "types",
        "errors",
        "named",
        "batching",
        "judging",
        "models",
        "files",
        "statistics",
        "verifiers",
        "shapes",
        "metrics",
    },
    "verifiers": {
        "types",
        "errors",
        "named",
        "judging",
        "flops",
        "weights",
        "files",
        "statistics",
        "shapes",
        "verifiers",
        "pixels",
    },
    "train/data": {
        "errors",
        "files",
        "noise",
        "batching",
        "metrics.pictures",
        "metrics.prompts",
        "verifiers.preprocess",
        "bench.prompts",
        "shapes",
        "train.data",
    },
    # Runs trainings, and so stands above most; not above the commands.
    "train/run": {
        "types",
        "errors",
        "noise",
        "named",
        "config",
        "files",
        "judges",
        "judging",
        "models",
        "class_models",
        "weights",
        "loading",
        "samplers",
        "searches",
        "verifiers",
        "report",
        "shapes.prompts",
        "train",
        "pixels",
    },
    "reproduce": {
        "train.run",
        "types",
        "noise",
        "errors",
        "named",
        "config",
        "weights",
        "files",
        "loading",
        "ledger",
        "batching",
        "statistics",
        "judging",
        "journal",
        "searches",
        "driver",
        "models",
        "api",
        "verifiers",
        "metrics",
        "shapes",
        "bench",
        "report",
        "reproduce",
        "pixels",
    },
    "identity": set(),
    "journal": {"errors"},
    "judging": {"types", "errors", "batching"},
    "searching": {"types", "ledger", "errors", "journal", "standing", "pixels"},
    "train": {"types", "noise", "errors", "judging", "standing", "samplers", "searches", "driver", "train"},
    "driver": {"types", "ledger", "errors", "flops", "environment", "batching", "journal", "judging", "searching"},
}
HEAVY = {"diffusers", "transformers"}
MAY_BE_HEAVY = {"samplers", "verifiers", "loading", "train/run"}


def imported(path):
    """Dotted names imported when `path` runs; what is only for the type checker does not count."""
    tree = ast.parse(path.read_text())
    checker = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checker:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def core_files():
    """Every file with the innermost part that it belongs to."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        parts = [part for part in ALLOWED if f"{name}/".startswith(f"{part}/")]
        if parts:
            yield max(parts, key=len), path


@pytest.mark.parametrize(("part", "path"), [*core_files()], ids=lambda value: Path(value).stem)
def test_imports_point_one_way(part, path):
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "diffscale":
            assert any(f"{rest}.".startswith(f"{one}.") for one in ALLOWED[part]), f"{part} imports {name}"
        elif package in HEAVY:
            assert part in MAY_BE_HEAVY, f"{part} imports {name}"
