"""The functions that the pages show keep to the rules that the pages state."""

import re
from pathlib import Path

import pytest
import torch

from diffscale.testing import check_search, check_verifier
from diffscale.verifiers import load

DOCS = Path(__file__).parents[2] / "docs"


def shown(page: str, name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """Write the first block of Python of `page` that defines `name` to a module; gives module:name."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    code = next(block for block in blocks if re.search(rf"^(def|class) {name}\b", block, re.M))
    (folder / f"shown_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    return f"shown_{name}:{name}"


@pytest.mark.parametrize(
    ("page", "name"), [("write_a_search.md", "climb"), ("write_a_search.md", "evolve"), ("tapes.md", "half")]
)
def test_searches(page: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_search(shown(page, name, monkeypatch, tmp_path))


@pytest.mark.parametrize("name", ["sharpness", "Redness", "SharpAndRed", "Marks"])
def test_verifiers(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_verifier(shown("write_a_verifier.md", name, monkeypatch, tmp_path))


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weighted = shown("write_a_verifier.md", "Redness", monkeypatch, tmp_path)
    images = torch.rand(2, 3, 8, 8)
    one, two = load(weighted)(images, ["", ""]), load(f"{weighted} weight=2")(images, ["", ""])
    torch.testing.assert_close(two, 2 * one)
