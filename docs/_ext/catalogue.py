"""Pages that are made of the code: one for each search and each verifier, and the reference of public names."""

import shutil
from pathlib import Path

import diffscale


def write_pages(folder: Path) -> None:
    """Write everything anew into `folder`."""
    for part in ("api",):
        shutil.rmtree(folder / part, ignore_errors=True)
    write_reference(folder / "api")


def write_reference(folder: Path) -> None:
    """A page for each module that public names are of, and one for each room that users extend."""
    folder.mkdir(parents=True)
    for home, names in diffscale._HOMES.items():
        lines = [f"# {TITLES[home]}", "", "```{eval-rst}"]
        for name in sorted(names):
            lines += [*_documented(name), ""]
        (folder / f"{home}.md").write_text("\n".join([*lines, "```", ""]))


TITLES = {
    "diffscale._util.errors": "Errors",
    "diffscale.api": "Search a model",
    "diffscale.api.searched": "Searched: in the place of a pipeline",
    "diffscale.engine.allocation": "One budget for many prompts",
    "diffscale.engine.driver": "Run many searches",
    "diffscale.engine.journal": "Journal",
    "diffscale.engine.results": "Results",
    "diffscale.engine.task": "Tasks",
    "diffscale.models.options": "How models are loaded",
    "diffscale.registry": "Plug-ins",
    "diffscale.samplers.denoiser": "Networks of your own",
    "diffscale.samplers.noise_schedules": "Noise schedules",
    "diffscale.types": "Vocabulary: states, requests, interfaces",
    "diffscale.verifiers": "Load a verifier",
}


def _documented(name: str) -> list[str]:
    thing = getattr(diffscale, name)
    if isinstance(thing, type):
        return [f".. autoclass:: diffscale.{name}", "   :members:", "   :undoc-members:"]
    kind = "autofunction" if callable(thing) and hasattr(thing, "__code__") else "autodata"
    return [f".. {kind}:: diffscale.{name}"]
