"""What packages offer: names without imports, two of one name, broken ones, and what a program registers."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from diffscale import DiffscaleError, register
from diffscale.registry import Registry, plugins


class Package:
    """A distribution, as entry points know theirs."""

    version = "1.0"

    def __init__(self, name):
        self.name = name


def entry(package, name, value):
    made = EntryPoint(name, value, "diffscale.things")
    vars(made)["dist"] = Package(package)
    return made


@pytest.fixture
def things(monkeypatch):
    offered = [
        entry("one", "alike", "json:dumps"), entry("two", "alike", "json:loads"), entry("two", "single", "json:load"),
        entry("three", "broken", "nowhere:at_all"), entry("diffscale", "own", "json:dump"),
        entry("three", "own", "json:dumps"),
    ]  # fmt: skip
    monkeypatch.setattr("diffscale.registry.entry_points", lambda group: offered if group == "diffscale.things" else [])
    return Registry("things")


def test_two_of_one_name_are_told_apart_by_their_packages(things):
    import json

    assert list(things) == ["one/alike", "two/alike", "single", "broken", "own", "three/own"]
    assert things["one/alike"] is json.dumps and things["two/alike"] is json.loads and "alike" not in things
    short = {"two/single": "single", "two/alike": "two/alike", "diffscale/own": "own", "no/own": "no/own"}
    assert {name: things.short(f"{name} a=1 b=2") for name in short} == {k: f"{v} a=1 b=2" for k, v in short.items()}
    assert things["single"] is things["two/single"] is json.load and things.source("single") == "two 1.0"
    assert things["own"] is json.dump and things["three/own"] is json.dumps  # no package takes away a name of diffscale
    with pytest.raises(DiffscaleError, match="broken of the package three cannot be imported"):
        things["broken"]
    assert "cannot be imported" in things.summary("broken")


def test_summaries_are_read_without_imports(things):
    assert things.summary("single").startswith("Deserialize ``fp``")
    code = """
import sys
from diffscale.registry import plugins
rows = [plugins("verifiers").summary(name) for name in plugins("verifiers")]
print(all(rows), sorted({"torch", "diffscale.verifiers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"


def test_a_program_registers_by_itself(things):
    things.register("mine", len)
    things.register("mine", len)
    assert things["mine"] is len and things.source("mine") == "this program" and len(things) == 7
    with pytest.raises(DiffscaleError, match="is taken by this program"):
        things.register("mine", sum)
    with pytest.raises(DiffscaleError, match=r"is taken by two 1\.0"):
        things.register("single", sum)
    with pytest.raises(DiffscaleError, match="no kind 'serches'"):
        register("serches", "mine", len)
    for name in ("my search", "a:b", "a=b", "a,b", "pack/name", ""):
        with pytest.raises(DiffscaleError, match="cannot be a name"):
            register("searches", name, len)
    for kind in ("searches", "verifiers", "suites", "datasets"):
        with pytest.raises(DiffscaleError, match="is called, which 3 cannot be"):
            register(kind, "three", 3)


def test_a_broken_plug_in_breaks_nothing_else(monkeypatch):
    from diffscale.models import shipped
    from diffscale.registry.choice import choose

    offered = {"searches": [entry("bad", "five", "math:pi"), entry("good", "good", "diffscale.searches.random:random")],
               "models": [entry("bad", "gone", "math:pi")]}  # fmt: skip
    monkeypatch.setattr("diffscale.registry.entry_points", lambda group: offered.get(group.partition(".")[2], []))
    with pytest.raises(DiffscaleError, match="five is no function and no class"):
        choose("five", "search", Registry("searches"), ["env"])
    assert choose("good n=2", "search", Registry("searches"), ["env"]).arguments == {"n": 2}
    monkeypatch.setattr(shipped, "plugins", Registry)
    with pytest.warns(UserWarning, match="models gone of bad 1.0 are left out"):
        assert shipped.shipped_folders() == {}


def test_what_is_registered_is_found_by_name(monkeypatch):
    from diffscale import Evaluate
    from diffscale.searches import choose_search
    from diffscale.verifiers import load

    def twice(env):
        yield Evaluate(env.prior(2))

    def bright(images, prompts):
        return images.mean((1, 2, 3))

    for kind, name, thing in (("searches", "twice", twice), ("verifiers", "bright", bright)):
        monkeypatch.setitem(plugins(kind)._registered, name, thing)
    assert choose_search("twice").make() is twice and load("bright").name == "bright"
