"""Other wordings of prompts: of a mapping, a file, a language model, or the world of the model's pictures."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import checked, parse_jsonl, read_text
from diffscale.api.rewriter import Rewriter
from diffscale.models.load import world_of
from diffscale.registry.arguments import made
from diffscale.samplers.arguments import arguments_of_rows, embeddings
from diffscale.searches.rewrites import no_wordings
from diffscale.types import Wording, own_prompt

Given = str | Path | Mapping[str, Sequence[str]] | None
"""A file, "llm key=value ...", or wordings by prompt; None: those that the world of the model's pictures has."""

_LLM: Final = "llm"
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Texts = TypeAdapter(dict[str, Annotated[list[_Text], Field(min_length=1)]])


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    wordings: list[_Text] = Field(min_length=1)


@dataclass(frozen=True)
class Wordings:
    """Other wordings of prompts: `of` gives those of one, none where there are none.

    `name`: of a source that may say something else the next time, by which a journal knows it; empty for others.
    """

    of: Callable[[str], Sequence[str]]
    name: str = ""

    def records(self, prompts: Iterable[str]) -> dict[str, str]:
        """What a journal keeps of these prompts' wordings, see `Journal.add_sources`; of no source that may say
        something else the next time."""
        return {} if self.name else {_label(prompt): _record(self, self._of(prompt)) for prompt in prompts}

    def find(
        self, prompts: Iterable[str], known: Mapping[str, str], keep: Callable[[dict[str, str]], None]
    ) -> list[Wording]:
        """All other wordings of `prompts`, as a journal that has `known` of them knows them, else anew.

        `keep` is given what a journal is to keep, prompt by prompt. Raises DiffscaleError for a prompt without any.
        """
        found: list[Wording] = []
        for prompt in dict.fromkeys(prompts):
            texts = self._recorded(known.get(_label(prompt), "")) or self._of(prompt)
            if not texts:
                raise no_wordings(prompt)
            keep({_label(prompt): _record(self, texts)})
            found += [Wording(text, prompt) for text in texts]
        return found

    def _of(self, prompt: str) -> list[str]:
        return [text for text in dict.fromkeys(self.of(prompt)) if text != prompt]

    def _recorded(self, record: str) -> list[str]:
        """What this source said before, by what a journal has of it; none of a source that can be asked again."""
        with suppress(ValueError, TypeError):
            name, texts = json.loads(record)
            return list(texts) if self.name and name == self.name else []
        return []


def wordings_of(given: Given, model: str) -> Wordings:
    """The wordings that are `given`, for prompts to `model`; raises DiffscaleError for what gives none."""
    if given is None:
        world = world_of(model)
        return Wordings(lambda prompt: () if world is None else world.wordings(prompt))
    if isinstance(given, str) and given.split()[:1] == [_LLM]:
        rewriter = made(given, "source of wordings", {_LLM: Rewriter})
        assert rewriter is not None
        return Wordings(rewriter, rewriter.name)
    if isinstance(given, Mapping):
        lists = {name: each if isinstance(each, str) else list(each) for name, each in given.items()}
        with explained("Give wordings as a dictionary of prompts, with a list of texts for each.", ValidationError):
            texts = _Texts.validate_python(lists, strict=True)
    else:
        texts = _read(Path(given))
    return Wordings(lambda prompt: texts.get(prompt, ()))


def check_rewords(given: Given, rewords: bool) -> None:
    """Raise DiffscaleError for wordings that are given where no search draws from them."""
    if given is not None and not rewords:
        raise DiffscaleError(
            "Wordings are given, and no search draws from several wordings: leave them out, or search by rewrites."
        )


def arguments_with_wordings(args: Mapping[str, Any], prompts: Sequence[str]) -> dict[str, Any]:
    """`args` of a pipeline's call for `prompts` some of which are a Wording: what is given for each prompt that is none
    is given for its wordings too.

    Raises DiffscaleError for embeddings, which stand for one wording.
    """
    own = [prompt for prompt in prompts if not isinstance(prompt, Wording)]
    if len(own) == len(prompts):
        return dict(args)
    if given := sorted(embeddings(args)):
        raise DiffscaleError(
            f"{', '.join(given)} stand for one wording of a prompt, and the search draws from several: give the prompt "
            "as a text alone, or take another search."
        )
    rows = list(range(len(own)))
    rows += [own.index(own_prompt(prompt)) for prompt in prompts[len(own) :]]
    dealt = arguments_of_rows(args, rows, own)
    return {name: dealt[name] for name in args}


def _label(prompt: str) -> str:
    return f"list of wordings of {prompt!r}"


def _record(source: Wordings, texts: Sequence[str]) -> str:
    return json.dumps([source.name, list(texts)], ensure_ascii=False)


def _read(path: Path) -> dict[str, list[str]]:
    """The wordings in a JSONL file, by prompt."""
    unreadable = (
        f'The wordings {str(path)!r} cannot be read ({{why}}): give a JSONL file, or "llm model=NAME" to have them '
        "written."
    )
    with explained(unreadable, OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        text = read_text(path.expanduser())
    found: dict[str, list[str]] = {}
    for number, row in enumerate(parse_jsonl(text, path), 1):
        line = checked(_Line, row, path)
        if line.prompt in found:
            raise DiffscaleError(f"Line {number} of {path} has the prompt of another line: write one line for both.")
        found[line.prompt] = line.wordings
    return found
