"""The suite of classes, all the way through a bench."""

import copy
import json
import pickle
import re
import sys
from pathlib import Path

import httpx2
import pytest
from diffscale_shapes.captions import parse_caption
from diffscale_shapes.scenes import CLASSES, class_description

from diffscale._util.errors import DiffscaleError
from diffscale.bench.config import BenchConfig
from diffscale.bench.run import run
from diffscale.cli.main import run as command
from diffscale.suites import prompts
from diffscale.types import ClassLabel


def test_the_classes_are_prompts_that_know_their_class():
    found = prompts.load("shapes-classes")
    assert len(found) == 48 and found[0] == "a red circle"
    for label, prompt in enumerate(found):
        assert isinstance(prompt, ClassLabel) and prompt.class_id == label
        assert parse_caption(prompt) == class_description(label) and CLASSES[label] in prompt
    assert {p.split()[0] for p in found if p.split()[1][0] in "aeiou"} == {"an"}
    few = prompts.load("shapes-classes", 4)
    assert [p.class_id for p in few] == [0, 12, 24, 36]
    for again in (pickle.loads(pickle.dumps(few)), copy.deepcopy(few)):
        assert again == few and [p.class_id for p in again] == [0, 12, 24, 36]


def test_the_classes_are_listed_and_suggested(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diffscale", "list", "suites"])
    with pytest.raises(SystemExit):
        command()
    assert re.search(r"shapes-classes +The 48 classes", capsys.readouterr().out)
    with pytest.raises(Exception, match="did you mean 'shapes-classes'"):
        prompts.load("shapes-clases")


def test_a_bench_by_class_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """With verifiers of classes on a text-to-image model."""
    settings = BenchConfig(
        suite="shapes-classes", verifier=["clip_zeroshot", "inception"], search=["zero_order n=1"], budget=[8], steps=4
    )
    chosen = prompts.load("shapes-classes", 2)
    whole = run(settings, chosen, _made(tmp_path / "whole"))
    assert all("error" not in sample and set(sample["scores"]) == {"clip_zeroshot", "inception"} for sample in whole)

    def stop(cell, spent, total, **_):
        if "| inception |" in cell:
            raise KeyboardInterrupt

    killed = _made(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        run(settings, chosen, killed, stop)
    again = run(settings, prompts.load("shapes-classes", 2), killed)
    names = [sample["name"] for sample in whole]
    assert [sample["name"] for sample in again] == names and "a red circle" in names[0]
    for one, other in zip(again, whole, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4) and one["key"] == other["key"]
    monkeypatch.setattr("diffscale.bench.run.make_sampler", None)
    done = run(settings, prompts.load("shapes-classes", 2), killed)
    assert done == json.loads(json.dumps(again))
    assert json.loads((killed / "samples.jsonl").read_text().splitlines()[0])["prompt"] == "a red circle"


def _made(folder):
    folder.mkdir()
    return folder


def test_columns_by_other_names_other_layouts_and_categories(tmp_path: Path) -> None:
    (tmp_path / "drawbench.csv").write_text('Prompts,Category\n"A red, round car",Colors\nTwo dogs,Counting\n')
    (tmp_path / "geneval.jsonl").write_text('{"tag": "single_object", "prompt": "a photo of a bench"}\n')
    (tmp_path / "list.json").write_text('["one", {"caption": "two"}]')
    (tmp_path / "tabs.tsv").write_text("text\tother\na bear\t1\n")
    assert prompts.load(str(tmp_path / "drawbench.csv")) == ["A red, round car", "Two dogs"]
    assert prompts.categories(str(tmp_path / "drawbench.csv")) == {"A red, round car": "Colors", "Two dogs": "Counting"}
    assert prompts.categories(str(tmp_path / "geneval.jsonl")) == {"a photo of a bench": "single_object"}
    assert prompts.load(str(tmp_path / "list.json")) == ["one", "two"]
    assert prompts.load(str(tmp_path / "tabs.tsv")) == ["a bear"]
    assert prompts.categories("shapes-mini") == {}


def test_files_are_read_as_what_they_are(tmp_path: Path) -> None:
    def load(name: str, text: str) -> list[str]:
        (tmp_path / name).write_text(text)
        return prompts.load(str(tmp_path / name))

    assert load("UPPER.CSV", "prompt,tag\na bear,one\n") == ["a bear"]
    # A line separator within a prompt ends no row.
    assert load("odd.csv", "prompt,tag\na bear\u2028by a lake,one\n") == ["a bear\u2028by a lake"]
    assert load("odd.jsonl", '{"prompt": "a bear\u2028by a lake"}\n\n') == ["a bear\u2028by a lake"]
    assert load("quoted.csv", 'prompt\n"a bear\nby a lake"\n') == ["a bear\nby a lake"]
    # The names of an object are no prompts, and nothing is none.
    for name, text in (("object.json", '{"prompts": ["a bear"]}'), ("blank.json", '["a bear", " "]')):
        with pytest.raises(DiffscaleError, match="cannot be read"):
            load(name, text)


def test_imagenet_has_all_its_classes_though_two_are_called_alike() -> None:
    classes = prompts.load("imagenet")
    assert [label.class_id for label in classes] == list(range(1000)) and len(set(classes)) < 1000
    assert [label.class_id for label in prompts.load("imagenet", 4)] == [0, 250, 500, 750]


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    file = tmp_path / "p.csv"
    file.write_text("prompt\na bear\n")
    files = ["README.md", "p.csv"]
    asked = []

    def download(repository: str, name: str, repo_type: str) -> str:
        asked.append((repository, name, repo_type))
        return str(file)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert prompts.load("owner/name") == prompts.load("owner/name:p.csv") == ["a bear"]
    assert asked == [("owner/name", "p.csv", "dataset")] * 2
    files.append("other.txt")
    with pytest.raises(DiffscaleError, match=r"other\.txt, p\.csv.*owner/name:FILE"):
        prompts.load("owner/name")

    def unreachable(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("no such host")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(DiffscaleError, match="no such host"):
        prompts.load("owner/name")
