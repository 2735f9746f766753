"""Workers of Ray: alike whatever happens to them, and nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.pool import LostWorker, Pool
from diffscale.engine.ray_workers import RaySettings, RayTransport
from diffscale.testing import NearPoint, ToyRecipe, WordedToy, assert_same, tasks

ray = pytest.importorskip("ray")
SETTINGS = RaySettings(n=2, gpus=0, cpus=0.5)


def here(search, budget=120):
    return run_searches(tasks(search, budget, 2), WordedToy(steps=6), NearPoint(), 6, gallery=3)


def on(transport, search, budget=120, least_patience=60.0, progress=lambda *a, **k: None, pause=0.0):
    sampler = WordedToy(steps=6)
    transport.prepare(ToyRecipe(NearPoint(), pause=pause))
    executor = Pool(transport, sampler, 2, transport.size, least_patience)
    given = tasks(search, budget, 2)
    return run_searches(given, sampler, NearPoint(), 2, gallery=3, executor=executor, progress=progress)


def compare(wanted, found):
    for one, other in zip(wanted, found, strict=True):
        assert_same(one, other)


@pytest.fixture
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_workers_of_ray_find_what_one_worker_finds(cluster):
    transport = RayTransport(SETTINGS)
    for search in ("random", "svdd", "zero_order n=3"):
        compare(here(search), on(transport, search))
    assert transport.traffic.candidates and transport.traffic.received
    transport.close()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_however_many_there_are(cluster, count):
    transport = RayTransport(RaySettings(n=count, gpus=0, cpus=0.5))
    for search in ("random", "halving", "fk"):
        compare(here(search), on(transport, search))
    transport.close()


@pytest.mark.slow
def test_verifiers_in_workers_of_their_own(cluster):
    transport = RayTransport(RaySettings(n=1, gpus=0, cpus=0.5), verifiers=2)
    for search in ("random", "svdd"):
        compare(here(search), on(transport, search))
    transport.close()


@pytest.mark.slow
def test_more_samplers_than_there_is_room_for_leave_room_for_the_verifier(cluster):
    transport = RayTransport(RaySettings(n=2, gpus=0), verifiers=1)
    killed = []

    def progress(done, total, **figures):
        if done > total / 4 and not killed:
            killed.extend(name for name, role in transport._roles.items() if role == "verifier")
            ray.kill(transport._actors[killed[0]])

    with pytest.warns(LostWorker):
        found = on(transport, "random", progress=progress)
    compare(here("random"), found)
    transport.close()


@pytest.mark.slow
def test_signals_are_handled_as_before():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    transport = RayTransport(SETTINGS)
    try:
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    finally:
        transport.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_hangs_in_the_middle(cluster, how):
    transport = RayTransport(SETTINGS)
    victims = []

    def progress(done, total, **figures):
        if done > total / 4 and not victims:
            victims.append(min(processes(b"ray::SearchWorker")))
            os.kill(victims[0], how)

    with pytest.warns(LostWorker):
        found = on(transport, "random", 480, least_patience=3.0, progress=progress, pause=0.05)
    compare(here("random", 480), found)
    transport.close()
    end = time.monotonic() + 20
    while victims[0] in processes(b"ray::") and time.monotonic() < end:
        time.sleep(0.2)
    assert victims[0] not in processes(b"ray::")


@pytest.mark.slow
def test_one_that_joins_in_the_middle(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr("diffscale.engine.ray_workers._LOOK_FOR_NODES", 1.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        transport = RayTransport(RaySettings(gpus=0, cpus=1.0))
        assert transport.size == 1
        added = threading.Event()

        def progress(done, total, **figures):
            if done > total / 8 and not added.is_set():
                cluster.add_node(num_cpus=1)
                added.set()

        found = on(transport, "random", 1200, progress=progress, pause=0.1)
        compare(here("random", 1200), found)
        assert transport.size == 2 and len(transport._actors) == 2
        transport.close()
    finally:
        ray.shutdown()
        cluster.shutdown()


HEAD = """
import sys
from pathlib import Path
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.pool import Pool
from diffscale.engine.ray_workers import RaySettings, RayTransport
from diffscale.testing import NearPoint, ToyRecipe, WordedToy, tasks
transport, sampler = RayTransport(RaySettings(n=2, gpus=0, cpus=0.5)), WordedToy(steps=6)
transport.prepare(ToyRecipe(NearPoint(), pause=0.05))
journal = Journal(Path(sys.argv[1]), {})
tell = lambda done, total, **more: print(done, flush=True)
found = run_searches(tasks("random", 480, 2), sampler, NearPoint(), 2, gallery=3, journal=journal, progress=tell,
                     executor=Pool(transport, sampler, 2, 2))
print("best", *(each.best.key for each in found))
transport.close()
"""


@pytest.mark.slow
def test_a_head_that_is_killed_goes_on_and_leaves_no_process(tmp_path):
    def run():
        return subprocess.Popen(
            [sys.executable, "-c", HEAD, tmp_path / "journal.sqlite"], stdout=subprocess.PIPE, text=True
        )

    before = rays()
    first = run()
    while int(first.stdout.readline() or 10**9) < 200:
        pass
    first.kill()
    first.wait()
    second = run()
    lines = second.communicate()[0].splitlines()
    assert int(lines[0]) > 200  # what was paid for is not computed again
    assert lines[-1].split()[1:] == [str(each.best.key) for each in here("random", 480)]
    end = time.monotonic() + 150  # agents of Ray wait a minute for a head that they report to
    while rays() - before and time.monotonic() < end:
        time.sleep(0.5)
    assert not rays() - before


def processes(*names):
    """The processes whose command has one of these names."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if any(name in path.read_bytes() for name in names):
                found.add(int(path.parent.name))
    return found - {os.getpid()}


def rays():
    """The processes of Ray."""
    return processes(b"ray::", b"raylet", b"gcs_server")


def test_what_cannot_be_met_is_told(cluster):
    with pytest.raises(DiffscaleError, match="and a worker asks for 64 and 0: ask for less"):
        RayTransport(RaySettings(gpus=0, cpus=64))
    with pytest.raises(DiffscaleError, match="each of 3 workers asks for 1 and 0: ask for less"):
        RayTransport(RaySettings(gpus=0), verifiers=2)
    transport = RayTransport(SETTINGS)
    with pytest.raises(DiffscaleError, match="cannot be sent to other processes"):
        transport.prepare(ToyRecipe(NearPoint(), chooser=threading.Lock()))
    transport.close()


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DiffscaleError, match=r'pip install "diffscale\[ray\]"'), warnings.catch_warnings():
        RayTransport(SETTINGS)
