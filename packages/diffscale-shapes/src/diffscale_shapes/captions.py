"""Captions: a small grammar that says a description in words, and reads such words back.

`write_caption` varies the wording at random; `parse_caption` undoes every wording that it has (tested on random
descriptions), and so gives the judge the meaning of a prompt that a user typed.
"""

import re
from dataclasses import replace
from itertools import chain
from random import Random
from typing import Final

from diffscale_shapes.scenes import COLOURS, INVERSE, MAX_COUNT, SHAPES, Description, Spec

NUMBERS: Final = ("one", "two", "three", "four", "five", "six")
_SIZE_WORDS: Final = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
_TEXTURE_WORDS: Final = {"solid": ("solid", "plain"), "striped": ("striped",), "dotted": ("dotted",)}
_RELATION_WORDS: Final = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS: Final = ("a picture of", "an image of")
_PLURALS: Final = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}

_SYNONYMS: Final = [*_SIZE_WORDS.values(), *_TEXTURE_WORDS.values(), *_RELATION_WORDS.values()]
_PHRASES: Final = [*COLOURS, *SHAPES, *_PLURALS.values(), *NUMBERS, *chain(*_SYNONYMS), *_OPENINGS, "a an and with"]
WORDS: Final = tuple(dict.fromkeys(" ".join(_PHRASES).split()))
"""Every word of the grammar; the only other sign is the comma."""


def write_caption(description: Description, rng: Random) -> str:
    """One caption of the description, at most 23 words and commas, without a full stop."""
    parts = [_write_spec(spec, rng) for spec in description.specs]
    if description.relation is not None:
        first, second, *rest = parts
        parts = [f"{first} {rng.choice(_RELATION_WORDS[description.relation])} {second}", *rest]
    *before, text = parts
    if before:
        joint = rng.choice((" and ", " and ", " with ") if len(before) == 1 else (" and ", ", and "))
        text = ", ".join(before) + joint + text
    if description.category != "complex" and rng.random() < 0.15:
        text = f"{rng.choice(_OPENINGS)} {text}"
    return text


def _write_spec(spec: Spec, rng: Random) -> str:
    words = [
        *([rng.choice(_SIZE_WORDS[spec.size])] if spec.size else []),
        *([rng.choice(_TEXTURE_WORDS[spec.texture])] if spec.texture else []),
        *([spec.colour] if spec.colour else []),
        spec.shape if spec.count == 1 else _PLURALS[spec.shape],
    ]
    if spec.texture and spec.colour and rng.random() < 0.3:
        words[-3:-1] = words[-2], words[-3]  # "red striped" as well as "striped red"
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([NUMBERS[spec.count - 1] if spec.count > 1 else article, *words])


def other_wordings(text: str, most: int = 7) -> list[str]:
    """At most so many other captions that ask for what `text` asks for: its objects in another order, a relation told
    from its other side, other words. Always the same ones; none for a text that cannot be read, few for a simple one.
    """
    meaning = parse_caption(text)
    if meaning is None:
        return []
    rng, found = Random(f"wordings of {meaning.key()}"), dict[str, None]()
    for _ in range(40 * most):
        found[write_caption(_retold(meaning, rng), rng)] = None
    found.pop(text, None)
    return list(found)[:most]


def _retold(meaning: Description, rng: Random) -> Description:
    """The same meaning, with what is said told in a random order."""
    if meaning.relation is None:
        return replace(meaning, specs=tuple(rng.sample(meaning.specs, len(meaning.specs))))
    first, second, *rest = meaning.specs
    rest = rng.sample(rest, len(rest))
    if rng.random() < 0.5:
        return replace(meaning, specs=(second, first, *rest), relation=INVERSE[meaning.relation])
    return replace(meaning, specs=(first, second, *rest))


_MEANING: Final = {
    **{word: ("size", size) for size, words in _SIZE_WORDS.items() for word in words},
    **{word: ("texture", texture) for texture, words in _TEXTURE_WORDS.items() for word in words},
    **{colour: ("colour", colour) for colour in COLOURS},
}
_NOUNS: Final = {noun: shape for shape, plural in _PLURALS.items() for noun in (shape, plural)}
_COUNTS: Final = {"a": 1, "an": 1, "the": 1} | {word: n for n, word in enumerate(NUMBERS, 1)}
_RELATION_PATTERN: Final = re.compile(
    r"\b(?:is |are |stands? )?(?:(?:to|on) the )?(left of|right of|above|over|below|under|beneath)\b"
)
_RELATION_MEANING: Final = {"over": "above", "under": "below", "beneath": "below"}


def parse_caption(text: str) -> Description | None:
    """The meaning of a caption, or None if it has a word or an order that the grammar lacks.

    The category is that of the T2I-CompBench family which the description belongs to; a description that fits
    none is `complex`.
    """
    plain = re.sub(r"[.!]", " ", text.lower()).strip()
    plain = re.sub(r"^(?:an?|the) (?:picture|image|photo|drawing) of ", "", plain)
    relation = None
    if match := _RELATION_PATTERN.search(plain):
        relation = _RELATION_MEANING.get(match[1], match[1])
        plain = f"{plain[: match.start()]} <rel> {plain[match.end() :]}"
    pieces = re.split(r",? and |,| with |<rel>", plain)
    parsed = [_parse_spec(words) for piece in pieces if (words := piece.split())]
    specs = tuple(filter(None, parsed))
    if not specs or len(specs) < len(parsed):
        return None
    if relation and (len(specs) < 2 or plain.index("<rel>") > len(pieces[0])):
        return None
    return Description(_category(specs, relation), specs, relation)


def _parse_spec(words: list[str]) -> Spec | None:
    *before, noun = words
    if noun not in _NOUNS:
        return None
    count = _COUNTS.get(before[0]) if before else None
    words = before if count is None else before[1:]
    said = dict(_MEANING[word] for word in words if word in _MEANING)
    if len(said) < len(words):  # a word is unknown or says again what another said
        return None
    return Spec(_NOUNS[noun], count=min(count or 1, MAX_COUNT), **said)


def _category(specs: tuple[Spec, ...], relation: str | None) -> str:
    if relation:
        plain = len(specs) == 2 and all(s.texture is None and s.size is None for s in specs)
        return "spatial" if plain else "complex"
    if len(specs) == 1 or any(spec.count > 1 for spec in specs):
        return "numeracy"
    if all(spec.texture for spec in specs):
        return "texture"
    if any(spec.texture for spec in specs) or any(s.size and s.colour for s in specs):
        return "complex"
    return "shape" if all(spec.colour is None for spec in specs) else "colour"
