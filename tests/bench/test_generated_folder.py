"""A folder of `diffscale generate`: no drawing and no broken file costs what was paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffscale._util.files import read_json
from diffscale.bench import generate
from diffscale.bench.config import GenerateConfig
from diffscale.bench.generate import prepare
from diffscale.report import plots
from diffscale.report.text import NotDrawn

ODD = "a red circle\nabove $\\frac{1}$ and $$ 日本語 🙂\u2028" + "very " * 1_000 + "large"


def _timeless(result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    return {name: value for name, value in result.items() if "seconds" not in name}


def _fail(*_: Any, **__: Any) -> None:
    raise ValueError("odd")


def _again(settings: GenerateConfig, folder: Path) -> dict[str, Any]:
    """The result of a run that goes on, without a step of the denoiser."""
    assert prepare(folder, settings) is None
    spent: list[int] = []
    found = generate.run(settings, folder, lambda what, done, total, **_: spent.append(done))
    assert {*spent} <= {settings.budget}  # what was paid for before is not run again
    return _timeless(found)


def test_a_drawing_that_fails_or_was_killed_is_drawn_by_the_next_run(tmp_path: Path) -> None:
    settings, folder = GenerateConfig(prompt=ODD, steps=2, budget=4), tmp_path / "run"
    assert prepare(folder, settings) is None
    for name, at in (("grid", generate.pictures), ("scaling", plots)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(at, name, _fail)
            with pytest.warns(NotDrawn, match="could not be drawn, all else is there .ValueError: odd"):
                found = generate.run(settings, folder)
        assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["prompt"] == ODD
        (folder / "scaling.png").unlink(missing_ok=True)
        assert _again(settings, folder) == _timeless(found)
        assert _timeless(prepare(folder, settings)) == _timeless(found)  # now it is done
    # Nor is a run done again for a drawing, where it would have to be paid again.
    (folder / "scaling.png").unlink()
    for file in folder.glob("journal.sqlite*"):
        file.unlink()
    assert _timeless(prepare(folder, settings)) == _timeless(found)


def test_a_broken_result_is_read_from_the_journal(tmp_path: Path) -> None:
    settings, folder = GenerateConfig(prompt="a red circle", steps=2, budget=4), tmp_path / "run"
    prepare(folder, settings)
    found, file = generate.run(settings, folder), folder / "result.json"
    whole = file.read_bytes()
    # Everything that it may be cut off at, and other JSON, is no result.
    end = len(whole.rstrip())
    others = [b"{}", b"[]", b"null", b"3", b'""', b"{" * 5000, b"[" * 100_000, b'{"a":' * 5000, b"\xff", b"1" * 5000,
              whole.replace(b'"nfe"', b'"nfo"'), whole.replace(b'"score"', b'"scare"'), b"\0" * end]  # fmt: skip
    for content in [*(whole[:n] for n in range(0, end, 7)), whole[: end - 1], *others]:
        file.write_bytes(content)
        assert prepare(folder, settings) is None, content[:40]
    assert read_json(folder / "nowhere.json") is None and read_json(folder) is None
    file.write_bytes(whole[: end // 2])
    assert _again(settings, folder) == _timeless(found)
    for ours in (whole, b"\xef\xbb\xbf" + whole, whole.rstrip()):
        file.write_bytes(ours)
        assert _timeless(prepare(folder, settings)) == _timeless(found)
