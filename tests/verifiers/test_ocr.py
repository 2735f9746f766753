"""The text verifier: which text it looks for, what it makes of lines that are read, and a real reader on drawn text."""

import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from diffscale._util.errors import DiffscaleError
from diffscale.types import ClassLabel
from diffscale.verifiers.ocr import Line, OcrVerifier, RapidReader, asked_texts, edit_distance, match, ocr

FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans-Bold.ttf")


def lines_of(*pictures):
    """A reader that reads these lines, one picture after the other."""
    left = iter(pictures)
    return OcrVerifier(lambda pixels: [Line(text, 1.0) for text in next(left)])


def drawn(text, side, size):
    picture = Image.new("RGB", (side, side), "white")
    font = ImageFont.truetype(FONT, size)
    ImageDraw.Draw(picture).multiline_text((side / 2, side / 2), text, "black", font, "mm", align="center")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "Open"', ["Open"]),
        ("a sign that says “Open”", ["Open"]),
        ("ein Schild mit „Offen“ und «fermé»", ["Offen", "fermé"]),
        ('"salt" and "pepper"', ["salt", "pepper"]),
        ("the dog's bowl with 'Rex's' on it", ["Rex's"]),
        ("a shop's sign ‘don’t enter’", ["don’t enter"]),
        ("看板「営業中」", ["営業中"]),
        (ClassLabel("7", 7), ["7"]),
        (ClassLabel('the word "seven"', 7), ["seven"]),
    ],
)
def test_the_text_is_in_quotation_marks_or_the_class(prompt, texts):
    assert asked_texts(prompt) == texts


@pytest.mark.parametrize("prompt", ["a bear on a skateboard", "the dogs' and cats' toys", 'nothing: "" or " "', "7"])
def test_a_prompt_that_asks_for_no_text_is_refused(prompt):
    with pytest.raises(DiffscaleError, match="quotation marks"):
        lines_of(["7"])(torch.zeros(1, 3, 8, 8), [prompt])


def test_scores_are_of_the_line_that_matches_best():
    verifier = lines_of(["OPEN"], ["welcome", "0pen 24 h", "Opel"], [], ["Happy", "birthday", "Ann"], ["salt"])
    prompts = ['"Open"', '"Open"', '"Open"', '"happy birthday"', '"salt" and "pepper"']
    scores = verifier(torch.zeros(5, 3, 8, 8), prompts)
    pepper = 1 - edit_distance("pepper", "salt") / 6
    assert scores.tolist() == pytest.approx([1, 0.75, 0, 1, (1 + pepper) / 2])
    assert scores.dtype == torch.float64
    assert match("Ａ１", [Line("a 1", 1.0)]) == 1  # wide letters
    assert match("abcd", [Line(text, 1.0) for text in ("ab", "xx", "cd")]) == 0.5


def test_of_pictures_that_are_read_alike_the_clearest_is_best():
    sure, unsure = (match("open", [Line("op", 1.0), Line("en", confidence)]) for confidence in (0.9, 0.2))
    assert 1 > sure > unsure >= 0.99
    assert match("open", [Line("open", 0.0)]) > match("open", [Line("ope", 1.0)])


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_a_distance(a, b, c):
    there = edit_distance(a, b)
    assert there == edit_distance(b, a) and (there == 0) == (a == b)
    assert abs(len(a) - len(b)) <= there <= max(len(a), len(b))
    assert there <= edit_distance(a, c) + edit_distance(c, b)
    assert edit_distance(a + c, b + c) <= there and edit_distance(a, a + c) == len(c)


def test_the_missing_library_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(DiffscaleError, match=r"pip install 'diffscale\[ocr\]'"):
        ocr()


@pytest.mark.skipif(not (find_spec("rapidocr") and find_spec("onnxruntime")), reason="needs rapidocr and onnxruntime")
def test_a_real_reader_reads_drawn_text_of_any_size_and_fetches_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the reader asks the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("requests.get", refuse)
    verifier = OcrVerifier(RapidReader())
    prompt = 'a poster with "Happy Birthday"'
    pictures = torch.stack([drawn("Happy\nBirthday", 256, 40), drawn("Happv\nBirth", 256, 40), drawn("", 256, 40)])
    scores = verifier(pictures, [prompt] * 3)
    assert scores[0] > 0.99 > scores[1] > 0.4 and scores[2] == 0
    small = verifier(drawn("7", 28, 24)[None].repeat(2, 1, 1, 1), [ClassLabel("7", 7), ClassLabel("2", 2)])
    assert small[0] > 0.99 and small[1] == 0
    assert verifier(drawn("diffusion", 96, 16)[None], ['"Diffusion"']) > 0.99
