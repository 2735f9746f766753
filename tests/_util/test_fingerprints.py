"""Python callables as verifiers: named alike by every process, so that journals go on."""

from __future__ import annotations

import copy
import functools
import json
import sqlite3
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import diffscale
from diffscale._util.fingerprints import array_digest, described, json_digest, name_of, network_digest
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions

SOURCE = """
import functools

def redness(images, prompts, by=1.0):
    return (by * images[:, 0].mean((1, 2))).numpy()

class Scorer:
    def __call__(self, images, prompts):
        return [float(image[0].mean()) for image in images]

    def by_method(self, images, prompts):
        return images[:, 0].mean((1, 2))

def noted(pipe, step, time, kept):
    return kept
"""


def another_process() -> Any:
    """The same module with objects at other addresses."""
    module = ModuleType("mine")
    exec(SOURCE, vars(module))
    return module


CALLABLES = {
    "mine:redness": lambda mine: mine.redness,
    "mine:redness by=2.0": lambda mine: functools.partial(mine.redness, by=2.0),
    "mine:Scorer": lambda mine: mine.Scorer(),
    "mine:Scorer.by_method": lambda mine: mine.Scorer().by_method,
}


@pytest.mark.parametrize("name", CALLABLES)
def test_names_are_those_of_the_source(name: str) -> None:
    assert [name_of(CALLABLES[name](another_process())) for _ in range(2)] == [name, name]


def test_what_has_no_name_is_its_repr_or_its_class() -> None:
    mine = another_process()
    assert (
        described({"height": 64, "words": ("a",), "at": [1.5, None]})
        == "{'height': 64, 'words': ('a',), 'at': [1.5, None]}"
    )
    assert described([mine.noted, torch.Generator()]) == "[mine:noted, torch._C:Generator]"
    assert name_of(functools.partial(mine.redness, by=mine.Scorer())) == "mine:redness by=mine:Scorer"
    assert name_of(functools.partial(functools.partial(mine.redness, 1), by="x")) == "mine:redness 1 by='x'"
    assert name_of(len) == "builtins:len"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("shapes-flux", LoadOptions(device="cpu"))


@pytest.mark.parametrize("name", CALLABLES)
def test_a_journal_of_one_process_is_resumed_by_the_next(tmp_path: Path, pipe: Any, name: str) -> None:
    journal = tmp_path / "journal.sqlite"

    def search() -> Any:
        mine = another_process()
        return diffscale.search(
            pipe, "a red circle", search="random", verifier=CALLABLES[name](mine), nfe=4, steps=2, journal=journal,
            pipe_args={"joint_attention_kwargs": {"noted": mine.noted}},
        )  # fmt: skip

    first, again = search(), search()
    assert first.best.key == again.best.key and first.ledger == again.ledger  # of the seconds, too: none is new
    with sqlite3.connect(journal) as db:
        (settings,) = db.execute("SELECT settings FROM run").fetchone()
        assert db.execute("SELECT count(*) FROM replies").fetchone() == (1,)
    assert json.loads(settings)["verifier"] == name and "0x" not in settings


def test_pictures_and_tensors_are_told_by_their_content():
    red, blue = (Image.new("RGB", (64, 64), name) for name in ("red", "blue"))
    assert described(red) == described(red.copy()) != described(blue) != described(blue.convert("L"))
    one = torch.zeros(100, 100)
    other = one.clone()
    other[50, 50] = 1  # where repr prints dots
    for kind in (lambda x: x, torch.Tensor.numpy, lambda x: [x]):
        assert described(kind(one)) == described(kind(one.clone())) != described(kind(other))
    assert described(one) != described(one.view(10, 1000)) and described(one) != described(one.bfloat16())


def test_digests_depend_on_content_alone():
    a = torch.arange(6.0).view(2, 3)
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1}) != json_digest({"a": 2, "b": [2]})
    assert array_digest(a, "x") == array_digest(a.t().contiguous().t(), "x")
    others = [(a,), (a.double(),), (a.flatten(),), (a + 1,), ("x",), ("x", "y"), ("xy",)]
    assert len({array_digest(*values) for values in others}) == len(others)
    net = torch.nn.Linear(2, 2)
    other = copy.deepcopy(net)
    assert network_digest(net) == network_digest(other)
    other.weight.data[0, 0] += 1
    assert network_digest(net) != network_digest(other) and len(network_digest(net)) == 12
