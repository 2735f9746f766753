"""All metrics of a folder of pictures: what `diffscale evaluate` does."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError, unknown
from diffscale._util.files import check_writable
from diffscale._util.progress import Progress, silent
from diffscale.bench.config import EvaluateConfig
from diffscale.bench.evaluation import extractors, means
from diffscale.bench.evaluation.extractors import Classifier, Extractor, Named
from diffscale.bench.evaluation.features import features, statistics
from diffscale.metrics.inception_score import inception_score
from diffscale.metrics.statistics import Statistics, save_reference
from diffscale.models.load import best_device
from diffscale.models.shipped import verifier_names, verifier_networks
from diffscale.registry import plugins
from diffscale.registry.arguments import rejoined
from diffscale.suites.pictures import Pictures

COMPARED: Final = plugins("metrics")
"""The metrics that compare with a reference, by name: each a `metrics.compared.Compared`."""

METRICS: Final = (*COMPARED, "is", "composition")
"""All metrics but the means of verifiers."""


def run(settings: EvaluateConfig, progress: Progress = silent) -> dict[str, Any]:
    """Compute all metrics; `progress` is called with every batch of pictures that is done.

    Returns `folder`, `pictures` (how many), `reference`, `metrics` and `warnings` (a sentence each). Of each metric, in
    the order asked for: `value` (of the Inception Score also `std`) and `features`, the name of the extractor; of a
    verifier `mean`, `low`, `high` and `dropped`, and more of one with categories, see `means.verifier_mean`; of
    `composition` these for each category.

    `settings.features` takes the place of Inception in `fid`, `is`, `precision` and `recall`, and gives the model of
    the metrics that are bound to its kind of network. With `save_reference` the statistics of the folder are kept, for
    the metrics named; those that compare may then be left without a reference, and are left out. Raises
    DiffscaleError for settings that cannot be met.
    """
    names = list(dict.fromkeys(rejoined(map(plugins("verifiers").short, settings.metrics), _is_metric)))
    _check(settings, names)
    pictures = _pictures(settings)
    device, size, world = best_device(settings.device), settings.batch_size, pictures.world
    image_model = "" if world is None else world.image_model
    reference = settings.reference
    of_reference = Pictures.open(reference) if reference is not None and reference.is_dir() else reference
    by_features = _ByFeatures(settings, pictures, of_reference, progress)
    notes = [*pictures.notes, *(of_reference.notes if isinstance(of_reference, Pictures) else ())]
    found: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # what libraries tell each other
        warnings.filterwarnings("always", category=UserWarning, module="diffscale")
        for text, measured in _by_extractor(settings, names).items():
            extractor = extractors.load(text, device=device, image_model=image_model)
            found |= by_features.measure(text, extractor, measured)
    if settings.save_reference is not None:
        save_reference(by_features.saved, settings.save_reference)
    for name in names:
        if name == "composition":
            found[name] = means.composition(pictures, size, partial(progress, name))
        elif name not in METRICS:
            verifier = verifiers.load(name, device=device, image_model=image_model)
            found[name] = means.verifier_mean(verifier, pictures, device, size, partial(progress, name))
    return {
        "folder": str(settings.folder),
        "pictures": len(pictures),
        "reference": None if reference is None else str(reference),
        "metrics": {name: found[name] for name in names if name in found},
        "warnings": list(dict.fromkeys([*notes, *(str(warning.message) for warning in caught)])),
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


def _is_metric(text: str) -> bool:
    """Whether `text` begins with the name of a metric or a verifier, or with `module:function`."""
    name = text.split()[0] if text.split() else ""
    return ":" in name or name in METRICS or name in plugins("verifiers") or name in verifier_networks()


def _check(settings: EvaluateConfig, names: Sequence[str]) -> None:
    """Raises DiffscaleError for what can be told before a picture is read."""
    if not settings.folder.is_dir():
        raise DiffscaleError(f"There is no folder {settings.folder}: give one with pictures.")
    if settings.save_reference is not None:
        check_writable(settings.save_reference)
    every = list(dict.fromkeys([*METRICS, *verifier_names()]))
    for name in names:
        if not _is_metric(name):
            raise unknown("metric", name, every)
        if name not in METRICS:
            means.check(name)
    for text in [*_by_extractor(settings, names), *([] if settings.features is None else [settings.features])]:
        extractors.split(text)
    if not names and settings.save_reference is None:
        raise DiffscaleError(f"Name at least one metric, as in --metrics clip,fid: {', '.join(every)}.")
    compared = [name for name in names if name in COMPARED]
    if settings.reference is None and compared and settings.save_reference is None:
        verb = "compares" if len(compared) == 1 else "compare"
        raise DiffscaleError(
            f"{', '.join(compared)} {verb} with a reference: give --reference, a folder of pictures or a file that "
            "--save-reference wrote."
        )
    if settings.reference is not None and not settings.reference.exists():
        raise DiffscaleError(
            f"There is no reference {settings.reference}: give a folder of pictures or a file that --save-reference "
            "wrote."
        )


def _by_extractor(settings: EvaluateConfig, names: Sequence[str]) -> dict[str, list[str]]:
    """The metrics that look at features, by the extractor that makes them."""
    given = settings.features
    found: dict[str, list[str]] = {}
    for name in names:
        if name == "is" or name in COMPARED:
            usual, bound = ("inception", False) if name == "is" else (COMPARED[name].extractor, COMPARED[name].bound)
            replaced = given is not None and (not bound or extractors.split(given)[0] == usual)
            found.setdefault(given if given is not None and replaced else usual, []).append(name)
    if settings.save_reference is not None and not set(names) & set(COMPARED):
        found.setdefault(given or "inception", [])
    return found


@dataclass
class _ByFeatures:
    """The metrics that look at features, one extractor after another; `saved`: statistics that are to be kept."""

    settings: EvaluateConfig
    pictures: Pictures
    reference: Pictures | Path | None
    progress: Progress
    saved: list[Statistics] = field(default_factory=list)

    def measure(self, text: str, extractor: Extractor, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The metrics `names` over the features of `extractor`, which the user calls `text`."""
        size, found = self.settings.batch_size, {}
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
            bar = partial(self.progress, f"reference by {text}")
            reference = statistics(self.reference, extractor, rows_for, size, bar)
        generated = statistics(self.pictures, extractor, rows_for, size, partial(self.progress, f"pictures by {text}"))
        if reference is not None:
            for name in compared:
                found[name] = {"value": COMPARED[name].value(generated, reference), "features": extractor.name}
        if keep:
            self.saved.append(generated if keep_all or rows_for is not None else replace(generated, features=None))
        return found

    def _inception_score(self, text: str, extractor: Extractor) -> dict[str, Any]:
        if not isinstance(extractor, Classifier):
            raise DiffscaleError(f"The features {text} tell no classes, which `is` needs: leave --features out.")
        logits, bar = Named(f"{extractor.name} logits", extractor.logits), partial(self.progress, f"classes by {text}")
        rows = features(self.pictures, logits, self.settings.batch_size, bar)
        # Splits are runs of pictures, and folders are often sorted by class.
        mean, std = inception_score(np.random.default_rng(0).permutation(rows))
        return {"value": mean, "std": std, "features": extractor.name}
