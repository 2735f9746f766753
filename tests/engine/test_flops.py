"""Operations are counted by what runs in the block, in the thread that counts, compiled or not."""

import threading

import torch

from diffscale.engine.flops import count_flops, uncounted

ONE = 2 * 4 * 8 * 8  # a layer of 8x8 for 4 rows


def layer():
    return torch.nn.Linear(8, 8)(torch.randn(4, 8))


def test_blocks_within_blocks_and_what_is_not_to_be_counted():
    with count_flops() as outer:
        layer()
        with count_flops() as inner:
            layer()
        with uncounted():
            layer()
    assert (inner.total, outer.total) == (ONE, 2 * ONE)


def test_each_thread_counts_its_own():
    together, found = threading.Barrier(3), {}

    def work(name):
        with count_flops() as flops:
            for _ in range(5):
                together.wait()
                layer()
                with uncounted():
                    layer()
                together.wait()
        found[name] = flops.total

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for _ in range(5):
        together.wait()
        layer()  # which nobody counts
        together.wait()
    for thread in threads:
        thread.join()
    assert found == {"a": 5 * ONE, "b": 5 * ONE}


def test_compiled_code_runs_compiled_after_the_last_of_several_threads_has_counted(monkeypatch):
    stances = []

    class Stance:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            stances.append(self.name)

        def __exit__(self, *_):
            stances.append("default")

    monkeypatch.setattr(torch.compiler, "set_stance", Stance)
    inside, leave = threading.Event(), threading.Event()

    def work():
        with count_flops():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=work)
    with count_flops():
        thread.start()
        inside.wait()
    assert stances == ["force_eager"]
    leave.set()
    thread.join()
    assert stances == ["force_eager", "default"]
