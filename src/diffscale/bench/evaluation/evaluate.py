"""All metrics of a folder of pictures: what `diffscale evaluate` does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError, unknown
from diffscale.bench.config import EvaluateConfig
from diffscale.bench.evaluation import extractors, means
from diffscale.bench.evaluation.compared import COMPARED, statistics
from diffscale.bench.evaluation.extractors import Classifier, Extractor
from diffscale.bench.evaluation.features import logits
from diffscale.metrics.inception_score import inception_score
from diffscale.metrics.statistics import Statistics, save_reference
from diffscale.models.load import best_device
from diffscale.registry import plugins
from diffscale.suites.pictures import Pictures

METRICS: Final = (*COMPARED, "is", "composition")
"""All metrics but the means of verifiers."""

Told = Callable[[str, int, int], None]


def run(settings: EvaluateConfig, told: Told | None = None) -> dict[str, Any]:
    """Compute all metrics; `told(what, done, pictures)` hears of every batch that is done.

    Returns `folder`, `pictures` (how many), `reference`, `metrics` and `warnings` (a sentence each). Of each metric, in
    the order asked for: `value` (of the Inception Score also `std`) and `features`, the name of the extractor; of a
    verifier `mean`, `low`, `high` and `dropped`, see `means.verifier_mean`; of `composition` these for each category.

    `settings.features` takes the place of Inception in `fid`, `is`, `precision` and `recall`, and gives the model of
    the metrics that are bound to its kind of network. With `save_reference` the statistics of the folder are kept, for
    the metrics named; those that compare may then be left without a reference, and are left out. Raises
    DiffscaleError for settings that cannot be met.
    """
    names = list(dict.fromkeys(settings.metrics))
    _check(settings, names)
    pictures = _pictures(settings)
    evaluation = _Evaluation(settings, pictures, told)
    found: dict[str, Any] = {}
    for text, of_it in _by_network(settings, names).items():
        found |= evaluation.by_features(text, of_it)
    if settings.save_reference is not None:
        save_reference(evaluation.saved, settings.save_reference)
    for name in names:
        if name == "composition":
            found[name] = means.composition(pictures, settings.batch_size, evaluation.bar(name, pictures))
        elif name not in METRICS:
            verifier = verifiers.load(name, device=evaluation.device, image_model=evaluation.image_model)
            found[name] = means.verifier_mean(
                verifier, pictures, evaluation.device, settings.batch_size, evaluation.bar(name, pictures)
            )
    return {
        "folder": str(settings.folder),
        "pictures": len(pictures),
        "reference": None if settings.reference is None else str(settings.reference),
        "metrics": {name: found[name] for name in names if name in found},
        "warnings": evaluation.notes,
    }


def _pictures(settings: EvaluateConfig) -> Pictures:
    """The folder's pictures; where `settings.prompts` is a suite, with the suite's own prompts for those of its text.

    So pictures of `shapes-classes` have their classes back, which no file of prompts holds.
    """
    name = str(settings.prompts)
    if settings.prompts is None or settings.prompts.exists() or name not in plugins("suites"):
        return Pictures.open(settings.folder, settings.prompts)
    pictures = Pictures.open(settings.folder)
    known: dict[str | None, str] = {prompt: prompt for prompt in plugins("suites")[name]()}
    for path, prompt in zip(pictures.paths, pictures.prompts, strict=True):
        if prompt not in known:
            what = "has no prompt" if prompt is None else f"is of {prompt!r}"
            raise DiffscaleError(
                f"The picture {path} {what}, which is not of the suite {name}: leave --prompts out, or give a file."
            )
    return replace(pictures, prompts=tuple(known[prompt] for prompt in pictures.prompts))


def _check(settings: EvaluateConfig, names: Sequence[str]) -> None:
    """Raises DiffscaleError for what can be told before a picture is read."""
    every = [*METRICS, *verifiers.VERIFIERS, *verifiers.SHIPPED]
    for name in names:
        if name in METRICS:
            continue
        if not verifiers.is_function(name) and name.partition(" ")[0] not in every:
            raise unknown("metric", name, every)
        verifiers.check(name)
    for text in [*_by_network(settings, names), *([] if settings.features is None else [settings.features])]:
        extractors.split(text)
    if not names and settings.save_reference is None:
        raise DiffscaleError(f"Name at least one metric with --metrics: {', '.join(every)}.")
    compared = [name for name in names if name in COMPARED]
    if settings.reference is None and compared and settings.save_reference is None:
        raise DiffscaleError(
            f"{', '.join(compared)} compare with a reference: give --reference, a folder of pictures or a file that "
            "--save-reference wrote."
        )
    if settings.reference is not None and not settings.reference.exists():
        raise DiffscaleError(
            f"There is no reference {settings.reference}: give a folder of pictures or a file that --save-reference "
            "wrote."
        )


def _by_network(settings: EvaluateConfig, names: Sequence[str]) -> dict[str, list[str]]:
    """The metrics that look at features, by the extractor that makes them."""
    chosen = settings.features
    found: dict[str, list[str]] = {}
    for name in names:
        if name != "is" and name not in COMPARED:
            continue
        usual, bound = ("inception", False) if name == "is" else (COMPARED[name].extractor, COMPARED[name].bound)
        replaced = chosen is not None and (not bound or extractors.split(chosen)[0] == usual)
        found.setdefault(chosen if chosen is not None and replaced else usual, []).append(name)
    if settings.save_reference is not None and not set(names) & set(COMPARED):
        found.setdefault(chosen or "inception", [])
    return found


class _Evaluation:
    """One run: what its steps share, and what they leave behind."""

    def __init__(self, settings: EvaluateConfig, pictures: Pictures, told: Told | None) -> None:
        self.settings, self.pictures, self.told = settings, pictures, told
        self.device = best_device(settings.device)
        world = pictures.world
        self.image_model = "" if world is None else world.image_model
        reference = settings.reference
        self.reference = Pictures.open(reference) if reference is not None and reference.is_dir() else reference
        self.saved: list[Statistics] = []
        self.notes: list[str] = []

    def bar(self, what: str, pictures: Pictures) -> Callable[[int], None] | None:
        """What moves the bar of `what`."""
        told = self.told
        return None if told is None else lambda done: told(what, done, len(pictures))

    def by_features(self, text: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The metrics `names` over the features that the extractor `text` makes."""
        extractor = extractors.load(text, device=self.device, image_model=self.image_model)
        size = self.settings.batch_size
        found: dict[str, dict[str, Any]] = {}
        if "is" in names:
            found["is"] = self._inception_score(text, extractor)
        compared = [name for name in names if name in COMPARED]
        keep = self.settings.save_reference is not None
        # With no metric named that compares, all of them should be possible later.
        keep_all = keep and not set(self.settings.metrics) & set(COMPARED)
        if not compared and not keep_all:
            return found
        rows_for = next((name for name in compared if COMPARED[name].rows), None)
        reference = None
        if self.reference is not None and compared:
            bar = self.bar(f"reference by {text}", self.reference) if isinstance(self.reference, Pictures) else None
            reference = self._noted(statistics, self.reference, extractor, rows_for, size, bar)
        bar = self.bar(f"pictures by {text}", self.pictures)
        generated = self._noted(statistics, self.pictures, extractor, rows_for, size, bar)
        if reference is not None:
            for name in compared:
                value = self._noted(COMPARED[name].value, generated, reference)
                found[name] = {"value": value, "features": extractor.name}
        if keep:
            self.saved.append(generated if keep_all or rows_for is not None else replace(generated, features=None))
        return found

    def _inception_score(self, text: str, extractor: Extractor) -> dict[str, Any]:
        if not isinstance(extractor, Classifier):
            raise DiffscaleError(f"The features {text} tell no classes, which `is` needs: leave --features out.")
        bar = self.bar(f"classes by {text}", self.pictures)
        rows = self._noted(logits, self.pictures, extractor, self.settings.batch_size, bar)
        # Splits are runs of pictures, and folders are often sorted by class.
        shuffled = np.random.default_rng(0).permutation(rows)
        mean, std = self._noted(inception_score, shuffled)
        return {"value": mean, "std": std, "features": extractor.name}

    def _noted(self, work: Callable[..., Any], *given: Any) -> Any:
        """What `work` gives, its warnings kept."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")  # what libraries tell each other
            warnings.simplefilter("always", UserWarning)
            value = work(*given)
        self.notes += [str(warning.message) for warning in caught if str(warning.message) not in self.notes]
        return value
