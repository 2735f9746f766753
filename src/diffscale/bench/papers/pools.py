"""What random search is expected to find, over all subsets of one pool of candidates for each prompt.

The mean over subsets of k candidates is the U-statistic of best-of-k: it has no larger variance than the best of the
first k, at the same NFE (Hoeffding 1948). Of an ensemble, whose ranks are those within the subset, it is over subsets
drawn by chance (an incomplete U-statistic, Blom 1976) where there are many.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from diffscale._util.files import parse_jsonl, read_text
from diffscale._util.progress import Progress
from diffscale.api import make_sampler
from diffscale.bench.networks import Networks
from diffscale.bench.papers.points import Call
from diffscale.bench.series import PromptRepeat, rows_of
from diffscale.bench.shared_samples import SharedSampler
from diffscale.engine import noise
from diffscale.engine.leaderboard import aggregate_pool
from diffscale.engine.scoring import safe_score
from diffscale.models.options import LoadOptions
from diffscale.tape.curves import best_of
from diffscale.types import Aggregate

SUBSETS: Final = 256
"""How many subsets an incomplete U-statistic is over."""


def expected(
    scores: NDArray[np.float64], k: int, worths: Mapping[str, NDArray[np.float64]], aggregate: Aggregate | None
) -> dict[str, float]:
    """The expected worth, by judge, of the best of k of a pool by `scores` [N, K]; `worths` [N] each.

    `aggregate`: of an ensemble, see `aggregate_pool`. Of ties each is chosen alike without one, the first with one.
    """
    if aggregate is None:
        return {name: float(best_of(scores[:, 0], k, worth)) for name, worth in worths.items()}
    rows = torch.from_numpy(scores)
    best = [each[int(aggregate_pool(rows[each], aggregate).argmax())] for each in _subsets(len(scores), k)]
    return {name: float(worth[best].mean()) for name, worth in worths.items()}


def _subsets(count: int, k: int) -> Iterator[list[int]]:
    if math.comb(count, k) <= SUBSETS:
        yield from map(list, itertools.combinations(range(count), k))
        return
    rng = np.random.default_rng(k)
    for _ in range(SUBSETS):
        yield sorted(rng.choice(count, k, replace=False).tolist())


class Pools:
    """The candidates of the random searches of a call, in the `folder` of its bench, and what judges say of each.

    What was judged is kept in `pools.jsonl`, so that a run that was stopped goes on.
    """

    def __init__(self, call: Call, source: str, folder: Path, networks: Networks, loading: LoadOptions) -> None:
        self._call, self._source, self._networks, self._loading = call, source, networks, loading
        self._folder, self._file = folder, folder / "pools.jsonl"
        if self._file.exists() and (text := self._file.read_bytes()) and not text.endswith(b"\n"):
            os.truncate(self._file, text.rfind(b"\n") + 1)  # of a run that was killed
        lines = parse_jsonl(read_text(self._file), self._file) if self._file.exists() else []
        self._known = {(line["name"], line["judge"]): line["scores"] for line in lines}
        self._opened: tuple[Any, dict[PromptRepeat, int]] | None = None

    def judged(
        self, wanted: Sequence[PromptRepeat], n: int, judges: Sequence[str], progress: Progress
    ) -> dict[str, NDArray[np.float64]]:
        """What each judge says of the first `n` candidates, by judge [wanted, n]."""
        missing = [each for each in wanted if any(len(self._scores(each, judge)) < n for judge in judges)]
        for done, each in enumerate(missing):
            progress("candidates of pools judged", done, len(missing))
            self._judge(each, wanted, n, judges)
        return {judge: np.array([self._scores(each, judge)[:n] for each in wanted]) for judge in judges}

    def _scores(self, each: PromptRepeat, judge: str) -> list[float]:
        return list(self._known.get((each.name, judge), []))

    @torch.no_grad()
    def _judge(self, each: PromptRepeat, wanted: Sequence[PromptRepeat], n: int, judges: Sequence[str]) -> None:
        sampler, rows = self._sampler(wanted)
        keys = torch.tensor([noise.fold(each.key(self._call.seed), "candidate", i) for i in range(n)])
        row = rows[each]
        pictures = sampler.decode(sampler.run(sampler.prior(keys, torch.full((n,), row))).x)
        lines = []
        for judge in judges:
            verifier = self._networks.verifier(judge, self._source)
            said = safe_score(verifier, pictures, [sampler.prompts[row]] * n).flatten().tolist()
            self._known[each.name, judge] = said
            lines.append(json.dumps({"name": each.name, "judge": judge, "scores": said}) + "\n")
        with self._file.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def _sampler(self, wanted: Sequence[PromptRepeat]) -> tuple[Any, dict[PromptRepeat, int]]:
        """What samples are read from, and in which row of it each prompt is; opened once."""
        if self._opened is None:
            prompts, rows = rows_of(wanted)
            settings = self._call.settings(self._loading)
            sampler = make_sampler(
                self._source, prompts, steps=self._call.steps, pipe_args=settings.call_args, loading=settings,
                load=self._networks.pipeline,
            )  # fmt: skip
            shared = SharedSampler(sampler, self._folder / "samples.sqlite")
            self._opened = shared, dict(zip(wanted, rows, strict=True))
        return self._opened
