"""Micro-batches find their size."""

import pytest

from diffscale.engine import batching
from diffscale.engine.batching import MicroBatch


class Clock:
    """Time that passes only as work is done, at `pace(rows)` of work a second."""

    def __init__(self, pace):
        self.now, self.pace = 0.0, pace

    def perf_counter(self):
        return self.now

    def run(self, batch, rows, each):
        sizes = []
        while rows:
            sizes.append(min(batch.size, rows))
            rows -= sizes[-1]
            batch.succeeded(sizes[-1], sizes[-1] * each, sizes[-1] * each / self.pace(sizes[-1]))
        return sizes

    def map(self, batch, rows):
        def work(part):
            size = part.stop - part.start
            self.now += size / self.pace(size)
            return size

        return [size for _, size in batch.map(work, rows)]


@pytest.fixture
def clock(monkeypatch):
    def start(pace):
        clock = Clock(pace)
        monkeypatch.setattr(batching, "time", clock)
        return clock

    return start


def test_grows_while_it_pays(clock):
    saturating = clock(lambda rows: min(rows, 32))
    # 64 rows were no faster than 32, so it stays there.
    assert saturating.run(MicroBatch(), 400, 1) == [8, 16, 32, 64, 64, 64, 64, 64, 24]
    assert saturating.map(MicroBatch(), 400) == [8, 16, 32, 64, 64, 64, 64, 64, 24]
    assert clock(lambda rows: 1.0).run(MicroBatch(), 48, 1) == [8, 16, 16, 8]
    assert clock(lambda rows: rows).run(MicroBatch(3), 8, 1) == [3, 3, 2]


@pytest.mark.parametrize("rows_each", [[(8, 1), (16, 20), (32, 1)], [(8, 20), (16, 1), (32, 0), (32, 20)]])
def test_growth_compares_work_not_rows(clock, rows_each):
    batch, steady = MicroBatch(), clock(lambda rows: rows)
    for rows, each in rows_each:
        assert steady.run(batch, rows, each) == [rows]
    assert batch.size == 64
