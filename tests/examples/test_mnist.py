"""The example of handwritten digits, on random weights in the published layout."""

import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import diffscale

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist"


@pytest.fixture
def example(monkeypatch, tmp_path):
    """The example's module, and a folder of weights."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import mnist

    torch.manual_seed(0)
    for network, file in ((mnist.DigitFlow(), "diffusion_vit"), (mnist.LeNet(), "lenet")):
        save_file(network.state_dict(), tmp_path / f"{file}.safetensors")
    yield mnist, tmp_path
    for name in ("mnist", "networks"):
        sys.modules.pop(name)


def test_the_main_program_searches_and_writes_a_picture(example, monkeypatch, capsys):
    mnist, weights = example
    output = weights / "digit.png"
    given = f"--weights {weights} --digit 3 --verifier lenet --budget 12 --steps 3 --output {output}"
    monkeypatch.setattr(sys, "argv", ["mnist.py", *given.split()])
    mnist.main()
    said = capsys.readouterr().out
    assert "probability of 3" in said and "12 NFE, 12 network forwards" in said
    assert mnist.Image.open(output).size == (2 * 28 * 8, 28 * 8)
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--weights", str(weights), "--verifier", "lenet", "--budget", "1"])
    with pytest.raises(SystemExit, match="2"):
        mnist.main()
    assert "25 NFE" in capsys.readouterr().err


def test_the_sampler_is_the_loop_of_its_authors(example):
    """Guided between times 0.3 and 0.7, written in the network's own time."""
    mnist, weights = example
    network = mnist.DigitFlow.load(weights)
    sampler = mnist.digit_sampler(weights, steps=10, guidance_scale=2.0)
    state = sampler.prior(torch.arange(1, 4), torch.tensor([7, 0, 7]))
    x, digits, null = state.x, torch.tensor([7, 0, 7]), torch.full((3,), 10)
    with torch.no_grad():
        for i in range(10):
            t = torch.full((3,), i / 10)
            data = network(x, t, digits)
            if 3 <= i <= 7:
                without = network(x, t, null)
                data = without + 2 * (data - without)
            x = x + (data - x) / (1 - i / 10) / 10
    torch.testing.assert_close(sampler.run(state).x, x, atol=1e-4, rtol=1e-4)
    assert sampler.forwards == 3 * (10 + 5)
    result = diffscale.search(
        sampler, "7", search="first_order iterations=1", verifier=mnist.DigitProbability(weights), nfe=80
    )
    assert math.isfinite(result.best.score)
