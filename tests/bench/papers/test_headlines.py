"""The lists of headline claims: no sentence of an abstract and no caption is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import headlines, recipe

REVIEWS = {
    "A": Path("/work/shared/papers/inference-scaling-review-ko.md"),
    "B": Path("/work/shared/papers/diffusion-sharpening-review-ko.md"),
}


def test_both_papers_have_about_twelve_headlines() -> None:
    assert headlines.papers() == ["A", "B"]
    assert all(12 <= len(headlines.load(paper).headlines) <= 14 for paper in "AB")


@pytest.mark.parametrize(("paper", "count"), [("A", 7), ("B", 5)])
def test_what_an_abstract_claims_is_decided_and_not_only_estimated(paper: str, count: int) -> None:
    found = headlines.load(paper)
    places = [place for place in found.sentences if place.startswith("abstract")]
    assert places == [f"abstract {number + 1}" for number in range(count)]
    assert not [place for place in found.estimates if place.startswith("abstract")]


@pytest.mark.parametrize("paper", ["A", "B"])
def test_every_caption_of_the_paper_is_told_of(paper: str) -> None:
    if not REVIEWS[paper].is_file():
        pytest.skip("the captions lie beside the repository, and not here")
    text = REVIEWS[paper].read_text(encoding="utf-8")
    printed = {f"{kind.lower()} {number}" for kind, number in re.findall(r"> (Figure|Table) (\d+):", text)}
    seven = {f"figure {number}" for number in range(17, 24)}
    expected = printed - seven | {"figures 17 to 23"} if paper == "A" else printed
    assert {place for place in headlines.load(paper).sentences if "abstract" not in place} == expected


def _written(folder: Path, **change: object) -> None:
    given = {
        "title": "T", "sentences": {"abstract 1": "We try.", "abstract 2": "It helps."},
        "headlines": {"helps": {"of": ["abstract 2"], "says": "it helps"}}, "untested": {"abstract 1": "no claim"},
    }  # fmt: skip
    (folder / "headlines").mkdir(exist_ok=True)
    (folder / "headlines" / "T.yaml").write_text(yaml.safe_dump(given | change))


def test_a_list_that_leaves_a_sentence_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "RECIPES", tmp_path)
    _written(tmp_path)
    assert list(headlines.load("T").headlines) == ["helps"]
    _written(tmp_path, untested={})
    with pytest.raises(DiffscaleError, match="nothing is said of abstract 1"):
        headlines.load("T")
    _written(tmp_path, estimates={"figure 9": "?"})
    with pytest.raises(DiffscaleError, match="no sentence figure 9"):
        headlines.load("T")
