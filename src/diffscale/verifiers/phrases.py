"""Noun phrases, counts and relations of a prompt, by rules and closed lists of words.

T2I-CompBench reads prompts with spaCy's en_core_web_sm, which is a download of its own. This reader needs nothing. It
cuts a text at function words, and takes a verb off a phrase's end where grammar shows that it is one, so that it is
made for captions in plain English such as those of T2I-CompBench, DrawBench and Shapes. It differs from spaCy in that
it asks after no pronouns ("it"), no places in fixed relations ("top" of "on top of") and no openings ("a photo of");
and it is fooled by what only a dictionary tells, such as a noun used as a verb without an ending ("dogs chase cats").
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NUMBERS: Final = "one two three four five six seven eight nine ten eleven twelve"
COUNTS: Final = {word: count for count, word in enumerate(_NUMBERS.split(), start=1)}

DETERMINERS: Final = _words(
    """
    a an the this that these those some any many several few each every another both all no my your his her its our
    their
    """
)

BE: Final = _words("is are was were be been being am looks look seems seem appears becomes feels")

FUNCTION: Final = _words(
    """
    of in on at by for from with without to into onto over under above below beneath underneath beside besides
    between among behind before after during through across along around against near next inside outside within
    upon off out up down toward towards about like than via per beyond amid atop while and or but nor so yet as if
    because when where which who whose whom what how why there here then it he she they we i you him them us me
    itself himself herself themselves something someone nothing has have had do does did can could will would shall
    should may might must not very too also just only more most
    """
)
"""Prepositions and particles, then conjunctions, pronouns, question words, auxiliaries and adverbs of degree."""

_PICTURES: Final = "photo picture image photograph painting drawing illustration rendering close-up"
OPENINGS: Final = tuple(f"{article} {kind}" for article in ("a", "an", "the") for kind in _PICTURES.split())

RELATIONS: Final = (
    (r"(?:up)?on (?:the )?left(?:[- ]hand)?(?: side)? of|to the left(?: side)? of|(?:at the )?left of", "left"),
    (r"(?:up)?on (?:the )?right(?:[- ]hand)?(?: side)? of|to the right(?: side)? of|(?:at the )?right of", "right"),
    (r"on (?:the )?top of|at the top of|atop|above|over", "above"),
    (r"(?:on|at) (?:the )?bottom of|below|beneath|underneath|under", "below"),
    (r"next to|on (?:the )?side of|beside|near|close to", "near"),
)
"""Patterns of relations and their kinds, those of T2I-CompBench among them; the first that fits is meant."""

COLOURS: Final = _words(
    """
    red green blue yellow orange purple pink brown black white gray grey gold golden silver beige cyan magenta
    violet turquoise maroon teal navy tan crimson
    """
)

ADVERBS: Final = _words("together away fast back forward around again now always never outdoors indoors")

VERBS: Final = _words(
    """
    sits sat sit stands stood stand lies lay lying lays hangs hung hang holds held hold wears wore wear eats ate eat
    drinks drank runs ran rides rode ride plays walks flies flew fly swims swam jumps sleeps slept carries reads
    wrote writes looks looked watches chases chased catches caught throws threw kicks pulls pushes drives drove
    sings sang dances rests rested leans leaned contains contained covers surrounds shines shone glows smells
    smelled contrasts contrasted gives gave takes took makes made keeps kept sees saw goes went comes came falls
    fell rises rose grows grew
    """
)
"""Common forms that a noun phrase does not end in; those in -ing and -ed are told by their endings."""

NOUNS_LIKE_VERBS: Final = _words(
    """
    building painting ceiling railing ring earring string spring wing king thing clothing evening morning wedding
    pudding lightning awning swing viking duckling dumpling stocking opening drawing writing frosting icing topping
    bed shed seed weed sled reed bread steed red butterfly dragonfly lily jelly belly family fly ally bully
    """
)

UNCHANGED: Final = _words("sheep fish deer glasses pants scissors jeans shorts headphones series gas lens canvas dress")
"""Nouns that stay as they are in the singular."""

IRREGULAR: Final = {noun: noun for noun in UNCHANGED} | dict(
    pair.split(":")
    for pair in _words(
        """
        men:man women:woman children:child people:person mice:mouse geese:goose feet:foot teeth:tooth knives:knife
        wolves:wolf leaves:leaf loaves:loaf shelves:shelf scarves:scarf shoes:shoe canoes:canoe movies:movie
        cookies:cookie ties:tie pies:pie vases:vase houses:house horses:horse buses:bus axes:axe oboes:oboe
        """
    )
)
"""Plurals and their singulars."""


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


@lru_cache(10_000)  # searches ask for the same few prompts with every batch
def read_prompt(prompt: str) -> Reading:
    """The reading of a prompt in English; anything is read, at worst with no phrases."""
    tokens = _tokens(prompt)
    phrases: list[Phrase] = []
    actions: list[str] = []
    related: list[tuple[int, str]] = []
    start, phrase_end, after_be = 0, 0, False
    while start < len(tokens):
        token = tokens[start]
        if token.startswith("<"):
            related.append((len(phrases), token[1:-1]))
        if not _determines(token) and not _content(token):
            # "there is a" says that something is, "it is red" says how it is.
            after_be = token in BE and (start == 0 or tokens[start - 1] != "there")
            start += 1
            continue
        end = _end(tokens, start)
        run = tokens[start:end]
        # "is shaking hands", "dogs | chasing cats": what is done comes before whom it is done to.
        if len(run) > 1 and _ing(run[0]) and (after_be or (phrases and start == phrase_end)):
            actions.append(run.pop(0))
            after_be = False
        phrase, rest = _phrase(run, tokens[end] if end < len(tokens) else "", after_be)
        actions.extend(rest)
        if phrase is not None:
            phrases.append(phrase)
            phrase_end = end
        start, after_be = end, False
    between = [(phrases[i - 1], kind, phrases[i]) for i, kind in related if 0 < i < len(phrases)]
    return Reading(tuple(phrases), between[0] if between else None, tuple(actions))


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


def _counts(token: str) -> bool:
    return token in COUNTS or token.isdecimal()


def _determines(token: str) -> bool:
    return token in DETERMINERS or _counts(token)


def _content(token: str) -> bool:
    return token[0].isalnum() and token not in FUNCTION and token not in BE and not _determines(token)


def _end(tokens: list[str], start: int) -> int:
    """Where the run of words that starts at `start` ends: before a function word, a sign or the next determiner."""
    second = start + 1
    if tokens[start] in DETERMINERS and second < len(tokens) and _counts(tokens[second]):
        second += 1
    determined = _determines(tokens[start])
    first = second if determined else start
    for end in range(second, len(tokens)):
        token, words = tokens[end], tokens[first:end]
        following = tokens[end + 1] if end + 1 < len(tokens) else ""
        if _content(token):
            goes_on = not (_ing(token) and words and singular(words[-1]) != words[-1])  # dogs | chasing cats
        elif token == ",":
            goes_on = determined and following != "" and _content(following) and _single(words)  # the round, juicy ...
        else:  # a black and white cat
            goes_on = token in ("and", "or") and words != [] and words[-1] in COLOURS and following in COLOURS
        if not goes_on:
            return end
    return len(tokens)


def _single(words: list[str]) -> bool:
    """Whether commas part these words one by one, as they do adjectives."""
    return all((word == ",") == bool(i % 2) for i, word in enumerate(words)) and len(words) % 2 == 1


def _phrase(run: list[str], following: str, after_be: bool) -> tuple[Phrase | None, list[str]]:
    """The noun phrase of a run of words, None if it has none, and the words that are no part of it."""
    heads = [word for word in run[:2] if _determines(word)]
    words = run[len(heads) :]
    left: list[str] = []
    while words and _acts(words, heads, following):
        left.append(words.pop())
        following = ""
    if not words or (after_be and not heads):
        return None, left
    number = next((word for word in heads if _counts(word)), None)
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
