"""Pictures are read upright, on white, in three formats and no other, and from their own folder."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diffscale._util.errors import DiffscaleError
from diffscale.bench.config import EvaluateConfig
from diffscale.bench.evaluation import evaluate, extractors
from diffscale.bench.run import read_found
from diffscale.suites.pictures import Pictures
from diffscale.train.data import sources
from diffscale.train.data.dataset import Dataset

SOURCES = [path for home in ("src", "packages") for path in (Path(__file__).parents[2] / home).rglob("*.py")]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
NOISE = np.random.default_rng(0).integers(256, size=(6, 10, 3), dtype=np.uint8)


class Colours:
    name = "colours"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    logits = __call__


def _readings(path: Path) -> list[np.ndarray]:
    """A picture as all who read pictures have it: uint8 [H, W, 3]."""
    folder = Pictures.open(path.parent)
    assert folder.paths == (path,)
    loaded = (folder.load([0])[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    assert folder.sizes == [loaded.shape[1::-1]]
    trained = Dataset("mine", ["a"], 1, lambda *_: path.read_bytes(), [0]).picture(0).permute(1, 2, 0).numpy()
    found = (read_found({"image": path.name}, path.parent).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return [loaded, trained, found]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are none of EXIF
def test_photographs_stand_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(NOISE).save(path, exif=exif)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert (expected.shape != NOISE.shape) == (orientation in (5, 6, 7, 8))
    for found in _readings(path):
        np.testing.assert_array_equal(found, expected)


def test_exif_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    cut = b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9
    for number, junk in enumerate([b"", b"junk", b"II*\0\xff\xff\xff\xff", cut]):
        path = tmp_path / f"{number}" / "a.jpg"
        path.parent.mkdir()
        Image.fromarray(NOISE).save(path, exif=b"Exif\0\0" + junk)
        with Image.open(path) as picture:
            plain = np.asarray(picture)
        for found in _readings(path):
            np.testing.assert_array_equal(found, plain)


def _transparent(mode: str) -> Image.Image:
    rng = np.random.default_rng(1)
    colours = rng.integers(256, size=(6, 10, 4), dtype=np.uint8)
    colours[0, :, 3], colours[1, :, 3] = 0, 255
    picture = Image.fromarray(colours, "RGBA")
    if mode == "P":
        return picture.quantize(16)
    if mode in ("RGB", "L"):  # one colour stands for transparency
        plain = Image.fromarray(rng.integers(3, size=(6, 10, 3), dtype=np.uint8)).convert(mode)
        plain.info["transparency"] = plain.getpixel((0, 0))
        return plain
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"), [(m, ".png") for m in ("RGBA", "LA", "P", "RGB", "L")] + [("RGBA", ".webp")]
)
def test_what_is_transparent_shows_white(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    _transparent(mode).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(path) as picture:
        assert picture.has_transparency_data
        shown = np.asarray(picture.convert("RGBA")).astype(float)
    colour, alpha = shown[..., :3], shown[..., 3:] / 255
    assert (alpha < 1).any() and (alpha > 0).any()
    for found in _readings(path):
        np.testing.assert_allclose(found, colour * alpha + 255 * (1 - alpha), atol=1.01)
        np.testing.assert_array_equal(found[alpha[..., 0] == 0], 255)
        np.testing.assert_array_equal(found[alpha[..., 0] == 1], colour[alpha[..., 0] == 1])


def test_only_the_formats_that_are_read_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    Image.init()
    kept, path = set(), tmp_path / "a.png"
    for name in [*Image.SAVE, "EPS by hand"]:
        file = io.BytesIO(b"")
        try:
            Image.fromarray(NOISE).save(file, name)
        except Exception:  # of formats that hold no colours, or cannot be written here
            file = io.BytesIO(EPS)
        path.write_bytes(file.getvalue())
        try:
            _readings(path)
            kept.add(name)
        except DiffscaleError as error:
            assert "cannot be read" in str(error)
    assert kept - {"MPO"} == {"JPEG", "PNG", "WEBP"}


def test_nobody_opens_pictures_in_another_way() -> None:
    assert [path.name for path in SOURCES if "Image.open(" in path.read_text(encoding="utf-8")] == ["pixels.py"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_without_a_picture_that_is_read_are_counted_and_told(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.png", "b.bmp", "c.tiff", "d.gif", "e.png"]
    for name in [*names[:-1], "f.bmp"]:
        Image.fromarray(NOISE).save(tmp_path / name)
    if kind == "jsonl":
        text = "".join(json.dumps({"file_name": name, "text": f"of {name}"}) + "\n" for name in names)
    else:
        text = "file_name,text\r\n" + "".join(f'{name},"of {name}"\r\n' for name in names)
    (tmp_path / f"metadata.{kind}").write_bytes(text.encode())
    found = Pictures.open(tmp_path)
    assert found.prompts == ("of a.png",)
    told = " ".join(found.notes)
    assert "4 of the 5 pictures" in told and "first b.bmp" in told and "1 files" in told and "first f.bmp" in told
    assert sources.load(str(tmp_path)).notes == found.notes
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setitem(extractors.EXTRACTORS, "mine", lambda **_: Colours())
    measured = evaluate.run(EvaluateConfig(folder=tmp_path, metrics=["is"], features="mine", device="cpu"))
    assert tuple(measured["warnings"][:2]) == found.notes
    (tmp_path / "a.png").unlink()
    with pytest.raises(DiffscaleError, match=r"no pictures in .* 4 files .* not read"):
        Pictures.open(tmp_path)


OUTSIDE = ["../secret.png", "below/../../secret.png", "{home}/secret.png", "/etc/hostname"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_names_no_picture_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for path in (tmp_path / "secret.png", folder / "a.png"):
        Image.fromarray(NOISE).save(path)
    outside = name.format(home=tmp_path)

    def refused(file: str, row: dict[str, object], *, pairs: bool = False) -> None:
        (folder / file).write_text(json.dumps(row) + "\n")
        with pytest.raises(DiffscaleError, match=rf"{file} names .*{re.escape(os.path.basename(outside))}.*not in"):
            sources.load(str(folder), "pairs") if pairs else Pictures.open(folder)
        (folder / file).unlink()

    refused("metadata.jsonl", {"file_name": outside, "text": "a"})
    refused("samples.jsonl", {"image": outside, "prompt": "a"})
    for sides in ([outside, "a.png"], ["a.png", outside]):
        row = dict(zip(["jpg_0", "jpg_1"], sides, strict=True)) | {"label_0": 1, "caption": "x"}
        refused("metadata.jsonl", row, pairs=True)
    with pytest.raises(DiffscaleError, match="not in"):
        read_found({"image": outside}, folder)


def test_names_that_stay_in_the_folder_are_its_pictures(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    for name in ("a.png", "./a.png", "below/../a.png", str(tmp_path.resolve() / "a.png")):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}))
        assert Pictures.open(tmp_path).prompts == ("a",)
