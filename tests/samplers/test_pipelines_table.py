"""docs/pipelines.md says of every pipeline class of the installed diffusers how it can be searched."""

import sys
from pathlib import Path

import diffusers
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import pipelines_table as table
from pipeline_source import registered, sources, verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tried():
    return table.tried()


@pytest.fixture(scope="module")
def found():
    return {source.name: source for source in sources()}


def test_the_document_is_what_the_installed_diffusers_gives(monkeypatch, tried, found):
    if f"diffusers=={diffusers.__version__}" not in (ROOT / "constraints.txt").read_text(encoding="utf-8"):
        pytest.skip("the document is of the pinned diffusers")
    monkeypatch.setattr(table, "tried", lambda: tried)
    monkeypatch.setattr(table, "sources", lambda: list(found.values()))
    assert table.render() == table.DOCUMENT.read_text(encoding="utf-8"), "run python benchmarks/pipelines_table.py"


def test_every_registered_pipeline_is_listed(found):
    for mapping in ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT", "TEXT2VIDEO", "IMAGE2VIDEO", "VIDEO2VIDEO"):
        names = registered(f"AUTO_{mapping}_PIPELINES_MAPPING")
        assert len(names) > 1 and not set(names) - set(found), mapping


def test_the_source_and_a_tiny_instance_agree(tried, found):
    assert len(tried) > 30
    for name, verdicts in tried.items():
        # A source with several cases is judged by the one that cannot be windowed.
        kinds = {kind for kind, _ in verdicts}
        kind, why = verdict(found[name])
        assert kind in kinds and (len(kinds) == 2 or kinds == {kind}), name
        assert not why or why in {said for _, said in verdicts}, name
