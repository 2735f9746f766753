"""The closed lists of English words that `phrases` cuts prompts by."""

from __future__ import annotations

from typing import Final


def _listed(text: str) -> list[str]:
    return text.split()


def _words(text: str) -> frozenset[str]:
    return frozenset(_listed(text))


COUNTS: Final = {
    word: i for i, word in enumerate(_listed("one two three four five six seven eight nine ten eleven twelve"), start=1)
}

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

OPENINGS: Final = tuple(
    f"{article} {kind}"
    for article in ("a", "an", "the")
    for kind in _listed("photo picture image photograph painting drawing illustration rendering close-up")
)

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
    for pair in _listed(
        """
        men:man women:woman children:child people:person mice:mouse geese:goose feet:foot teeth:tooth knives:knife
        wolves:wolf leaves:leaf loaves:loaf shelves:shelf scarves:scarf shoes:shoe canoes:canoe movies:movie
        cookies:cookie ties:tie pies:pie vases:vase houses:house horses:horse buses:bus axes:axe oboes:oboe
        """
    )
)
"""Plurals and their singulars."""
