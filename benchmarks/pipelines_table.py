"""Writes docs/pipelines.md: which pipelines of the installed diffusers can be searched, and how.

    python benchmarks/pipelines_table.py

Classes of which `tests/families.py` makes a tiny instance are tried; the others are judged by their source.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

import diffusers
from pipeline_source import Source, sources, tensors_in, verdict

from diffscale.samplers.whole import WholeSampler, sampler_of

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "pipelines.md"
TEXT = """# Pipelines

Of diffusers {version}, {pictures} pipelines take a prompt and give pictures, {videos} give videos. *Windowed*: every
search runs on them, from any step to any other. *Noise-only*: their call is run whole, for searches over noises
(`random`, `zero_order`, `bayes`); `diffscale` says so when it starts. *Neither*: there is no noise to search, or no
picture to judge. Of videos the verifier scores four frames, the first, the last and two between, and takes the mean;
galleries show these frames side by side. Pipelines that start from a noised picture (`strength`) are searched over
its noise. A pipeline's safety checker looks at finished pictures alone: candidates that it flags are dropped, counted
and told of; predictions on the way, gradients and trainings go around it. With a cache of diffusers
(`transformer.enable_cache`) every pipeline is noise-only and runs row by row, as some caches decide over a whole batch;
the ledger's operations are those that ran.

*Tried*: a tiny instance with random weights was run, in `tests/families.py`. *Source*: judged by the source of the
class (`benchmarks/pipeline_source.py`); where a tiny instance exists, a test holds both to the same verdict.

*Tensors*: what the pixels are between that the class gives with `output_type="pt"`, by its source. diffscale's
pictures are those of "np", which are of [0, 1]; it takes tensors where it has seen, by decoding one row in both ways,
what they are between. Pictures with other values, as one class of *unknown* gives them, are refused in a sentence.
This file is written by `python benchmarks/pipelines_table.py`.

| | windowed | noise-only | neither |
|---|---|---|---|
{counts}
"""


def tried() -> dict[str, list[tuple[str, str]]]:
    """Verdicts (kind, why) of the tiny instances, by class."""
    sys.path.insert(0, str(ROOT / "tests"))
    import families
    from pipelines import PROMPTS

    # Every whole pipeline says so; here that is the very question.
    logging.disable(logging.WARNING)
    found: dict[str, list[tuple[str, str]]] = {}
    for tiny, scheduler, *_ in (*families.WINDOWED.values(), *families.WHOLE.values(), *families.OTHERS.values()):
        made = tiny(scheduler(), False)
        sampler = sampler_of(made.pipe, PROMPTS, 4, made.args)
        whole = isinstance(sampler, WholeSampler)
        verdicts = found.setdefault(type(made.pipe).__name__, [])
        verdicts.append(("noise-only", sampler.why) if whole else ("windowed", ""))
    logging.disable(logging.NOTSET)
    return found


def row(source: Source, instances: list[tuple[str, str]]) -> tuple[str, str, str]:
    """(Kind, why, how it was found out)."""
    kinds = sorted(set(instances), reverse=True)
    if len(kinds) > 1:
        why = "; ".join(why for _, why in kinds if why)
        return "windowed", f"noise-only with a network that does not see the mask, as {why}", "tried"
    return (*kinds[0], "tried") if kinds else (*verdict(source), "source")


def render() -> str:
    """The document."""
    instances = tried()
    rows = [(source, *row(source, instances.get(source.name, []))) for source in sources()]
    counts = Counter((source.answers, kind) for source, kind, *_ in rows)
    kinds = ("windowed", "noise-only", "neither")
    table = [f"| {what} | {' | '.join(str(counts[what, kind]) for kind in kinds)} |" for what in ("pictures", "videos")]
    totals = {what: sum(counts[what, kind] for kind in kinds) for what in ("pictures", "videos")}
    parts = [TEXT.format(version=diffusers.__version__, counts="\n".join(table), **totals)]
    sections = {
        "Pictures from text": lambda source: source.answers == "pictures" and source.starts_from == "text",
        "Pictures from pictures": lambda source: source.answers == "pictures" and source.starts_from != "text",
        "Videos": lambda source: source.answers == "videos",
    }
    for title, belongs in sections.items():
        lines = [
            f"| `{source.name}` | {source.starts_from} | {kind} | {why} | {how} | {tensors_in(source)} |"
            for source, kind, why, how in sorted(rows, key=lambda row: row[0].name.lower())
            if belongs(source)
        ]
        columns = "| pipeline | starts from | searched | why | found by | tensors |"
        head = f"## {title}\n\n{columns}\n|---|---|---|---|---|---|\n"
        parts.append(head + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
