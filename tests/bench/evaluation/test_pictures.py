"""Folders of pictures with their prompts; features of them, kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffscale_shapes.world import WORLD
from PIL import Image
from torch import nn

from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale._util.fingerprints import network_digest
from diffscale.bench.evaluation import extractors, features
from diffscale.suites.pictures import Pictures
from diffscale.verifiers.clip import ClipScore


def _lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_pictures_of_any_size_come_back_in_their_order(folder: Any) -> None:
    where = folder(n=7, sizes=((8, 8), (6, 10)))
    (where / "below").mkdir()
    Image.new("L", (8, 8), 51).save(where / "below" / "grey.JPG", quality=100)
    (where / ".hidden").mkdir()
    for noise in (where / ".hidden" / "a.png", where / "notes.txt"):
        noise.write_text("no picture")
    pictures = Pictures.open(where)
    assert [path.name for path in pictures.paths] == [*(f"{i:02d}.png" for i in range(7)), "grey.JPG"]
    assert pictures.sizes[:2] == [(8, 8), (10, 6)] and len(pictures) == 8
    told: list[tuple[int, int]] = []

    def mean(images: torch.Tensor, at: list[int]) -> torch.Tensor:
        assert images.dtype == torch.float32 and len(images) == len(at) <= 2
        return images.mean((1, 2, 3))

    means = pictures.map(mean, 2, lambda done, total: told.append((done, total)))
    expected = [np.asarray(Image.open(path).convert("RGB")).mean() / 255 for path in pictures.paths]
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    assert told[-1] == (8, 8) and told == sorted(told)
    np.testing.assert_array_equal(pictures.load([1])[0, :, 2, 3] * 255, Image.open(pictures.paths[1]).getpixel((3, 2)))


def test_the_digest_is_of_contents_and_order(folder: Any) -> None:
    a, b, other = folder("a"), folder("b"), folder("c", seed=1)
    assert Pictures.open(a).digest == Pictures.open(b).digest != Pictures.open(other).digest
    (b / "00.png").rename(b / "99.png")
    assert Pictures.open(a).digest != Pictures.open(b).digest


def test_folders_and_files_that_are_none_are_told(folder: Any, tmp_path: Path) -> None:
    with pytest.raises(DiffscaleError, match="There is no folder"):
        Pictures.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffscaleError, match="no pictures in"):
        Pictures.open(tmp_path / "empty")
    where = folder()
    whole = (where / "01.png").read_bytes()
    (where / "01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DiffscaleError, match=r"01\.png cannot be read: mend or remove it"):
        Pictures.open(where).load([0, 1])
    (where / "01.png").write_text("no picture")
    with pytest.raises(DiffscaleError, match=r"01\.png cannot be read"):
        _ = Pictures.open(where).sizes
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(where / "01.png")
    with pytest.raises(DiffscaleError, match="more than 8 bits"):
        Pictures.open(where).load([1])
    gone = Pictures.open(where)
    (where / "02.png").unlink()
    with pytest.raises(DiffscaleError, match=r"02\.png cannot be read"):
        _ = gone.digest


def test_prompts_are_those_of_metadata_or_of_a_file(folder: Any, tmp_path: Path) -> None:
    where = folder()
    assert Pictures.open(where).prompts == (None,) * 3
    with pytest.raises(DiffscaleError, match=r"3 of 3 pictures have no prompt, which clip needs \(first .*00\.png"):
        Pictures.open(where).prompted("clip")
    _lines(where / "metadata.jsonl", {"file_name": "02.png", "text": "c"}, {"file_name": "00.png", "text": "a"},
           {"file_name": "01.png"}, {"other": 1})  # fmt: skip
    assert Pictures.open(where).prompts == ("a", None, "c")
    # What is given goes before what is found.
    given = _lines(tmp_path / "p.jsonl", *({"file_name": f"0{i}.png", "prompt": f"p{i}"} for i in range(3)))
    assert Pictures.open(where, given).prompted("clip") == ["p0", "p1", "p2"]
    by_order = _lines(tmp_path / "o.jsonl", {"prompt": "x"}, {"caption": "y"}, {"text": "z"})
    assert Pictures.open(where, by_order).prompts == ("x", "y", "z")
    text = tmp_path / "p.txt"
    text.write_text("one\n\n two \nthree\n")
    assert Pictures.open(where, text).prompts == ("one", "two", "three")
    for short in (text, by_order):
        short.write_text("\n".join(short.read_text().splitlines()[:1]))
        with pytest.raises(DiffscaleError, match="has 1 prompts for 3 pictures"):
            Pictures.open(where, short)
    given.write_text('{"file_name": "00.png"}\n{"text\n')
    with pytest.raises(DiffscaleError, match=r"Line 2 of .*p\.jsonl"):
        Pictures.open(where, given)
    for missing in ("none.txt", "none.jsonl"):
        with pytest.raises(DiffscaleError, match="cannot be read"):
            Pictures.open(where, tmp_path / missing)


def test_a_bench_is_read_as_it_was_written(folder: Any, tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    (bench / "pictures").mkdir(parents=True)
    cells = [folder("one", n=1), folder("two", n=2)]
    for cell in cells:
        cell.rename(bench / "pictures" / cell.name)
    Image.new("RGB", (9, 9)).save(bench / "scaling-clip.png")  # a plot
    names = {"pictures/one/00.png": "a", "pictures/two/00.png": "b", "pictures/two/01.png": "c"}
    _lines(bench / "samples.jsonl", *({"image": i, "prompt": p} for i, p in names.items()), {"error": "failed"})
    assert Pictures.open(bench).prompts == ("a", "b", "c")
    assert Pictures.open(bench / "pictures" / "two").prompts == ("b", "c")
    above = Pictures.open(tmp_path)  # is no bench: its plots are pictures, too
    assert len(above) == 4 and set(above.prompts) == {None}


def test_what_generate_found_is_read_and_its_plots_are_not(folder: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        home = folder(name, n=3)
        for was, now in zip(("00.png", "01.png", "02.png"), ("best.png", "baseline.png", "scaling.png"), strict=True):
            (home / was).rename(home / now)
        (home / "result.json").write_text(json.dumps({"prompt": f"prompt {name}"}))
    assert Pictures.open(tmp_path / "one").prompts == ("prompt one",)
    both = Pictures.open(tmp_path)
    assert both.prompts == ("prompt one", "prompt two") and {path.name for path in both.paths} == {"best.png"}
    (tmp_path / "one" / "result.json").write_text("[]")
    with pytest.raises(DiffscaleError, match=r"one/result\.json cannot be read: remove it, and give --prompts"):
        Pictures.open(tmp_path)


def test_pictures_of_shapes_are_known_by_size_and_prompts(folder: Any, tmp_path: Path) -> None:
    assert Pictures.open(folder("a", n=1, sizes=((64, 64),))).world is WORLD
    assert Pictures.open(folder("b", n=1)).world is None
    text = tmp_path / "p.txt"
    text.write_text("a bear on a skateboard")
    assert Pictures.open(tmp_path / "a", text).world is None
    text.write_text("a red circle")
    assert Pictures.open(tmp_path / "a", text).world is WORLD


def test_features_are_made_once(folder: Any, colours: Any, cache: Path) -> None:
    where = folder(n=5)
    pictures = Pictures.open(where)
    rows = features.features(pictures, colours)
    np.testing.assert_allclose(rows, colours(pictures.load(range(5))), rtol=1e-6)
    seen = colours.seen
    np.testing.assert_array_equal(features.features(Pictures.open(where), colours), rows)
    assert colours.seen == seen
    np.testing.assert_array_equal(
        features.features(pictures, extractors.Named("logits", colours.logits)), colours.logits(pictures.load(range(5)))
    )
    # Another network, other pictures, or a file that is broken: made again.
    colours.name = "colours 2"
    features.features(pictures, colours)
    assert colours.seen == seen + 5
    features.features(Pictures.open(folder("others", n=5, seed=1)), colours)
    assert colours.seen == seen + 10
    for file in features.cache_folder().iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    np.testing.assert_array_equal(features.features(pictures, colours), rows)
    assert colours.seen == seen + 15 and features.cache_folder() == cache


def test_a_cache_that_cannot_be_written_costs_no_features(folder: Any, colours: Any, cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="Features are not kept"):
        assert features.features(Pictures.open(folder()), colours).shape == (3, 6)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda images: images.mean((1, 2, 3)), r"must return features of shape \(3, dimensions\), not \(3,\)"),
        (lambda images: images[:1, :, 0, 0], r"shape \(3, dimensions\), not \(1, 3\)"),
        (lambda images: images.flatten(1) / 0, r"no finite features of 3 pictures: leave out .*00\.png"),
    ],
)
def test_extractors_that_make_no_features_are_told(folder: Any, made: Any, said: str) -> None:
    class Odd:
        name = "odd"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return made(images)

    with pytest.raises(DiffscaleError, match=said):
        features.features(Pictures.open(folder()), Odd())


def test_clip_features_are_those_of_the_shipped_network() -> None:
    extractor = extractors.load("clip", image_model="shapes-flux")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net = ClipScore.load("shapes-clip").net
    with torch.no_grad():
        expected = net(pixel_values=images * 2 - 1, input_ids=torch.ones(1, 4, dtype=torch.long)).image_embeds
        made = extractor(images)
    torch.testing.assert_close(nn.functional.normalize(made), expected, atol=1e-5, rtol=1e-5)
    assert extractor.name == extractors.load("clip:model=shapes-clip").name
    assert extractor.name.startswith("clip ") and not isinstance(extractor, extractors.Classifier)


def test_extractors_are_named_as_users_type_them(monkeypatch: pytest.MonkeyPatch, colours: Any) -> None:
    assert extractors.split("clip:model=a/b") == extractors.split("clip model=a/b") == ("clip", {"model": "a/b"})
    with pytest.raises(UnknownName, match="did you mean 'clip'"):
        extractors.split("clop")
    with pytest.raises(UnknownName, match="did you mean 'model'"):
        extractors.load("clip:modle=x")
    given: dict[str, Any] = {}

    def mine(model: str | None = None, *, device: Any = "cpu", image_model: str = "") -> extractors.Extractor:
        given.update(model=model, device=device, image_model=image_model)
        return colours

    monkeypatch.setitem(extractors.EXTRACTORS, "mine", mine)
    assert extractors.load("mine:model=x", device="cuda", image_model="g") is colours
    assert given == {"model": "x", "device": "cuda", "image_model": "g"}
    assert isinstance(colours, extractors.Classifier)


def test_a_fingerprint_is_of_all_weights() -> None:
    net = nn.Linear(2, 2)
    before = network_digest(net)
    twin = nn.Linear(2, 2)
    twin.load_state_dict(net.state_dict())
    assert network_digest(twin) == before
    with torch.no_grad():
        twin.bias[1] += 1e-6
    assert network_digest(twin) != before
    named = SimpleNamespace(state_dict=lambda: {"other": net.weight})
    assert network_digest(named) != network_digest(  # type: ignore[arg-type]
        SimpleNamespace(state_dict=lambda: {"weight": net.weight})  # type: ignore[arg-type]
    )
