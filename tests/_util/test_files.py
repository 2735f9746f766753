"""Files are written whole or not at all."""

import json
import multiprocessing

import pytest

from diffscale._util.files import replacing, write_json, write_text


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path, kind):
    path = tmp_path / "below" / "result.json"
    inner = (lambda place: place) if kind == "file" else (lambda place: place / "inner.txt")

    def write(text, fail=False):
        with replacing(path) as fresh:
            if kind == "folder":
                fresh.mkdir()
            inner(fresh).write_text(text)
            assert not path.exists() or inner(path).read_text() == "one"
            if fail:
                raise OSError(28, "No space left on device")

    write("one")
    with pytest.raises(OSError, match="No space left"):
        write("two", fail=True)
    assert inner(path).read_text() == "one"
    write("three")
    assert inner(path).read_text() == "three"
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]  # nothing is left beside it


def test_the_suffix_stays_for_writers_that_go_by_it(tmp_path):
    with replacing(tmp_path / "a.b.png") as fresh:
        assert fresh.suffix == ".png" and fresh.parent == tmp_path
        fresh.touch()


def test_json_is_utf_8_with_a_newline_at_its_end(tmp_path):
    write_json(tmp_path / "x.json", {"a": "ü"})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": "ü"} and "ü" in text and text.endswith("}\n")


def _write_often(path):
    for _ in range(30):
        write_text(path, "x" * 100_000)


def test_two_processes_may_write_the_same_file(tmp_path):
    path = tmp_path / "x"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_write_often, args=(path,)) for _ in range(2)]
    for process in both:
        process.start()
    while any(process.is_alive() for process in both):
        assert not path.exists() or path.read_text() == "x" * 100_000
    assert [process.join() or process.exitcode for process in both] == [0, 0]
