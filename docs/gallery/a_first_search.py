"""
A first search
==============

One prompt, sixteen candidates' worth of denoiser evaluations: the first sample, what the search found, and how the
best score rose with the budget.
"""

import matplotlib.pyplot as plt

import diffscale

result = diffscale.search("shapes-flux", "a green star and a yellow circle", search="random", nfe=320, seed=0)

figure, axes = plt.subplots(1, 3, figsize=(9, 3), width_ratios=[1, 1, 1.6])
for ax, candidate, name in ((axes[0], result.baseline, "first sample"), (axes[1], result.best, "best")):
    ax.imshow(candidate.image.permute(1, 2, 0))
    ax.set_title(f"{name}: {candidate.score:.2f}")
    ax.axis("off")
nfe, score = zip(*result.trace, strict=True)
axes[2].step(nfe, score, where="post")
axes[2].set(xlabel="NFE", ylabel="best CLIPScore so far")
figure.tight_layout()

# %%
# What it cost, by kind:

print(result.ledger.nfe, result.ledger.decodes, result.ledger.seconds)
