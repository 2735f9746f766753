"""Bad inputs that are typed: numbers, names, arguments and options of every command, and where it is to write."""

from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from diffscale._util import config
from diffscale._util.config import flag
from diffscale.bench.config import BenchConfig, EvaluateConfig, GenerateConfig, ReproduceConfig
from diffscale.bench.tape_config import ReplayConfig, TapeConfig, TuneConfig, ValueConfig
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
    "tune value": (["tune", "value", "right.tape", "--output", "out/clip.value"], ValueConfig),
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
    "valued",
    "valued file=nowhere",
    "valued file=right.tape",
    "valued file=right.value of=pick_score",
    "valued file=right.value of=aesthetic",
    "valued file=right.value of=nope",
    "ensemble of=aesthetic,valued:file=nowhere",
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
        yield [*COMMANDS["tune value"][0], "--verifier", text]
        yield ["reproduce", text, "--output", "out"]
        yield ["list", text]


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
    ["--wordings", "prompts.txt"],  # which random search does not draw from
    *(["--search", "rewrites", "--wordings", given] for given in ("", " ", LONG, ".", "prompts.txt", "~nobody-here/x")),
    *(["--search", "rewrites", "--wordings", f"llm{given}"] for given in ("", " model", " nope=1", " model=m n=0")),
    ["--search", "rewrites", "--wordings", "llm model=m base_url=nowhere"],
    ["--search", "rewrites", "--model", "shapes-sit-s"],
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


def wrong_outputs() -> Iterator[list[str]]:
    """Places where nothing can be written, and folders that hold something else."""
    for place in ("prompts.txt", "prompts.txt/below", "/proc/nowhere", LONG, "pictures"):
        yield ["generate", "two red stars", *QUICK, "--output", place]
        yield ["bench", "shapes-mini", "--limit", "1", *QUICK, "--output", place]
        if place != "prompts.txt":
            yield [*COMMANDS["tape replay"][0], "--output", place]
            yield [*COMMANDS["tune auto"][0], "--output", place]
            yield [*COMMANDS["tune value"][0], "--output", place]
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
