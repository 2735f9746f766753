"""What `diffscale tune auto` measured of a model and a verifier: how looks agree with finished samples, and seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator

from diffscale._util.files import checked, read_config
from diffscale.searches.looks import Agreement, Look

FORMAT: Final = "diffscale profile 1"
"""What the file of a profile calls itself."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Correlation = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class Profile:
    """`agreement`: of looks with finished samples of `steps` steps. `seconds`: of a row, `step`, `decode`, `verify`."""

    agreement: Agreement
    steps: int
    seconds: dict[str, float]


class _Look(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: PositiveInt
    via: str = ""
    on_the_way: bool = False


def _all_kinds(seconds: dict[str, float]) -> dict[str, float]:
    if set(seconds) != (kinds := {"step", "decode", "verify"}):
        raise ValueError(f"it must have {', '.join(sorted(kinds))}, and has {', '.join(sorted(seconds)) or 'nothing'}")
    return seconds


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["diffscale profile 1"]
    steps: PositiveInt
    looks: list[_Look] = Field(min_length=1)
    matrix: list[list[Correlation]]
    seconds: Annotated[dict[str, Seconds], AfterValidator(_all_kinds)]
    about: dict[str, Any] = Field(default_factory=dict)

    @field_validator("looks")
    @classmethod
    def _within(cls, looks: list[_Look], info: ValidationInfo) -> list[_Look]:
        steps = info.data.get("steps", 0)
        if wrong := next((look for look in looks if look.on_the_way and look.steps >= steps), None):
            raise ValueError(f"a look on the way after {wrong.steps} of {steps} steps is none")
        return looks

    @field_validator("matrix")
    @classmethod
    def _square(cls, matrix: list[list[float]], info: ValidationInfo) -> list[list[float]]:
        size = len(info.data.get("looks", ())) + 1
        if len(matrix) != size or any(len(row) != size for row in matrix):
            raise ValueError(f"it must have {size} rows of {size} numbers, one for each look and the finished sample")
        if any(matrix[i][i] != 1 or matrix[i][j] != matrix[j][i] for i in range(size) for j in range(i)):
            raise ValueError("correlations must be symmetric, and 1 on the diagonal")
        return matrix


def read_profile(path: Path) -> Profile:
    """The profile in the file `path`, which `diffscale tune auto` wrote; raises DiffscaleError for one that is none."""
    file = checked(_File, read_config(path), path)
    looks = tuple(Look(look.steps, look.via, look.on_the_way) for look in file.looks)
    shares = tuple(look.steps / file.steps for look in looks)
    return Profile(Agreement(looks, shares, tuple(map(tuple, file.matrix))), file.steps, file.seconds)
