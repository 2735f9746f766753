"""Makes the pictures of the README, into docs/front: before and after a search, and quality against its cost.

    python benchmarks/front_page.py [before-after] [quality]

`before-after`: one sample above the best of a search by CLIPScore, for the first prompt of each category of the suite
`shapes`, with seed 0, and what the exact judge, which takes no part, says of both. So prompts are chosen by a rule
and not by their pictures. Once in one row, and once in two rows for narrow screens. Two minutes of one core.

`quality`: the judge's mean over the 300 prompts of `shapes`, of what random search and `auto` find by CLIPScore and of
one sample in more steps, against NFE and against seconds a prompt. Searches run on the tape
`benchmarks/tapes/shapes-flux-pools.tape`, whose seconds are those of one core; samples in 40, 80 and 160 steps are
drawn here, which takes about eight minutes of one core. The numbers are written to quality.md, of which the figures are
drawn.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffscale_shapes.judge import judge_images
from diffscale_shapes.prompts import suite
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import diffscale
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval
from diffscale.report.pictures import enlarge, to_pil
from diffscale.report.plots import clean_axes, draw_line
from diffscale.report.text import save
from diffscale.searches import choose_search
from diffscale.searches.random import random
from diffscale.tape.curves import best_of
from diffscale.tape.replay import replay
from diffscale.tape.tape import Tape, load_tape
from diffscale.tape.verifiers import finals

MODEL = "shapes-flux"
BEST_MODEL = "shapes-sdxl"
"""The text-to-image model of Shapes whose best of 16 the judge likes best."""
INK = "#282828"
SIDE, GAP = 192, 10
"""Of the pictures on the sheets, in pixels."""
JUDGE = "shapes-judge"
TAPE = Path("benchmarks/tapes/shapes-flux-pools.tape")
NFE = 1280
COUNTS = (1, 2, 4, 8, 16, 32, 64)
STEPS = (40, 80, 160)
AUTO = (160, 320, 640)
Curve = list[tuple[float, float, NDArray[np.float64]]]
"""Points of (NFE, seconds, judge of each prompt)."""


@dataclass(frozen=True)
class Cell:
    """A prompt with its pictures and what the judge says of them, in [0, 1]: one sample, and the best of the search."""

    prompt: str
    images: tuple[Image.Image, Image.Image]
    judged: tuple[float, float]


def before_after(path: Path) -> None:
    """The prompts with two pictures each: all in a row at `path`, and beside it in rows of three for narrow screens."""
    prompts = suite("shapes")[::50]
    found = [diffscale.search(BEST_MODEL, prompt.text, nfe=NFE, verifier="clip", seed=0) for prompt in prompts]
    judged = {}
    for pick in ("baseline", "best"):
        images = torch.stack([getattr(result, pick).image for result in found])
        judged[pick] = judge_images(images, [prompt.description for prompt in prompts]).tolist()
        print(f"{pick}: judge {np.mean(judged[pick]):.3f}")
    cells = [
        Cell(
            prompt.text,
            (enlarge(to_pil(result.baseline.image), SIDE), enlarge(to_pil(result.best.image), SIDE)),
            (before, after),
        )
        for prompt, result, before, after in zip(prompts, found, *judged.values(), strict=True)
    ]
    wide_sheet(cells).save(path, optimize=True)
    narrow_sheet(cells).save(path.with_stem(f"{path.stem}_narrow"), optimize=True)


def wide_sheet(cells: Sequence[Cell]) -> Image.Image:
    """All prompts beside each other."""
    left, head, line = 90, 64, 20
    sheet = Image.new("RGB", (left + len(cells) * (SIDE + GAP), head + 2 * (SIDE + line + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 15)
    for row, name in enumerate(("one\nsample", f"best of\n{NFE:,} NFE")):
        top = head + row * (SIDE + line + GAP)
        draw.multiline_text((6, top + SIDE / 2), name, INK, font, anchor="lm")
        for column, cell in enumerate(cells):
            corner = left + column * (SIDE + GAP)
            sheet.paste(cell.images[row], (corner, top))
            draw.text((corner + SIDE / 2, top + SIDE + 3), f"{cell.judged[row]:.0%} right", INK, font, anchor="ma")
    for column, cell in enumerate(cells):
        middle = (left + column * (SIDE + GAP) + SIDE / 2, head / 2)
        draw.multiline_text(middle, wrapped(cell.prompt, font, SIDE), INK, font, anchor="mm", align="center")
    return sheet


def narrow_sheet(cells: Sequence[Cell], columns: int = 3) -> Image.Image:
    """Rows of three prompts, with letters that can be read on a telephone."""
    head, line = 112, 30
    block = head + 2 * (SIDE + line) + 2 * GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) - GAP, rows * block - 2 * GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 21)
    for number, cell in enumerate(cells):
        corner, top = number % columns * (SIDE + GAP), number // columns * block
        middle = corner + SIDE / 2
        draw.multiline_text(
            (middle, top + head - 8),
            wrapped(cell.prompt, font, SIDE),
            INK,
            font,
            anchor="md",
            align="center",
            spacing=1,
        )
        for row, name in enumerate(("one sample", "best")):
            place = top + head + row * (SIDE + line)
            sheet.paste(cell.images[row], (corner, place))
            draw.text((middle, place + SIDE + 2), f"{name}: {cell.judged[row]:.0%}", INK, font, anchor="ma")
    return sheet


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text` in lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return "\n".join(lines)


def more_steps(steps: int) -> NDArray[np.float64]:
    """The judge of one sample in so many steps, for each prompt."""
    prompts = suite("shapes")
    sampler = diffscale.make_sampler(
        MODEL,
        [prompt.text for prompt in prompts],
        steps=steps,
        pipe_args={},
        loading=diffscale.LoadOptions(device="cpu"),
    )
    root = noise.root(0)
    tasks = [Task(partial(random, n=1), row, noise.fold(root, p.text, 0), steps) for row, p in enumerate(prompts)]
    results = run_searches(tasks, sampler, diffscale.load_verifier("clip", image_model=MODEL))
    images = torch.stack([result.best.image for result in results])
    return np.asarray(judge_images(images, [prompt.description for prompt in prompts]), float)


def curves(tape: Tape) -> dict[str, Curve]:
    """The judge's mean of each way to spend a budget, against NFE and seconds a prompt."""
    step, picture = tape.seconds["step"], tape.seconds["decode"] + tape.seconds["clip"]
    scores, judged = finals(tape, "clip"), finals(tape, JUDGE)
    found: dict[str, Curve] = {"random search": [], "auto": [], "more steps": []}
    for count in COUNTS:
        nfe = count * tape.steps
        found["random search"].append((nfe, nfe * step + count * picture, best_of(scores, count, judged)))
    search = choose_search("auto").make()
    for budget in AUTO:
        at = replay(tape, search, "clip", budget, judges=[JUDGE], draws=2)
        seconds = at.nfe.mean() * step + at.decodes.mean() * picture
        found["auto"].append((float(at.nfe.mean()), float(seconds), at.judged[JUDGE]))
    one = found["random search"][0]
    found["more steps"] = [one, *((steps, steps * step + picture, more_steps(steps)) for steps in STEPS)]
    return found


def quality(path: Path) -> None:
    """The table at `path`, and the figures beside it, which are drawn of it."""
    tape = load_tape(TAPE)
    lines = [
        f"# Quality against cost, {MODEL}",
        "",
        f"The exact judge's mean over {len(tape.prompts)} prompts, with 95% intervals over prompts. Searches choose by",
        "CLIPScore; the judge takes no part. Seconds are of one core.",
        "Made by `python benchmarks/front_page.py quality`.",
        "",
        "| spent on | NFE a prompt | seconds a prompt | judge |",
        "|---|---|---|---|",
    ]
    for name, points in curves(tape).items():
        for nfe, seconds, judged in points:
            mean = interval(judged)
            lines.append(
                f"| {name} | {nfe:.0f} | {seconds:.2f} | {mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] |"
            )
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def draw_quality(table: Path) -> None:
    """The figure of a `table`: its panels beside each other, and below each other for narrow screens."""
    found: dict[str, list[list[float]]] = {}
    for line in table.read_text().splitlines()[8:]:
        name, *cells = line.strip("| ").split(" | ")
        found.setdefault(name, []).append([float(number) for number in re.findall(r"[\d.]+", " ".join(cells))])
    for suffix, shape, size in (("", (1, 2), (9, 3.4)), ("_narrow", (2, 1), (4.6, 6.4))):
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        panels = figure.subplots(*shape, sharey=True)
        for number, (name, points) in enumerate(found.items()):
            nfe, seconds, middle, low, high = (list(column) for column in zip(*points, strict=True))
            for axes, x in zip(panels, (nfe, seconds), strict=True):
                draw_line(axes, x, middle, (low, high), number, name)
        labels = ("NFE a prompt (denoiser evaluations)", "seconds a prompt, one core")
        for axes, label in zip(panels, labels, strict=True):
            clean_axes(axes)
            axes.set_xscale("log", base=2)
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"{x:.2g}")
        for axes in panels if suffix else panels[:1]:
            axes.set_ylabel("judge: share of the prompt that is right")
        panels[0].legend(frameon=False, loc="upper left")
        save(figure, table.with_name(f"{table.stem}{suffix}.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["before-after", "quality"], default=["before-after", "quality"])
    parser.add_argument("--output", type=Path, default=Path("docs/front"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if "before-after" in options.what:
        before_after(options.output / "before_after.png")
    if "quality" in options.what:
        quality(options.output / "quality.md")
        draw_quality(options.output / "quality.md")


if __name__ == "__main__":
    main()
