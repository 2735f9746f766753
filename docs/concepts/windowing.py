"""Draws windowing.svg, which shows how a window of a pipeline's call is run.

python docs/concepts/windowing.py
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

matplotlib.rcParams |= {"svg.fonttype": "path", "svg.hashsalt": "windowing"}
INK, OURS, OWN, FADED, QUIET = "#22303c", "#c2561a", "#1f5fa8", "#a9b4bf", "#66727d"
KNOWS = "a scheduler that knows the window, and what the\nsolver remembers at its start"
VISITS = "a loop that visits the window's steps alone,\nby their true numbers"
KEYED = "noise by the keys of the rows; no step at all\nwhere the prediction is wanted"
LINES = (
    (9.0, "encode_prompt(prompt)", "text that was encoded once is found again"),
    (8.0, "scheduler.set_timesteps(8)", KNOWS),
    (7.0, "latents = prepare_latents(...)", "the latents at the window's start"),
    (6.0, "for i, t in enumerate(timesteps):", VISITS),
    (3.2, "    output = transformer(latents, t, text)", ""),
    (2.4, "    latents = scheduler.step(output, ...)", KEYED),
    (1.2, "return vae.decode(latents)", ""),
)


def draw(path: Path) -> None:
    figure = Figure(figsize=(9.6, 5.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 19.2), ylim=(0.4, 10.8))
    axes.axis("off")
    axes.text(0.4, 10.1, "the pipeline's own call, unchanged", color=OWN, fontsize=12, weight="bold")
    axes.text(10.6, 10.1, "what it finds there", color=OURS, fontsize=12, weight="bold")
    axes.add_patch(Rectangle((0.25, 0.7), 8.6, 8.95, facecolor="#f3f6f9", edgecolor=OWN, linewidth=1.2))
    for y, code, ours in LINES:
        axes.text(0.5, y, code, family="monospace", fontsize=10, color=INK, va="center")
        if ours:
            axes.add_patch(
                FancyArrowPatch((10.4, y), (8.95, y), arrowstyle="-|>", mutation_scale=13, color=OURS, linewidth=1.4)
            )
            axes.text(10.6, y, ours, fontsize=10, color=INK, va="center", linespacing=1.25)
    for step in range(8):
        inside = 2 <= step < 5
        left, fill, edge, ink = 0.8 + step * 0.98, *((OURS, OURS, "white") if inside else ("white", FADED, QUIET))
        axes.add_patch(Rectangle((left, 4.35), 0.86, 0.75, facecolor=fill, edgecolor=edge))
        axes.text(left + 0.43, 4.72, str(step), ha="center", va="center", fontsize=10, color=ink)
    axes.text(0.8 + 2 * 0.98, 4.1, "start", fontsize=9, color=OURS, va="top")
    axes.text(0.8 + 5 * 0.98 - 0.12, 4.1, "stop", fontsize=9, color=OURS, va="top", ha="right")
    axes.text(10.6, 4.72, "the window: steps 2, 3 and 4 of 8", fontsize=10, color=OURS, va="center")
    axes.text(10.6, 3.2, "the networks themselves; their rows are counted", fontsize=10, color=QUIET, va="center")
    axes.text(10.6, 1.2, "its own decoding", fontsize=10, color=QUIET, va="center")
    figure.savefig(path, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
