"""One prompt, one search, one folder of results: what `diffscale generate` does."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel

from diffscale import api
from diffscale._util import config
from diffscale._util.errors import AnotherRun, DiffscaleError
from diffscale._util.files import locked, read_json, replacing, write_json
from diffscale._util.hardware import device_name
from diffscale._util.numbers import rounded
from diffscale._util.progress import Progress, silent
from diffscale._util.versions import versions
from diffscale.api.wordings import check_rewords, wordings_of
from diffscale.bench import generate_page
from diffscale.bench.config import GenerateConfig, check_names
from diffscale.bench.origin import Origin, save_picture, save_pictures
from diffscale.bench.series import costs_of, wordings_in
from diffscale.engine.journal import check_sources, recorded_settings
from diffscale.engine.results import Candidate, Observer, Result, Thumbnail
from diffscale.models.dtypes import DtypeChoice
from diffscale.models.load import best_device, settle_dtype
from diffscale.models.options import AUTO
from diffscale.registry.sources import sources
from diffscale.report import page, pictures, plots
from diffscale.report.text import drawing
from diffscale.searches import choose_search
from diffscale.verifiers.heldout import heldout_scores, judge_name

_DRAWN = ("images", "candidates.png", "scaling.png", page.REPORT)
"""What is drawn of a result, after that is written."""

SHOWN = 64
"""Candidates on the sheet; a longer search shows its best ones."""
KEPT = 256
"""Candidates whose pictures are kept in the folder `images`, alike."""


class _End(BaseModel):
    score: float
    image: str


class _Summary(BaseModel):
    """What `result.json` holds at least: one that was cut off is made again, of what the journal has."""

    verifier: str
    candidates: int
    dropped: int
    nfe: int
    seconds: float
    best: _End
    baseline: _End
    compared: list[tuple[int, int, float]]
    decisions: list[str] = []
    judges: dict[str, dict[str, Any]]


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The `result.json` of a finished run in `folder`; None where there is none that is whole."""
    found: dict[str, Any] | None = read_json(folder / "result.json", _Summary)
    return found


def settle(folder: Path, settings: GenerateConfig, say: Callable[[DtypeChoice], None]) -> GenerateConfig:
    """`settings` with the dtype that is used in the place of `auto`: that of the run in `folder`, if there is one.

    `say` is told what was chosen where anything is left to compute. Raises DiffscaleError where the dtype is to be read
    from the model and that cannot be.
    """
    if os.path.exists(folder / "result.json") and os.path.exists(folder / "config.yaml"):
        used = config.resolve(GenerateConfig, folder / "config.yaml").dtype
        return settings.model_copy(update={"dtype": used}) if settings.dtype == AUTO else settings
    return settle_dtype(settings.model, settings, recorded_settings(folder / "journal.sqlite").get("dtype"), say)


def prepare(folder: Path, settings: GenerateConfig) -> dict[str, Any] | None:
    """Make `folder` ready for the run; the finished result if the same run is already in it, else None.

    `settings` name the dtype that is used, see `settle`. They are written first, so that a folder that cannot be
    written to is found out before anything is computed. Raises AnotherRun if the folder holds anything else than this
    run, and DiffscaleError for unknown names.
    """
    check_names([settings.search], settings.verifiers)
    settings.drafting.check(settings)
    check_rewords(settings.wordings, choose_search(settings.search).declares("rewords"))
    saved, done = folder / "config.yaml", folder / "result.json"
    if os.path.exists(saved):  # no error for names that no file system takes
        # Settings that could not be met leave nothing that was paid for.
        paid = done.exists() or (folder / "journal.sqlite").exists()
        if paid and (changed := settings.difference(config.resolve(GenerateConfig, saved))):
            raise AnotherRun(f"{folder} holds another run ({changed}): choose another --output, or remove the folder.")
        written = sources(settings.search, *settings.verifiers)
        if choose_search(settings.search).declares("rewords"):
            written |= wordings_of(settings.wordings, settings.model).records([settings.prompt])
        check_sources(folder / "journal.sqlite", written)
        summary = read_summary(folder)
        # Killed between the result and what is drawn of it, it goes on from the journal, for nothing.
        drawn = all((folder / name).exists() for name in _DRAWN) or not (folder / "journal.sqlite").exists()
        if summary is not None and drawn:
            return summary
    elif os.path.exists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise AnotherRun(f"{folder} exists and is not a run of diffscale: choose another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save(settings, saved)
    except OSError as error:
        raise DiffscaleError(f"{folder} cannot be written to ({error.strerror}): choose another --output.") from error
    return None


def run(
    settings: GenerateConfig, folder: Path, progress: Progress = silent, observers: Sequence[Observer] = ()
) -> dict[str, Any]:
    """Search as `settings` say and write the results to the prepared `folder`; returns what result.json holds.

    `observers` are told of every candidate that is finished in this call, see `Observer`.

    Raises DiffscaleError for settings that cannot be met, for a full disk, and where another process writes to
    `folder`.
    """
    with locked(folder):
        return _run(settings, folder, progress, observers)


def _run(settings: GenerateConfig, folder: Path, progress: Progress, observers: Sequence[Observer]) -> dict[str, Any]:
    result = api.search(
        settings.model, settings.prompt, search=settings.search, verifier=settings.verifier, nfe=settings.budget,
        seed=settings.seed, steps=settings.steps, pipe_args=settings.call_args, batch_size=settings.batch_size,
        loading=settings, gallery=KEPT, journal=folder / "journal.sqlite", progress=partial(progress, "searching"),
        choose=settings.choose, draft_model=settings.draft_model, draft_cache=settings.draft_cache,
        draft_decoder=settings.draft_decoder, wordings=settings.wordings, workers=settings.workers,
        verifier_workers=settings.verifier_workers, observers=observers,
    )  # fmt: skip
    summary = _summary(settings, result)
    title = f"{settings.model}, {settings.search}, {result.ledger.nfe:,} NFE: “{result.prompt}”"
    verifier = settings.verifier.split()[0]
    try:
        for name, end in (("best", result.best), ("baseline", result.baseline)):
            origin = Origin.of_generated(settings, end, end.wording)
            save_picture(pictures.to_pil(end.image), folder / f"{name}.png", origin)
        # In one go: a folder with a whole result.json is a finished run.
        write_json(folder / "result.json", summary)
    except OSError as error:
        free = shutil.disk_usage(folder).free / 2**20
        raise DiffscaleError(
            f"The search is done (best score {result.best.score:.4f}, key {result.best.key}), but {folder} cannot be "
            f"written to ({error.strerror}, {free:.0f} MiB free): make room and run the same command again."
        ) from error
    images, sheet, plot, _ = (folder / name for name in _DRAWN)
    with drawing(f"The pictures in {images}"):
        save_pictures(images, {file_of(each): _kept(settings, each, result) for each in result.gallery})
    with drawing(f"The sheet of candidates {sheet}"), replacing(sheet) as fresh:
        _sheet(result, f"{title}, by {settings.verifiers[-1].split()[0]} score").save(fresh)
    with drawing(f"The plot {plot}"):
        plots.scaling(result.trace, result.baseline.nfe, title, verifier, plot)
    generate_page.write(folder)
    return summary


def _kept(settings: GenerateConfig, shown: Thumbnail, result: Result) -> tuple[Image.Image, Origin]:
    origin = Origin.of_generated(settings, shown, result.wordings[shown.number])
    return pictures.to_pil(shown.image / 255), origin


def file_of(shown: Thumbnail) -> str:
    """The name of a candidate's file in the folder `images`."""
    return f"{shown.number:05}.png"


def _sheet(result: Result, title: str) -> Image.Image:
    """The best candidates, best first, with what they were ranked by; the first sample is named if it is among them."""
    captions = [
        rounded(shown.value, 4) + (" (first)" if shown.number == result.baseline.number else "")
        for shown in result.gallery[:SHOWN]
    ]
    images = [pictures.to_pil(shown.image / 255) for shown in result.gallery[:SHOWN]]
    return pictures.grid(images, captions, title, mark=0)


def _summary(settings: GenerateConfig, result: Result) -> dict[str, Any]:
    seconds = result.ledger.seconds
    ends = {"best": result.best, "baseline": result.baseline}
    scores = heldout_scores(settings.model, result.prompt, {name: end.image for name, end in ends.items()})
    judge = judge_name(settings.model)
    by_judge = {"searched_with": settings.verifier.split()[0] == judge}
    if settings.choose is not None:
        by_judge["chosen_by"] = settings.choose.split()[0] == judge
    return {
        "prompt": result.prompt,
        **settings.model_dump(include={"model", "search", "verifier", "seed"}),
        **({} if settings.choose is None else {"choose": settings.choose}),
        "dtype": result.dtype,
        **costs_of(result),
        "seconds": round(sum(seconds.values()), 3),
        "seconds_by_kind": {kind: round(each, 3) for kind, each in seconds.items()},
        **{name: _end(name, end, settings.choose is not None) for name, end in ends.items()},
        "trace": [[nfe, score] for nfe, score in result.trace],
        "traces": {name: [[nfe, score] for nfe, score in points] for name, points in result.traces.items()},
        "compared": [list(each) for each in result.compared],
        **({"decisions": result.decisions} if result.decisions else {}),
        **wordings_in(result),
        # What judges say of both pictures, and whether the search or the choice was by them.
        "judges": {judge: {**by_judge, **scores}} if scores else {},
        "rounds": [[finished, nfe] for finished, nfe, _ in result.rounds],
        "seconds_by_round": [round(each, 3) for *_, each in result.rounds],
        "gallery": [_shown(settings, result, each) for each in result.gallery],
        "versions": versions(),
        "hardware": settings.workers or device_name(best_device(settings.device)),
    }


def _shown(settings: GenerateConfig, result: Result, shown: Thumbnail) -> dict[str, Any]:
    """What is said of a candidate whose picture is kept: its scores by all who scored it, a judge among them."""
    number = shown.number
    scores = dict(zip(result.traces, result.pool[number].tolist(), strict=False))
    # What is no thumbnail but the whole picture can be judged, see `heldout_scores`.
    judged = heldout_scores(settings.model, result.prompt, {"it": shown.image / 255})
    by_judge = {str(judge_name(settings.model)): judged["it"]["score"]} if judged else {}
    return {
        "number": number, "image": f"images/{file_of(shown)}", "key": shown.key, "nfe": shown.nfe, "score": shown.score,
        **({} if settings.choose is None else {"value": shown.value}),
        "scores": {**scores, **by_judge},
        **({"wording": result.wordings[number]} if len({*result.wordings}) > 1 else {}),
    }  # fmt: skip


def _end(name: str, candidate: Candidate, chosen: bool) -> dict[str, Any]:
    """What is said of the best or the first; `value` where another verifier than that of the score has chosen."""
    said = {"score": candidate.score, "image": f"{name}.png", "key": candidate.key}
    return said | ({"value": candidate.value} if chosen else {})
