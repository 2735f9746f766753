"""What benchmarks of composition ask of each prompt, read from the user's own copies of their files; none is shipped.

GenEval (Ghosh et al. 2023, arXiv 2310.11513): `prompts/evaluation_metadata.jsonl` of github.com/djghosh13/geneval.
GenEval 2 (Kamath et al. 2025, arXiv 2512.16853): `geneval2_data.jsonl` of github.com/facebookresearch/GenEval2.
TIFA (Hu et al. 2023, arXiv 2303.11897): `tifa_v1.0_question_answers.json` of github.com/Yushi-Hu/tifa.
DPG-Bench (Hu et al. 2024, arXiv 2403.05135): `dpg_bench/dpg_bench.csv` of github.com/TencentQQGYLab/ELLA.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import checked
from diffscale.suites.prompts import read_rows

T = TypeVar("T")
Text = Annotated[str, Field(min_length=1)]
Position = Literal["left of", "right of", "above", "below"]


class Objects(BaseModel):
    """`count` objects of a class, of a `color`, at a `position` relative to the objects of that earlier requirement."""

    name: Text = Field(alias="class")
    count: PositiveInt
    color: Text | None = None
    position: tuple[Position, NonNegativeInt] | None = None


class Scene(BaseModel):
    """A line of GenEval: all of `include` is to be seen, and of none of `exclude` as many; `tag` names the task."""

    tag: Text
    prompt: Text
    include: Annotated[list[Objects], Field(min_length=1)]
    exclude: list[Objects] = []


@dataclass(frozen=True)
class Question:
    """A question about a picture, and the answer to it that is right.

    `choices`: among which the answer is; none where it is free. `parents`: places in the prompt's list of the questions
    that must be answered rightly for this one to make sense.
    """

    text: str
    answer: str
    choices: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()


class _GenEval2(BaseModel):
    prompt: Text
    vqa_list: Annotated[list[tuple[Text, Text]], Field(min_length=1)]


class _Tifa(BaseModel):
    caption: Text
    question: Text
    answer: Text
    choices: list[str] = []


class _Dpg(BaseModel):
    text: Text
    proposition_id: int
    dependency: str
    question_natural_language: Text


def geneval_scenes(file: str) -> dict[str, Scene]:
    """The scenes of a file of GenEval, by prompt; raises DiffscaleError for a file of another kind."""
    scenes = {}
    for row in _rows(file, ("tag", "include", "prompt"), "GenEval, its evaluation_metadata.jsonl"):
        scene = checked(Scene, row, Path(file))
        for number, each in enumerate(scene.include):
            if each.position is not None and each.position[1] >= number:
                raise DiffscaleError(f"Mend the position of {each.name!r} in {file}: it is of no earlier object.")
        scenes[scene.prompt.strip()] = scene
    return scenes


def answer_questions(file: str) -> dict[str, list[Question]]:
    """The questions of a file of GenEval 2 or TIFA, by prompt; raises DiffscaleError for a file of another kind."""
    rows = _rows(file, (), "GenEval 2, its geneval2_data.jsonl, or of TIFA, its question_answers.json")
    found: dict[str, list[Question]] = {}
    for row in rows:
        if "vqa_list" in row:
            two = checked(_GenEval2, row, Path(file))
            found[two.prompt.strip()] = [Question(question, answer) for question, answer in two.vqa_list]
        elif row.keys() >= {"caption", "question", "answer"}:
            one = checked(_Tifa, row, Path(file))
            found.setdefault(one.caption.strip(), []).append(Question(one.question, one.answer, tuple(one.choices)))
        else:
            raise DiffscaleError(
                f"{file} is no file of GenEval 2 (rows with prompt and vqa_list) or TIFA (caption, question, answer): "
                f"a row has {', '.join(map(str, row)) or 'nothing'}."
            )
    return found


def dpg_questions(file: str) -> dict[str, list[Question]]:
    """The questions of a file of DPG-Bench, all answered by yes, by prompt; raises DiffscaleError for another kind.

    A dependency is 0, for none, or the `proposition_id` of other questions of the prompt.
    """
    by_prompt: dict[str, list[_Dpg]] = {}
    for row in _rows(file, tuple(_Dpg.model_fields), "DPG-Bench, its dpg_bench.csv"):
        one = checked(_Dpg, row, Path(file))
        by_prompt.setdefault(one.text.strip(), []).append(one)
    return {prompt: _linked(rows, file) for prompt, rows in by_prompt.items()}


def _linked(rows: list[_Dpg], file: str) -> list[Question]:
    places = {row.proposition_id: place for place, row in enumerate(rows)}
    questions = []
    for place, row in enumerate(rows):
        ids = [int(text) for text in row.dependency.split(",") if text.strip().isdigit()]
        parents = [places.get(each, len(rows)) for each in ids if each != 0]
        if len(ids) != row.dependency.count(",") + 1 or any(parent >= place for parent in parents):
            raise DiffscaleError(
                f"Mend the dependency {row.dependency!r} of {row.question_natural_language!r} in {file}: it is 0, or "
                "the proposition_id of earlier questions of the prompt."
            )
        questions.append(Question(row.question_natural_language, "yes", parents=tuple(parents)))
    return questions


def of_prompt(known: Mapping[str, T], prompt: str, file: str) -> T:
    """What the file says of a prompt; raises DiffscaleError for one that is not there."""
    try:
        return known[prompt.strip()]
    except KeyError:
        raise DiffscaleError(
            f"The prompt {prompt!r} is not in {file}: take the prompts of that file, as by `diffscale bench {file}`."
        ) from None


def _rows(file: str, columns: tuple[str, ...], what: str) -> list[dict[str, Any]]:
    if not Path(file).is_file():
        raise DiffscaleError(f"There is no file {file}: give your own copy of that of {what}.")
    rows = read_rows(Path(file))
    if not rows:
        raise DiffscaleError(f"{file} is empty: give your own copy of that of {what}.")
    for row in rows:
        if missing := [name for name in columns if name not in row]:
            raise DiffscaleError(f"{file} is no file of {what}: a row has no {missing[0]}.")
    return rows
