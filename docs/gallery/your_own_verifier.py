"""
A verifier of your own, and how it is exploited
===============================================

A verifier is a function of pictures and prompts. This one asks for red, and the search gives the reddest that the model
draws for the prompt: a large yellow shape, and no star. What is not scored is not searched for. An ensemble with
CLIPScore keeps the prompt.
"""

import matplotlib.pyplot as plt
import torch

import diffscale


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Mean red above the mean of green and blue; ``images`` are [B, 3, H, W] in [0, 1]."""
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


prompt = "a green star and a yellow circle"
diffscale.register("verifiers", "redness", redness)
found = {
    name: diffscale.search("shapes-flux", prompt, search="random", verifier=verifier, nfe=480)
    for name, verifier in (("CLIPScore", "clip"), ("redness", redness), ("both", "ensemble of=clip,redness"))
}

figure, axes = plt.subplots(1, 4, figsize=(10, 2.8))
pictures = {"first sample": found["redness"].baseline} | {name: result.best for name, result in found.items()}
for ax, (name, candidate) in zip(axes, pictures.items(), strict=True):
    ax.imshow(candidate.image.permute(1, 2, 0))
    ax.set_title(name)
    ax.axis("off")
figure.suptitle(prompt)
figure.tight_layout()
