"""One prompt, one search, one folder of results: what `diffscale generate` does."""

from __future__ import annotations

import heapq
import json
import math
import os
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from diffscale import api, config
from diffscale.config import GenerateConfig
from diffscale.errors import DiffscaleError
from diffscale.report import pictures, plots
from diffscale.types import Candidate, Observer, Result

SHOWN = 64
"""Candidates on the sheet; a longer search shows its best ones."""


class Album:
    """An observer that keeps small pictures of the `SHOWN` best candidates, however many there are."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, Image.Image]] = []
        self._order = count()

    def __call__(self, search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        for score, image in zip(scores.tolist(), images, strict=True):
            entry = (score, -next(self._order))
            if not math.isfinite(score) or (len(self._kept) == SHOWN and entry < self._kept[0][:2]):
                continue
            keep = heapq.heappush if len(self._kept) < SHOWN else heapq.heapreplace
            keep(self._kept, (*entry, pictures.shrink(pictures.to_pil(image))))

    def sheet(self, title: str) -> Image.Image:
        """The kept candidates, best first, with their scores."""
        ranked = sorted(self._kept, key=lambda kept: kept[:2], reverse=True)
        captions = [f"{score:.4f}" + (" (first)" if order == 0 else "") for score, order, _ in ranked]
        return pictures.grid([picture for *_, picture in ranked], captions, title, mark=0)


def prepare(folder: Path, settings: GenerateConfig) -> dict[str, Any] | None:
    """Make `folder` ready for the run; the finished result if the same run is already in it, else None.

    The settings are written first, so that a folder that cannot be written to is found out before anything is
    computed. Raises DiffscaleError if the folder holds anything else than this run.
    """
    saved, done = folder / "config.yaml", folder / "result.json"
    if saved.exists():
        if not config.load(saved).same_run(settings):
            raise DiffscaleError(
                f"{folder} holds another run (see its config.yaml): choose another --output, or remove the folder."
            )
        if done.exists():
            return dict(json.loads(done.read_text()))
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DiffscaleError(f"{folder} exists and is not a run of diffscale: choose another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save(settings, saved)
    except OSError as error:
        raise DiffscaleError(f"{folder} cannot be written to ({error.strerror}): choose another --output.") from error
    return None


def run(settings: GenerateConfig, folder: Path, observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Search as `settings` say and write the results to the prepared `folder`; returns what result.json holds.

    Raises DiffscaleError for settings that cannot be met and for a full disk.
    """
    album = Album()
    result = api.search(
        settings.model,
        settings.prompt,
        search=settings.search,
        verifier=settings.verifier,
        nfe=settings.budget,
        seed=settings.seed,
        steps=settings.steps,
        pipe_args=settings.pipe_args,
        batch_size=settings.batch_size,
        device=settings.device,
        dtype=settings.dtype,
        observers=(album, *observers),
    )
    summary = _summary(settings, result)
    title = f"{settings.model}, {settings.search}, {result.ledger.nfe:,} NFE: “{settings.prompt}”"
    verifier = settings.verifier.split()[0]
    try:
        _write_picture(pictures.to_pil(result.best.image), folder / "best.png")
        _write_picture(pictures.to_pil(result.baseline.image), folder / "baseline.png")
        _write_picture(album.sheet(f"{title}, by {verifier} score"), folder / "candidates.png")
        plots.scaling(result.trace, result.baseline.nfe, title, verifier, folder / "scaling.png")
        # Last, and in one go: a folder with a result.json is a finished run.
        fresh = folder / "result.json.new"
        fresh.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        os.replace(fresh, folder / "result.json")
    except OSError as error:
        free = shutil.disk_usage(folder).free / 2**20
        raise DiffscaleError(
            f"The search is done (best score {result.best.score:.4f}, key {result.best.key}), but {folder} cannot be "
            f"written to ({error.strerror}, {free:.0f} MiB free): make room and run the same command again."
        ) from error
    return summary


def _write_picture(picture: Image.Image, path: Path) -> None:
    fresh = path.with_suffix(".new")
    picture.save(fresh, "PNG")
    os.replace(fresh, path)


def _summary(settings: GenerateConfig, result: Result) -> dict[str, Any]:
    ledger = result.ledger
    return {
        "prompt": settings.prompt,
        "model": settings.model,
        "search": settings.search,
        "verifier": settings.verifier,
        "seed": settings.seed,
        "nfe": ledger.nfe,
        "network_forwards": ledger.network_forwards,
        "flops": ledger.flops,
        "decodes": ledger.decodes,
        "verifier_calls": ledger.verifier_calls,
        "dropped": result.dropped,
        "seconds": round(sum(ledger.seconds.values()), 3),
        "seconds_by_kind": {kind: round(seconds, 3) for kind, seconds in ledger.seconds.items()},
        "best": {"score": result.best.score, "image": "best.png", "key": result.best.key},
        "baseline": {"score": result.baseline.score, "image": "baseline.png", "key": result.baseline.key},
        "trace": [[nfe, score] for nfe, score in result.trace],
        "judges": _judges(settings, result),
    }


def _judges(settings: GenerateConfig, result: Result) -> dict[str, Any]:
    """What judges that took no part in the search say of the best and of the first picture."""
    from diffscale.shapes.captions import read
    from diffscale.shapes.judge import judge

    meaning = read(settings.prompt)
    if meaning is None or not settings.model.startswith("shapes-"):
        return {}

    def verdict(candidate: Candidate) -> dict[str, float]:
        seen = judge(candidate.image.permute(1, 2, 0).numpy(), meaning)
        return {"score": seen.score, "cleanliness": seen.cleanliness}

    return {
        "shapes-judge": {
            "category": meaning.category,
            "searched_with": settings.verifier.split()[0] == "shapes-judge",
            "best": verdict(result.best),
            "baseline": verdict(result.baseline),
        }
    }
