"""
The middle of a trajectory
==========================

A pipeline gives pictures; a sampler gives what lies between. It runs the pipeline's own call over a window of its
steps, so a trajectory that is split is equal to the whole one, to the bit.
"""

import matplotlib.pyplot as plt
import torch

import diffscale
from diffscale.engine import noise

sampler = diffscale.make_sampler(
    "shapes-sdxl", ["two red stars"], steps=None, pipe_args={}, loading=diffscale.LoadOptions(dtype="float32")
)
start = sampler.prior(torch.tensor([noise.root(7)]), torch.tensor([0]))
whole = sampler.run(start)
split = sampler.run(sampler.run(sampler.run(start, to=3), to=11))
assert torch.equal(whole.x, split.x)

# %%
# What the network predicts on the way: the x0-prediction, decoded, after so many steps.

steps = [0, 2, 4, 7, 11, 15, 19]
figure, axes = plt.subplots(1, len(steps), figsize=(11, 2))
for ax, step in zip(axes, steps, strict=True):
    state = sampler.predict(sampler.run(start, to=step))
    ax.imshow(sampler.decode(state.x0)[0].permute(1, 2, 0))
    ax.set_title(f"after {step}, level {sampler.levels[step]:.2f}", fontsize=8)
    ax.axis("off")
figure.tight_layout()

# %%
# From the middle back up to a noisier level, and down again with other noise: variations of one picture.

middle = sampler.run(start, to=14)
figure, axes = plt.subplots(1, 6, figsize=(11, 2))
for i, ax in enumerate(axes):
    fresh = noise.normal(torch.tensor([noise.root(i)]), middle.x.shape[1:])
    again = sampler.solve(sampler.renoise(middle, 0.6, fresh.to(middle.x)), 0.0, 12)
    ax.imshow(sampler.decode(again.x)[0].permute(1, 2, 0))
    ax.axis("off")
