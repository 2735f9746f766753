"""What a Shapes picture holds: typed objects, descriptions of them, and where objects may stand.

A *scene* is complete (every attribute and place of every object); a *description* is what a caption says of
it and may leave attributes open. Coordinates are pixels of the 64x64 canvas, x to the right, y downwards;
an object's place is its centre pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Final

CANVAS: Final = 64
COLOURS: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SHAPES: Final = ("circle", "square", "triangle", "diamond", "cross", "star")
TEXTURES: Final = ("solid", "striped", "dotted")
SIZES: Final = ("small", "large")
RELATIONS: Final = ("left of", "right of", "above", "below")
CATEGORIES: Final = ("colour", "shape", "texture", "spatial", "numeracy", "complex")
MAX_COUNT: Final = 6

RADIUS: Final = {"small": 8, "large": 12}
"""Half the side of an object's bounding box, in pixels, its centre pixel not counted."""

GAP: Final = 2
"""Least number of background pixels between two bounding boxes, so that objects never touch."""

MARGIN: Final = 1
"""Least number of background pixels between a bounding box and the edge of the canvas."""

_OPPOSITE: Final = {"right of": "left of", "below": "above"}


@dataclass(frozen=True, order=True)
class Obj:
    """One object as drawn."""

    shape: str
    colour: str
    texture: str
    size: str
    x: int
    y: int


Scene = tuple[Obj, ...]


@dataclass(frozen=True)
class Spec:
    """What a caption says of `count` alike objects; None where it says nothing."""

    shape: str
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    count: int = 1

    def admits(self, obj: Obj) -> bool:
        """Whether the object has every attribute that is said (the count aside)."""
        return all(
            said is None or said == drawn
            for said, drawn in (
                (self.shape, obj.shape),
                (self.colour, obj.colour),
                (self.texture, obj.texture),
                (self.size, obj.size),
            )
        )


@dataclass(frozen=True)
class Description:
    """What a caption says of a scene: its specs, and a relation of the first to the second."""

    category: str
    specs: tuple[Spec, ...]
    relation: str | None = None

    def key(self) -> str:
        """A text equal for two descriptions that say the same (order of mention and side of telling aside)."""

        def one(spec: Spec) -> str:
            return ",".join(str(v or "-") for v in (spec.count, spec.size, spec.texture, spec.colour, spec.shape))

        specs, relation = list(map(one, self.specs)), self.relation
        if relation is None:
            return "&".join(sorted(specs))
        first, second, *rest = specs
        if relation in _OPPOSITE:
            first, second, relation = second, first, _OPPOSITE[relation]
        return f"{first} {relation} {second}&" + "&".join(sorted(rest))


def related(a: Obj, b: Obj, relation: str) -> bool:
    """Whether `a` stands in `relation` to `b`: the offset along that axis has the right sign and dominates."""
    dx, dy = b.x - a.x, b.y - a.y
    if relation in ("left of", "right of"):
        return abs(dx) > abs(dy) and (dx > 0) == (relation == "left of")
    return abs(dy) > abs(dx) and (dy > 0) == (relation == "above")


def _apart(a: Obj, b: Obj) -> bool:
    reach = RADIUS[a.size] + RADIUS[b.size] + 1 + GAP
    return abs(a.x - b.x) >= reach or abs(a.y - b.y) >= reach


def draw_description(rng: Random, category: str) -> Description:
    """A random description of one of `CATEGORIES`; no two of its specs are the same.

    Raises KeyError for an unknown category.
    """
    make = {
        "colour": _colour,
        "shape": _shape,
        "texture": _texture,
        "spatial": _spatial,
        "numeracy": _numeracy,
        "complex": _complex,
    }[category]
    while True:
        description = make(rng)
        if len({replace(s, count=1) for s in description.specs}) == len(description.specs):
            return description


def _colour(rng: Random) -> Description:
    colours = rng.sample(COLOURS, 3 if rng.random() < 0.25 else 2)
    return Description("colour", tuple(Spec(rng.choice(SHAPES), c) for c in colours))


def _shape(rng: Random) -> Description:
    shapes = rng.sample(SHAPES, 3 if rng.random() < 0.5 else 2)
    # Shapes alone make few descriptions; sizes make enough that 50 can be kept out of training.
    return Description("shape", tuple(Spec(s, size=rng.choice(SIZES) if rng.random() < 0.75 else None) for s in shapes))


def _texture(rng: Random) -> Description:
    coloured = rng.random() < 0.5
    return Description(
        "texture",
        tuple(
            Spec(rng.choice(SHAPES), rng.choice(COLOURS) if coloured else None, rng.choice(TEXTURES)) for _ in range(2)
        ),
    )


def _spatial(rng: Random) -> Description:
    specs = tuple(Spec(rng.choice(SHAPES), rng.choice(COLOURS)) for _ in range(2))
    return Description("spatial", specs, rng.choice(RELATIONS))


def _numeracy(rng: Random) -> Description:
    if rng.random() < 0.6:
        return Description(
            "numeracy", (Spec(rng.choice(SHAPES), rng.choice(COLOURS), count=rng.randint(1, MAX_COUNT)),)
        )
    first = rng.randint(1, 4)
    counts = (first, rng.randint(1 if first > 1 else 2, MAX_COUNT - first))
    return Description("numeracy", tuple(Spec(rng.choice(SHAPES), rng.choice(COLOURS), count=n) for n in counts))


def _complex(rng: Random) -> Description:
    def spec() -> Spec:
        size, texture = (rng.choice(SIZES), None) if rng.random() < 0.5 else (None, rng.choice(TEXTURES))
        return Spec(rng.choice(SHAPES), rng.choice(COLOURS), texture, size)

    return Description("complex", (spec(), spec(), spec()), rng.choice(RELATIONS))


def draw_scene(description: Description, rng: Random) -> Scene:
    """A random scene that the description is true of, what it leaves open drawn at random.

    Raises ValueError if no room is found for the objects (never for descriptions of this module's grammar).
    """
    total = sum(spec.count for spec in description.specs)
    for attempt in range(1000):
        # Four large objects still fit with room to vary; beyond that, or when placing keeps failing, small ones.
        small = total > 4 or attempt > 20
        groups = [list(_fill(spec, rng, small)) for spec in description.specs]
        scene = _place([obj for group in groups for obj in group], description.relation, rng)
        if scene is not None:
            return scene
    raise ValueError(f"no room on the canvas for {description.key()}: ask for fewer or smaller objects")


def _fill(spec: Spec, rng: Random, small: bool) -> Iterator[Obj]:
    colour = spec.colour or rng.choice(COLOURS)
    texture = spec.texture or rng.choice(("solid", "solid", *TEXTURES))
    size = spec.size or ("small" if small else rng.choice(SIZES))
    for _ in range(spec.count):
        yield Obj(spec.shape, colour, texture, size, 0, 0)


def _place(objects: list[Obj], relation: str | None, rng: Random) -> Scene | None:
    placed: list[Obj] = []
    for obj in objects:
        held = partial(related, placed[0], relation=relation) if relation and len(placed) == 1 else lambda _: True
        put = _drop(obj, placed, rng, held)
        if put is None:
            return None
        placed.append(put)
    return tuple(placed)


def draw_crowded_scene(rng: Random) -> Scene:
    """As many of nine random objects as find room, in their order, at random places."""
    wanted = [
        Obj(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(TEXTURES), rng.choice(SIZES), 0, 0) for _ in range(9)
    ]
    placed: list[Obj] = []
    for obj in wanted:
        if (put := _drop(obj, placed, rng)) is not None:
            placed.append(put)
    return tuple(placed)


def _drop(obj: Obj, placed: list[Obj], rng: Random, wanted: Callable[[Obj], bool] = lambda _: True) -> Obj | None:
    """The object at a random free place, or None if 40 tries found none."""
    low, high = MARGIN + RADIUS[obj.size], CANVAS - 1 - MARGIN - RADIUS[obj.size]
    for _ in range(40):
        put = replace(obj, x=rng.randint(low, high), y=rng.randint(low, high))
        if wanted(put) and all(_apart(put, other) for other in placed):
            return put
    return None
