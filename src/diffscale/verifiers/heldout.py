"""What judges that took no part in a search say of a picture."""

from torch import Tensor

from diffscale.models.load import world_of
from diffscale.types import World


def judge_name(model: str) -> str | None:
    """What the judge of `model`'s world is called as a verifier; None for a model of no world."""
    world = world_of(model)
    return None if world is None else world.judge_name


def can_judge(world: World, prompt: str, image: Tensor) -> bool:
    """Whether the judge of a world can read the prompt, and an image [3, H, W] of that size."""
    return world.prompt_key(prompt) is not None and image.shape[1:] == world.size


def heldout_scores(model: str, prompt: str, images: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """The scores in [0, 1] that the judge of `model`'s world gives named pictures [3, H, W] in [0, 1] of `prompt`.

    They are empty for a model of no world, a prompt that the judge cannot read and pictures of another size.
    """
    world = world_of(model)
    if world is None or not all(can_judge(world, prompt, image) for image in images.values()):
        return {}
    scores = {name: world.judge(image[None], [prompt]) for name, image in images.items()}
    return {name: {kind: float(values[0]) for kind, values in each.items()} for name, each in scores.items()}
