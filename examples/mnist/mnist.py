"""Search for a better handwritten digit: a network that is not diffusers' as a Sampler, with two verifiers.

    python examples/mnist/mnist.py --weights WEIGHTS --digit 8 --verifier ocr --budget 400

WEIGHTS is a folder with two files of weights by others, under the MIT licence, converted to safetensors:
`diffusion_vit.safetensors` (github.com/sofia-dominguezc/MNIST-diffusion, parameters/MNIST/DiffusionViT.pth) and
`lenet.safetensors` (github.com/csinva/gan-vae-pretrained-pytorch, mnist_classifier/weights/
lenet_epoch=12_test_acc=0.991.pth). See docs/own_network.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from networks import NO_CLASS, DigitFlow, LeNet
from PIL import Image
from torch import Tensor

from diffscale import ClassLabel, DenoiserSampler, DiffscaleError, LinearFlow, Result, search

DIGITS = [ClassLabel(str(digit), digit) for digit in range(10)]


def digit_sampler(
    weights: Path, steps: int = 25, guidance_scale: float = 1.0, solver: str = "euler",
    digits: Sequence[ClassLabel] = DIGITS,
) -> DenoiserSampler:  # fmt: skip
    """The flow as a Sampler of `digits`; guided, where it is, between times 0.3 and 0.7 as its authors sample."""
    return DenoiserSampler(
        DigitFlow.load(weights),
        LinearFlow(data_time=1),
        prediction="data",
        shape=(1, 28, 28),
        steps=steps,
        prompts=digits,
        conditions=torch.tensor([digit.class_id for digit in digits]),
        null_condition=NO_CLASS,
        guidance_scale=guidance_scale,
        guidance_interval=(0.3, 0.7),
        solver=solver,
        decode=lambda pixels: pixels,
    )


class DigitProbability:
    """A verifier: the probability of the digit by LeNet, in [0, 1]; differentiable in the pictures."""

    name = "lenet"

    def __init__(self, weights: Path) -> None:
        self.network = LeNet.load(weights)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of `images` [B, 3, 28, 28] in [0, 1] for digits."""
        digits = torch.tensor([int(prompt) for prompt in prompts])
        return self.network(images.mean(1, keepdim=True)).exp().gather(1, digits[:, None])[:, 0]


def save_side_by_side(result: Result, path: Path) -> None:
    """Write the first sample and the best one found, eight times as large."""
    pixels = (torch.cat([result.baseline.image, result.best.image], 2) * 255).round().byte().permute(1, 2, 0).numpy()
    height, width, _ = pixels.shape
    Image.fromarray(pixels).resize((8 * width, 8 * height), Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Search, print what a judge that took no part says, and write the picture."""
    parser = argparse.ArgumentParser(description="Search for a better handwritten digit.")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the two files of weights")
    parser.add_argument("--digit", type=int, choices=range(10), default=8)
    parser.add_argument("--search", default="random", help="as in diffscale list searches, with arguments")
    parser.add_argument("--verifier", choices=("ocr", "lenet"), default="ocr")
    parser.add_argument("--budget", type=int, default=200, help="NFE in all; a sample of 25 steps costs 25")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("digit.png"))
    given = parser.parse_args()
    try:
        sampler = digit_sampler(given.weights, given.steps, given.guidance_scale)
        judge = DigitProbability(given.weights)
        result = search(
            sampler,
            DIGITS[given.digit],
            search=given.search,
            verifier=judge if given.verifier == "lenet" else "ocr",
            nfe=given.budget,
            seed=given.seed,
        )
    except (DiffscaleError, OSError) as error:
        parser.exit(2, f"{error}\n")
    for what, candidate in (("first sample", result.baseline), ("best found", result.best)):
        score = float(judge(candidate.image[None], [DIGITS[given.digit]]))
        print(f"{what}: {given.verifier} {candidate.score:.3f}, LeNet's probability of {given.digit}: {score:.3f}")
    save_side_by_side(result, given.output)
    print(f"{result.ledger.nfe} NFE, {result.ledger.network_forwards} network forwards; see {given.output}")


if __name__ == "__main__":
    main()
