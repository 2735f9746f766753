"""
A search of your own
====================

A search is a generator function: it yields what costs something and receives the answer. This one keeps the two best
noises, and goes on from each by small changes. It is batched, counted, journaled and resumed as all others are.
"""

import matplotlib.pyplot as plt

import diffscale
from diffscale import Environment, Search
from diffscale.testing import check_search


def two_climbers(env: Environment, cosine: float = 0.9) -> Search:
    """Two hill climbers side by side. Price: all of the budget."""
    best = env.prior(2)
    score = env.value((yield from env.evaluate(best)))
    while env.nfe_left >= 2 * env.steps:
        near = env.mutate(best, cosine)
        found = env.value((yield from env.evaluate(near)))
        better = found > score
        rows = [i + 2 if better[i] else i for i in range(2)]
        best, score = diffscale.concat([best, near])[rows], found.maximum(score)


# %%
# What must hold of every search is checked on an analytic model in seconds: it spends no more than its budget,
# nothing but
# the seed decides its result, and it survives a kill, replies in any order, and pictures that cannot be scored.

check_search(two_climbers)

# %%
# Then it runs on a model:

result = diffscale.search("shapes-flux", "two red stars", search=two_climbers, nfe=320, gallery=8)
figure, axes = plt.subplots(2, 4, figsize=(7, 4))
for ax, thumbnail in zip(axes.flat, result.gallery, strict=True):
    ax.imshow(thumbnail.image.permute(1, 2, 0))
    ax.set_title(f"{thumbnail.score:.2f}", fontsize=9)
    ax.axis("off")
