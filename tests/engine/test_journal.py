"""The journal: torn records are mended, other runs refused, and nothing is ever overwritten."""

import sqlite3

import pytest
import torch

from diffscale._util.errors import DiffscaleError
from diffscale.engine.journal import Journal, Reply

SETTINGS = {"search": "random", "seed": 0}


def reply(low=0, high=2):
    return Reply(
        low, high, {"scores": torch.arange(low, high).double()}, {"network_forwards": 4, "seconds.denoise": 0.5}
    )


def written(path, requests=3):
    journal = Journal(path, SETTINGS)
    for request in range(requests):
        journal.write("0", request, "Score", reply())
    journal.close()


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, SETTINGS)
    assert journal.chunk("0", 8) == 8
    journal.write("0", 1, "Score", reply(2, 5))
    journal.write("0", 1, "Score", reply(0, 2))
    journal.keep("0", 3, {"image": torch.ones(3, 2, 2, dtype=torch.uint8)})
    journal.close()
    journal = Journal(path, SETTINGS)
    assert journal.chunk("0", 64) == 8  # what the search began with
    first, second = journal.replies("0", 1)
    assert (first.start, first.stop, second.start, second.stop) == (0, 2, 2, 5)
    assert torch.equal(second.tensors["scores"], torch.tensor([2.0, 3, 4]).double())
    assert second.costs == {"network_forwards": 4, "seconds.denoise": 0.5}
    assert journal.replies("0", 0) == []
    assert torch.equal(journal.kept("0", 3)["image"], torch.ones(3, 2, 2, dtype=torch.uint8))
    assert journal.kept("0", 4) is None


def test_another_run_is_refused_and_says_what_differs(tmp_path):
    path = tmp_path / "journal.sqlite"
    written(path)
    with pytest.raises(DiffscaleError, match=r"another run \(seed was 0, now 1\)"):
        Journal(path, SETTINGS | {"seed": 1})
    assert len(Journal(path, SETTINGS).replies("0", 2)) == 1


def test_a_torn_record_and_what_followed_it_is_computed_again(tmp_path):
    path = tmp_path / "journal.sqlite"
    written(path, 4)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE replies SET tensors = substr(tensors, 1, 20) WHERE request = 2")
    with pytest.warns(UserWarning, match="damaged at request 2 of search 0"):
        journal = Journal(path, SETTINGS)
        assert [len(journal.replies("0", request)) for request in range(4)] == [1, 1, 0, 0]
    journal.write("0", 2, "Score", reply())
    journal.close()
    assert len(Journal(path, SETTINGS).replies("0", 2)) == 1


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be looked at" * 40, None])
def test_a_file_that_is_no_journal_is_an_error(tmp_path, content):
    path = tmp_path / "journal.sqlite"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DiffscaleError, match="cannot be read"):
        Journal(path, SETTINGS)


def test_a_full_disk_is_told_and_keeps_what_was_written(tmp_path):
    path = tmp_path / "journal.sqlite"
    written(path, 1)
    journal = Journal(path, SETTINGS)
    pages = journal._store._db.execute("PRAGMA page_count").fetchone()[0]
    journal._store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiffscaleError, match="make room"):
        for request in range(1, 100):
            journal.write("0", request, "Score", Reply(0, 1, {"scores": torch.zeros(2000)}, {}))
    journal.close()
    assert len(Journal(path, SETTINGS).replies("0", 0)) == 1
