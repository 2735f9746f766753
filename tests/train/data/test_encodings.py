"""Latents and embeddings on disk: made once, never stale, whole after kills and full disks; and the batches of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_data import PROMPTS, captioned, encoded, lines, picture
from torch import Tensor

from diffscale._util import files
from diffscale._util.errors import DiffscaleError
from diffscale.train.data.batches import Batches, Order
from diffscale.train.data.encodings import Framing, encode_dataset, encode_texts
from diffscale.train.data.sources import load
from diffscale.train.data.store import Store

MIDDLE = Framing(8, center_crop=True)


class Encoder:
    """Means over 4x4 blocks, 3 channels; counts the pictures, and dies at one if told to."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.seen, self.dies_at = 0, dies_at

    def __call__(self, pictures: Tensor) -> Tensor:
        assert pictures.dtype == torch.float32 and pictures.min() >= 0 and pictures.max() <= 1
        if self.dies_at is not None and self.seen + len(pictures) > self.dies_at:
            raise KeyboardInterrupt
        self.seen += len(pictures)
        return torch.nn.functional.avg_pool2d(pictures, 4)


def _texts(prompts: list[str]) -> dict[str, Tensor]:
    states = torch.tensor([[len(p), sum(map(ord, p))] for p in prompts], dtype=torch.bfloat16)
    return {"states": states[:, None], "pooled": states.float()}


def test_what_is_read_is_what_was_encoded_and_nothing_is_encoded_twice(tmp_path: Path) -> None:
    dataset = load(str(captioned(tmp_path / "data")))
    encoder = Encoder()
    told: list[tuple[str, int, int]] = []
    _, latents = encode_dataset(dataset, encoder, "vae", MIDDLE, tmp_path / "c", 3, lambda *n: told.append(n))
    assert encoder.seen == 4 and told[-1] == ("pictures encoded", 4, 4)
    found, sizes = latents.read([2, 0, 2], [False] * 3)
    expected = [Encoder()(MIDDLE.frame(dataset.picture(row), None, False)[0][None]) for row in (2, 0, 2)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)
    assert sizes.tolist() == [[[12, 12, 0, 0, 8, 8]]] * 3
    again = Encoder(dies_at=0)
    _, latents = encode_dataset(dataset, again, "vae", MIDDLE, tmp_path / "c")
    torch.testing.assert_close(latents.read([2], [False])[0], found[:1], rtol=0, atol=0)


def test_another_model_resolution_view_or_picture_is_encoded_anew(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "data")

    def seen(fingerprint: str = "vae", framing: Framing = MIDDLE) -> int:
        encoder = Encoder()
        encode_dataset(load(str(folder)), encoder, fingerprint, framing, tmp_path / "c")
        return encoder.seen

    assert seen() == 4 and seen() == 0
    assert seen("other vae") == 4
    assert seen(framing=Framing(12, center_crop=True)) == 4
    assert seen(framing=Framing(8)) == 4 and seen(framing=Framing(8)) == 0
    assert seen(framing=Framing(8, seed=1)) == 4
    assert seen(framing=Framing(8, center_crop=True, random_flip=True)) == 4  # the mirrored views
    picture(77).save(folder / "1.png")
    assert seen() == 1 and seen() == 0
    (folder / "1.png").rename(folder / "z.png")
    lines(folder / "metadata.jsonl", *({"file_name": n, "text": "words"} for n in ("0.png", "2.png", "3.png", "z.png")))
    assert seen() == 0  # the same pictures by other names and with other words


def test_a_killed_precomputation_goes_on(tmp_path: Path) -> None:
    dataset = load(str(captioned(tmp_path / "data", [f"prompt {i}" for i in range(10)])))
    small = _sharded(3)
    with pytest.raises(KeyboardInterrupt), small:
        encode_dataset(dataset, Encoder(dies_at=8), "vae", MIDDLE, tmp_path / "c", 1)
    (shards,) = (tmp_path / "c").iterdir()
    (shards / ".0123.999.new").write_bytes(b"half a shard")
    encoder = Encoder()
    with small:
        _, latents = encode_dataset(dataset, encoder, "vae", MIDDLE, tmp_path / "c", 1)
    assert encoder.seen == 4  # six were in two whole shards
    whole, _ = encode_dataset(dataset, Encoder(), "vae", MIDDLE, tmp_path / "d")
    assert len(whole) == len(latents) == 10
    rows = list(range(10))
    expected = encode_dataset(dataset, Encoder(), "vae", MIDDLE, tmp_path / "d")[1].read(rows, [False] * 10)
    torch.testing.assert_close(latents.read(rows, [False] * 10), expected, rtol=0, atol=0)


class _sharded:
    """Shards of few entries while it lasts."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        fill = Store.fill
        self.patch.setattr(Store, "fill", lambda *args: fill(*args, shard_rows=self.rows))

    def __exit__(self, *_: Any) -> None:
        self.patch.undo()


@pytest.mark.parametrize("death", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_shard_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: BaseException) -> None:
    """A kill or a full disk within the write of the second shard."""
    store = Store(tmp_path / "c")
    keys = list("abcdef")

    def make(numbers: list[int]) -> tuple[list[int], dict[str, Tensor]]:
        return numbers, {"x": torch.tensor(numbers)}

    syncs: list[int] = []
    fsync = os.fsync

    def dying(handle: int) -> None:
        syncs.append(handle)
        if len(syncs) == 3:  # the first shard takes one for itself and one for the folder
            raise death
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", dying)
    full = isinstance(death, OSError)
    told = r"disk is full: .*c keeps the 2 entries made so far, and the same command goes on" if full else None
    with pytest.raises(DiffscaleError if full else KeyboardInterrupt, match=told):
        store.fill(keys, make, 1, shard_rows=2)
    monkeypatch.undo()
    left = sorted(path.suffix for path in (tmp_path / "c").iterdir())
    assert left == [".safetensors"]
    again = Store(tmp_path / "c")
    assert [key in again for key in keys] == [True, True, False, False, False, False]
    assert again.read(["b", "a"])["x"].tolist() == [1, 0]
    again.fill(keys, make, 1, shard_rows=2)
    assert Store(tmp_path / "c").read(keys)["x"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_broken_shard_counts_as_not_there_and_others_shards_are_found(tmp_path: Path) -> None:
    def make(numbers: list[int]) -> tuple[list[int], dict[str, Tensor]]:
        return numbers, {"x": torch.tensor(numbers)}

    first, second = Store(tmp_path), Store(tmp_path)
    first.fill(["a", "b"], make)
    assert "a" not in second
    second.refresh()
    assert "a" in second and len(second) == 2
    (shard,) = tmp_path.glob("*.safetensors")
    with safe_open(shard, "pt") as held:
        assert held.get_tensor("x").tolist() == [0, 1]
    shard.write_bytes(shard.read_bytes()[:-3])
    third = Store(tmp_path)
    assert "a" not in third
    third.fill(["a", "b"], make)
    assert Store(tmp_path).read(["a", "b"])["x"].tolist() == [0, 1]
    with pytest.raises(DiffscaleError, match="one shape"):
        third.fill(["c"], lambda numbers: (numbers, {"x": torch.zeros(1, 2)}))


def test_broken_pictures_are_left_out_and_told(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "data")
    (folder / "1.png").write_bytes(encoded(1)[:60])
    found, latents = encode_dataset(load(str(folder)), Encoder(), "vae", MIDDLE, tmp_path / "c")
    assert list(found.prompts) == [PROMPTS[0], *PROMPTS[2:]] and len(latents) == 3
    assert "1 of 4 rows" in found.notes[0] and PROMPTS[1] in found.notes[0]
    expected = Encoder()(MIDDLE.frame(found.picture(1), None, False)[0][None])
    torch.testing.assert_close(latents.read([1], [False])[0][:, 0], expected)
    for i in (0, 2, 3):
        (folder / f"{i}.png").write_text("no picture")
    with pytest.raises(DiffscaleError, match="None of the 4 pictures"):
        encode_dataset(load(str(folder)), Encoder(), "vae", MIDDLE, tmp_path / "c")


def test_numbers_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    dataset = load(str(captioned(tmp_path / "data")))
    with pytest.raises(DiffscaleError, match=r"not finite of the picture of row 0.*float32"):
        encode_dataset(dataset, lambda x: x * torch.inf, "vae", MIDDLE, tmp_path / "c")
    with pytest.raises(DiffscaleError, match="one row for each of 4"):
        encode_dataset(dataset, lambda x: x[:1], "vae", MIDDLE, tmp_path / "c")
    assert encode_dataset(dataset, Encoder(), "vae", MIDDLE, tmp_path / "c")[0].notes == ()


def test_texts_are_kept_by_model_and_prompt(tmp_path: Path) -> None:
    asked: list[str] = []

    def encode(prompts: list[str]) -> dict[str, Tensor]:
        asked.extend(prompts)
        return _texts(prompts)

    texts = encode_texts([*PROMPTS, PROMPTS[0]], encode, "clip", tmp_path, 2)
    assert asked == ["", *PROMPTS]
    found = texts.read([PROMPTS[1], "", PROMPTS[1]])
    assert found["states"].dtype == torch.bfloat16
    torch.testing.assert_close(found, _texts([PROMPTS[1], "", PROMPTS[1]]), rtol=0, atol=0)
    encode_texts([*PROMPTS, "another"], encode, "clip", tmp_path)
    assert asked == ["", *PROMPTS, "another"]
    encode_texts(PROMPTS, encode, "other", tmp_path)
    assert asked[6:] == ["", *PROMPTS]


@pytest.mark.parametrize(("height", "width"), [(30, 12), (12, 30), (12, 12)])
def test_pictures_are_resized_and_cut_as_pillow_does(height: int, width: int) -> None:
    given = picture(3, height, width).point(lambda value: 64 + value // 2)  # nothing overshoots and is clipped
    pixels = torch.tensor(list(given.getdata()), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)
    found, sizes = MIDDLE.frame(pixels, None, False)
    scaled = given.resize((8 * width // min(height, width), 8 * height // min(height, width)), 3)  # bicubic
    top, left = (scaled.height - 8) // 2, (scaled.width - 8) // 2
    cut = scaled.crop((left, top, left + 8, top + 8))
    expected = torch.tensor(list(cut.getdata())).view(8, 8, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(found, expected, atol=1.5 / 255, rtol=0)
    assert sizes.tolist() == [height, width, top, left, 8, 8]
    mirrored, _ = MIDDLE.frame(pixels, None, True)
    torch.testing.assert_close(mirrored, found.flip(-1), atol=0, rtol=0)


def test_random_crops_cover_the_room_and_stay_where_they_are() -> None:
    wide = torch.zeros(3, 8, 11, dtype=torch.uint8)
    framing = Framing(8, random_flip=True)
    lefts = [int(framing.frame(wide, framing.place((str(i),), False), False)[1][3]) for i in range(200)]
    assert set(lefts) == {0, 1, 2, 3}
    assert framing.place(("a",), False) == framing.place(("a",), False) != framing.place(("a",), True)
    assert framing.frame(wide, (0.999999999999, 1 - 1e-16), False)[1][2:4].tolist() == [0, 3]


def _batches(tmp_path: Path, **more: Any) -> Callable[[int], Any]:
    dataset = load(str(captioned(tmp_path / "data")))
    framing = Framing(8, center_crop=True, random_flip=more.pop("random_flip", False))
    dataset, latents = encode_dataset(dataset, Encoder(), "vae", framing, tmp_path / "c")
    texts = encode_texts(dataset.prompts, _texts, "clip", tmp_path / "c")
    return Batches(dataset, Order(len(dataset), 3, seed=1), texts, latents, **more).batch_of


def test_a_batch_holds_what_its_rows_are(tmp_path: Path) -> None:
    at = _batches(tmp_path, empty=0.4)
    left_out = 0
    for step in range(60):
        batch = at(step)
        assert batch.captions == [PROMPTS[row] for row in batch.rows]
        assert all(told in ("", caption) for told, caption in zip(batch.prompts, batch.captions, strict=True))
        left_out += batch.prompts.count("")
        torch.testing.assert_close(batch.embeddings, _texts(batch.prompts), rtol=0, atol=0)
        pixels = torch.stack([MIDDLE.frame(_pixels(row), None, False)[0] for row in batch.rows])
        torch.testing.assert_close(batch.latents, Encoder()(pixels)[:, None], rtol=0, atol=0)
        assert batch.sizes.shape == (3, 1, 6)
    assert 0.25 < left_out / 180 < 0.55
    again = _batches(tmp_path, empty=0.4)(37)
    assert again.prompts == at(37).prompts and again.rows == at(37).rows
    assert torch.equal(again.latents, at(37).latents)
    with pytest.raises(DiffscaleError, match="must lie in"):
        _batches(tmp_path, empty=1.2)


def _pixels(number: int) -> Tensor:
    return torch.tensor(list(picture(number).getdata()), dtype=torch.uint8).view(12, 12, 3).permute(2, 0, 1)


def test_both_views_come_up(tmp_path: Path) -> None:
    at = _batches(tmp_path, random_flip=True)
    mirrored = plain = 0
    for step in range(20):
        batch = at(step)
        for row, latents in zip(batch.rows, batch.latents, strict=True):
            frame = MIDDLE.frame(_pixels(row), None, False)[0][None]
            plain += torch.equal(latents, Encoder()(frame))
            mirrored += torch.allclose(latents, Encoder()(frame.flip(-1)))
    assert plain + mirrored == 60 and min(plain, mirrored) > 15


def test_pairs_are_cut_and_mirrored_alike(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for i in range(6):
        picture(i, 12, 40).save(folder / f"{i}.png")
    rows = [{"jpg_0": f"{i}.png", "jpg_1": f"{i + 1}.png", "label_0": i % 4 // 2, "caption": PROMPTS[i // 2]}
            for i in (0, 2, 4)]  # fmt: skip
    lines(folder / "metadata.jsonl", *rows)
    dataset = load(str(folder), "pairs")
    framing = Framing(8, random_flip=True)
    dataset, latents = encode_dataset(dataset, Encoder(), "vae", framing, tmp_path / "c")
    for flip in (False, True):
        found, sizes = latents.read([0, 1, 2], [flip] * 3)
        assert found.shape == (3, 2, 3, 2, 2) and torch.equal(sizes[:, 0], sizes[:, 1])
        for row in range(3):
            place = framing.place(dataset.content(row), flip)
            frames = torch.stack([framing.frame(dataset.picture(row, side), place, flip)[0] for side in (0, 1)])
            torch.testing.assert_close(found[row], Encoder()(frames), rtol=0, atol=0)


def test_prompts_alone_make_batches_too(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    dataset = load(str(file), "prompts")
    batch = Batches(dataset, Order(4, 2), encode_texts(dataset.prompts, _texts, "clip", tmp_path)).batch_of(0)
    assert batch.latents is None and batch.sizes is None and len(batch.prompts) == 2
    with pytest.raises(ValueError, match="must be of the rows"):
        Batches(dataset, Order(5, 2), encode_texts([], _texts, "clip", tmp_path))
