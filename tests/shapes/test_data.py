"""Data sets of Shapes: true captions, nothing of the suites, and folders that trainings read."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import datasets
import numpy as np
import pytest
import torch
from diffscale_shapes import data
from diffscale_shapes.captions import parse_caption
from diffscale_shapes.judge import score_objects
from diffscale_shapes.prompts import held_out, training_example
from diffscale_shapes.render import render
from diffscale_shapes.scenes import Obj
from diffscale_shapes.taste import PICK_RATER
from diffscale_shapes.train.generated import ShownPicture
from diffscale_shapes.train.raters import write_pairs
from diffscale_shapes.train.text import CLIP_TOKENS, MAX_TOKENS, clip_tokenizer, t5_tokenizer

from diffscale._util.errors import DiffscaleError
from diffscale.cli.main import run
from diffscale.train.data.sources import load


@pytest.mark.parametrize("name", data.RECIPES)
def test_captions_are_true_readable_and_of_no_suite(name: str) -> None:
    captions = []
    for number in range(300):
        caption, description, scene = data.draw_example(name, number)
        meaning = parse_caption(caption)
        assert meaning is not None and meaning.key() == description.key()
        assert meaning.key() not in data.evaluation_keys() and meaning.key() not in held_out()
        assert score_objects(list(scene), description) == 1, caption
        captions.append(caption)
    assert data.draw_example(name, 7)[0] == captions[7]
    for tokenizer, most in ((t5_tokenizer(), MAX_TOKENS), (clip_tokenizer(), CLIP_TOKENS)):
        assert max(map(len, tokenizer(captions).input_ids)) <= most


def test_the_three_differ_in_size_style_and_domain() -> None:
    words = {name: [len(data.draw_example(name, i)[0].split()) for i in range(200)] for name in data.RECIPES}
    assert np.mean(words["detailed"]) > 1.4 * np.mean(words["plain"])
    for number in range(100):
        assert {obj.shape for obj in data.draw_example("stars", number)[2]} == {"star"}
        _, description, _ = data.draw_example("detailed", number)
        assert all(spec.size and spec.texture and spec.colour for spec in description.specs)
    sizes = [data.RECIPES[name].size for name in ("plain", "detailed", "stars")]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


def test_a_folder_is_written_whole_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = tmp_path / "deep" / "stars"
    monkeypatch.setattr(sys, "argv", ["diffscale", "shapes", "data", "stars", "--output", str(folder), "--size", "5"])
    with pytest.raises(SystemExit):
        run()
    assert "5 pictures are in" in capsys.readouterr().out
    found = load(str(folder))
    assert found.notes == () and found.leaked.count == 0 and len(found) == 5
    for row in range(5):
        caption, _, scene = data.draw_example("stars", row)
        assert found.prompts[row] == caption
        drawn = found.picture(row).permute(1, 2, 0).numpy() / 255
        np.testing.assert_allclose(drawn, render(scene), atol=0.5 / 255 + 1e-6)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2 and "is there already" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["diffscale", "shapes", "data", "star", "--output", str(tmp_path / "x")])
    with pytest.raises(SystemExit):
        run()
    assert "did you mean 'stars'" in capsys.readouterr().err


def test_a_killed_drawing_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_example(name: str, number: int):
        if number == 2:
            raise KeyboardInterrupt
        return kept(name, number)

    kept = data.draw_example
    monkeypatch.setattr(data, "draw_example", draw_example)
    with pytest.raises(KeyboardInterrupt):
        data.write_dataset("plain", tmp_path / "x", 5)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(DiffscaleError, match="at least one row"):
        data.write_dataset("plain", tmp_path / "x", 0)


def _shown(rng: Random, number: int) -> list[ShownPicture]:
    description, scene = training_example(rng)
    return [
        ShownPicture(
            f"{number}", description, torch.full((3, 64, 64), 3 * number + copy, dtype=torch.uint8), list(some), 1, 1
        )
        for copy, some in enumerate((scene, scene[:1], ()))
    ]


def test_pairs_are_those_of_the_rater_in_pick_a_pics_layout(tmp_path: Path) -> None:
    rng = Random(0)
    groups = [_shown(rng, number) for number in range(40)]
    count = write_pairs(groups, tmp_path / "pairs")
    found = load(str(tmp_path / "pairs"), "pairs")
    free = [g for g in groups if not g[0].is_held_out and g[0].description.key() not in data.evaluation_keys()]
    assert count == len(found) == 3 * len(free) and 60 < count <= 120
    right = 0
    for row in range(count):
        group = groups[int(found.prompts[row])]
        shown = [group[int(found.picture(row, side)[0, 0, 0]) % 3] for side in (0, 1)]
        u, v = (PICK_RATER.utility(one.objects, one.cleanliness, one.description) for one in shown)
        right += u >= v
    assert right / count > 0.7  # raters err, and lapse
    labels = {line["label_0"] for line in map(eval, (tmp_path / "pairs" / "metadata.jsonl").read_text().splitlines())}
    assert labels == {0.0, 1.0}


def test_the_library_datasets_sees_the_columns_of_pick_a_pic(tmp_path: Path) -> None:
    groups = [_shown(Random(1), number) for number in range(4)]
    write_pairs(groups, tmp_path / "pairs")
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "pairs"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert {"jpg_0", "jpg_1", "label_0", "label_1", "caption"} <= set(table.column_names)
    assert isinstance(table.features["jpg_0"], datasets.Image)


def test_objects_without_a_place_for_details_are_refused() -> None:
    """Two specs that become the same when all is said are no description."""
    description = parse_caption("a circle and a small circle")
    assert description is not None
    alike = tuple(Obj("circle", "red", "solid", "small", x, 20) for x in (12, 44))
    assert data.detailed(description, alike) is None
    apart = (alike[0], Obj("circle", "blue", "solid", "small", 44, 20))
    made = data.detailed(description, apart)
    assert made is not None and made[0].relation == "left of"
