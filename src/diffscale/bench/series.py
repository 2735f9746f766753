"""What all series of searches have in common: their cells, prompts with repeats, tasks, and what searches cost."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from diffscale.engine import noise
from diffscale.engine.results import Result
from diffscale.engine.task import Task
from diffscale.searches import choose_search
from diffscale.types import ClassLabel

_LONGEST: Final = 160  # bytes of a name of a file


@dataclass(frozen=True)
class Cell:
    """One search with one verifier and one budget in NFE.

    Without a verifier there is no search: one sample of the first noise. `final_steps`: the noise found is sampled
    again in that many, and paid for; 0: what was found is kept. `allocation`: how all prompts together share their
    budgets, see `engine.allocation`; empty: each has its own.
    """

    search: str
    verifier: str
    budget: int
    final_steps: int = 0
    allocation: str = ""

    @property
    def name(self) -> str:
        again = f" | {self.final_steps} steps" if self.final_steps else ""
        shared = f" | {self.allocation}" if self.allocation else ""
        return f"{self.search} | {self.verifier} | {self.budget}{again}{shared}"

    @property
    def fields(self) -> dict[str, Any]:
        """What its samples say of it; an allocation only where there is one."""
        return {name: value for name, value in asdict(self).items() if name != "allocation" or value}

    def declares(self, trait: str) -> bool:
        """Whether the search declares a trait, see `types.search_traits`."""
        return choose_search(self.search).declares(trait)

    def samples_in(self, samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of `samples` that are of this cell, failed ones too."""
        mine = [s for s in samples if all(s.get(name, 0) == value for name, value in self.fields.items())]
        return [s for s in mine if s.get("allocation", "") == self.allocation]


@dataclass(frozen=True, eq=False)
class PromptRepeat:
    """One picture to find: its prompt, and which of the searches for it. Two of one `name` are equal."""

    prompt: str
    repeat: int

    @property
    def condition(self) -> str:
        return condition_of(self.prompt)

    @property
    def name(self) -> str:
        return f"{self.repeat} | {self.condition}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptRepeat) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def key(self, seed: int) -> int:
        """The key of all noises of its searches: of prompt and repeat alone, so that all searches begin alike."""
        return noise.fold(noise.root(seed), self.prompt, self.repeat)


def condition_of(prompt: str) -> str:
    """Names a prompt; a ClassLabel by its id too, as two classes of ImageNet may be called alike."""
    return f"{prompt.class_id} {prompt}" if isinstance(prompt, ClassLabel) else prompt


def rows_of(wanted: Sequence[PromptRepeat]) -> tuple[list[str], list[int]]:
    """The prompts of `wanted`, each once, and for every one of `wanted` the row of its prompt."""
    prompts = {each.condition: each.prompt for each in wanted}
    number = {condition: row for row, condition in enumerate(prompts)}
    return list(prompts.values()), [number[each.condition] for each in wanted]


def tasks_of(
    search: str,
    budget: int,
    wanted: Sequence[PromptRepeat],
    rows: Sequence[int],
    seed: int,
    names: Sequence[str],
    device: str = "cpu",
) -> list[Task]:
    """A task of `search` (see `choose_search`) for every one of `wanted`, whose prompt is in that row of the sampler.

    `names`: what a journal knows them by. Raises DiffscaleError for a search that does not exist.
    """
    made = choose_search(search).make(device=device)
    return [Task(made, row, each.key(seed), budget, name) for each, row, name in zip(wanted, rows, names, strict=True)]


def costs_of(result: Result) -> dict[str, Any]:
    """What a search spent, and how many candidates it made of it, for JSON."""
    names = ("nfe", "network_forwards", "flops", "decodes", "verifier_calls", "verifier_flops", "comparisons")
    costs = {name: getattr(result.ledger, name) for name in names}
    return {**costs, "candidates": result.candidates, "dropped": result.dropped}


def wordings_in(result: Result) -> dict[str, Any]:
    """What the best candidate was drawn from, and how many each wording had, for JSON; empty for one wording alone."""
    counts = Counter(result.wordings)
    return {"wording": result.best.wording, "wordings": counts} if len(counts) > 1 else {}


def safe_name(text: str) -> str:
    """`text` as a name of a file, with room for more before and after it: file systems take 255 bytes.

    A longer one is cut, and ends with a digest that tells it from others.
    """
    name = "".join(c if c.isalnum() or c in "=.-" else "_" for c in text.replace(" | ", "--"))
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=6).hexdigest()
    return f"{name.encode()[: _LONGEST - 13].decode(errors='ignore')}-{digest}"
