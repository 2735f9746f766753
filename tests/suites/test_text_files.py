"""Text files are UTF-8, with or without a byte order mark, and a newline alone ends a line: for all who read them."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffscale._util import config
from diffscale._util.files import read_config, read_lines
from diffscale.bench.run import read_samples
from diffscale.suites import prompts
from diffscale.suites.pictures import Pictures
from diffscale.train.data import journeydb, sources
from diffscale.train.run_directory import read_log

BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines breaks a line, besides \r and \n
ODD = [f"one{BREAKS}and two", "日本語 é 🙂", 'with "quotes", commas', "plain"]
ROOT = Path(__file__).parents[2]


def _csv(names: list[str], rows: list[list[str]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([names, *rows])
    return file.getvalue()


@pytest.fixture(params=["", "\ufeff"], ids=["plain", "bom"])
def write(request: pytest.FixtureRequest, tmp_path: Path):
    """Writes a text with \\n or \\r\\n at the ends of its lines, and perhaps a byte order mark."""

    def make(name: str, text: str, ends: str = "\n") -> Path:
        (tmp_path / name).write_bytes((request.param + text.replace("\n", ends)).encode())
        return tmp_path / name

    return make


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_prompts_of_every_kind_of_file(write, ends: str) -> None:
    written = {
        "p.txt": "".join(f"{each}\n" for each in ODD),
        "p.jsonl": "".join(json.dumps({"prompt": each}, ensure_ascii=False) + "\n" for each in ODD),
        "p.json": json.dumps(ODD, ensure_ascii=False, indent=1),
        "q.json": json.dumps([{"caption": each} for each in ODD], ensure_ascii=False),
        "p.csv": _csv(["prompt"], [[each] for each in ODD]).replace("\r\n", "\n"),
        "p.tsv": _csv(["text"], [[each] for each in ODD], "\t").replace("\r\n", "\n"),
    }
    for name, text in written.items():
        assert prompts.load(str(write(name, text, ends))) == ODD, name
    file = str(write("held.txt", written["p.txt"], ends))
    assert set(sources.evaluation_prompts([file]).values()) >= {file}
    assert not sources.without_evaluation_prompts(sources.Dataset("x", [*ODD, "another"]), [file]).prompts[1:]
    assert read_lines(file, "names") == ODD


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_and_pairs(write, tmp_path: Path, kind: str) -> None:
    names = [f"{number}.png" for number in range(len(ODD))]
    for name in names:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)

    def metadata(columns: list[str], rows: list[list[str]]) -> None:
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
        write(f"metadata.{kind}", "".join(lines) if kind == "jsonl" else _csv(columns, rows))

    metadata(["file_name", "text"], [list(row) for row in zip(names, ODD, strict=True)])
    assert list(Pictures.open(tmp_path).prompts) == ODD
    assert sources.load(str(tmp_path)).prompts == ODD
    label = [1, 0, 1, 0] if kind == "jsonl" else ["1", "0", "1.0", "0"]
    metadata(["jpg_0", "jpg_1", "label_0", "caption"],
             [[name, "0.png", of, each] for name, of, each in zip(names, label, ODD, strict=True)])  # fmt: skip
    assert sources.load(str(tmp_path), "pairs").prompts == ODD


def test_journeydb_logs_samples_and_settings(write, tmp_path: Path) -> None:
    (tmp_path / "imgs" / "000").mkdir(parents=True)
    (tmp_path / "imgs" / "000" / "a.jpg").write_bytes(b"")
    line = {"img_path": "./000/a.jpg", "prompt": ODD[0]}
    write(journeydb.ANNOTATIONS, json.dumps(line, ensure_ascii=False) + "\n")
    assert journeydb.load(tmp_path).prompts == [ODD[0]]
    text = json.dumps({"step": 1, "note": ODD[0]}, ensure_ascii=False) + "\n"
    assert read_log(write("log.jsonl", text * 2)) == [{"step": 1, "note": ODD[0]}] * 2
    sample = {"name": "a", "search": "random", "verifier": "clip", "budget": 1, "prompt": ODD[0], "repeat": 0,
              "error": "x"}  # fmt: skip
    text = json.dumps(sample, ensure_ascii=False) + "\n"
    assert read_samples(write("samples.jsonl", text)) == [sample]
    assert read_config(write("c.json", json.dumps({"a": ODD[0]}, ensure_ascii=False))) == {"a": ODD[0]}
    assert config.read(write("c.yaml", yaml.safe_dump({"prompt": ODD[1]}, allow_unicode=True))) == {"prompt": ODD[1]}


def test_a_category_may_be_the_number_0(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "category": 0}, {"prompt": "b", "tag": 0.0}, {"prompt": "c", "category": "", "tag": False},
            {"prompt": "d", "category": None, "challenge": " "}]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert prompts.categories(str(tmp_path / "p.jsonl")) == {"a": "0", "b": "0.0", "c": "False"}


# Who reads and writes text by other means than these: the first is where they are, the last is no text of UTF-8.
_TEXT = {"read_text", "write_text", "open", "fdopen", "NamedTemporaryFile", "TemporaryFile"}
_BINARY = ("rb", "wb", "ab", "xb", "r+b", "w+b")


def test_every_text_file_is_opened_with_its_encoding() -> None:
    unnamed, own = [], []
    for path in (path for home in ("src", "packages", "examples") for path in (ROOT / home).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            modes = [ast.literal_eval(arg) for arg in node.args if isinstance(arg, ast.Constant)]
            ours = name == "write_text" and not owner  # `_util.files.write_text`
            others = owner in ("os", "tarfile", "Image", "Pictures", "Sets") or (name == "read_text" and not owner)
            if name not in _TEXT or ours or others or any(mode in _BINARY for mode in modes):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if not any(keyword.arg == "encoding" for keyword in node.keywords):
                unnamed.append(where)
            if name == "read_text" and path.name != "files.py":
                own.append(where)
    assert not unnamed and not own  # who reads uses `_util.files.read_text`
