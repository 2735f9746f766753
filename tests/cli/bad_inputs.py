"""A table of bad inputs, made from the commands' own options and from what files may hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import torch
from PIL import Image
from pydantic import BaseModel
from safetensors.torch import save

from diffscale._util import config
from diffscale._util.config import flag
from diffscale.bench.config import BenchConfig, EvaluateConfig, GenerateConfig, ReproduceConfig
from diffscale.bench.tape_config import ReplayConfig, TapeConfig, TuneConfig
from diffscale.tape.tape import Tape
from diffscale.train.configs import CONFIGS

LONG = "x" * 300  # longer than any file system's names
HUGE = "9" * 30
ENDLESS = "9" * 5000  # more digits than Python reads
DEEP = "[" * 5000

COMMANDS: dict[str, tuple[list[str], type[BaseModel]]] = {
    "generate": (["generate", "two red stars", "--budget", "20", "--output", "out"], GenerateConfig),
    "bench": (["bench", "shapes-mini", "--limit", "1", "--budget", "20", "--output", "out"], BenchConfig),
    "evaluate": (["evaluate", "pictures", "--metrics", "shapes-judge", "--output", "out/results.json"], EvaluateConfig),
    "reproduce": (["reproduce", "A.table2", "--quick", "--output", "out"], ReproduceConfig),
    "tape record": (
        ["tape", "record", "shapes-mini", "--limit", "1", "--candidates", "1", "--output", "out/a.tape"],
        TapeConfig,
    ),
    "tape replay": (["tape", "replay", "right.tape", "--budget", "2", "--output", "out/results.json"], ReplayConfig),
    "tune auto": (["tune", "auto", "--tape", "right.tape", "--output", "out/profile.json"], TuneConfig),
    **{method: (["train", method, "--output_dir", "out"], settings) for method, settings in CONFIGS.items()},
}
"""Of each command arguments that are right, and its settings."""
QUICK = ["--steps", "2", "--budget", "4"]


def numbers_in(annotation: Any) -> set[type]:
    """The kinds of number that an annotation of a setting has, in lists and beside None too."""
    if annotation in (int, float):
        return {annotation}
    inner = get_args(annotation) if get_origin(annotation) in (list, Union, UnionType) else ()
    return set().union(*map(numbers_in, inner))


def wrong_numbers() -> Iterator[list[str]]:
    """Every number of every command, as a word, a negative, not finite, too long, and empty."""
    seen = set()
    for name, (right, settings) in COMMANDS.items():
        for field, info in config.fields(settings).items():
            kinds = numbers_in(info.annotation)
            if not kinds or (name in CONFIGS and field in seen):
                continue  # the methods share most settings
            seen.add(field)
            spelt = (flag(info).names or (field,))[0].replace("_", "_" if name in CONFIGS else "-")
            values = ["many", "", "nan", "inf", "-inf", ENDLESS] + (["1.5"] if kinds == {int} else [])
            # The seed and weights of losses may be negative.
            values += [] if field in ("seed", "weight") else ["-1"]
            yield from ([*right, f"--{spelt}={value}"] for value in values)


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

NAMES = [
    "",
    " ",
    "=",
    "rndom",
    "clpi",
    "clip,",
    "clip model",
    "clip model=",
    "clip nope=1",
    "random n=two",
    "random n=",
    "random nn=2",
    "'random",
    'clip model="a',
    ":",
    "mine:",
    ":f",
    "nowhere:f",
    "nowhere.at.all:f",
    "holds:absent",
    "holds:number",
    "holds:Needs",
    "holds:Bare",
    "holds:nothing",
    "holds.one",
    "syntax:f",
    "raises:f",
    "leaves:f",
    "recurses:f",
    "no/such",
    "diffscale/nope",
    "../x",
    "a b c",
    LONG,
    "clip model=" + LONG,
    "ünïcode",
]
"""Texts that are neither a search nor a verifier."""

SEARCHES = [
    "zero_order cosine=2",
    "zero_order policy=bold",
    "fk strength=nan",
    "fk units=miles",
    "draft n=3 finals=10",
    "halving finals=1 share=0.5",
    "fk eta=2",
    "fk k=0",
    "paths forward=0.9",
    "paths start=1",
    "demon temperature=-1",
    "svdd b=0",
    "bayes n=0",
    "first_order rate=inf",
    "free2guide guided=-1",
    "random n=-3",
    "holds:raising",
    "holds:early",
    "random n=1e3",
]
VERIFIERS = [
    "ensemble of=clip",
    "ensemble of=clip,nope",
    "ensemble of=clip,shapes-judge weights=inf,1",
    "ensemble of=clip,shapes-judge weights=1",
    "weighted of=clip,aesthetic weights=1,-1",
    "ensemble of=clip,holds:Needs",
    "clip_ssl level=9",
    "detector threshold=2",
    "composition category=all",
    "inception output=none",
    "hps version=v3",
    "llm_grader",
    "llm_grader model=m base_url=nowhere",
    "llm_grader model=m base_url=http://x/v1 tries=0",
    "holds:one",
    "holds:fails",
    "holds:word",
    "holds:none",
    "holds:short",
    "holds:nan",
    "shapes-grader aspect=smell",
    "clip model=nowhere",
    "clip model=pictures",
]


def wrong_names() -> Iterator[list[str]]:
    """Searches, verifiers, metrics, features, models, suites, methods and items that are none."""
    for text in [*NAMES, *SEARCHES]:
        yield [*COMMANDS["generate"][0], *QUICK, "--search", text]
    for text in [*NAMES, *VERIFIERS]:
        yield [*COMMANDS["generate"][0], *QUICK, "--verifier", text]
        yield [*COMMANDS["generate"][0], *QUICK, "--choose", text]
    for text in NAMES:
        yield [*COMMANDS["bench"][0], "--search", text]
        yield [*COMMANDS["bench"][0], "--verifier", text]
        yield [*COMMANDS["bench"][0], "--choose", text]
        yield ["evaluate", "pictures", "--metrics", text or ","]
        yield ["evaluate", "pictures", "--metrics", "fid", "--reference", "pictures", "--features", text]
        yield ["generate", "two red stars", "--output", "out", "--model", text]
        yield ["bench", text, "--output", "out"]
        yield ["train", text, "--output_dir", "out"]
        yield ["train", "sharpen-rlhf", "--output_dir", "out", "--train_prompts", "prompts.txt", "--reward", text]
        yield [*COMMANDS["tape record"][0], "--verifier", text]
        yield [*COMMANDS["tape replay"][0], "--search", text]
        yield [*COMMANDS["tape replay"][0], "--verifier", text]
        yield [*COMMANDS["tape replay"][0], "--judge", text]
        yield [*COMMANDS["tune auto"][0], "--verifier", text]
        yield ["reproduce", text, "--output", "out"]
        yield ["list", text]


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


ARGUMENTS = [
    "height=[",
    "height",
    "=3",
    "height=7",
    "height=a",
    "height=-64",
    "nosuch=3",
    "height=1" + "0" * 30,
    "guidance_scale=nan",
    "guidance_scale=high",
    "height=" + DEEP,
    "num_inference_steps=-1",
    "latents=3",
    "guidance_scale=" + ENDLESS,
    "generator=3",
    "output_type=pt",
    "prompt=x",
    "height={a: 1}",
    "callback=3",
]
OPTIONS = [
    ["--scheduler", "Nope"],
    ["--scheduler", "EulerDiscreteScheduler nope=1"],
    ["--scheduler", "torch"],
    ["--dtype", "float8"],
    ["--dtype", "int8"],
    ["--device", "tpu"],
    ["--device", "cuda:99"],
    ["--quantize", "nope"],
    ["--quantize", "torchao bits=x"],
    ["--offload", "disk"],
    ["--attention", "nope"],
    ["--variant", "fp3"],
    ["--lora", "nowhere"],
    ["--lora", "pictures:x"],
    ["--lora", ":0.5"],
    ["--budget", "1"],
    ["--budget", "0"],
    ["--steps", "1" + "0" * 30],
    ["--batch-size", "0"],
    ["--unknown"],
    ["--budget"],
    ["--seed", "1e3"],
    ["--choose", "oracle_fid"],
    ["--choose", "dino_ssl level=0.2", "--verifier", "clip_ssl"],
    ["--negative-prompt", "blurry", "--pipe-arg", "negative_prompt=grey"],
    *(["--budget", "1000000000", "--search", name] for name in ("svdd", "fk")),
]


def wrong_options() -> Iterator[list[str]]:
    """Arguments of pipelines' calls, loading options, and numbers that no machine can hold."""
    for text in ARGUMENTS:
        yield ["generate", "two red stars", "--output", "out", *QUICK, "--pipe-arg", text]
    for given in OPTIONS:
        yield ["generate", "two red stars", "--output", "out", *QUICK, *given]
    for resolution in ("7", "100000", "0"):
        yield [
            "train",
            "sft",
            "--output_dir",
            "out",
            "--train_data_dir",
            "pictures",
            "--resolution",
            resolution,
        ]


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
    for name in ("empty", "text", "deep"):
        yield ["tape", "record", "shapes-mini", "--limit", "1", "--output", f"tapes/{name}"]
    for wrong in (
        ["--predictions", "20"],
        ["--drafts", "3 nope"],
        ["--drafts", "many"],
        ["--predictions", "1,"],
        ["--verifier", "ensemble of=clip,shapes-judge"],
    ):
        yield [*COMMANDS["tape record"][0], *wrong]


def wrong_outputs() -> Iterator[list[str]]:
    """Places where nothing can be written, and folders that hold something else."""
    for place in ("prompts.txt", "prompts.txt/below", "/proc/nowhere", LONG, "pictures"):
        yield ["generate", "two red stars", *QUICK, "--output", place]
        yield ["bench", "shapes-mini", "--limit", "1", *QUICK, "--output", place]
        if place != "prompts.txt":
            yield [*COMMANDS["tape replay"][0], "--output", place]
            yield [*COMMANDS["tune auto"][0], "--output", place]
        yield [*COMMANDS["tape record"][0], "--output", place]
        yield ["reproduce", "A.table2", "--quick", "--output", place]
        yield ["train", "sft", "--train_data_dir", "pictures", "--output_dir", place]
        yield ["shapes", "data", "plain", "--size", "1", "--output", place]
        if place != "pictures":
            yield [
                "evaluate",
                "pictures",
                "--metrics",
                "shapes-judge",
                "--output",
                place if "below" in place else f"{place}/x.json",
            ]
    for number in ("-1", "0", "many"):
        yield ["shapes", "train", "flux", "--output", "out", "--steps", number]
        yield ["shapes", "data", "plain", "--output", "out", "--size", number]
    yield ["shapes", "train", "nope"]
    yield ["shapes", "data", "nope"]
    yield ["nope"]
    yield ["--nope"]


def every_case() -> list[list[str]]:
    """All of the table."""
    kinds = (
        wrong_numbers,
        wrong_names,
        wrong_configurations,
        wrong_models,
        wrong_options,
        wrong_prompts,
        wrong_pictures,
        wrong_tapes,
        wrong_outputs,
    )
    return [case for kind in kinds for case in kind()]


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
