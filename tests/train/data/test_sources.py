"""Sources in the layouts that are published; evaluation prompts never come through."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pytest
from diffscale_shapes.captions import write_caption
from diffscale_shapes.prompts import suite
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import PROMPTS, captioned, encoded, lines, picture, same

from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.train.data import journeydb
from diffscale.train.data.dataset import Dataset
from diffscale.train.data.hub import HubOptions
from diffscale.train.data.sources import load, meaning, without_evaluation_prompts


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts tables in the place of the Hub's."""
    tables: dict[str, datasets.Dataset] = {}
    asked: list[Any] = []

    def load_dataset(name: str, *args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((name, args, kwargs))
        if name not in tables:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return tables[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tables["asked"] = asked  # type: ignore[assignment]
    return tables


def _table(**columns: Any) -> datasets.Dataset:
    table = datasets.Dataset.from_dict(columns)
    for name in ("image", "jpg"):
        if name in columns:
            table = table.cast_column(name, datasets.Image())
    return table


def test_a_folder_with_captions(tmp_path: Path) -> None:
    found = load(str(captioned(tmp_path)))
    assert list(found.prompts) == PROMPTS and found.pictures == 1 and found.notes == ()
    assert all(same(found, row, row) for row in range(4))
    (tmp_path / "more.png").write_bytes(encoded(9))
    with pytest.raises(DiffscaleError, match="have no prompt, which training needs"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("reach-vb/pokemon-blip-captions", {"image": 1, "text": PROMPTS}),
        ("svjack/pokemon-blip-captions-en-zh", {"image": 1, "en_text": PROMPTS, "zh_text": ["x"] * 4}),
        ("jackyhate/text-to-image-2M", {"jpg": 1, "json": [{"prompt": p} for p in PROMPTS], "__key__": ["0"] * 4}),
        ("someone/flickr", {"image": 1, "caption": [[p, "another"] for p in PROMPTS]}),
    ],
)
def test_published_columns_are_found(hub: Any, name: str, columns: dict[str, Any]) -> None:
    pictures = [picture(i) for i in range(4)]
    hub[name] = _table(**{key: pictures if value == 1 else value for key, value in columns.items()})
    found = load(name)
    assert list(found.prompts) == PROMPTS and all(same(found, row, row) for row in range(4))
    prompts = load(name, "prompts")
    assert list(prompts.prompts) == PROMPTS and prompts.pictures == 0


def test_columns_are_given_or_told(hub: Any) -> None:
    hub["a/b"] = _table(image=[picture(0), picture(1), picture(2)], zh_text=["eins", None, "drei"])
    with pytest.raises(DiffscaleError, match="No caption column is known in a/b: name it, out of image, zh_text"):
        load("a/b")
    with pytest.raises(DiffscaleError, match="no column 'en': choose one of image, zh_text"):
        load("a/b", options=HubOptions(caption_column="en"))
    options = HubOptions(caption_column="zh_text", split="validation", config_name="c", data_files=("x/0.tar",))
    found = load("a/b", options=options)
    assert list(found.prompts) == ["eins", "drei"] and same(found, 1, 2)
    assert "1 of 3 rows of a/b have no caption" in found.notes[0]
    _, args, kwargs = hub["asked"][-1]
    assert args == ("c",) and kwargs["split"] == "validation" and kwargs["data_files"] == {"validation": ["x/0.tar"]}
    with pytest.raises(DiffscaleError, match=r"'no/such' could not be loaded: check its id.*doesn't exist"):
        load("no/such")


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffscale.train.data.hub.importlib.util.find_spec", lambda _: None)
    with pytest.raises(DiffscaleError, match=r'a/b needs the library datasets.*pip install "diffscale\[train\]"'):
        load("a/b")


def test_a_folder_of_parquet_files_loads_through_the_library(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = _table(image=[picture(i) for i in range(4)], text=PROMPTS)
    table.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    found = load(str(tmp_path), options=HubOptions(cache_dir=str(tmp_path / "cache")))
    assert list(found.prompts) == PROMPTS and same(found, 3, 3)


def test_webdataset_shards_load_through_the_library(tmp_path: Path) -> None:
    """As text-to-image-2M: `KEY.jpg` and `KEY.json`, whose `prompt` is the caption."""
    with tarfile.open(tmp_path / "data_000000.tar", "w") as tar:
        for i, prompt in enumerate(PROMPTS):
            for name, data in (
                (f"{i:04d}.jpg", encoded(i)),
                (f"{i:04d}.json", json.dumps({"prompt": prompt}).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    found = load(str(tmp_path), options=HubOptions(cache_dir=str(tmp_path / "cache")))
    assert list(found.prompts) == PROMPTS and all(same(found, row, row) for row in range(4))


def test_a_caption_in_broken_json_is_none(hub: Any) -> None:
    hub["a/json"] = _table(json=['{"prompt": "a tree"}', '{"prompt": "a h'])
    found = load("a/json", "prompts")
    assert list(found.prompts) == ["a tree"] and "1 of 2 rows" in found.notes[0]


PAIRS = {
    "jpg_0": [encoded(i) for i in (0, 2, 4, 6)],
    "jpg_1": [encoded(i) for i in (1, 3, 5, 7)],
    "label_0": [1.0, 0.0, 0.5, 0.0],
    "label_1": [0.0, 1.0, 0.5, 1.0],
    "caption": PROMPTS,
}


def _check_pairs(found: Dataset) -> None:
    """The chosen picture is first, and the tie is gone."""
    assert list(found.prompts) == [PROMPTS[0], PROMPTS[1], PROMPTS[3]] and found.pictures == 2
    for row, (won, lost) in enumerate([(0, 1), (3, 2), (7, 6)]):
        assert same(found, row, won, 0) and same(found, row, lost, 1)
    assert "1 of 4 pairs" in found.notes[0] and "ties" in found.notes[0]


def test_pairs_of_the_hub_and_of_parquet(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub["yuvalkirstain/pickapic_v2"] = _table(**PAIRS)
    _check_pairs(load("yuvalkirstain/pickapic_v2", "pairs"))
    hub["a/captions"] = _table(caption=PROMPTS)
    with pytest.raises(DiffscaleError, match="not in the layout of Pick-a-Pic: it lacks jpg_0, jpg_1, label_0"):
        load("a/captions", "pairs")
    monkeypatch.undo()
    hub["yuvalkirstain/pickapic_v2"].to_parquet(tmp_path / "data" / "train.parquet")
    _check_pairs(load(str(tmp_path / "data"), "pairs", HubOptions(cache_dir=str(tmp_path / "cache"))))


@pytest.mark.parametrize("suffix", ["", "_file_name"])
def test_pairs_of_a_folder(tmp_path: Path, suffix: str) -> None:
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [
        {f"jpg_0{suffix}": f"{2 * i}.png", f"jpg_1{suffix}": f"{2 * i + 1}.png", "label_0": label, "caption": prompt}
        for i, (label, prompt) in enumerate(zip(PAIRS["label_0"], PROMPTS, strict=True))
    ]
    lines(tmp_path / "metadata.jsonl", *rows)
    _check_pairs(load(str(tmp_path), "pairs"))
    assert list(load(str(tmp_path), "prompts").prompts) == [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    with pytest.raises(DiffscaleError, match="holds preference pairs, but captioned pictures"):
        load(str(tmp_path))
    lines(tmp_path / "metadata.jsonl", rows[0], {**rows[1], "label_0": None})
    with pytest.raises(DiffscaleError, match=r"Line 2 of .* must have"):
        load(str(tmp_path), "pairs")
    lines(tmp_path / "metadata.jsonl", rows[2], {**rows[0], "label_0": [1]})
    with pytest.raises(DiffscaleError, match="no preference pairs with a choice"):
        load(str(tmp_path), "pairs")


def _tgz(file: Path, **members: bytes) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def test_journeydb_is_fetched_archive_by_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"img_path": f"./{part}/{i}.jpg", "prompt": PROMPTS[i], "Task2": {"Caption": f"caption {i}"}}
        for part, i in (("000", 0), ("000", 1), ("001", 2))
    ]
    annotations = lines(tmp_path / "lines.jsonl", *rows).read_bytes()
    files = {
        f"data/train/{journeydb.ANNOTATIONS}.tgz": _tgz(tmp_path / "a.tgz", **{journeydb.ANNOTATIONS: annotations}),
        "data/train/imgs/000.tgz": _tgz(tmp_path / "0.tgz", **{"000/0.jpg": encoded(0), "000/1.jpg": encoded(1)}),
    }
    asked: list[str] = []

    def download(name: str, file: str, repo_type: str) -> str:
        asked.append(file)
        if file not in files:
            raise OSError("gated")
        return str(files[file])

    monkeypatch.setattr(journeydb, "hf_hub_download", download)
    options = HubOptions(cache_dir=str(tmp_path / "here"), data_files=("data/train/imgs/000.tgz",))
    found = load("JourneyDB/JourneyDB", options=options)
    assert list(found.prompts) == PROMPTS[:2] and same(found, 1, 1)
    assert len(asked) == 2
    again = load(str(tmp_path / "here"), options=HubOptions(caption_column="Task2.Caption"))
    assert list(again.prompts) == ["caption 0", "caption 1"] and len(asked) == 2
    with pytest.raises(DiffscaleError, match=r"001\.tgz of JourneyDB/JourneyDB could not be had: accept its terms"):
        load("JourneyDB/JourneyDB", options=HubOptions(cache_dir=str(tmp_path / "here")))
    assert not [*(tmp_path / "here").rglob(".*")]


def test_no_archive_writes_outside_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = _tgz(tmp_path / "bad.tgz", **{"../outside.txt": b"stolen"})
    monkeypatch.setattr(journeydb, "hf_hub_download", lambda *_, **__: str(packed))
    with pytest.raises(DiffscaleError, match=r"names '\.\./outside\.txt', which is not in"):
        load("JourneyDB/JourneyDB", options=HubOptions(cache_dir=str(tmp_path / "here")))
    assert not [*tmp_path.rglob("outside.txt")]


def test_prompts_of_files_and_what_is_none(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, PROMPTS[0]]))
    found = load(str(file), "prompts")
    assert list(found.prompts) == PROMPTS
    with pytest.raises(DiffscaleError, match=r"is a file of prompts, but pictures are needed"):
        load(str(file))
    with pytest.raises(DiffscaleError, match="suite to measure on and is never trained on"):
        load("shapes", "prompts")
    for nothing in ("nowhere", "./no/where", "a/b/c"):
        with pytest.raises(DiffscaleError, match="There is no"):
            load(nothing)


def test_a_limit_draws_rows_by_the_seed(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"prompt number {i}" for i in range(50)))
    drawn = [list(load(str(file), "prompts", limit=8, seed=seed).prompts) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 8
    assert drawn[0] != [f"prompt number {i}" for i in range(8)]
    with pytest.raises(DiffscaleError, match="At least one row"):
        load(str(file), "prompts", limit=0)


def test_evaluation_prompts_are_dropped_whatever_their_words(tmp_path: Path) -> None:
    prompt = next(p for p in suite("shapes") if p.description.category == "spatial")
    words = next(
        said for said in (write_caption(prompt.description, Random(i)) for i in range(99)) if said != prompt.text
    )
    mine = tmp_path / "mine.txt"
    mine.write_text("A bear, on a skateboard!\n")
    texts = [PROMPTS[0], words.capitalize() + ".", "a bear on a  skateboard", "a red circle", PROMPTS[1]]
    folder = captioned(tmp_path / "data", texts)
    found = load(str(folder), held_out=[str(mine)])
    assert list(found.prompts) == [PROMPTS[0], PROMPTS[1]]
    assert same(found, 0, 0) and same(found, 1, 4)
    assert found.leaked.count == 3
    assert found.leaked.suites == {"shapes": 1, str(mine): 1, "shapes-classes": 1}
    assert found.leaked.first == (texts[1], texts[2], texts[3])
    assert "3 of 5 rows" in found.notes[0] and repr(texts[1]) in found.notes[0] and "..." not in found.notes[0]
    assert len(load(str(folder))) == 3
    with pytest.raises(UnknownName):
        load(str(folder), held_out=["drawbnch"])


def test_nothing_is_left_of_a_suite() -> None:
    with pytest.raises(DiffscaleError, match=r"Nothing is left to train on: 300 of 300 rows .*300 of shapes.*, \.\.\."):
        without_evaluation_prompts(Dataset("mine", [prompt.text for prompt in suite("shapes")]))


WORDS = ["a", "red", "circle", "to", "the", "left", "of", "and", ",", "with", "<rel>", "two", "stars"]


@given(st.text() | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
def test_every_text_has_a_meaning_that_heeds_no_spaces_around(text: str) -> None:
    assert meaning(f"  {text} ") == meaning(text)
