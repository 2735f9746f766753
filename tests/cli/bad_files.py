"""Bad inputs in files: modules, configurations, models, prompts, pictures and tapes, and commands that read them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bad_options import COMMANDS, DEEP, ENDLESS, LONG, QUICK
from PIL import Image
from safetensors.torch import save

from diffscale.tape.tape import Tape
from diffscale.train.configs import CONFIGS
from diffscale.types import Stage
from diffscale.verifiers.valued import ValueModel

MODULES = {
    "syntax.py": "def broken(:\n",
    "raises.py": "raise RuntimeError('no luck')\n",
    "leaves.py": "import sys\nsys.exit('I leave')\n",
    "recurses.py": "def f():\n    return f()\nf()\n",
    "holds.py": "number = 3\ndef one(images):\n    return images.mean((1, 2, 3))\nclass Needs:\n"
    "    def __init__(self, radius): ...\n    def __call__(self, images, prompts): ...\nclass Bare:\n    pass\n"
    "def nothing():\n    return None\ndef fails():\n    raise ValueError('a line\\nand another')\n"
    "def raising(env):\n    raise ValueError('no luck')\n    yield\ndef early(env):\n    return\n    yield\n"
    "def word(images, prompts):\n    return 'high'\ndef none(images, prompts):\n    return None\n"
    "def short(images, prompts):\n    return images.mean()\n"
    "def nan(images, prompts):\n    return [float('nan')] * len(prompts)\n",
}
"""Modules in the current folder: what a user's own file may do wrong."""


CONFIGURATIONS = {
    "empty": b"",
    "a word": b"budget",
    "a list": b"- budget: 3",
    "a number": b"3",
    "no YAML": b"budget: [",
    "tabs": b"\tbudget: 3",
    "unknown": b"bugdet: 3",
    "null": b"null",
    "a tag": b"budget: !!python/object/apply:os.system ['true']",
    "binary": bytes(range(256)),
    "deep": b"budget: " + b"[" * 5000,
    "deep maps": b"{a: " * 3000,
    "digits": b"seed: " + b"9" * 5000,
    "an alias bomb": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9))
    + b"seed: *j\n",
    "itself": b"seed: &a [*a]",
    "a date": b"seed: 2026-01-01",
    "not a number": b"seed: .nan",
    "keys": b"? [1, 2]\n: 3",
    "utf-16": "seed: 3".encode("utf-16"),
    "twice": b"seed: 1\nseed: [2",
    "a wrong type": b"seed: {a: 1}",
    "two documents": b"seed: 1\n---\nseed: 2",
}
"""What a configuration may hold instead of settings."""


def wrong_configurations() -> Iterator[list[str]]:
    """Every broken file for every command, and files that are not there."""
    for name, (right, _) in COMMANDS.items():
        if name in CONFIGS and name != "sft":
            continue
        files = [f"configurations/{name}.yaml" for name in CONFIGURATIONS]
        yield from ([*right, "--config", file] for file in [*files, "nowhere.yaml", "pictures", LONG])


def _pipeline(index: Any, **components: Any) -> dict[str, Any]:
    return {"model_index.json": index} | {f"{name}/config.json": each for name, each in components.items()}


MODELS: dict[str, dict[str, Any]] = {
    "empty": {},
    "a list": _pipeline([1, 2]),
    "no JSON": {"model_index.json": "{"},
    "a word": {"model_index.json": '"x"'},
    "no class": _pipeline({}),
    "unknown class": _pipeline({"_class_name": "NoSuchPipeline"}),
    "a class of a number": _pipeline({"_class_name": 3}),
    "deep": {"model_index.json": DEEP},
    "digits": {"model_index.json": f'{{"_class_name": {ENDLESS}}}'},
    "binary": {"model_index.json": bytes(range(256))},
    "no parts": _pipeline({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}),
    "parts of a wrong library": _pipeline({"_class_name": "FluxPipeline", "transformer": ["nowhere", "Nothing"]}),
    "parts that are no pair": _pipeline({"_class_name": "FluxPipeline", "transformer": "x"}),
    "wrong types": _pipeline(
        {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]},
        unet={"_class_name": "UNet2DConditionModel", "block_out_channels": "many"},
    ),
    "its own base": {"diffscale.json": {"base": "models/its own base"}},
    "each other's base": {"diffscale.json": {"base": "models/the other's base"}},
    "the other's base": {"diffscale.json": {"base": "models/each other's base"}},
    "a manifest of a list": {"diffscale.json": [1]},
    "a manifest of no JSON": {"diffscale.json": "{"},
    "a manifest of wrong types": {"diffscale.json": {"call": {"num_inference_steps": "many"}}},
    "a manifest that is deep": {"diffscale.json": DEEP},
    "an adapter without weights": {"adapter_config.json": {}},
    "class-conditional": _pipeline({"_class_name": "DiTPipeline"}),
    "weights that are none": {
        **_pipeline(
            {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
            transformer={"_class_name": "FluxTransformer2DModel"},
        ),
        "transformer/diffusion_pytorch_model.safetensors": b"no",
    },
}
"""Folders that are no models, by their files."""


def wrong_models() -> Iterator[list[str]]:
    """Every folder that is no model, as the model, as the verifier's, as a LoRA and for training."""
    for name in MODELS:
        folder = f"models/{name}"
        yield ["generate", "two red stars", "--output", "out", *QUICK, "--model", folder]
        yield ["evaluate", "pictures", "--metrics", f'clip model="{folder}"', "--output", "out/results.json"]
        yield ["bench", "shapes-mini", "--limit", "1", "--output", "out", "--model", folder]
        yield ["train", "sft", "--output_dir", "out", "--train_data_dir", "pictures", "--model", folder]
    for name in ("empty", "a list", "no JSON", "wrong types"):
        yield ["generate", "two red stars", "--output", "out", *QUICK, "--lora", f"models/{name}"]


PROMPT_FILES = {
    "empty.txt": b"",
    "blank.txt": b"\n \n",
    "binary.txt": bytes(range(256)),
    "utf-16.txt": "two red stars".encode("utf-16"),
    "broken.json": b"{",
    "object.json": b'{"a": 1}',
    "deep.json": b"[" * 5000,
    "digits.json": b"[" + b"9" * 5000 + b"]",
    "numbers.json": b"[1, 2]",
    "broken.jsonl": b'{"prompt": "a"}\n{"prompt',
    "list.jsonl": b"[1]\n",
    "other.jsonl": b'{"size": 3}\n',
    "deep.jsonl": b"[" * 5000,
    "columns.csv": b"a,b\n1,2\n",
    "empty.csv": b"",
    "quotes.csv": b'prompt\n"a',
    "null.jsonl": b'{"prompt": null}\n',
    "empty.jsonl": b"",
}


def wrong_prompts() -> Iterator[list[str]]:
    """Files that hold no prompts, wherever such a file is read."""
    for name in [*PROMPT_FILES, "nowhere.txt", LONG + ".txt"]:
        file = f"prompt files/{name}"
        yield ["bench", file, "--output", "out"]
        yield ["tape", "record", file, "--output", "out/a.tape"]
        if "numbers.json" not in name:
            yield ["evaluate", "pictures", "--metrics", "clip", "--prompts", file, "--output", "out/results.json"]
        yield [
            "train",
            "sharpen-rlhf",
            "--output_dir",
            "out",
            "--train_prompts",
            file,
            "--reward",
            "clip",
        ]


PICTURES = {
    "empty": {},
    "text": {"a.png": b"no picture"},
    "cut off": {"a.png": b"\x89PNG\r\n\x1a\n"},
    "nothing": {"a.png": b""},
    "a script": {"a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"},
    "a folder": {"a.png/b.txt": b""},
    "broken metadata": {"metadata.jsonl": b"{"},
    "a list": {"metadata.jsonl": b"[1]\n"},
    "deep": {"metadata.jsonl": b"[" * 5000},
    "outside": {"metadata.jsonl": b'{"file_name": "../pictures/0.png", "text": "a"}\n'},
    "a broken bench": {"samples.jsonl": b'{"image"'},
}


def wrong_pictures() -> Iterator[list[str]]:
    """Folders without pictures that can be read, wherever a folder is."""
    for name in [*PICTURES, "nowhere", LONG]:
        folder = f"folders/{name}"
        yield ["evaluate", folder, "--metrics", "clip", "--output", "out/results.json"]
        yield [
            "evaluate",
            "pictures",
            "--metrics",
            "cmmd",
            "--features",
            "clip",
            "--reference",
            folder,
            "--output",
            "out/results.json",
        ]
        yield ["train", "sft", "--output_dir", "out", "--train_data_dir", folder]
        yield ["train", "dpo", "--output_dir", "out", "--train_data_dir", folder]


TOLD = json.dumps({
    "prompts": ["two red stars"], "levels": [1.0, 0.5, 0.0], "seed": 0, "predictions": [1], "drafts": [],
    "seconds": {}, "about": {},
})  # fmt: skip
TAPES = {
    "empty": b"",
    "text": b"two red stars\n",
    "a huge header": b"\xff" * 64,
    "another safetensors": save({"x": torch.zeros(2)}),
    "another format": save({"x": torch.zeros(2)}, {"format": "diffscale tape 0"}),
    "no tape in it": save({"x": torch.zeros(2)}, {"format": "diffscale tape 1"}),
    "no object": save({"x": torch.zeros(2)}, {"format": "diffscale tape 1", "tape": "[1]"}),
    "no JSON": save({"x": torch.zeros(2)}, {"format": "diffscale tape 1", "tape": "{"}),
    "deep": save({"x": torch.zeros(2)}, {"format": "diffscale tape 1", "tape": DEEP}),
    "no scores": save({}, {"format": "diffscale tape 1", "tape": TOLD}),
    "another shape": save({"clip": torch.zeros(1, 4, 3)}, {"format": "diffscale tape 1", "tape": TOLD}),
    "a number": save({"clip": torch.tensor(1.0)}, {"format": "diffscale tape 1", "tape": TOLD}),
    "no candidates": save({"clip": torch.zeros(1, 0, 2)}, {"format": "diffscale tape 1", "tape": TOLD}),
    "views of another shape": save(
        {"clip": torch.zeros(1, 4, 2), "views of clip": torch.zeros(1, 4, 2, 3)},
        {"format": "diffscale tape 1", "tape": TOLD},
    ),
    "a wrong type": save(
        {"clip": torch.zeros(1, 4, 2)}, {"format": "diffscale tape 1", "tape": TOLD.replace("[1]", "{}")}
    ),
}


def wrong_tapes() -> Iterator[list[str]]:
    """Files that are no tapes, wherever one is read, and looks that a tape cannot have."""
    for name in [*TAPES, "nowhere", LONG]:
        file = f"tapes/{name}"
        yield ["tape", "replay", file]
        yield ["tune", "auto", "--tape", file, "--output", "out/profile.json"]
        yield ["tune", "value", file, "--output", "out/clip.value"]
    for name in ("empty", "text", "deep"):
        yield ["tape", "record", "shapes-mini", "--limit", "1", "--output", f"tapes/{name}"]
    for wrong in (
        ["--predictions", "20"],
        ["--drafts", "3 nope"],
        ["--drafts", "many"],
        ["--predictions", "1,"],
        ["--verifier", "ensemble of=clip,shapes-judge"],
        ["--verifier", "aesthetic", "--views"],
    ):
        yield [*COMMANDS["tape record"][0], *wrong]


def make_files(folder: Path) -> None:
    """What the table's arguments name, below `folder`."""
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    (folder / "prompts.txt").write_text("two red stars\n")
    (folder / "pictures").mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64), (200, 30 * i, 30)).save(folder / "pictures" / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": "two red stars"} for i in range(2)]
    (folder / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write(folder / "configurations", {f"{name}.yaml": text for name, text in CONFIGURATIONS.items()})
    _write(folder / "prompt files", PROMPT_FILES)
    _write(folder / "tapes", TAPES)
    Tape(["two red stars"], [1.0, 0.5, 0.0], 0, [1], [], {"clip": torch.rand(1, 4, 2)}).save(folder / "right.tape")
    ValueModel("clip", [Stage(0.5)], torch.ones(1, 3), torch.zeros(1), {}).save(folder / "right.value")
    for name, files in MODELS.items():
        _write(folder / "models" / name, files)
    for name, files in PICTURES.items():
        _write(folder / "folders" / name, files)


def _write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
