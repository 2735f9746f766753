"""
Searches on the same prompts
============================

:func:`diffscale.run_searches` runs many tasks in lock-step on one sampler. Three searches get the same budget on four
prompts, from the same noises; the judge, which takes no part, reads what each found. Four prompts show how it is done.
They decide nothing: see the results for intervals over sixty and three hundred.
"""

import matplotlib.pyplot as plt
from diffscale_shapes.judge import judge_images
from diffscale_shapes.prompts import suite

import diffscale
from diffscale.searches import choose_search

prompts = suite("shapes")[::75]
texts = [prompt.text for prompt in prompts]
sampler = diffscale.make_sampler("shapes-flux", texts, steps=None, pipe_args={}, loading=diffscale.LoadOptions())
verifier = diffscale.load_verifier("clip", image_model="shapes-flux")

names = ["random", "zero_order n=4", "draft", "auto"]
tasks = [
    diffscale.Task(choose_search(name).make(), row, key=row, budget=160)
    for name in names
    for row in range(len(prompts))
]
results = diffscale.run_searches(tasks, sampler, verifier)

# %%
# A picture for each prompt and search; below it CLIPScore and, in brackets, the judge.

figure, axes = plt.subplots(len(names), len(prompts), figsize=(8, 8))
for number, (task, result) in enumerate(zip(tasks, results, strict=True)):
    ax = axes[number // len(prompts), task.prompt_index]
    judged = judge_images(result.best.image[None], [prompts[task.prompt_index].description])[0].item()
    ax.imshow(result.best.image.permute(1, 2, 0))
    ax.set_title(f"{result.best.score:.2f} ({judged:.0%})", fontsize=9)
    ax.set(xticks=[], yticks=[])
    if task.prompt_index == 0:
        ax.set_ylabel(names[number // len(prompts)])
figure.tight_layout()
