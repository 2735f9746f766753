"""Noun phrases, counts and relations of a prompt, by rules and closed lists of words.

T2I-CompBench reads prompts with spaCy's en_core_web_sm, which is a download of its own. This reader needs nothing. It
cuts a text at function words, and takes a verb off a phrase's end where grammar shows that it is one, so that it is
made for captions in plain English such as those of T2I-CompBench, DrawBench and Shapes. It differs from spaCy in that
it asks after no pronouns ("it"), no places in fixed relations ("top" of "on top of") and no openings ("a photo of");
and it is fooled by what only a dictionary tells, such as a noun used as a verb without an ending ("dogs chase cats").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffscale.verifiers.words import (
    ADVERBS,
    BE,
    COLOURS,
    COUNTS,
    DETERMINERS,
    FUNCTION,
    IRREGULAR,
    NOUNS_LIKE_VERBS,
    OPENINGS,
    RELATIONS,
    VERBS,
)


@dataclass(frozen=True)
class Phrase:
    """`text` as the prompt has it, `name` without its determiner or number, `count` how many (None: cannot be told).

    `counted`: a number word says the count. `noun`: the last word of `name`, in the singular.
    """

    text: str
    name: str
    count: int | None
    counted: bool

    @property
    def noun(self) -> str:
        return singular(self.name.rsplit(" ", 1)[-1])

    @property
    def object(self) -> str:
        """`name` with its last word in the singular: what a detector is asked for."""
        return " ".join([*self.name.split()[:-1], self.noun])


@dataclass(frozen=True)
class Reading:
    """What a prompt says: noun phrases in order, one relation (first, kind, second), if any, and words that act.

    `relation`: kind is `left`, `right`, `above`, `below` or `near`. `actions`: verbs and what else is in no phrase.
    """

    phrases: tuple[Phrase, ...]
    relation: tuple[Phrase, str, Phrase] | None
    actions: tuple[str, ...]


def read_prompt(prompt: str) -> Reading:
    """The reading of a prompt in English; anything is read, at worst with no phrases."""
    tokens = _tokens(prompt)
    phrases: list[Phrase] = []
    actions: list[str] = []
    ends: list[int] = []
    related: list[tuple[int, str]] = []
    at = 0
    after_be = False
    while at < len(tokens):
        token = tokens[at]
        if token.startswith("<"):
            related.append((len(phrases), token[1:-1]))
        if _determines(token) or _content(token):
            end = _end(tokens, at)
            run = tokens[at:end]
            # "is shaking hands", "dogs | chasing cats": what is done comes before whom it is done to.
            if len(run) > 1 and _ing(run[0]) and (after_be or at in ends):
                actions.append(run.pop(0))
                after_be = False
            found, left = _phrase(run, tokens[end] if end < len(tokens) else "", after_be)
            actions.extend(left)
            if found is not None:
                phrases.append(found)
                ends.append(end)
            at, after_be = end, False
            continue
        # "there is a" says that something is, "it is red" says how it is.
        after_be = token in BE and (at == 0 or tokens[at - 1] != "there")
        at += 1
    relation = None
    for before, kind in related:
        if 0 < before < len(phrases):
            relation = phrases[before - 1], kind, phrases[before]
            break
    return Reading(tuple(phrases), relation, tuple(actions))


def singular(noun: str) -> str:
    """A noun in the singular; one that already is stays so."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun in IRREGULAR.values() or noun.endswith(("ss", "us", "is")) or not noun.endswith("s") or len(noun) < 4:
        return noun
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("ches", "shes", "sses", "xes", "zes", "oes")):
        return noun[:-2]
    return noun[:-1]


def _tokens(prompt: str) -> list[str]:
    """Words and commas in lower case; openings are left out, and relations are one token each: <left> and so on."""
    text = re.sub(r"\s+", " ", prompt.lower().replace("’", "'")).strip()
    for opening in OPENINGS:
        text = text.removeprefix(opening + " of ")
    for words, kind in RELATIONS:
        text = re.sub(rf"\b{words}\b", f"<{kind}>", text)
    return re.findall(r"<\w+>|[\w'-]+|[.,;:!?()]", text)


def _determines(token: str) -> bool:
    return token in DETERMINERS or token in COUNTS or token.isdecimal()


def _content(token: str) -> bool:
    return token[0].isalnum() and token not in FUNCTION and token not in BE and not _determines(token)


def _end(tokens: list[str], start: int) -> int:
    """Where the run of words that starts at `start` ends: before a function word, a sign or the next determiner."""
    at = start + 1
    if tokens[start] in DETERMINERS and at < len(tokens) and (tokens[at] in COUNTS or tokens[at].isdecimal()):
        at += 1
    determined = _determines(tokens[start])
    first = at if determined else start
    while at < len(tokens):
        token = tokens[at]
        following = tokens[at + 1] if at + 1 < len(tokens) else ""
        words = at - first
        if _content(token):
            if _ing(token) and words and singular(tokens[at - 1]) != tokens[at - 1]:
                break  # dogs | chasing cats
            at += 1
        elif token == "," and determined and following and _content(following) and _single(tokens[first:at]):
            at += 1  # the round, juicy watermelon
        elif token in ("and", "or") and words and tokens[at - 1] in COLOURS and following in COLOURS:
            at += 1  # a black and white cat
        else:
            break
    return at


def _single(words: list[str]) -> bool:
    """Whether commas part these words one by one, as they do adjectives."""
    return all((word == ",") == bool(i % 2) for i, word in enumerate(words)) and len(words) % 2 == 1


def _phrase(run: list[str], following: str, after_be: bool) -> tuple[Phrase | None, list[str]]:
    """The noun phrase of a run of words, None if it has none, and the words that are no part of it."""
    heads = [word for word in run[:2] if word in DETERMINERS or word in COUNTS or word.isdecimal()]
    words = run[len(heads) :]
    left: list[str] = []
    while words and _acts(words, heads, following):
        left.append(words.pop())
        following = ""
    if not words or (after_be and not heads):
        return None, left
    number = next((word for word in heads if word in COUNTS or word.isdecimal()), None)
    singles = any(head in ("a", "an", "one", "another", "each", "every") for head in heads)
    count = int(number) if number and number.isdecimal() else COUNTS.get(number or "", 1 if singles else None)
    if count is None and singular(words[-1]) == words[-1]:
        count = 1
    name = " ".join(words).replace(" ,", ",")
    return Phrase(" ".join([*heads, name]), name, count, number is not None), left


def _ing(word: str) -> bool:
    return word.endswith("ing") and word not in NOUNS_LIKE_VERBS


def _acts(words: list[str], heads: list[str], following: str) -> bool:
    """Whether the last of `words` is a verb or adverb, given what comes before and after them."""
    last = words[-1]
    alone = len(words) == 1
    if alone and not heads and _ing(last):
        return True
    if last in ADVERBS or (last.endswith("ly") and not alone and last not in NOUNS_LIKE_VERBS):
        return True
    if last in VERBS:
        return not alone or not heads
    if alone or last in NOUNS_LIKE_VERBS or last in COLOURS:
        return False
    if last.endswith(("ing", "ed")) or following in DETERMINERS or following in COUNTS:
        return True  # no noun stands before a determiner: "a man holds | a cup"
    is_one = any(head in ("a", "an", "one") for head in heads)
    return is_one and last.endswith("s") and singular(last) != last and bool(following)
