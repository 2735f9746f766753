"""Captions that are nearly right: what a verifier must tell from the true one to be of use."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from diffscale_shapes.scenes import ATTRIBUTES, MAX_COUNT, RELATIONS, Description, Obj, Scene, Spec, related


def describes(description: Description, scene: Scene) -> bool:
    """Whether the scene has exactly the objects that are described, related as is said."""
    wanted = [spec for spec in description.specs for _ in range(spec.count)]
    if len(wanted) != len(scene):
        return False

    def assign(done: list[Obj], left: tuple[Obj, ...]) -> bool:
        if description.relation and len(done) == 2 and not related(done[0], done[1], description.relation):
            return False
        if not left:
            return True
        spec = wanted[len(done)]
        return any(spec.admits(obj) and assign([*done, obj], left[:i] + left[i + 1 :]) for i, obj in enumerate(left))

    return assign([], scene)


def hard_negatives(description: Description, scene: Scene, rng: Random) -> list[Description]:
    """Descriptions one step from the true one that do not hold of the scene, in random order; never empty."""
    found = {near.key(): near for near in _near(description, rng) if not describes(near, scene)}
    near = list(found.values())
    rng.shuffle(near)
    return near


def _near(description: Description, rng: Random) -> Iterator[Description]:
    specs = description.specs

    def changed(new: dict[int, Spec]) -> Description:
        return replace(description, specs=tuple(new.get(i, spec) for i, spec in enumerate(specs)))

    if description.relation:
        yield replace(description, relation=rng.choice([r for r in RELATIONS if r != description.relation]))
        yield changed({0: specs[1], 1: specs[0]})
    for attribute, values in ATTRIBUTES.items():
        for i, spec in enumerate(specs):
            said = getattr(spec, attribute)
            if said is None:
                continue
            other = rng.choice([v for v in values if v != said])
            yield changed({i: _saying(spec, attribute, other)})
            for j in range(i):  # the swap keeps every word and moves it to the wrong object
                theirs = getattr(specs[j], attribute)
                yield changed({i: _saying(spec, attribute, theirs), j: _saying(specs[j], attribute, said)})
    if description.category == "numeracy":
        for i, spec in enumerate(specs):
            for count in (spec.count - 1, spec.count + 1):
                if 1 <= count <= MAX_COUNT:
                    yield changed({i: replace(spec, count=count)})


def _saying(spec: Spec, attribute: str, value: str | None) -> Spec:
    changed: dict[str, Any] = {attribute: value}
    return replace(spec, **changed)
