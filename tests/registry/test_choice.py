"""What users may choose: names, `module:attribute` and callables, as functions, classes and factories."""

import pytest
import torch

from diffscale import DiffscaleError, UnknownName
from diffscale.registry.choice import choose
from diffscale.searches import choose_search
from diffscale.types import Evaluate, search_traits
from diffscale.verifiers import check, load, name_of_verifier


def scored(images, prompts, power=1.0):
    return images.mean((1, 2, 3)) ** power


class Sharp:
    """A verifier as a class; it names itself nowhere."""

    def __init__(self, radius: float, device="nowhere"):
        self.radius, self.device = radius, device

    def __call__(self, images, prompts):
        return images.std((1, 2, 3)) * self.radius


def factory(power: float = 1.0, *, device="nowhere", image_model=""):
    """A factory, which gives a function."""
    return lambda images, prompts: images.mean((1, 2, 3)) ** power


def bare_factory():
    return factory()


@search_traits(anytime=True)
def search(env, n: int = 2):
    yield Evaluate(env.prior(n))


class Search:
    anytime = True

    def __init__(self, n: int):
        self.n = n

    def __call__(self, env):
        yield Evaluate(env.prior(self.n))


def make_search(n: int = 3):
    return Search(n)


def needy(images, prompts, radius):
    return images.mean((1, 2, 3)) * radius


def needy_of_two(images, prompts, a, b):
    return a * images.mean((1, 2, 3)) + b


def bare(images, prompts):
    return images.mean((1, 2, 3))


def of_images(images):
    return images.mean((1, 2, 3))


class Uncallable:
    """It has no __call__."""


def of_nothing():
    yield


def gives_nothing():
    return None


HERE = __name__


@pytest.mark.parametrize(
    "given", [f"{HERE}:search n=3", f"{HERE}:Search n=3", f"{HERE}:make_search", Search(3), "random n=3"]
)
def test_searches_are_functions_classes_and_factories(given):
    from diffscale.engine.task import Task
    from diffscale.testing import NearPoint, ToySampler, run_searches

    (result,) = run_searches([Task(choose_search(given).make(), 0, 1, 100)], ToySampler(), NearPoint())
    assert result.candidates == 3


def test_traits_are_those_of_the_function_or_class():
    assert choose_search(f"{HERE}:search").declares("anytime") and choose_search(f"{HERE}:Search n=1").declares(
        "anytime"
    )
    assert not choose_search(f"{HERE}:search").declares("independent")
    assert choose_search("random").declares("independent")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (f"{HERE}:scored power=2", f"{HERE}:scored"), (f"{HERE}:Sharp radius=2", f"{HERE}:Sharp"),
        (f"{HERE}:factory power=2", f"{HERE}:factory"), (scored, f"{HERE}:scored"), (Sharp(2.0), f"{HERE}:Sharp"),
        (f"{HERE}:bare_factory", f"{HERE}:bare_factory"),
    ],
)  # fmt: skip
def test_verifiers_are_functions_classes_and_factories(given, name):
    check(given)
    verifier = load(given, device="cpu")
    assert verifier.name == name and len(verifier(torch.rand(2, 3, 8, 8), ["a", "b"])) == 2
    if given == f"{HERE}:Sharp radius=2":
        assert verifier.device == "cpu" and verifier.radius == 2.0
    assert name_of_verifier(given) == (given if isinstance(given, str) else name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"{HERE}:Sharp", r"needs radius: write .*:Sharp radius=VALUE"),
        (f"{HERE}:needy_of_two a=1", r"needs b: write .*:needy_of_two a=1 b=VALUE\.$"),
        (f"{HERE}:scored power=1 power=2", "power of verifier .*:scored is given twice"),
        (f"{HERE}:bare b=1", r"Unknown argument of verifier .*:bare 'b'\. There are none\.$"),
        (f"{HERE}:scored:power=2", "arguments follow after a space, as in .*:f n=2"),
        (f"{HERE}:scored,", "arguments follow after a space"),
        (f"{HERE}:scored(power=2)", "arguments follow after a space"),
        ("clip,aesthetic", "write `ensemble of=clip,aesthetic` for several"),
        (Sharp, r"needs radius: give Sharp\(radius=\.\.\.\)"),
        (needy, r"needs radius: give functools.partial\(needy, radius=\.\.\.\)"),
        (f"{HERE}:of_images", r"must take \(images, prompts\), before"),
        (f"{HERE}.scored", f"write {HERE}:scored"),
        (f"{HERE}:Sharp radius=wide", "takes radius as float"),
        (f"{HERE}:nothing", "cannot be imported"),
        (f"{HERE}:HERE", "can be called"),
        ("nowhere.at.all:f", "cannot be imported"),
        (3, "not int"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_paid_for(given, said):
    with pytest.raises(DiffscaleError, match=said):
        check(given)


def test_a_file_without_its_function_is_told(tmp_path, monkeypatch):
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match=r"write mine:FUNCTION for what mine\.py has"):
        choose_search("mine")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("Uncallable", r"gives Uncallable, which cannot be called: give the class a method __call__\(self, env\)"),
        ("of_nothing", r"must take \(env\)"),
        ("gives_nothing", r"gives NoneType, which cannot be called: let it take \(env\), or return a function"),
    ],
)
def test_what_makes_no_search_is_told(given, said):
    with pytest.raises(DiffscaleError, match=said):
        choose_search(f"{HERE}:{given}").make()


def test_a_name_with_its_package_is_the_name_alone():
    assert name_of_verifier("diffscale/clip") == "clip" and choose_search("diffscale/random n=3").text == "random n=3"
    found, images = load("diffscale/clip", image_model="shapes-flux"), torch.rand(1, 3, 64, 64)
    assert found.name == "clip"
    torch.testing.assert_close(found(images, ["a"]), load("clip", image_model="shapes-flux")(images, ["a"]))
    from diffscale.bench.config import BenchConfig, GenerateConfig

    assert GenerateConfig(verifier="diffscale/clip model=x").verifier == "clip model=x"
    bench = BenchConfig(search=["diffscale/random n=2"], verifier=["diffscale-shapes/shapes-judge"])
    assert bench.search == ["random n=2"] and bench.verifier == ["shapes-judge"]


def test_a_class_of_a_search_that_needs_arguments_is_told():
    for given in (f"{HERE}:Search", Search):
        with pytest.raises(DiffscaleError, match="needs n"):
            choose_search(given)
    with pytest.raises(DiffscaleError, match="takes n as int"):
        choose_search(f"{HERE}:Search n=many")
    assert choose(search, "search", {}, ["env"]).text == f"{HERE}:search"
