"""The tape of shapes-flux that is in the repository: what is called typical is measured on it."""

from pathlib import Path

import numpy as np
import pytest
from diffscale_shapes.prompts import shapes

from diffscale.searches.agreements import TYPICAL
from diffscale.tape.profile import measured
from diffscale.tape.tape import load_tape


@pytest.fixture(scope="module")
def tape():
    return load_tape(Path(__file__).parents[2] / "benchmarks/tapes/shapes-flux.tape")


def test_what_is_typical_is_the_mean_over_two_verifiers(tape):
    found = [measured(tape, name).agreement for name in ("clip", "image_reward")]
    assert found[0].looks == TYPICAL.looks and found[0].shares == pytest.approx(TYPICAL.shares)
    mean = np.mean([each.matrix for each in found], 0)
    assert np.abs(mean - np.array(TYPICAL.matrix)).max() < 0.01


def test_no_prompt_that_is_tuned_on_is_measured_on(tape):
    assert not set(tape.prompts) & set(shapes())
