"""
Searches on a tape
==================

A tape holds what verifiers say of many candidates, of their predictions and of their drafts. Searches that drop and
finish candidates run on it as on the model, in milliseconds. This one is in the repository: 60 prompts of ``shapes-
flux``.
"""

from pathlib import Path

import matplotlib.pyplot as plt

from diffscale.searches import choose_search
from diffscale.tape.curves import best_of
from diffscale.tape.replay import multiplier, replay
from diffscale.tape.tape import load_tape
from diffscale.tape.verifiers import finals

folder = next(each for each in (Path.cwd(), *Path.cwd().parents) if (each / "benchmarks").is_dir())
tape = load_tape(folder / "benchmarks" / "tapes" / "shapes-flux.tape")
print(len(tape.prompts), tape.candidates, [draft.steps for draft in tape.drafts], *tape.scores)

# %%
# Random search is no run here, but the mean over all subsets of the candidates.

figure, ax = plt.subplots(figsize=(6, 3.4))
scores = finals(tape, "clip")
counts = [1, 2, 4, 8, 16]
ax.plot([n * tape.steps for n in counts], [best_of(scores, n).mean() for n in counts], "-o", label="random")
for name in ("draft", "halving"):
    search = choose_search(name).make()
    points = [
        (found.nfe.mean(), found.score.mean())
        for budget in (80, 160)
        for found in [replay(tape, search, "clip", budget)]
    ]
    ax.plot(*zip(*points, strict=True), "--s", label=name)
ax.set(xlabel="NFE", ylabel="CLIPScore of what was found", xscale="log")
ax.legend()

# %%
# How many times its NFE random search needs for the same score, with a 95% interval over prompts:

print(multiplier(tape, replay(tape, choose_search("draft").make(), "clip", 160), "clip"))
