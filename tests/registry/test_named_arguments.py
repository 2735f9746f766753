"""Names with arguments, as functions of others take them: with and without annotations."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.registry.arguments import parse, rejoined

if TYPE_CHECKING:
    from nowhere import Unimportable


def bare(images, prompts, by=1, share=0.5, strict=False, word="a", rest=None):  # type: ignore[no-untyped-def]
    return None


def half(images: Unimportable, prompts, by: float = 1, kind: Unimportable = None, model: Any = ""):  # type: ignore[no-untyped-def]
    return None


def told(images, prompts, way: Literal["up", "down"] = "up"):  # type: ignore[no-untyped-def]
    return None


def parsed(text: str, function: Any = bare) -> dict[str, Any]:
    return parse(f"f {text}", "verifier", {"f": function})[1]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("by=2", 2), ("by=2.5", 2.5), ("by=1e-3", 1e-3), ("by=-4", -4), ("by=high", "high"), ("by=True", True),
        ("share=2", 2.0), ("strict=true", True), ("strict=0", False), ("word=3", "3"), ("word=true", "true"),
        ("rest=3", 3), ("rest=false", False), ("rest=no", "no"), ("rest=http://h:80/v1?a=b", "http://h:80/v1?a=b"),
    ],
)  # fmt: skip
def test_values_without_annotation_are_what_they_look_like(text: str, wanted: object) -> None:
    (value,) = parsed(text).values()
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(("text", "said"), [("share=much", "takes share as float"), ("strict=maybe", "as bool")])
def test_a_value_that_is_not_of_the_kind_of_the_default_is_refused(text: str, said: str) -> None:
    with pytest.raises(DiffscaleError, match=said):
        parsed(text)


def test_annotations_count_where_others_cannot_be_resolved() -> None:
    assert parsed("by=2 kind=3 model=x", half) == {"by": 2.0, "kind": 3, "model": "x"}
    assert type(parsed("by=2", half)["by"]) is float
    with pytest.raises(DiffscaleError, match="takes by as float, but got 'many'"):
        parsed("by=many", half)
    assert parsed("by=2", functools.partial(half, kind=1)) == {"by": 2.0}
    assert parsed("way=up", functools.partial(told)) == {"way": "up"}
    with pytest.raises(DiffscaleError, match="takes way as"):
        parsed("way=left", functools.partial(told))


def test_a_type_that_no_text_makes_is_told() -> None:
    class Model:
        pass

    def own(images: Any, prompts: Any, model: Any = None) -> None: ...

    own.__annotations__["model"] = Model
    with pytest.raises(DiffscaleError, match=r"takes model as .*Model, but got 'x'"):
        parsed("model=x", own)


def lists(
    images: Any, prompts: Any, sizes: list[int] | None = None, names: tuple[str, ...] = (), one: str | list[str] = ""
) -> None: ...


def test_collections_are_written_with_commas() -> None:
    assert parsed("sizes=1,2,3 names=a,b one=a,b", lists) == {"sizes": [1, 2, 3], "names": ("a", "b"), "one": "a,b"}
    with pytest.raises(DiffscaleError, match=r"takes sizes as list\[int\] \| None, but got '1,b'"):
        parsed("sizes=1,b", lists)


@given(st.lists(st.lists(st.sampled_from("bcd"), max_size=3)))
def test_what_was_split_at_commas_is_put_together(values: list[list[str]]) -> None:
    texts = [f"a x=1,{','.join(value)}" if value else "a" for value in values]
    assert rejoined(",".join(texts).split(",") if texts else [], lambda piece: piece.startswith("a")) == texts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('rest="/my models/x"', "/my models/x"), ("rest='a b'", "a b"), (r"rest=C:\models\new", r"C:\models\new"),
        (r'rest="C:\my models\"', "C:\\my models\\"), ("rest=a#b", "a#b"), ('rest=""', ""),
    ],
)  # fmt: skip
def test_quotation_marks_keep_spaces_and_backslashes_are_themselves(text: str, value: str) -> None:
    assert parsed(f"{text} by=2") == {"rest": value, "by": 2}
    with pytest.raises(DiffscaleError, match="A quotation mark is not closed"):
        parsed("rest='a b")


def test_nothing_is_no_name() -> None:
    with pytest.raises(UnknownName, match="Unknown verifier ''"):
        parse("", "verifier", {"f": bare})
    with pytest.raises(UnknownName):
        parsed("by=3", print.__class__)


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans()))
def test_numbers_come_back(value: object) -> None:
    (found,) = parsed(f"rest={value}").values()
    assert found == value and type(found) is type(value)
