"""The headline claims of a paper: the files in `recipes/headlines`, one for each paper.

Every sentence of the abstract and every caption stands in them, with the headline that decides it, or the reason why it
is shown as an estimate alone, or cannot be tested here.
"""

from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffscale._util import config
from diffscale._util.errors import unknown
from diffscale.bench.papers import recipe

FOLDER: Final = "headlines"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Headline(_Strict):
    """What is decided, in our words, and the places of the sentences that say it."""

    of: list[str] = Field(min_length=1)
    says: str


class Headlines(_Strict):
    """A paper: its `sentences` by where they stand, and for each the headlines, or the reason why it has none.

    `estimates`: what is shown with an interval and without a verdict. `untested`: what claims nothing that can be
    tested here.
    """

    title: str
    sentences: dict[str, str]
    headlines: dict[str, Headline]
    estimates: dict[str, str] = Field(default_factory=dict)
    untested: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        told = {*self.estimates, *self.untested, *(place for each in self.headlines.values() for place in each.of)}
        if strange := sorted(told - self.sentences.keys()):
            raise ValueError(f"there is no sentence {', '.join(strange)}")
        if missing := sorted(self.sentences.keys() - told):
            raise ValueError(f"nothing is said of {', '.join(missing)}")
        return self


def papers() -> list[str]:
    """The papers that have headlines."""
    return sorted(path.stem for path in (recipe.RECIPES / FOLDER).glob("*.yaml"))


def load(paper: str) -> Headlines:
    """The headlines of a paper; raises DiffscaleError that names what is wrong in the file."""
    path: Path = recipe.RECIPES / FOLDER / f"{paper}.yaml"
    if not path.is_file():
        raise unknown("paper", paper, papers())
    return config.validated(Headlines, config.read(path))
