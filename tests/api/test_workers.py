"""Several devices, and workers for verifiers, give what one worker gives; what users ask for is read or refused."""

import numpy as np
import pytest
import torch
from PIL import Image

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api.workers import worker_options
from diffscale.engine.driver import run_searches
from diffscale.engine.host import Host
from diffscale.engine.pool import Pool
from diffscale.engine.threads import ThreadTransport
from diffscale.searches import SEARCHES
from diffscale.testing import NearPoint, ToyRecipe, WordedToy, assert_same, points, tasks
from diffscale.verifiers.ensemble import Ensemble

GRADIENTS = {"first_order", "dps", "reno"}
PROMPTS = ToyRecipe(NearPoint()).prompts


class Far(NearPoint):
    name = "far"

    def __call__(self, images, prompts):
        return (-super().__call__(images, prompts)).sqrt()


class Steady(NearPoint):
    """Compares a finished picture with the prediction of it at level 0.4."""

    name = "steady"
    record_level = 0.4

    def __call__(self, images, prompts, recorded):
        return -(points(images) - points(recorded)).square().sum(1)


class Apart:
    """How far a point is from all that were chosen."""

    name = "apart"

    def begin(self):
        self.chosen = []

    def choose(self, image, prompt):
        self.chosen.append(points(image[None])[0])

    def __call__(self, images, prompts):
        distances = [(points(images) - one).norm(dim=1) for one in self.chosen]
        return torch.stack(distances).amin(0) if distances else points(images)[:, 0]


class Cramped(NearPoint):
    """It has memory for two pictures."""

    def __call__(self, images, prompts):
        if len(images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().__call__(images, prompts)


def run_on(hosts, given, recipe, batch_size=3):
    transport, sampler = ThreadTransport(hosts), WordedToy(recipe.prompts, 6)
    try:
        transport.prepare(recipe)
        executor = Pool(transport, sampler, batch_size, transport.size)
        found = run_searches(
            given, sampler, recipe.verifier, batch_size, gallery=3, choose=recipe.chooser, executor=executor
        )
    finally:
        transport.close()
    assert transport.traffic.candidates == sum(each.candidates for each in found)
    return found


def two():
    return {name: Host("cpu") for name in "ab"}


def apart():
    return {name: Host("cpu", role="verifier" if name == "v" else "sampler") for name in "abv"}


def here(given, verifier=None, chooser=None, prompts=PROMPTS):
    return run_searches(given, WordedToy(prompts, 6), verifier or NearPoint(), 6, gallery=3, choose=chooser)


@pytest.mark.parametrize("prompts", [1, 16])
@pytest.mark.parametrize("search", list(SEARCHES))
def test_two_devices_find_what_one_worker_finds(search, prompts):
    texts = tuple(f"point {i}" for i in range(prompts))
    given = tasks(search, 120 if prompts == 1 else 60, prompts)
    wanted = here(given, prompts=texts)
    for one, other in zip(wanted, run_on(two(), given, ToyRecipe(NearPoint(), prompts=texts)), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("search", sorted(set(SEARCHES) - GRADIENTS))
def test_verifiers_apart_find_what_verifiers_beside_find(search):
    given = tasks(search, 120, 2)
    for one, other in zip(here(given), run_on(apart(), given, ToyRecipe(NearPoint())), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("hosts", [two, apart])
@pytest.mark.parametrize("search", ["random", "zero_order n=3", "halving"])
@pytest.mark.parametrize(
    ("verifier", "chooser"),
    [
        (Ensemble("both", [NearPoint(), Far()], [1.0, 2.0]), None),
        (NearPoint(), Far()),
        (NearPoint((0.0, 4.0)), Ensemble("both", [NearPoint(), Far()], [1.0, 2.0])),
    ],
)
def test_every_kind_of_verifier(hosts, search, verifier, chooser):
    given = tasks(search, 120, 3)
    wanted = here(given, verifier, chooser)
    for one, other in zip(wanted, run_on(hosts(), given, ToyRecipe(verifier, chooser)), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("hosts", [two, apart])
@pytest.mark.parametrize("verifier", [Apart(), Steady()])
def test_verifiers_that_remember_or_look_back(hosts, verifier):
    given = tasks("random", 120, 3)
    wanted = here(given, verifier)
    for one, other in zip(wanted, run_on(hosts(), given, ToyRecipe(verifier)), strict=True):
        assert_same(one, other)
    chosen = torch.stack([points(each.best.image[None])[0] for each in wanted])
    assert not isinstance(verifier, Apart) or (chosen[0] - chosen[1]).norm() > 4  # it was told what was chosen


def test_a_verifier_apart_that_lacks_memory_takes_pictures_in_parts():
    given = tasks("random", 120, 2)
    found = run_on(apart(), given, ToyRecipe(Cramped()), batch_size=8)
    for one, other in zip(here(given), found, strict=True):
        assert_same(one, other)


def test_gradients_need_the_verifier_beside_the_model():
    with pytest.raises(DiffscaleError, match="leave the workers for verifiers out"):
        run_on(apart(), tasks("first_order", 120, 1), ToyRecipe(NearPoint()))


def test_what_cannot_be_made_is_told_and_leaves_no_thread():
    class Broken(ToyRecipe):
        def build(self, device, networks, role):
            raise DiffscaleError("There is no such model.")

    with pytest.raises(DiffscaleError, match="There is no such model"):
        run_on(two(), tasks("random", 120, 1), Broken(NearPoint()))


def test_a_pipeline_on_two_devices_and_with_verifiers_apart():
    asked = {"search": "svdd", "verifier": "clip", "nfe": 100, "dtype": "float32", "steps": 5}
    prompt = "a red circle above a blue square"
    wanted = diffscale.search("shapes-flux", prompt, device="cpu", **asked)
    for more in ({"device": "cpu,cpu"}, {"device": "cpu", "verifier_workers": 1}):
        found = diffscale.search("shapes-flux", prompt, **asked, **more)
        assert found.best.key == wanted.best.key and found.ledger.nfe == wanted.ledger.nfe
        assert found.ledger.network_forwards == wanted.ledger.network_forwards
        assert found.ledger.flops == wanted.ledger.flops
        np.testing.assert_allclose(found.ledger.verifier_flops, wanted.ledger.verifier_flops, rtol=1e-9)
        torch.testing.assert_close(found.pool, wanted.pool, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.best.latents, wanted.best.latents, atol=1e-4, rtol=1e-4)


def test_a_drop_in_pipeline_on_two_devices_follows_its_pipeline(monkeypatch):
    asked = {"search": "random", "nfe": 10, "device": "cpu,cpu", "dtype": "float32"}
    searched = diffscale.Searched("shapes-flux", **asked)
    call = {"num_inference_steps": 5, "generator": torch.Generator().manual_seed(0)}
    first = searched("a red circle", **call).images[0]
    plain = diffscale.Searched("shapes-flux", **{**asked, "device": "cpu"})("a red circle", **call).images[0]
    assert isinstance(first, Image.Image) and np.abs(np.asarray(first, float) - np.asarray(plain)).max() <= 1
    searched.scheduler = type(searched.scheduler).from_config(searched.scheduler.config, shift=9.0)
    other = searched("a red circle", **call).images[0]
    assert np.abs(np.asarray(first, float) - np.asarray(other)).max() > 8


def test_what_users_ask_for_is_read():
    assert worker_options("cpu,cpu", None).devices == ["cpu", "cpu"]
    assert worker_options("cpu", None).is_inline and not worker_options("cpu", None, 1).is_inline
    assert worker_options(None, "4").ray.n == 4
    assert worker_options(None, "auto").ray.n is None
    asked = worker_options(None, "ray n=2 gpus=0.5 cpus=2").ray
    assert (asked.n, asked.gpus, asked.cpus, asked.address) == (2, 0.5, 2.0, None)
    assert worker_options(None, "ray://head:10001").ray.address == "ray://head:10001"


@pytest.mark.parametrize(
    ("device", "workers", "verifiers", "told"),
    [
        ("cpu,gpu", None, 0, "There is no device 'gpu'"),
        (None, "many", 0, "Unknown workers 'many'"),
        (None, "ray four", 0, "four"),
        (None, "ray n=0", 0, "greater than 0"),
        (None, "ray m=1", 0, "m"),
        ("cpu", "ray", 0, "leave the device out"),
        ("cpu", None, -1, "0 or more, not -1"),
    ],
)
def test_what_cannot_be_read_is_refused(device, workers, verifiers, told):
    with pytest.raises(DiffscaleError, match=told):
        worker_options(device, workers, verifiers)
