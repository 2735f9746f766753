"""
A class-conditional model, drafted by a smaller one
===================================================

SiT takes a class instead of a text. ``shapes-sit-s`` shares the latents of ``shapes-sit-l`` at a fraction of its
cost, so it can draft for it: many noises by the small one, the best of them by the large one.
"""

import matplotlib.pyplot as plt

import diffscale

model, verifier = "shapes-sit-l", "shapes-inception"
plain = diffscale.search(model, "red circle", verifier=verifier, search="random", nfe=80, gallery=4)
drafted = diffscale.search(
    model,
    "red circle",
    verifier=verifier,
    search="draft via=model steps=20",
    draft_model="shapes-sit-s",
    nfe=80,
    gallery=4,
)

figure, axes = plt.subplots(2, 4, figsize=(7, 3.8))
for row, (name, result) in enumerate((("random", plain), ("drafted", drafted))):
    for ax in axes[row]:
        ax.axis("off")
    for ax, thumbnail in zip(axes[row], result.gallery, strict=False):
        ax.imshow(thumbnail.image.permute(1, 2, 0))
        ax.set_title(f"{name}: {thumbnail.score:.2f}", fontsize=9)
figure.tight_layout()

# %%
# What each finished, and what it cost:

print({name: (each.candidates, each.ledger.nfe) for name, each in (("random", plain), ("drafted", drafted))})
