"""Folders that take nothing, full disks, long names and two runs at once: one sentence, and nothing paid is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import check_writable, locked
from diffscale.bench import report
from diffscale.bench import run as bench
from diffscale.bench.config import BenchConfig
from diffscale.bench.run import cells, read_samples
from diffscale.bench.series import safe_name
from diffscale.cli.main import run as command

PROMPTS = ["a red circle", "a blue star"]
SMALL = ["--steps", "2", "--budget", "2", "--dtype", "float32"]
COMMANDS = {
    "bench": ["bench", "shapes-mini", "--limit", "1", *SMALL, "--output"],
    "generate": ["generate", "a red circle", *SMALL, "--output"],
}


def nothing(images: Any, prompts: list[str]) -> Any:
    """A verifier that can score no picture."""
    return images.new_full((len(prompts),), float("nan"))


def light(images: Any, prompts: list[str]) -> Any:
    return images.mean((1, 2, 3))


def _cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["diffscale", *arguments])
    try:
        command()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["file", "in a file", "too long", "deep and too long", "no folder", "read-only"])
def test_a_folder_that_takes_nothing_is_told_before_anything_is_computed(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "there").mkdir()
    place = {
        "file": tmp_path / "file", "in a file": tmp_path / "file" / "below", "too long": tmp_path / ("x" * 300),
        "deep and too long": tmp_path / "/".join(["x" * 200] * 30), "no folder": Path("/proc/nowhere"),
        "read-only": tmp_path / "there",
    }[kind]  # fmt: skip
    if kind == "read-only":  # which the superuser would not see
        for module, call in ((os, "open"), (os, "mkdir")):
            whole = getattr(module, call)

            def refuse(path: Any, *more: Any, whole: Any = whole, **named: Any) -> Any:
                if str(path).startswith(str(place)):
                    raise OSError(errno.EROFS, "Read-only file system")
                return whole(path, *more, **named)

            monkeypatch.setattr(module, call, refuse)
        monkeypatch.setattr(Path, "write_text", lambda *_, **__: refuse(place))
    monkeypatch.setattr("diffscale.engine.driver.run_searches", None)
    assert _cli(monkeypatch, *COMMANDS[name], str(place)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said and "choose another" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("at", ["picture", "line", "numbers"])
def test_a_full_disk_loses_nothing(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BenchConfig(steps=2, device="cpu", dtype="float32", budget=[2], verifier=[f"{__name__}:light"])
    full = OSError(errno.ENOSPC, "No space left on device")
    opened = Path.open

    def torn(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = opened(path, mode, *more, **named)
        if path.name == "samples.jsonl" and mode == "a":
            file.write('{"name": "torn')
            file.close()
            raise full
        return file

    def fail(*_: Any) -> None:
        raise full

    with (
        monkeypatch.context() as patched,
        pytest.raises(DiffscaleError, match=r"cannot be written .*No space.*room"),
    ):
        if at == "picture":
            patched.setattr(bench, "to_pil", fail)
        elif at == "line":
            patched.setattr(Path, "open", torn)
        else:
            patched.setattr(report, "write_json", fail)
        samples = bench.run(settings, PROMPTS, tmp_path)
        report.write(settings, cells(settings), samples, tmp_path)
    samples = bench.run(settings, PROMPTS, tmp_path)
    assert len(samples) == len(read_samples(tmp_path / "samples.jsonl")) == 2
    assert report.write(settings, cells(settings), samples, tmp_path)[0]["failed"] == 0


def test_names_of_any_length_are_names_of_files(tmp_path: Path) -> None:
    texts = [f"svdd rate=0.{'1' * n}" for n in (10, 150, 151, 155, 160, 300, 5000)] + [
        "é" * 100,
        "日" * 200,
        "日" * 201,
    ]
    texts += ["𝒳" * 300, "/" * 300, "\ud800" * 300, "a" * 299 + "b", "a" * 299 + "c"]
    names = [safe_name(text) for text in texts]
    for name in names:
        (tmp_path / f"scaling-{name}-0000.png").touch()
    assert len(set(names)) == len(texts) == len(list(tmp_path.iterdir()))
    assert safe_name("random n=2 | clip | 8") == "random_n=2--clip--8"


def test_a_search_with_a_long_text_ends_with_its_pictures_and_plots(tmp_path: Path) -> None:
    given = {"search": [f"random n={'0' * 300}1"], "verifier": [f"{__name__}:light"]}
    settings = BenchConfig(steps=2, device="cpu", dtype="float32", budget=[2], **given)
    samples = bench.run(settings, PROMPTS[:1], tmp_path)
    report.write(settings, cells(settings), samples, tmp_path)
    assert (tmp_path / samples[0]["image"]).exists() and list(tmp_path.glob("scaling-*.png"))


def test_a_bench_of_which_all_searches_failed_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verifiers = ["--verifier", f"{__name__}:nothing"]
    assert _cli(monkeypatch, *COMMANDS["bench"], str(tmp_path / "a"), *verifiers) == 2
    assert "All searches failed" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))["cells"][0]["failed"] == 1
    verifiers += ["--verifier", f"{__name__}:light"]
    assert _cli(monkeypatch, *COMMANDS["bench"], str(tmp_path / "a"), *verifiers) == 0


def test_two_at_once_on_one_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = "import sys, pathlib; from diffscale._util.files import locked\n"
    hold += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    for name in COMMANDS:
        folder = tmp_path / name
        holder = subprocess.Popen(
            [sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            if name == "generate":  # what a run of it begins with
                (folder / "config.yaml").write_text("prompt: a red circle\n")
            assert _cli(monkeypatch, *COMMANDS[name], str(folder)) == 2
            assert "Another run is writing to" in " ".join(capsys.readouterr().err.split())
            assert not (folder / "samples.jsonl").exists() and not (folder / "result.json").exists()
        finally:
            holder.kill()  # a killed process holds nothing
            holder.wait()
        with locked(folder), pytest.raises(DiffscaleError, match="Another run"), locked(folder):
            pass


def test_lines_that_are_no_samples_are_told_with_their_number(tmp_path: Path) -> None:
    whole = {"name": "a", "search": "random", "verifier": "clip", "budget": 2, "prompt": "p", "repeat": 0, "error": "x"}
    file = tmp_path / "samples.jsonl"
    for name in whole.keys() - {"error"}:
        rest = {key: value for key, value in whole.items() if key != name}
        file.write_text(json.dumps(whole) + "\n" + json.dumps(rest) + "\n", encoding="utf-8")
        with pytest.raises(DiffscaleError, match=rf"Sample 2 of .* has no {name}: remove its line"):
            read_samples(file)
    file.write_text(json.dumps(whole) + '\n{"name": "b"}\n', encoding="utf-8")
    with pytest.raises(DiffscaleError, match="Sample 2"):
        read_samples(file)


def test_where_evaluate_writes_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "below", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DiffscaleError, match="choose another place"):
            check_writable(place)
    check_writable(tmp_path / "new" / "results.json")
    check_writable(tmp_path / "file")
    assert not list((tmp_path / "new").iterdir())
