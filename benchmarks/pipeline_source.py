"""What the source of a diffusers pipeline says about whether its trajectories can be windowed.

The rules follow what `diffscale.samplers` does with a pipeline, so that they can be checked against tiny instances:
latents are put in the place of what `prepare_latents` returns (or of the `latents` argument), the one loop over
timesteps is replaced, a step of the scheduler, on the whole latents, must be all that changes them, and the pipeline
must give them back.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import diffusers

PICTURES, VIDEOS = {"images"}, {"frames", "videos", "video"}


@dataclass(frozen=True)
class Source:
    """A pipeline class with a call of its own; `folder` is where diffusers keeps it, `text` the class itself."""

    name: str
    folder: str
    tree: ast.ClassDef
    text: str

    @property
    def call(self) -> ast.FunctionDef:
        return next(f for f in self.tree.body if isinstance(f, ast.FunctionDef) and f.name == "__call__")

    @property
    def takes(self) -> set[str]:
        return {arg.arg for arg in (*self.call.args.args, *self.call.args.kwonlyargs)}

    @property
    def answers(self) -> str:
        """pictures, videos or neither, by what its output is called."""
        words = {
            keyword.arg
            for node in ast.walk(self.call)
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Call)
            for keyword in node.value.keywords
        }
        if words & VIDEOS:
            return "videos"
        if words & PICTURES or (not words and "ImagePipelineOutput" in (ast.get_docstring(self.call) or "")):
            return "pictures"
        return "neither"

    @property
    def scheduler(self) -> set[str]:
        """Names of the scheduler classes that it is made with."""
        made = next((f for f in self.tree.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        kinds = [arg.annotation for arg in made.args.args if arg.arg == "scheduler"] if made else []
        return {part.strip() for kind in kinds if kind is not None for part in ast.unparse(kind).split("|")}

    @property
    def starts_from(self) -> str:
        if self.takes & {"mask_image", "mask"}:
            return "picture and mask"
        if self.takes & {"image", "video", "images", "input_images"}:
            return "picture"
        return "text, control" if self.takes & {"control_image", "control_images"} else "text"


ROOT = Path(diffusers.__file__).parent


def sources() -> list[Source]:
    """All pipeline classes of the installed diffusers whose call takes a prompt and answers pictures or videos."""
    return [source for source in all_sources() if "prompt" in source.takes and source.answers != "neither"]


@cache
def all_sources() -> list[Source]:
    """All pipeline classes of the installed diffusers with a call of their own."""
    found = []
    for path in sorted((ROOT / "pipelines").rglob("pipeline_*.py")):
        text = path.read_text(encoding="utf-8")
        if "onnx" in path.name or "flax" in path.name or "def __call__" not in text:
            continue
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "__call__" for part in node.body):
                folder = path.parent.relative_to(ROOT / "pipelines").as_posix()
                found.append(Source(node.name, folder, node, "\n".join(lines[node.lineno - 1 : node.end_lineno])))
    return found


def registered(mapping: str) -> list[str]:
    """Names of the pipeline classes in one of the mappings of diffusers' `auto_pipeline`."""
    text = (ROOT / "pipelines" / "auto_pipeline.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == mapping:
            pairs = [inner for inner in ast.walk(node.value) if isinstance(inner, ast.Tuple)]
            return [pair.elts[1].id for pair in pairs if isinstance(pair.elts[1], ast.Name)]
    raise LookupError(mapping)


@cache
def _levels_known(scheduler: str) -> bool:
    """Whether a scheduler class keeps its noise levels where they are looked for; true of what stands for several."""
    for path in (ROOT / "schedulers").glob("scheduling_*.py"):
        text = path.read_text(encoding="utf-8")
        if scheduler.endswith("Scheduler") and f"class {scheduler}(" in text:
            return "self.alphas_cumprod" in text or "self.sigmas" in text
    return True


def verdict(source: Source) -> tuple[str, str]:
    """(windowed, noise-only or neither; why) by the source alone."""
    combined = any(isinstance(node, ast.Call) and _name(node.func).endswith("_pipe") for node in _nodes(source))
    if "output_type" not in source.takes:
        return "neither", "it has no output type, so it gives no pictures as tensors"
    if "randn" not in source.text and "prepare_latents" not in source.text and not combined:
        return "neither", "it draws no normal noise"
    if why := _why_whole(source, combined):
        return "noise-only", why
    return "windowed", ""


def tensors_in(source: Source) -> str:
    """What the pictures are between that it gives with `output_type="pt"`: [0, 1], [-1, 1] or unknown.

    Those of "np" are of [0, 1]. Where only these are brought there on their way to the answer, the tensors are not.
    """
    pixels = {kind: _pixels(source, kind) for kind in ("pt", "np")}
    if pixels["pt"]:
        return "[0, 1]"
    return "[-1, 1]" if pixels["np"] else "unknown"


def _pixels(source: Source, output: str) -> bool:
    """Whether pictures are brought to [0, 1] where `output` is asked for."""
    texts = [ast.unparse(node) for node in _reached(source.call.body, output)]
    called = {name for text in texts for name in re.findall(r"self\.(\w+)\(", text)}
    texts += [ast.unparse(part) for part in source.tree.body if getattr(part, "name", "") in called - {"__call__"}]
    if any(re.search(r"\.postprocess(_video)?\(|clamp\(0(\.0)?, 1(\.0)?\)", text) for text in texts):
        return True
    decoders = re.findall(r"self\.(?:decoder|generation|upsampling)_pipe = (\w+)\(", source.text)
    by_name = {each.name: each for each in all_sources()}
    return any(_pixels(by_name[name], output) for name in decoders if name in by_name)


def _reached(body: list[ast.stmt], output: str) -> Iterator[ast.AST]:
    """Statements that run if `output` is asked for, and their parts but for whole bodies; of an unknown test both."""
    for statement in body:
        if isinstance(statement, ast.If):
            names = {node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)}
            known = eval(ast.unparse(statement.test), {"output_type": output}) if names == {"output_type"} else None
            yield from () if known is False else _reached(statement.body, output)
            yield from () if known is True else _reached(statement.orelse, output)
        elif inner := getattr(statement, "body", None):
            yield from _reached(inner, output)
        else:
            yield statement


def _why_whole(source: Source, combined: bool) -> str:
    """Why a pipeline can only be run whole; empty if it need not."""
    owned = any(getattr(part, "name", "") == "prepare_latents" for part in source.tree.body)
    loops = [loop for loop in _nodes(source) if isinstance(loop, ast.For) and _steps(loop)]
    if combined:
        return "it calls other pipelines one after another"
    if not owned and "latents" not in source.takes:
        return "it makes its latents where they cannot be handed over"
    if not _gives_back(source):
        return "it does not give its latents back"
    if not loops:
        return "it does not step its scheduler in a loop of its own"
    if len(loops) > 1:
        return "it has loops within or after its loop over timesteps"
    (loop,) = loops
    over = ast.unparse(loop.iter)
    if "timesteps" not in over or "[" in over:
        return "it does not loop over its scheduler's timesteps"
    after = loop.body[1 + max(i for i, part in enumerate(loop.body) if _steps(part)) :]
    if source.scheduler and not any(_levels_known(scheduler) for scheduler in source.scheduler):
        return f"{' and '.join(sorted(source.scheduler))} has no known noise levels"
    if _left_over(source, loop):
        return "it cannot be called without a step"
    return _changes(loop, after)


def _gives_back(source: Source) -> bool:
    """Whether its latents can be had: as its answer, or by a callback after every step."""
    asked = any(isinstance(node, ast.Compare) and "'latent'" in ast.unparse(node) for node in _nodes(source))
    return asked or "callback_on_step_end" in source.takes


def _left_over(source: Source, loop: ast.For) -> set[str]:
    """Names that only the loop gives a value and that are used after it."""
    names = [node for node in _nodes(source) if isinstance(node, ast.Name)]
    end = loop.end_lineno or loop.lineno
    before = {node.id for node in names if node.lineno < loop.lineno and isinstance(node.ctx, ast.Store)}
    within = {n.id for n in names if loop.lineno <= n.lineno <= end and isinstance(n.ctx, ast.Store)}
    first: dict[str, ast.Name] = {}
    # Within a line the value is read before the name is given it.
    for node in sorted(names, key=lambda node: (node.lineno, isinstance(node.ctx, ast.Store))):
        if node.lineno > end:
            first.setdefault(node.id, node)
    read = {name for name, node in first.items() if isinstance(node.ctx, ast.Load)}
    targets = [node.target for node in _nodes(source) if isinstance(node, ast.comprehension)]
    own = {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
    return (read & within) - before - own - source.takes


def _changes(loop: ast.For, after: list[ast.stmt]) -> str:
    """What a step does to the latents besides the scheduler's."""
    if {ast.unparse(step.func) for step in _steps(loop)} != {"self.scheduler.step"}:
        return "it steps several schedulers"
    samples = [step.args[2] for step in _steps(loop) if len(step.args) > 2]
    samples += [word.value for step in _steps(loop) for word in step.keywords if word.arg == "sample"]
    if not samples or not all(isinstance(sample, ast.Name) for sample in samples):
        return "it steps only a part of its latents"
    names = {ast.unparse(sample) for sample in samples} | {"latents"}
    if any(_assigns(statement, names) for statement in after):
        return "it changes its latents after the solver's step"
    before = loop.body[: min(i for i, part in enumerate(loop.body) if _steps(part))]
    return "it changes its latents before the solver's step" if any(_assigns(s, names) for s in before) else ""


def _assigns(statement: ast.stmt, names: set[str]) -> bool:
    """Whether it gives one of `names` a new value, other than by a callback or in another dtype."""
    if isinstance(statement, ast.If) and "callback" in ast.unparse(statement.test):
        return False
    for node in ast.walk(statement):
        if isinstance(node, ast.Assign) and names & {_name(target) for target in node.targets}:
            value = ast.unparse(node.value)
            if not any(value.startswith(f"{name}.to(") for name in names):
                return True
    return False


def _nodes(source: Source) -> Iterator[ast.AST]:
    return ast.walk(source.call)


def _steps(node: ast.AST) -> list[ast.Call]:
    """Calls of a scheduler's step."""
    calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    return [call for call in calls if _name(call.func) == "step" and "scheduler" in ast.unparse(call.func)]


def _name(node: ast.expr) -> str:
    """The last part of a dotted name; empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
