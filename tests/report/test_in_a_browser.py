"""`report.html` in a browser: candidates are sorted, filtered and enlarged, from a file and without a server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from diffscale.bench import generate
from diffscale.bench.config import GenerateConfig

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]


def light(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3))


def _after(page: Path, script: str) -> str:
    """The document of a copy of `page`, once `script` has run after the page's own."""
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def _numbers(document: str) -> list[int]:
    """The candidates that are shown, in their order."""
    figures = re.findall(r'<figure data-values="[^"]*?number&quot;: (\d+)[^>]*?>', document)
    hidden = [" hidden" in tag for tag in re.findall(r"<figure data-values=[^>]*>", document)]
    return [int(number) for number, gone in zip(figures, hidden, strict=True) if not gone]


def test_candidates_are_sorted_filtered_and_enlarged(tmp_path: Path) -> None:
    settings = GenerateConfig(
        prompt="two red stars", search="random", verifier=f"{__name__}:light", budget=24, steps=4, dtype="float32",
        device="cpu",
    )  # fmt: skip
    generate.prepare(tmp_path, settings)
    gallery = generate.run(settings, tmp_path)["gallery"]
    page, by_score = tmp_path / "report.html", [each["number"] for each in gallery]
    document = _after(page, "")
    assert _numbers(document) == by_score and "6 of 6" in document
    choose = "by.value = 'number'; by.onchange(); order.value = 'up'; order.onchange();"
    choose = "const [by, order, least] = ['by', 'order', 'least'].map((id) => document.getElementById(id));" + choose
    document = _after(page, f"{{ {choose} }}")
    assert _numbers(document) == sorted(by_score) and "number 3.000" in document
    document = _after(page, f"{{ {choose} least.value = 500; least.oninput(); }}")
    assert _numbers(document) == [3, 4, 5] and "3 of 6, 2.500 or more" in document
    document = _after(page, "document.querySelectorAll('.gallery button')[0].click()")
    opened = re.search(r"<dialog [^>]*open.*?</dialog>", document, re.DOTALL)
    assert opened is not None and f'href="{gallery[0]["image"]}"' in opened[0] and "NFE: " in opened[0]
