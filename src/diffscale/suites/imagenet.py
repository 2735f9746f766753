"""ImageNet as published networks see it: CLIP's names and templates, and the order of the classes in Inception."""

from pathlib import Path
from typing import Final

from diffscale._util.files import read_lines, read_text
from diffscale.types import ClassLabel

NAMES: Final = Path(__file__).with_name("imagenet_names.txt")
"""CLIP's names of the 1000 classes, one a line; line and class number agree."""

ORDER: Final = Path(__file__).with_name("imagenet_order.txt")

_OF = (
    *(
        f"a {kind}"
        for kind in (
            *(f"{look}photo" for look in ("", "bad ", "good ", "low resolution ", "cropped ", "bright ", "dark ")),
            *(f"{look} photo" for look in ("close-up", "black and white", "pixelated", "jpeg corrupted", "blurry")),
            *("sculpture", "rendering", "drawing", "painting", "doodle", "sketch", "rendition", "tattoo"),
        )
    ),
    *("graffiti", "art", "itap"),
)
_LOOKS = ("hard to see", "clean", "dirty", "cool", "nice", "weird", "large", "small")
_STUFF = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")

TEMPLATES: Final = (
    *(f"{of} of {article} {{}}." for of in _OF for article in ("a", "the")),
    *(f"a photo of {article} {look} {{}}." for look in _LOOKS for article in ("a", "the")),
    *(f"{article} {stuff} {{}}." for stuff in _STUFF for article in ("a", "the")),
    *(f"{article} {{}} in a video game." for article in ("a", "the")),
    *(f"a photo of {which} {{}}." for which in ("many", "one", "my")),
    "itap of my {}.",
)
"""The 80 templates of CLIP's ImageNet classifier (Radford et al. 2021; Prompt_Engineering_for_ImageNet.ipynb)."""


def names() -> list[str]:
    """CLIP's names of the 1000 classes, in the usual order, that of the sorted WordNet ids."""
    return [line for line in read_lines(str(NAMES), "class names") if not line.startswith("#")]


def inception_order() -> list[int]:
    """Where class 0 ... 999 of the usual order is among the 1008 outputs of the Inception of 2015-12-05.

    That network counts classes as ILSVRC2012_ID in the development kit of the challenge does, from 1 on; output 0 and
    those above 1000 mean nothing. Source: imagenet_2012_challenge_label_map_proto.pbtxt of its archive, where tench is
    449, and map_clsloc.txt of the kit.
    """
    usual = [int(number) for number in read_text(ORDER).split()]
    at = {number: output for output, number in enumerate(usual, start=1)}
    return [at[number] for number in range(len(usual))]


def prompts() -> list[str]:
    """The 1000 classes of ImageNet, a ClassLabel each."""
    return [ClassLabel(name, number) for number, name in enumerate(names())]
