"""What an item (a table or figure of a paper) is made of: the layout of the YAML files in `recipes`."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, check_name, unknown
from diffscale.bench.papers import trainings
from diffscale.bench.papers.verdicts import Verdict
from diffscale.models.load import world_of
from diffscale.models.options import AUTO, DTYPES
from diffscale.registry import PLAIN_SEARCH

RECIPES: Final = Path(__file__).parent / "recipes"
PLANNED: Final = "planned"
"""In the folder of recipes, those of the items that headlines are tested on; and how the command calls all of them."""
ELSEWHERE: Final = "elsewhere"
"""In the folder of recipes, those of items on worlds that others made, whose weights do not come along: a program that
has these offers their models, suites and verifiers (`registry`), and runs them."""
SettingName = Literal["shapes", "paper", "digits"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Series(_Strict):
    """One line of a figure or group of rows of a table: points of growing cost.

    Without a verifier there is no search: one sample, at each of the `final` steps. With one, `search` (as `--search`
    takes it) spends each of the `budgets`, in NFE; 0 is the first sample. `steps` are those of a candidate while
    searching, `final` those of the sample that is kept; where they differ it is sampled again from the noise found, and
    paid for. Steps count as num_inference_steps does: a step of Heun's solver is 2 NFE. With `pool`, of random search,
    a budget's scores are those expected over all subsets of the candidates of the largest one, see `pools`.
    """

    model: str | None = Field(None, description="instead of the part's; `training NAME`: what that training gives")
    args: dict[str, Any] = Field(default_factory=dict, description="of the model's call, over the part's")
    scheduler: str | None = Field(None, description="instead of the part's")
    steps: int | None = Field(None, gt=0)
    final: list[int] = Field(default_factory=list)
    search: str = PLAIN_SEARCH
    verifier: str | None = None
    budgets: list[int] = Field(default_factory=list)
    pool: bool = False


class Pairs(_Strict):
    """Scores of single candidates, to correlate verifiers: of the first `candidates` of each slot."""

    candidates: int = Field(gt=0)
    of: list[str] = Field(min_length=2)


class Part(_Strict):
    """One model, its prompts, what is searched and what the finds are measured by.

    `judges`: verifiers that score each find. `sets`: fid, is, precision, recall (by 3 neighbours, or k) of all finds of
    a point, and diversity, the mean distance between those of a prompt. `repeats`: searches a prompt, each from noises
    of its own. `strips`: how many prompts' pictures are kept, to show. `dtype`: as --dtype takes it; what `auto` stands
    for is chosen where it is run, and stands beside the numbers. `cost`: what the FLOPs of its points are: the
    denoiser's alone, or of the whole search, decoder and verifier included.
    """

    model: str
    prompts: str
    limit: int | None = Field(None, gt=0, description="prompts, evenly over the suite")
    only: list[str] = Field(default_factory=list, description="these prompts alone")
    repeats: int = Field(1, gt=0)
    seed: int = 0
    dtype: str = AUTO
    steps: int | None = Field(None, gt=0, description="of a sample; null: as the model states")
    args: dict[str, Any] = Field(default_factory=dict)
    scheduler: str | None = Field(None, description="as --scheduler takes it; null: the pipeline's own")
    judges: list[str] = Field(default_factory=list)
    sets: list[Literal["fid", "is", "precision", "recall", "precision k=5", "recall k=5", "diversity"]] = Field(
        default_factory=list
    )
    reference: str | None = Field(None, description="real pictures for fid, precision and recall")
    cost: Literal["denoiser", "search"] = "denoiser"
    series: dict[str, Series]
    pairs: Pairs | None = None
    strips: int = 0


class Panel(_Strict):
    """One plot: `y` (a measure, or of scatter a verifier) of all or `only` some series of `part` against `x`.

    `relative`: as gain in percent over the first point of the series; bars without it are gains in units of `y`.
    `frontier`: also draw the best that any of the series has at each cost.
    """

    part: str
    y: str
    x: str = "nfe"
    only: list[str] = Field(default_factory=list)
    relative: bool = False
    frontier: bool = False
    label: str | None = None


class LogPanel(_Strict):
    """One plot of what trainings log: the mean and deviation of `y` over windows of steps, against `x`."""

    of: list[str] = Field(min_length=1, description="trainings")
    y: Literal["loss", "reward"]
    x: Literal["steps", "seconds"] = "steps"
    title: str = ""


class Table(_Strict):
    """A row for each point of the series of `part`; columns are measures, `measure@category` within a category.

    `labels`: what columns are called. `cost`: whether the compute relative to the first row stands beside.
    """

    part: str
    columns: dict[str, str]
    cost: bool = False


class Pilot(_Strict):
    """Numbers that a comparison is planned from: points `a` and `b` of `item`, which was run before; without `b` the
    series `a`; without both those of the comparison. Or, of trainings, the deviations of differences by `seed`, by
    `prompt`, and of the `rest`.

    `within`: which share of the variance is within prompts, where the pilot has one picture of each and the plan more.
    `left`: which share of the variance is left, where the plan takes budgets from pools and the pilot did not.
    """

    item: str = ""
    a: list[Any] = Field(default_factory=list)
    b: list[Any] = Field(default_factory=list)
    within: float = Field(0.0, ge=0, le=1)
    left: float = Field(1.0, gt=0, le=1)
    seed: float = 0.0
    prompt: float = 0.0
    rest: float = 0.0


class Paper(_Strict):
    """The effect that the paper prints, in percent of what it is a difference to, and where it stands."""

    percent: float
    of: str


class Design(_Strict):
    """How a headline was planned before its run: `unit` of analysis and pairing, the `statistic`, the reason for the
    smallest effect that `matters` and for how a sentence of several parts is tested, a pilot for each comparison."""

    unit: str
    statistic: str
    matters: str
    pilots: list[Pilot] = Field(min_length=1)
    source: str = Field("", description="where pilots that are given as deviations stand")
    paper: Paper | None = None


class Claim(_Strict):
    """One sentence of the paper and the test it has to pass: `test` is a name in `claims.CLAIMS`, `options` its own.

    With a `design` it is the test of the headline of that name; only these have verdicts.
    """

    says: str
    test: str
    options: dict[str, Any] = Field(default_factory=dict)
    design: Design | None = None

    @property
    def headline(self) -> bool:
        return self.design is not None


class Setting(_Strict):
    """An item on the models of Shapes, on the paper's own, or on handwritten digits.

    `written`: when the plan was, of items that headlines are tested on. `view`: how it is shown. `trainings`: settings
    by name, see `trainings`; in a file, `like` takes what a training of `trainings/PAPER.yaml` has, and `seeds` make
    one of each. `remarks`: what is known of why an estimate is as it is, by claim. `why`: the same of a headline, by
    the verdict that it is shown with. `quick`: what is changed for `--quick`, by part (`*` for all), and `trainings` by
    name.
    """

    view: Literal["curves", "bars", "scatter", "strips", "table", "logs"]
    parts: dict[str, Part] = Field(default_factory=dict)
    trainings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    panels: list[Panel] = Field(default_factory=list)
    logs: list[LogPanel] = Field(default_factory=list)
    table: Table | None = None
    claims: dict[str, Claim] = Field(default_factory=dict)
    remarks: dict[str, str] = Field(default_factory=dict)
    why: dict[str, dict[Verdict, str]] = Field(default_factory=dict)
    written: datetime | None = None
    quick: dict[str, dict[str, Any]] = Field(default_factory=dict)
    notes: str = ""


class Printed(_Strict):
    """The paper's own numbers: `of` what model, `columns`, and a row of texts and numbers each."""

    of: str
    columns: list[str]
    rows: list[list[str | float]]


class Recipe(_Strict):
    """One item: `expected` says in a sentence or two what the paper found."""

    title: str
    expected: str
    settings: dict[SettingName, Setting]
    printed: Printed | None = None


def of_shapes(model: str) -> bool:
    """Whether it is a shipped model of Shapes, or trained from one: those have networks and references of their own."""
    return world_of(trainings.base_of(model)) is not None


def planned() -> list[str]:
    """The items that headlines are tested on."""
    return sorted(path.stem for path in (RECIPES / PLANNED).glob("*.yaml"))


def elsewhere() -> list[str]:
    """The items on worlds that others made."""
    return sorted(path.stem for path in (RECIPES / ELSEWHERE).glob("*.yaml"))


def names() -> list[str]:
    """All tables and figures, in the order of the papers: figures, then tables, by number."""

    def order(name: str) -> tuple[str, str, int, str]:
        paper, _, item = name.partition(".")
        letters = item.rstrip("0123456789-")
        return paper, letters, int(item[len(letters) :].partition("-")[0] or 0), item

    return sorted((path.stem for path in RECIPES.glob("*.yaml")), key=order)


def chosen(asked: list[str]) -> list[str]:
    """The items that `asked` names: items, papers (`A`) or `all`, which are their tables and figures, or `planned`, on
    which headlines are tested; raises UnknownName for what is neither."""
    called = {name: {"all", name, name.partition(".")[0]} for name in names()}
    called |= {name: {PLANNED, name} for name in planned()}
    for one in asked:
        check_name("item", one, list(dict.fromkeys(["all", PLANNED, *(each for of in called.values() for each in of)])))
    return [name for name, of in called.items() if of & {*asked}]


def path_of(name: str) -> Path:
    """The file of an item; raises UnknownName for what is none."""
    for folder in (RECIPES, RECIPES / PLANNED, RECIPES / ELSEWHERE):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise unknown("item", name, [*names(), *planned(), *elsewhere()])


def load(name: str) -> Recipe:
    """The recipe of an item; raises DiffscaleError that names what is wrong in it."""
    content = config.read(path_of(name))
    for setting, given in content.get("settings", {}).items():
        if "trainings" in given:
            given["trainings"] = trainings.expanded(given["trainings"], RECIPES, name.partition(".")[0], setting)
            _seeded(given)
    return config.validated(Recipe, content)


def _seeded(setting: dict[str, Any]) -> None:
    """Make each training with `seeds`, and each series that is sampled from it, one for each of them: `NAME #SEED`."""
    seeds = {name: each.pop("seeds") for name, each in setting["trainings"].items() if "seeds" in each}
    setting["trainings"] = {
        f"{name} #{seed}" if name in seeds else name: {**each, "seed": seed} if name in seeds else each
        for name, each in setting["trainings"].items()
        for seed in seeds.get(name, [0])
    }
    for part in setting.get("parts", {}).values():
        series = {}
        for name, each in part["series"].items():
            training = (each.get("model") or "").removeprefix("training ")
            for seed in seeds.get(training, [None]):
                given = each if seed is None else {**each, "model": f"training {training} #{seed}"}
                series[name if seed is None else f"{name} #{seed}"] = given
        part["series"] = series


def resolved(
    recipe: Recipe, setting: SettingName, *, limit: int | None = None, quick: bool = False,
    suites: Mapping[str, str] | None = None, reference: str | None = None, data: Mapping[str, str] | None = None,
) -> Setting:  # fmt: skip
    """The setting with what the command changes in it.

    `limit`: prompts of every part, at most. `suites`: files or Hub ids of suites that are not shipped, by name.
    `reference`: real pictures, where the recipe has none of its own. `data`: folders or Hub ids instead of those that
    trainings name. Raises DiffscaleError if the item has no such setting, or a training one that is wrong.
    """
    if setting not in recipe.settings:
        raise DiffscaleError(f"{recipe.title!r} has no setting {setting}: choose {' or '.join(recipe.settings)}.")
    base, suites = recipe.settings[setting], suites or {}
    changed = base.quick if quick else {}
    made = {name: _training(each, name, changed, suites, data or {}) for name, each in base.trainings.items()}
    models = {f"training {name}": trainings.called(each) for name, each in made.items()}
    parts = {}
    for name, part in base.parts.items():
        change = {**changed.get("*", {}), **changed.get(name, {})}
        given = {**part.model_dump(), **{key: value for key, value in change.items() if key != "series"}}
        for series, more in change.get("series", {}).items():
            for each in given["series"] if series == "*" else [series]:
                given["series"][each] = {**given["series"][each], **more}
        check_name("dtype", given["dtype"], DTYPES)
        given["prompts"] = suites.get(part.prompts, part.prompts)
        if part.reference is None:
            given["reference"] = reference
        if limit is not None:
            given["limit"] = min(limit, given["limit"] or limit)
        for each in given["series"].values():
            if each["verifier"] == "oracle_fid" and given["reference"] is not None and not of_shapes(part.model):
                # The oracle is that of the very distance that is measured.
                each["verifier"] = f"oracle_fid reference={given['reference']}"
            if (each["model"] or "").startswith("training "):
                if each["model"] not in models:
                    raise unknown("training", each["model"].removeprefix("training "), made)
                each["model"] = models[each["model"]]
        parts[name] = config.validated(Part, given)
    return base.model_copy(update={"parts": parts, "trainings": made})


def _training(
    given: Mapping[str, Any], name: str, changed: Mapping[str, Any], suites: Mapping[str, str], data: Mapping[str, str]
) -> dict[str, Any]:
    change = changed.get("trainings", {})
    training = {**given, **change.get("*", {}), **change.get(name, {})}
    training["data"] = data.get(training.get("data", ""), training.get("data"))
    if suites:
        # What is measured on in any item is trained on in none, so that items can share a training.
        training["held_out_prompts"] = sorted({*training.get("held_out_prompts", []), *suites.values()})
    trainings.config_of(training)
    return training
