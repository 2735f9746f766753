"""Every byte of a journal may be damaged: what is read is what was written, or is computed again, or one sentence."""

import random
import sqlite3
import warnings
from contextlib import suppress

import pytest
import torch

from diffscale._util.errors import DiffscaleError
from diffscale._util.store import SqliteStore
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal, Reply, recorded_settings
from diffscale.samplers.toy import ToySampler
from diffscale.testing import NearPoint, assert_same, tasks

SETTINGS = {"search": "random", "seed": 0}
NUMBERS = torch.tensor([1.25, -7.5, 3.0]).double()


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """A small journal in one file, without a log beside it."""
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    made = Journal(path, SETTINGS)
    made.chunk("0", 8)
    for request in range(2):
        made.write("0", request, "Score", Reply(0, 3, {"scores": NUMBERS + request}, {"network_forwards": 4.0}))
    made.keep("0", 3, {"image": torch.arange(12, dtype=torch.uint8).view(3, 2, 2)})
    made.compare("0", (1, 3), 0.75, {"comparisons": 1.0})
    made.close()
    return path


def read_all(path):
    """All that a run reads of the journal; asserts that it is what was written, where there is any."""
    journal = Journal(path, SETTINGS)
    try:
        chunk = journal.chunk("0", 64)
        replies = [journal.replies("0", request) for request in range(3)]
        kept = journal.kept("0", 3)
        compared = journal.compared("0")
    finally:
        journal.close()
    assert chunk == 8 or (chunk == 64 and replies == [[], [], []])  # a search that begins anew has its own chunk
    for request, found in enumerate(replies):
        assert len(found) <= 1 and not (found and request == 2)
        for reply in found:
            assert (reply.start, reply.stop, reply.costs) == (0, 3, {"network_forwards": 4.0})
            assert torch.equal(reply.tensors["scores"], NUMBERS + request)
    assert compared in ({(1, 3): (0.75, {"comparisons": 1.0})}, {})
    assert kept is None or torch.equal(kept["image"].flatten(), torch.arange(12, dtype=torch.uint8))
    return replies, kept, compared


def columns():
    tables = {"searches": ["search", "chunk", "crc"], "pictures": ["search", "number", "tensors", "crc"],
              "comparisons": ["search", "first", "second", "probability", "costs", "crc"],
              "replies": ["search", "request", "kind", "start", "stop", "costs", "tensors", "crc"]}  # fmt: skip
    return [(table, column) for table, names in tables.items() for column in names]


def variants(value):
    """The value with any of its bytes changed, and as other types."""
    if isinstance(value, float):
        yield from (0.25, value + 1e-12, 1, None, "x", b"\x00")
        return
    if isinstance(value, int):
        yield from [value ^ (1 << bit) for bit in (0, 1, 3, 20, 40)]
        yield from (None, "x", b"\x00", 1.5, -1)
        return
    data = value.encode() if isinstance(value, str) else value
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :]
        yield changed if isinstance(value, bytes) else changed.decode(errors="replace")
    yield from (data[: len(data) // 2], b"", None, 3, "\udcff".encode(errors="surrogatepass"))


@pytest.mark.parametrize(("table", "column"), columns())
def test_every_byte_of_every_column_is_guarded(journal, tmp_path, table, column):
    copy = tmp_path / "journal.sqlite"
    read = 0
    with sqlite3.connect(journal) as db:
        (value,) = db.execute(f"SELECT {column} FROM {table}").fetchone()
    for changed in variants(value):
        for file in tmp_path.iterdir():
            file.unlink()
        copy.write_bytes(journal.read_bytes())
        db = sqlite3.connect(copy)
        db.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE rowid = 1", (changed,))
        db.commit()
        db.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            replies, kept, compared = read_all(copy)
        read += 1
        if table == "replies":
            assert not replies[0] and kept is not None, (column, changed)
        if table == "pictures":
            assert kept is None and len(replies[1]) == 1
        assert (not compared) == (table == "comparisons") or table == "searches", (column, changed)
    assert read >= 6


def test_a_flipped_bit_anywhere_in_the_file_is_found(journal, tmp_path):
    """200 bytes by chance and all around the rows: their contents, SQLite's own records of them, and its pages."""
    whole = journal.read_bytes()
    at = whole.index(b"Score")
    chosen = {*random.Random(0).sample(range(len(whole)), 200), *range(at - 30, at + 170)}
    seen = {"whole": 0, "less": 0, "told": 0}
    for place in sorted(chosen):
        for file in tmp_path.iterdir():
            file.unlink()
        copy = tmp_path / "journal.sqlite"
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 0x04]) + whole[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                replies, kept, _ = read_all(copy)
                seen["whole" if kept is not None and replies[0] and replies[1] else "less"] += 1
            except DiffscaleError as error:
                assert "journal" in str(error) and "Traceback" not in str(error)
                seen["told"] += 1
            with suppress(DiffscaleError):
                recorded_settings(copy)
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize(("code", "said"), [(13, "make room"), (10, "make room"), (11, "move it"), (26, "move it")])
@pytest.mark.parametrize("writes", [True, False])
def test_a_full_disk_and_a_damaged_file_are_told_apart(tmp_path, code, said, writes):
    store = SqliteStore(tmp_path / "x", "", name="The store", unreadable="move it", unwritable="make room")

    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def execute(self, *arguments):
            error = sqlite3.OperationalError("what SQLite says")
            error.sqlite_errorcode = code | 0x100
            raise error

        executemany = execute

    store.close()
    store._db = Failing()
    with pytest.raises(DiffscaleError, match=rf"what SQLite says\): {said}"):
        store.write("", []) if writes else store.read("")


def test_a_search_whose_picture_is_lost_is_computed_anew_the_next_time(tmp_path):
    def run():
        journal = Journal(tmp_path / "journal.sqlite", {})
        sampler = ToySampler(steps=4)
        try:
            return run_searches(tasks("zero_order", 40, 1), sampler, NearPoint(), journal=journal)[0], sampler.forwards
        finally:
            journal.close()

    first, forwards = run()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("UPDATE pictures SET tensors = x'00'")
    with pytest.raises(DiffscaleError, match=r"lost picture .* run the same command again"):
        run()
    again, as_many = run()
    assert_same(first, again)
    assert as_many == forwards > 0
