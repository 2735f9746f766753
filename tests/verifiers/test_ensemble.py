"""Ensembles and functions by name."""

import pytest
import torch

from diffscale._util.errors import DiffscaleError
from diffscale.engine.scoring import safe_score
from diffscale.verifiers import check, load
from diffscale.verifiers.ensemble import Ensemble


def test_members_are_loaded_with_their_own_arguments():
    found = load("ensemble of=clip:model=shapes-clip,shapes-judge weights=1,2", image_model="shapes-flux")
    assert found.components == ["clip", "shapes-judge"] and list(found.weights) == [1, 2]
    images = torch.rand(3, 3, 64, 64)
    prompts = ["a red circle"] * 3
    apart = [load("clip", image_model="shapes-flux")(images, prompts), load("shapes-judge")(images, prompts)]
    torch.testing.assert_close(found(images, prompts), torch.stack([one.double() for one in apart], 1))


@pytest.mark.parametrize(
    "text",
    [
        "ensemble of=clip",
        "ensemble of=clip,nosuch",
        "ensemble of=clip,shapes-judge weights=1",
        "ensemble of=clip,shapes-judge weights=1,x",
        "weighted of=clip,shapes-judge weights=1,0",
    ],
)
def test_what_makes_no_ensemble_is_refused(text):
    with pytest.raises(DiffscaleError):
        load(text, image_model="shapes-flux")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("of=clip", "two members or more"), ("of=clip,nosuch", "Unknown verifier 'nosuch'"),
        ("of=clip,shapes-judge weights=1", "a finite weight over 0 for each"),
        ("of=clip,shapes-judge weights=inf,1", "a finite weight over 0"),
        ("of=clip,shapes-judge weights=1,x", "are numbers"),
        (f"of=clip,{__name__}:Scaled", rf"needs by: write {__name__}:Scaled:by=VALUE\.$"),
    ],
)  # fmt: skip
def test_members_are_checked_before_anything_is_loaded(text, said):
    with pytest.raises(DiffscaleError, match=said):
        check(f"ensemble {text}")


def test_members_are_named_in_all_ways():
    text = f"ensemble of=diffscale/clip,{__name__}:Scaled:by=2"
    check(text)
    found, images = load(text, image_model="shapes-flux"), torch.rand(1, 3, 64, 64)
    assert found.components == ["clip", f"{__name__}:Scaled"]
    wanted = [load("clip", image_model="shapes-flux")(images, ["a"]).item(), 2 * images.mean().item()]
    assert found(images, ["a"])[0].tolist() == pytest.approx(wanted)


class Scaled:
    """A verifier as a class that needs an argument."""

    def __init__(self, by: float):
        self.by = by

    def __call__(self, images, prompts):
        return self.by * images.mean((1, 2, 3))


def test_an_ensemble_in_an_ensemble_is_refused():
    inner = load("ensemble of=clip,shapes-judge", image_model="shapes-flux")
    with pytest.raises(DiffscaleError, match="leave it out"):
        Ensemble("outer", [inner, inner], [1.0, 1.0])


def test_any_function_is_a_verifier(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def redness(images, prompts, by: float = 1.0):\n    return by * images[:, 0].mean((1, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, 8, 8)
    verifier = load("mine:redness by=2")
    assert verifier.name == "mine:redness"
    torch.testing.assert_close(verifier(images, ["", ""]), 2 * images[:, 0].mean((1, 2)))
    for wrong in ("mine:nosuch", "nosuch_module:f", "mine:redness to=3"):
        with pytest.raises(DiffscaleError):
            check(wrong)


GIVEN = {
    "an array": "numpy.asarray(means)[::-1][::-1]",
    "a list": "[float(mean) for mean in means]",
    "a column": "[[float(mean)] for mean in means]",
    "float32": "numpy.asarray(means, dtype='float32')",
    "numbers": "[numpy.float64(mean) for mean in means]",
}


def give(tmp_path, monkeypatch, module, answer):
    (tmp_path / f"{module}.py").write_text(
        f"import numpy\n\ndef redness(images, prompts):\n    means = images[:, 0].mean((1, 2))\n    return {answer}\n"
    )
    monkeypatch.chdir(tmp_path)
    return load(f"{module}:redness")


@pytest.mark.parametrize("kind", GIVEN)
def test_scores_need_not_be_tensors(tmp_path, monkeypatch, kind):
    verifier = give(tmp_path, monkeypatch, f"gives_{list(GIVEN).index(kind)}", GIVEN[kind])
    images = torch.rand(3, 3, 8, 8)
    wanted = images[:, 0].mean((1, 2)).double()
    torch.testing.assert_close(safe_score(verifier, images, [""] * 3), wanted)
    # As a member, and as an object with a name of its own.
    both = Ensemble("both", [verifier, load("shapes-judge")], [1.0, 1.0])
    torch.testing.assert_close(both(images, ["a red circle"] * 3)[:, 0], wanted)
    named = Own(verifier.function)
    torch.testing.assert_close(safe_score(named, images, [""] * 3), wanted)


class Own:
    name = "own"

    def __init__(self, function):
        self.function = function

    def __call__(self, images, prompts):
        return self.function(images, prompts)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("means[1:]", r"must return scores of shape \(3,\), but returned shape \(2,\)"),
        ("list(map(float, means)) * 2", r"must return scores of shape \(3,\), but returned shape \(6,\)"),
        ("images.numpy()", r"but returned shape \(3, 3, 8, 8\)"),
        ("0.5", r"but returned shape \(\)"),
        ("None", "but returned None: let it return them"),
        ("['high', 'low', 'low']", "but returned a list that holds something else"),
        ("[[1.0], [2.0, 3.0], []]", "but returned a list that holds something else"),
        ("{'scores': means}", "but returned a dict that holds something else"),
    ],
)
def test_scores_that_are_none_are_told_in_one_sentence(tmp_path, monkeypatch, answer, said):
    verifier = give(tmp_path, monkeypatch, f"wrong_{abs(hash(answer))}", answer)
    images, prompts = torch.rand(3, 3, 8, 8), ["a red circle"] * 3
    both = Ensemble("both", [load("shapes-judge"), verifier], [1.0, 1.0])
    for asked in (verifier, both):
        with pytest.raises(DiffscaleError, match=r"^Verifier 'wrong_\d+:redness' .*" + said) as told:
            safe_score(asked, images, prompts)
        assert str(told.value).endswith(".")


def test_members_may_be_functions_and_have_any_signs_in_their_values(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "def told(images, prompts, by=1.0, words='', where=''):\n"
        "    return [by * len(words) + len(where) / 100] * len(images)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFSCALE_CACHE", str(tmp_path))
    grader = "llm_grader:model=llava:7b:base_url=http://localhost:8000/v1:aspect=quality"
    text = f"ensemble of={grader},own:told:words=a,b=c:by=2,own:told:where=http://x:80/y?a=b,c:7,shapes-judge"
    found = load(text)
    assert found.components == ["llm_grader", "own:told", "own:told", "shapes-judge"]
    llm, first, second, _ = found.members
    assert llm.aspect == "quality" and llm._model == "llava:7b"
    assert llm._client._client._endpoint.url == "http://localhost:8000/v1/chat/completions"
    llm.close()
    assert first.function.keywords == {"words": "a,b=c", "by": 2.0}
    assert second.function.keywords == {"where": "http://x:80/y?a=b,c:7"}
    spaced = load('ensemble of="own:told:words=a b:by=2,shapes-judge"').members[0]
    assert spaced.function.keywords == {"words": "a b", "by": 2.0}
    assert load("weighted of=own:told,own:told:by=3").members[1].function.keywords == {"by": 3.0}


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("clip,clop", "did you mean 'clip'"),
        ("clip,", "Unknown verifier ''"),
        ("clip:modle=x,shapes-judge", "did you mean 'model'"),
        ("own2:nosuch,shapes-judge", "own2:nosuch cannot be imported"),
    ],
)
def test_wrong_members_are_told(of, said):
    with pytest.raises(DiffscaleError, match=said):
        load(f"ensemble of={of}", image_model="shapes-flux")
