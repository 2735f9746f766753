"""Several devices, and workers for verifiers, give what one worker gives; what users ask for is read or refused."""

import copy
import gc
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.api.workers import ModelRecipe, worker_options
from diffscale.cli.main import app
from diffscale.engine.driver import run_searches
from diffscale.engine.host import Host
from diffscale.engine.pool import LostWorker, Pool
from diffscale.engine.threads import ThreadTransport
from diffscale.models.drafting import DraftOptions
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.samplers.cached_drafts import CachedDrafts
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


@pytest.mark.parametrize("prompts", [1, pytest.param(16, marks=pytest.mark.slow)])
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
    with pytest.raises(DiffscaleError, match="There is no such model"):
        run_on(two(), tasks("random", 120, 1), Failing(NearPoint()))


class Failing(ToyRecipe):
    def build(self, device, networks, role):
        raise DiffscaleError("There is no such model.")


@pytest.mark.parametrize("before", [ToyRecipe(NearPoint((0.0, 4.0)), pause=0.001), Failing(NearPoint())])
def test_what_threads_say_of_an_earlier_series_is_not_heard(before):
    given, transport, sampler = tasks("random", 120, 2), ThreadTransport(two()), WordedToy(steps=6)
    executor = Pool(transport, sampler, 3, 2)
    transport.prepare(before)
    end = time.monotonic() + 20
    while transport._events.qsize() < 2 and time.monotonic() < end:  # nobody asks for these
        time.sleep(0.01)
    transport.prepare(ToyRecipe(NearPoint(), pause=0.001))
    found = run_searches(given, sampler, NearPoint(), 3, gallery=3, executor=executor)
    transport.close()
    for one, other in zip(here(given), found, strict=True):
        assert_same(one, other)


def test_a_series_that_was_stopped_leaves_the_next_one_alone():
    given, transport, sampler = tasks("random", 120, 2), ThreadTransport(two()), WordedToy(steps=6)
    executor, kept = Pool(transport, sampler, 3, 2), []

    def stop(*told):
        raise KeyboardInterrupt

    def let_go(*told):
        kept.clear()

    transport.prepare(ToyRecipe(NearPoint((0.0, 4.0)), pause=0.01))
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_searches(given, sampler, NearPoint(), 3, observers=[stop], executor=executor)
    kept.append(stopped)  # as a notebook does, with all frames
    del stopped
    transport.rest()
    executor.serve(sampler, 3)
    transport.prepare(ToyRecipe(NearPoint(), pause=0.001))
    found = run_searches(given, sampler, NearPoint(), 3, observers=[let_go], gallery=3, executor=executor)
    transport.close()
    for one, other in zip(here(given), found, strict=True):
        assert_same(one, other)


def test_a_series_that_is_slower_than_the_one_before_loses_no_worker():
    given, transport, sampler = tasks("random", 60, 2), ThreadTransport(two()), WordedToy(steps=6)
    executor = Pool(transport, sampler, 3, 2, least_patience=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostWorker)
        for pause in (0.0005, 0.04):
            executor.serve(sampler, 3)
            transport.prepare(ToyRecipe(NearPoint(), pause=pause))
            run_searches(given, sampler, NearPoint(), 3, executor=executor)
    transport.close()


def test_nobody_waits_for_pictures_that_no_device_scores():
    transport = ThreadTransport(apart())
    transport.prepare(ToyRecipe(NearPoint()))
    transport.replace("v")
    with pytest.raises(DiffscaleError, match="Devices hang"):
        transport.wait(None)
    transport.close()


def test_a_worker_that_could_not_be_made_says_why_when_it_is_asked():
    host = Host("cpu")
    host.prepare(Failing(NearPoint()))
    with pytest.raises(DiffscaleError, match="There is no such model"):
        host.ask(lambda worker: worker)


@pytest.mark.parametrize("command", ["evaluate {folder}", "tape record", "tune auto"])
def test_what_is_computed_on_one_device_takes_no_two(command, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = command.format(folder=tmp_path).split()
    flags = ["--device", "cpu,cpu", "--output", str(tmp_path / "out" / "file")]
    metrics = ["--metrics", "clip"] if words[0] == "evaluate" else ["--limit", "1"]
    answer = CliRunner().invoke(app, [*words, *flags, *metrics])
    assert isinstance(answer.exception, DiffscaleError)
    assert str(answer.exception) == "This is computed on one device: give one, such as cuda:1, not 'cpu,cpu'."


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


def test_a_drop_in_pipeline_whose_networks_are_changed_is_copied_again():
    asked = {"search": "random", "nfe": 10, "dtype": "float32"}
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    found = {}
    for device in ("cpu", "cpu,cpu"):
        searched = diffscale.Searched("shapes-flux", device=device, **asked)
        searched("a red circle", **call)
        with torch.no_grad():
            searched.transformer.proj_out.weight.mul_(0.5)
        searched("a red circle", **call)
        found[device] = searched.results[0].pool
        searched.pipe = diffscale.Searched("shapes-flux", device="cpu", **asked).pipe
        searched("a red circle", **call)
        found[device, "other"] = searched.results[0].pool
    torch.testing.assert_close(found["cpu,cpu"], found["cpu"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["cpu,cpu", "other"], found["cpu", "other"], atol=1e-5, rtol=1e-5)
    assert (found["cpu"] - found["cpu", "other"]).abs().max() > 1e-3


def test_a_drop_in_pipeline_can_be_copied_and_leaves_no_thread_when_it_is_lost():
    searched = diffscale.Searched("shapes-flux", device="cpu,cpu", search="random", nfe=10, dtype="float32")
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    before = set(threading.enumerate())
    searched("a red circle", **call)
    other = copy.deepcopy(searched)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    other("a red circle", **call)
    assert torch.equal(other.results[0].pool, searched.results[0].pool)
    others = set(threading.enumerate()) - before - threads
    assert len(others) == 2
    del other, searched
    gc.collect()
    for thread in threads | others:
        thread.join(20)
        assert not thread.is_alive()


def test_each_device_drafts_with_networks_of_its_own():
    drafting = load_pipeline("shapes-flux", LoadOptions(dtype="float32", device="cpu"))
    asked = {"search": "draft via=model", "nfe": 80, "dtype": "float32", "steps": 4, "draft_model": drafting}
    wanted, found = (diffscale.search("shapes-flux", "a red circle", device=d, **asked) for d in ("cpu", "cpu,cpu"))
    assert found.best.key == wanted.best.key and found.ledger.nfe == wanted.ledger.nfe
    recipe = ModelRecipe(
        "shapes-flux", LoadOptions(dtype="float32"), make_sampler,
        {"prompts": ["a red circle"], "steps": 4, "pipe_args": {}, "drafting": DraftOptions(drafting)}, NearPoint(),
    )  # fmt: skip
    networks = {}
    workers = [recipe.build("cpu", networks, "sampler") for _ in range(2)]
    assert workers[0].sampling.sampler is workers[1].sampling.sampler
    assert networks["drafts"].model is not drafting


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


def test_what_drafts_cost_is_measured_by_workers_whose_networks_are_theirs(monkeypatch):
    measured, drafter = set(), CachedDrafts.drafter

    def noted(*args):
        measured.add(threading.current_thread().name)
        return drafter(*args)

    monkeypatch.setattr(CachedDrafts, "drafter", noted)
    asked = {"search": "draft via=cache", "nfe": 64, "dtype": "float32", "steps": 4, "draft_cache": "taylorseer"}
    found = diffscale.search("shapes-flux", "a red circle", device="cpu,cpu", **asked)
    assert measured and measured <= {"cpu (1)", "cpu (2)"}
    wanted = diffscale.search("shapes-flux", "a red circle", device="cpu", **asked)
    assert found.best.key == wanted.best.key and found.ledger.nfe == wanted.ledger.nfe
