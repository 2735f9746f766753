"""What judges say of a picture."""

from random import Random

import pytest
import torch
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import CLASSES, draw_class_scene

from diffscale.models.shipped import locate
from diffscale.verifiers.heldout import heldout_scores


@pytest.mark.parametrize("model", ["shapes-flux", locate("shapes-sit-s")])
@pytest.mark.parametrize("prompt", ["a red square", "red square"])
def test_shapes_models_are_judged_by_name_or_path(model, prompt):
    scene = draw_class_scene(CLASSES.index("red square"), Random(0))
    picture = (render_batch([scene])[0] + 1) / 2
    seen = heldout_scores(model, prompt, {"best": picture, "empty": torch.zeros(3, 64, 64)})
    assert seen["best"]["score"] == 1 and seen["empty"]["score"] == 0


def test_others_are_not():
    assert heldout_scores("black-forest-labs/FLUX.1-dev", "a red square", {}) == {}
    assert heldout_scores("shapes-flux", "a bear on a skateboard", {}) == {}
    assert heldout_scores("shapes-flux", "a red square", {"best": torch.zeros(3, 32, 96)}) == {}
