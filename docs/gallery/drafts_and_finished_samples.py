"""
What a draft knows of the finished sample
=========================================

The same forty noises sampled in 4, 8 and in all 20 steps. How well scores of drafts rank the finished samples decides
what the search ``draft`` is worth: it drafts many, and finishes the best.
"""

import matplotlib.pyplot as plt
import torch
from scipy.stats import spearmanr

import diffscale
from diffscale.engine import noise

prompt = "a small cross with a small square"
verifier = diffscale.load_verifier("clip", image_model="shapes-flux")
keys = torch.tensor([noise.fold(noise.root(0), i) for i in range(40)])


def scores(steps: int) -> torch.Tensor:
    """CLIPScores [40] of the noises sampled in so many steps."""
    sampler = diffscale.make_sampler(
        "shapes-flux", [prompt], steps=steps, pipe_args={}, loading=diffscale.LoadOptions()
    )
    finished = sampler.run(sampler.prior(keys, torch.zeros(40, dtype=torch.int64)))
    with torch.no_grad():
        return verifier(sampler.decode(finished.x), [prompt] * 40).cpu()


finished = scores(20)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
for ax, steps in zip(axes, (4, 8), strict=True):
    drafts = scores(steps)
    ax.plot(drafts, finished, "o", alpha=0.6)
    ax.set(
        xlabel=f"CLIPScore of a draft of {steps} steps", title=f"rank correlation {spearmanr(drafts, finished)[0]:.2f}"
    )
axes[0].set_ylabel("of the finished sample")
figure.tight_layout()
