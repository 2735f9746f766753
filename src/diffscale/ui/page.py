"""The page: a form on the left, the run that is watched on the right, and two runs beside each other.

All that it shows is read from run folders, once a second, so that a reload and a second browser see the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr
import pandas as pd

from diffscale._util.errors import DiffscaleError
from diffscale.models import shipped
from diffscale.registry import plugins
from diffscale.ui import html
from diffscale.ui.forms import FIELDS, form_of, new_folder, settings_of
from diffscale.ui.jobs import Jobs
from diffscale.ui.runs import Run, find_runs

_SECONDS: Final = 1.0  # between two looks at the run folders
# What is opened is in the address: a reload shows it again, and another browser that is given it shows the same.
_SHOW_IN_ADDRESS: Final = """(run) => {
  const address = new URL(window.location);
  if (run) { address.searchParams.set("run", run); window.history.replaceState({}, "", address); }
}"""


class Page:
    """What the page does, for the run folders in `roots`; searches that it starts go to the first of these.

    No other folder of the machine can be opened: names that a browser sends are looked up among the runs there are.
    """

    def __init__(self, roots: Sequence[Path], jobs: Jobs) -> None:
        self.roots, self.jobs = roots, jobs

    def runs(self) -> dict[str, Run]:
        """All runs by the names that the page calls them, newest first."""
        return {str(folder): Run(folder) for folder in find_runs(self.roots)}

    def run(self, name: str | None) -> Run | None:
        """The run of that name; None if there is none."""
        return self.runs().get(name or "")

    def place(self, run: Run) -> int | None:
        """See `Jobs.place`."""
        return self.jobs.place(run.folder)

    def choices(self) -> list[tuple[str, str]]:
        """What a run is chosen from: its prompt and how it stands, and its name."""
        return [(self._label(run, name), name) for name, run in self.runs().items()]

    def _label(self, run: Run, name: str) -> str:
        if not run.searches_one_prompt:
            return name
        kind = html.standing(run, self.place(run))
        return f"{run.settings['prompt'][:40]} · {run.settings.get('search')} · {kind} · {name}"

    def first(self, wanted: str | None) -> str | None:
        """The run that a new browser shows: the one that its address names, else the one computed, else the newest."""
        known = self.runs()
        if wanted in known:
            return wanted
        computed = (name for name, run in known.items() if self.place(run) == 0)
        return next(computed, next(iter(known), None))

    def start(self, *form: Any) -> tuple[Any, str]:
        """Begin the search of the form, when its turn comes; gives its run, and what is wrong if there is none."""
        *values, more = form
        try:
            settings = settings_of(dict(zip(FIELDS, values, strict=True)), more)
            folder = new_folder(self.roots[0], settings)
        except DiffscaleError as error:
            return gr.skip(), html.message(str(error))
        self.jobs.add(folder)
        return gr.update(choices=self.choices(), value=str(folder)), ""

    def go_on(self, name: str | None) -> None:
        """Take a run up where it was stopped."""
        run = self.run(name)
        if run is not None and html.standing(run, self.place(run)) in ("stopped", "failed"):
            self.jobs.add(run.folder)

    def stop(self, name: str | None) -> None:
        """Stop a run that this page computes, or that waits; what was paid for is kept."""
        if (run := self.run(name)) is not None:
            self.jobs.stop(run.folder)

    def fill(self, name: str | None) -> list[Any]:
        """What the form shows of a run; of none the defaults."""
        run = self.run(name)
        shown, more = form_of(run.settings if run is not None and run.searches_one_prompt else {})
        return [*shown.values(), more]

    def view(self, name: str | None, seen: Any) -> list[Any]:
        """What is shown of a run, if it differs from what a browser has `seen`; in the order of `build`'s outputs."""
        choices, run = self.choices(), self.run(name)
        place = None if run is None else self.place(run)
        now = (choices, name, place, None if run is None else run.stamp)
        if now == seen:
            return [gr.skip()] * 8
        listed = gr.update(choices=choices)
        if run is None:
            said = html.message(f"There is no run {name} here.") if name else "No run yet: fill in the form and start."
            idle = gr.update(interactive=False)
            return [now, listed, said, idle, idle, gr.update(visible=False), "", ""]
        kind = html.standing(run, place)
        return [
            now,
            listed,
            html.status(run, place),
            gr.update(interactive=kind in ("running", "waiting")),
            gr.update(interactive=kind in ("stopped", "failed")),
            _curve([("", run)]),
            html.pictures(run),
            run.log,
        ]

    def report(self, name: str | None) -> str:
        """The report of a run."""
        run = self.run(name)
        return html.message("Choose a run first.") if run is None else html.report(run)

    def compare(self, first: str | None, second: str | None) -> list[Any]:
        """Two runs: their curves, and what they found and were asked for."""
        found = [self.run(first), self.run(second)]
        runs = [run for run in found if run is not None]
        if len(runs) < 2:
            return [gr.update(visible=False), "Choose two runs."]
        return [_curve([(f"{mark}: {run.settings.get('search')}", run) for mark, run in zip("AB", runs, strict=True)]),
                html.comparison(runs)]  # fmt: skip


def _curve(runs: Sequence[tuple[str, Run]]) -> Any:
    """The best score against NFE, as steps, a line for each run; not shown before there is a score."""
    rows: list[tuple[int, float, str]] = []
    for name, run in runs:
        before: float | None = None
        for point in run.points:
            if point.best is not None:
                rows += [] if before is None else [(point.nfe, before, name)]
                rows.append((point.nfe, point.best, name))
                before = point.best
    return gr.update(value=pd.DataFrame(rows, columns=["NFE", "score", "run"]), visible=bool(rows))


def _plot(color: str | None = None) -> Any:
    return gr.LinePlot(
        x="NFE", y="score", color=color, x_title="NFE (denoiser evaluations)", y_title="best score so far", height=260,
        visible=False, buttons=[],
    )  # fmt: skip


def build(page: Page) -> Any:
    """The page as gradio's Blocks."""
    models = list(shipped.shipped())
    verifiers = sorted({*plugins("verifiers"), *shipped.verifier_networks()})
    with gr.Blocks(title="diffscale", analytics_enabled=False) as blocks:
        gr.Markdown("# diffscale\nSearch for the sample of a prompt that a verifier likes best.")
        seen, timer = gr.State(None), gr.Timer(_SECONDS)
        with gr.Tab("Search"), gr.Row():
            with gr.Column(scale=1, min_width=300):
                form = [
                    gr.Textbox(label="Prompt", lines=2, elem_id="prompt"),
                    gr.Dropdown(models, label="Model", allow_custom_value=True, elem_id="model",
                                info="A shipped name, a folder, or an id on the Hub."),
                    gr.Dropdown(sorted(plugins("searches")), label="Search", allow_custom_value=True,
                                elem_id="search", info="With settings, as in: zero_order n=4"),
                    gr.Dropdown(verifiers, label="Verifier", allow_custom_value=True, elem_id="verifier",
                                info="What a sample is scored by."),
                    gr.Number(label="Budget", precision=0, elem_id="budget", info="NFE: denoiser evaluations in all."),
                    gr.Number(label="Seed", precision=0, elem_id="seed"),
                ]  # fmt: skip
                with gr.Accordion("Further settings", open=False):
                    form.append(gr.Textbox(
                        show_label=False, lines=3, elem_id="more", placeholder="steps: 20\ndevice: cuda",
                        info="Any setting of `diffscale generate`, as YAML.",
                    ))  # fmt: skip
                start, wrong = gr.Button("Start", variant="primary", elem_id="start"), gr.HTML(elem_id="wrong")
            with gr.Column(scale=2, min_width=300):
                run = gr.Dropdown([], label="Run", allow_custom_value=True, elem_id="run")
                status = gr.HTML(elem_id="status")
                with gr.Row():
                    stop = gr.Button("Stop", interactive=False, elem_id="stop")
                    go_on = gr.Button("Go on", interactive=False, elem_id="go-on")
                plot, pictures = _plot(), gr.HTML(elem_id="pictures")
                with gr.Accordion("Report", open=False):
                    opened, report = gr.Button("Open the report", elem_id="open-report"), gr.HTML(elem_id="report")
                with gr.Accordion("What the search said", open=False):
                    log = gr.Textbox(show_label=False, lines=6, max_lines=20, interactive=False, elem_id="log")
        with gr.Tab("Compare", elem_id="compare"):
            with gr.Row():
                pair = [
                    gr.Dropdown([], label=f"Run {mark}", allow_custom_value=True, elem_id=f"run-{mark}")
                    for mark in "AB"
                ]
            both, table = _plot("run"), gr.HTML(elem_id="comparison")

        quietly: Any = {"show_progress": "hidden", "api_visibility": "private"}
        shown = [seen, run, status, stop, go_on, plot, pictures, log]

        def load(request: gr.Request) -> list[Any]:
            name = page.first(request.query_params.get("run"))
            listed = gr.update(choices=page.choices())
            return [gr.update(choices=page.choices(), value=name), listed, listed, *page.fill(name)]

        def watch(name: str | None, seen: Any) -> list[Any]:
            return page.view(name, seen)

        def listed() -> list[Any]:
            return [gr.update(choices=page.choices())] * 2

        blocks.load(load, None, [run, *pair, *form], **quietly)
        timer.tick(watch, [run, seen], shown, concurrency_limit=None, **quietly)
        run.change(watch, [run, seen], shown, concurrency_limit=None, **quietly)
        run.change(None, run, None, js=_SHOW_IN_ADDRESS)
        run.change(lambda: "", None, report, **quietly)
        run.input(page.fill, run, form, **quietly)
        start.click(page.start, form, [run, wrong], show_progress="minimal", api_visibility="private")
        stop.click(page.stop, run, None, **quietly)
        go_on.click(page.go_on, run, None, **quietly)
        opened.click(page.report, run, report, **quietly)
        for each in pair:
            each.focus(listed, None, pair, **quietly)
            each.change(page.compare, pair, [both, table], **quietly)
    return blocks
