"""How many times its budget is a search worth, and do held-out judges agree?

    diffscale tape record --model shapes-flux --suite shapes --candidates 128 --predictions 7 --predictions 9 \
        --predictions 11 --verifier clip --verifier image_reward --verifier pick_score --verifier shapes-grader \
        --output outputs/frontier/shapes-flux.tape
    python benchmarks/frontier.py outputs/frontier/shapes-flux.tape [--draws 4] [--output docs/frontier]

Searches run on the tape (`diffscale.tape`): the engine, the ledger and the candidates are those of a real run, and the
scores are read instead of computed. Random search's curve is the U-statistic over all subsets of the same candidates.
Every figure is over all prompts of the tape, with a 95% bootstrap interval over prompts; differences are paired. What
was replayed is kept in outputs/frontier, by the tape's digest, so that a call that was stopped goes on.

Printed and written as a page, for each verifier and budget: the multiplier (how many times the NFE random search needs
for the same mean score); the difference to random search at equal NFE by the searched score and by the judge; and the
multiplier with FLUX.1-dev's costs put in (counted operations of its denoiser, decoder and a CLIP ViT-L/14), and in the
seconds of the tape. Then the bars: `auto` and `draft` at 16 and 64 candidates' worth, and `auto` against random search
with 90% of its budget; the judge where `auto` searched by another verifier; and a draft search of all candidates
against the best budget of random search. Searches that ask for more than the tape has are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from rich.progress import track
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import replacing
from diffscale.engine.flops import count_flops
from diffscale.metrics.bootstrap import interval
from diffscale.report import plots
from diffscale.searches import choose_search
from diffscale.tape.curves import best_of, candidates_worth
from diffscale.tape.replay import Found, gain, multiplier, replay
from diffscale.tape.tape import Tape, load_tape
from diffscale.tape.verifiers import finals, recorded_names

JUDGE = "shapes-judge"
MEMBERS = ("clip", "image_reward", "pick_score")
ENSEMBLE = f"ensemble of={','.join(MEMBERS)}"
ORDERS = 128
"""How many orders of the candidates are averaged over where `auto` is random search."""
WORST = -0.02
"""How far below random search a held-out judge may be, at the lower end of its interval."""
CANDIDATES = (4, 8, 16, 32, 64)
SEARCHES = ("auto", "draft", "draft steps=4 at=11", "halving at=7,11")
BARS = ((16, 1.4, 2.0), (64, 2.0, 3.0))
"""Candidates' worth that is to be found, at least for this part of the NFE, and as an aim for that part."""


@dataclass(frozen=True)
class Costs:
    """Operations of one row: a step of the denoiser, and a picture's decoding with its scoring."""

    step: float
    picture: float

    def of(self, nfe: float, pictures: float) -> float:
        """All operations of a search."""
        return nfe * self.step + pictures * self.picture


def flux_costs() -> Costs:
    """Counted operations of FLUX.1-dev at 1024x1024 and of CLIP ViT-L/14, on networks without weights."""
    with torch.device("meta"):
        denoiser = FluxTransformer2DModel(guidance_embeds=True)
        tokens = {
            "hidden_states": (1, 4096, 64),
            "encoder_hidden_states": (1, 512, 4096),
            "pooled_projections": (1, 768),
        }
        tokens |= {"timestep": (1,), "guidance": (1,), "img_ids": (4096, 3), "txt_ids": (512, 3)}
        with count_flops() as step:
            denoiser(**{name: torch.empty(shape) for name, shape in tokens.items()})
        blocks: dict[str, Any] = {
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        }  # fmt: skip
        decoder = AutoencoderKL(**blocks, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
        sizes = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
        )
        verifier = CLIPVisionModelWithProjection(sizes)
        with count_flops() as picture:
            decoder.decode(torch.empty(1, 16, 128, 128))
            verifier(torch.empty(1, 3, 224, 224))
    return Costs(step.total, picture.total)


@dataclass(frozen=True)
class Row:
    """What a search found on the tape by a verifier, with `budget` NFE."""

    verifier: str
    budget: int
    search: str
    found: Found


@dataclass(frozen=True)
class Replays:
    """Searches on a tape, each replayed once in the life of the folder `kept`, `draws` times over all prompts."""

    tape: Tape
    draws: int
    kept: Path

    @property
    def searched(self) -> str:
        """The verifier that the bars are about, the first on the tape."""
        return next(name for name in self.tape.scores if name != JUDGE)

    def rows(self, verifiers: list[str]) -> Iterator[Row]:
        """All searches by all verifiers at all budgets that the tape can answer."""
        budgets = [k * self.tape.steps for k in CANDIDATES if 3 * k <= self.tape.candidates]
        for verifier, budget, search in track([*product(verifiers, budgets, SEARCHES)], "replays"):
            if (found := self.found(search, verifier, budget)) is not None:
                yield Row(verifier, budget, search, found)

    def found(self, search: str, verifier: str, budget: int) -> Found | None:
        """What `search` finds; None where the tape does not hold what it asks for."""
        try:
            first = self._replay(search, verifier, budget, self.draws)
            # Where `auto` finishes all that it samples it is random search, whose mean over a few orders is noisy.
            same = search == "auto" and (first.finished * self.tape.steps >= budget).all()
            return self._replay(search, verifier, budget, ORDERS) if same else first
        except DiffscaleError as error:
            print(f"{search} by {verifier} at {budget} NFE is left out: {error}")
            return None

    def _replay(self, search: str, verifier: str, budget: int, draws: int) -> Found:
        path = self.kept / f"{search}, {verifier}, {budget}, {draws}.npz"
        if not path.exists():
            found = replay(self.tape, choose_search(search).make(), verifier, budget, judges=[JUDGE], draws=draws)
            with replacing(path) as fresh, fresh.open("wb") as file:
                np.savez(file, **{**vars(found), "judged": found.judged[JUDGE]})
        with np.load(path) as kept:
            return Found(**{**kept, "judged": {JUDGE: kept["judged"]}})


def own_costs(tape: Tape, verifier: str) -> Costs:
    """Seconds of one row, as they were measured when the tape was recorded."""
    names = recorded_names(tape, verifier)
    return Costs(tape.seconds["step"], tape.seconds["decode"] + sum(tape.seconds[name] for name in names))


def multiplier_in_costs(tape: Tape, row: Row, costs: Costs) -> float:
    """How many times the seconds, or operations, random search needs for the same mean score."""
    curve = np.array([best_of(finals(tape, row.verifier), k).mean() for k in range(1, tape.candidates + 1)])
    worth = candidates_worth(curve, float(row.found.score.mean()))
    return worth * costs.of(tape.steps, 1) / costs.of(row.found.nfe.mean(), row.found.decodes.mean())


def shown(values: dict[str, float], sign: str = "") -> str:
    low, high = (format(values[name], f"{sign}.2f" if not sign else f"{sign}.3f") for name in ("low", "high"))
    return f"{format(values['mean'], f'{sign}.2f' if not sign else f'{sign}.3f')} [{low}, {high}]"


def table(tape: Tape, found: list[Row], costs: Costs) -> list[str]:
    """The page's table."""
    lines = [
        "| verifier | NFE | search | NFE spent, finished | multiplier | its score - random's | judge | "
        "judge - random's | multiplier in FLUX's costs | in the tape's seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in track(found, "intervals"):
        judged = row.found.judged[JUDGE].mean()
        lines.append(
            f"| {row.verifier} | {row.budget:,} | `{row.search}` | {row.found.nfe.mean():.0f}, "
            f"{row.found.finished.mean():.1f} | {shown(multiplier(tape, row.found, row.verifier))} | "
            f"{shown(gain(tape, row.found, row.verifier, row.budget), '+')} | {judged:.3f} | "
            f"{shown(gain(tape, row.found, row.verifier, row.budget, JUDGE), '+')} | "
            f"{multiplier_in_costs(tape, row, costs):.2f} | "
            f"{multiplier_in_costs(tape, row, own_costs(tape, row.verifier)):.2f} |"
        )
    return lines


def bars(replays: Replays) -> Iterator[str]:
    """Whether `auto` and `draft` are worth 16 and 64 candidates for a part of their NFE, by verifier and judge."""
    tape = replays.tape
    for verifier in (replays.searched, JUDGE):
        for worth, least, aim in BARS:
            for part in (least, aim):
                budget = int(worth * tape.steps / part)
                for search in ("auto", "draft"):
                    if 2 * worth > tape.candidates or (found := replays.found(search, verifier, budget)) is None:
                        yield f"* {search} by {verifier}, {worth} candidates: this tape is too small to tell."
                        continue
                    pool = best_of(finals(tape, verifier), worth)
                    missing = found.score - pool
                    half = 1.96 * missing.std() / len(missing) ** 0.5
                    yield (
                        f"* `{search}` by {verifier} with {budget} NFE less random search with {worth * tape.steps} "
                        f"({part} times as many): {missing.mean():+.4f} ± {half:.4f}."
                    )


def no_regret(tape: Tape, found: list[Row]) -> Iterator[str]:
    """`auto` less random search with 90% of its budget, rounded up to whole samples, by every verifier."""
    for row in found:
        if row.search == "auto":
            samples = math.ceil(0.9 * row.budget / tape.steps)
            less = interval(row.found.score - best_of(finals(tape, row.verifier), samples))
            against = f"with {row.budget} NFE less random search of {samples} samples"
            yield f"* `auto` by {row.verifier} {against}: {shown(less, '+')}."


def held_out(tape: Tape, found: list[Row]) -> Iterator[str]:
    """`auto` less random search with the same budget by the judge, where it took no part."""
    for row in found:
        if row.search == "auto" and row.verifier != JUDGE:
            more = gain(tape, row.found, row.verifier, row.budget, JUDGE)
            ends = "" if more["low"] > WORST else f", whose lower end is below {WORST}"
            yield f"* judge, searched by {row.verifier} with {row.budget} NFE: {shown(more, '+')}{ends}."


def beyond(replays: Replays) -> Iterator[str]:
    """A draft search with half of the tape's NFE less the best budget of random search, by the judge."""
    tape, verifier = replays.tape, replays.searched
    half, drafted = tape.candidates // 2, tape.candidates * 4
    search = f"draft n={tape.candidates} steps=4 finals={(half * tape.steps - drafted) // tape.steps}"
    curve = np.stack(
        [best_of(finals(tape, verifier), k, finals(tape, JUDGE)) for k in range(1, tape.candidates + 1)], 1
    )
    k = int(curve.mean(0).argmax()) + 1
    if (found := replays.found(search, verifier, half * tape.steps)) is not None:
        more = shown(interval(found.judged[JUDGE] - curve[:, k - 1]), "+")
        budgets = f"with {half * tape.steps} NFE less the best of random search, at {k * tape.steps} NFE"
        yield f"* judge, `{search}` by {verifier} {budgets}: {more}."


def random_points(tape: Tape, verifier: str, judge: str | None) -> list[tuple[float, dict[str, float]]]:
    """Random search's curve."""
    worth = None if judge is None else finals(tape, judge)
    counts = [k for k in (1, 2, *CANDIDATES, 128) if k <= tape.candidates]
    return [(k * tape.steps, interval(best_of(finals(tape, verifier), k, worth))) for k in counts]


def figure(tape: Tape, found: list[Row], verifier: str, judge: str | None, path: Path) -> None:
    """Curves of all searches by a verifier: of its own score, or of the judge's."""
    lines = {"random": random_points(tape, verifier, judge)}
    for row in found:
        if row.verifier == verifier:
            values = row.found.score if judge is None else row.found.judged[judge]
            lines.setdefault(row.search, []).append((float(row.found.nfe.mean()), interval(values)))
    plots.curves(lines, "judge" if judge else f"{verifier} score", f"searched by {verifier}", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tape", type=Path)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("outputs/frontier"))
    options = parser.parse_args()
    tape, costs = load_tape(options.tape), flux_costs()
    name = f"{options.tape.stem}-{len(tape.prompts)}x{tape.candidates}"
    verifiers = [*(each for each in tape.scores if each != JUDGE), JUDGE]
    verifiers += [ENSEMBLE] if set(MEMBERS) <= set(verifiers) else []
    kept = Path("outputs/frontier") / hashlib.sha256(options.tape.read_bytes()).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    replays = Replays(tape, options.draws, kept)
    found = list(replays.rows(verifiers))
    size = f"{len(tape.prompts)} prompts x {tape.candidates} candidates"
    lines = [f"# {options.tape.stem}: searches on {size}, {options.draws} draws", "", *table(tape, found, costs), ""]
    lines += ["Bars, with half the 95% interval over prompts:", "", *bars(replays), *no_regret(tape, found)]
    lines += [*held_out(tape, found), *beyond(replays)]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    for verifier in (searched := replays.searched, JUDGE):
        figure(tape, found, verifier, None, options.output / f"{name}-{verifier}.png")
    figure(tape, found, searched, JUDGE, options.output / f"{name}-{searched}-judged.png")


if __name__ == "__main__":
    main()
