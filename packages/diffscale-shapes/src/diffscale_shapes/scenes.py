"""What a Shapes picture holds: typed objects, descriptions of them, and where objects may stand.

A *scene* is complete (every attribute and place of every object); a *description* is what a caption says of
it and may leave attributes open. Coordinates are pixels of the 64x64 canvas, x to the right, y downwards;
an object's place is its centre pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Final

CANVAS: Final = 64
COLOURS: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SHAPES: Final = ("circle", "square", "triangle", "diamond", "cross", "star")
TEXTURES: Final = ("solid", "striped", "dotted")
SIZES: Final = ("small", "large")
ATTRIBUTES: Final = {"colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES}
"""What an object has besides its place, and the values of each."""

RELATIONS: Final = ("left of", "right of", "above", "below")
CATEGORIES: Final = ("colour", "shape", "texture", "spatial", "numeracy", "complex")
MAX_COUNT: Final = 6
CLASSES: Final = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""The 48 class names; a class's id is its index."""


RADIUS: Final = {"small": 8, "large": 12}
"""Half the side of an object's bounding box, in pixels, its centre pixel not counted."""

GAP: Final = 2
"""Least number of background pixels between two bounding boxes, so that objects never touch."""

MARGIN: Final = 1
"""Least number of background pixels between a bounding box and the edge of the canvas."""

INVERSE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""What the second object is to the first one where that has a relation to it."""


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

    @cached_property
    def stated(self) -> dict[str, str]:
        """The attributes that are said, the count aside."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}

    def share(self, obj: Obj) -> float:
        """The share of the attributes that are said which the object has."""
        hits = [getattr(obj, name) == value for name, value in self.stated.items()]
        return sum(hits) / len(hits)

    def admits(self, obj: Obj) -> bool:
        """Whether the object has every attribute that is said."""
        return self.share(obj) == 1


@dataclass(frozen=True)
class Description:
    """What a caption says of a scene: its specs, and a relation of the first to the second."""

    category: str
    specs: tuple[Spec, ...]
    relation: str | None = None

    def key(self) -> str:
        """A text equal for two descriptions that say the same (order of mention and side of telling aside)."""

        specs = [f"{s.count},{s.size or '-'},{s.texture or '-'},{s.colour or '-'},{s.shape}" for s in self.specs]
        relation = self.relation
        if relation is None:
            return "&".join(sorted(specs))
        first, second, *rest = specs
        if relation in ("right of", "below"):
            first, second, relation = second, first, INVERSE[relation]
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
    while True:
        specs = tuple(_SPECS[category](rng))
        relation = rng.choice(RELATIONS) if category in ("spatial", "complex") else None
        if len({replace(spec, count=1) for spec in specs}) == len(specs):
            return Description(category, specs, relation)


def _colour(rng: Random) -> Iterator[Spec]:
    for colour in rng.sample(COLOURS, 3 if rng.random() < 0.25 else 2):
        yield Spec(rng.choice(SHAPES), colour)


def _shape(rng: Random) -> Iterator[Spec]:
    for shape in rng.sample(SHAPES, 3 if rng.random() < 0.5 else 2):
        # Shapes alone make few descriptions; sizes make enough that 50 can be kept out of training.
        yield Spec(shape, size=rng.choice(SIZES) if rng.random() < 0.75 else None)


def _texture(rng: Random) -> Iterator[Spec]:
    coloured = rng.random() < 0.5
    for _ in range(2):
        yield Spec(rng.choice(SHAPES), rng.choice(COLOURS) if coloured else None, rng.choice(TEXTURES))


def _spatial(rng: Random) -> Iterator[Spec]:
    for _ in range(2):
        yield Spec(rng.choice(SHAPES), rng.choice(COLOURS))


def _numeracy(rng: Random) -> Iterator[Spec]:
    if rng.random() < 0.6:
        yield Spec(rng.choice(SHAPES), rng.choice(COLOURS), count=rng.randint(1, MAX_COUNT))
        return
    first = rng.randint(1, 4)
    for count in (first, rng.randint(1 if first > 1 else 2, MAX_COUNT - first)):
        yield Spec(rng.choice(SHAPES), rng.choice(COLOURS), count=count)


def _complex(rng: Random) -> Iterator[Spec]:
    for _ in range(3):
        size, texture = (rng.choice(SIZES), None) if rng.random() < 0.5 else (None, rng.choice(TEXTURES))
        yield Spec(rng.choice(SHAPES), rng.choice(COLOURS), texture, size)


_SPECS: Final = dict(zip(CATEGORIES, (_colour, _shape, _texture, _spatial, _numeracy, _complex), strict=True))


def draw_scene(description: Description, rng: Random) -> Scene:
    """A random scene that the description is true of, what it leaves open drawn at random.

    Raises ValueError if no room is found for the objects (never for descriptions of this module's grammar).
    """
    total = sum(spec.count for spec in description.specs)
    for attempt in range(1000):
        # Four large objects still fit with room to vary; beyond that, or when placing keeps failing, small ones.
        small = total > 4 or attempt > 20
        objects = [obj for spec in description.specs for obj in _fill(spec, rng, small)]
        scene = _place(objects, description.relation, rng)
        if len(scene) == total:
            return scene
    raise ValueError(f"no room on the canvas for {description.key()}: ask for fewer or smaller objects")


def _fill(spec: Spec, rng: Random, small: bool) -> Iterator[Obj]:
    colour = spec.colour or rng.choice(COLOURS)
    texture = spec.texture or rng.choice(("solid", "solid", *TEXTURES))
    size = spec.size or ("small" if small else rng.choice(SIZES))
    for _ in range(spec.count):
        yield Obj(spec.shape, colour, texture, size, 0, 0)


def draw_crowded_scene(rng: Random) -> Scene:
    """As many of nine random objects as find room, in their order, at random places."""
    looks = [[rng.choice(values) for values in (SHAPES, COLOURS, TEXTURES, SIZES)] for _ in range(9)]
    objects = [Obj(shape, colour, texture, size, 0, 0) for shape, colour, texture, size in looks]
    return _place(objects, None, rng, partly=True)


def _place(objects: list[Obj], relation: str | None, rng: Random, partly: bool = False) -> Scene:
    """The objects at random free places, the first so related to the second.

    It ends at an object without a place, or with `partly` leaves such objects out.
    """
    placed: list[Obj] = []
    for obj in objects:
        if put := _drop(obj, placed, rng, relation if len(placed) == 1 else None):
            placed.append(put)
        elif not partly:
            break
    return tuple(placed)


def _drop(obj: Obj, placed: list[Obj], rng: Random, relation: str | None = None) -> Obj | None:
    """The object at a random free place to which the first of `placed` is so related, or None after 40 tries."""
    low, high = MARGIN + RADIUS[obj.size], CANVAS - 1 - MARGIN - RADIUS[obj.size]
    for _ in range(40):
        put = replace(obj, x=rng.randint(low, high), y=rng.randint(low, high))
        if (relation is None or related(placed[0], put, relation)) and all(_apart(put, other) for other in placed):
            return put
    return None


def class_description(label: int) -> Description:
    """What a picture of class `label` (0 to 47) shows; texture, size and place are open.

    Raises IndexError for another label.
    """
    if not 0 <= label < len(CLASSES):
        raise IndexError(f"Shapes has classes 0 to {len(CLASSES) - 1}, not {label}")
    colour, shape = CLASSES[label].split()
    return Description("numeracy", (Spec(shape, colour),))


def draw_class_scene(label: int, rng: Random) -> Scene:
    """A random scene of class `label`: one object."""
    return draw_scene(class_description(label), rng)
