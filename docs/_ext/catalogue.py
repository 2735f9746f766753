"""Pages that are made of the code: one for each search and each verifier, the commands, and the public names."""

import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measured
import yaml
from reference import write_commands, write_reference
from settings import settings

import diffscale
from diffscale import plugins
from diffscale.registry.arguments import CONTEXT

HERE = Path(__file__).parent
ADVICE = yaml.safe_load((HERE / "advice.yaml").read_text(encoding="utf-8"))


def write_pages(folder: Path) -> None:
    """Write everything anew into `folder`."""
    for part in ("api", "searches", "verifiers"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    write_reference(folder / "api")
    write_commands(folder / "cli.md")
    curves = measured.searches()
    _write_kind(folder / "searches", "searches", lambda name: search_page(name, curves, folder / "searches"))
    _write_kind(folder / "verifiers", "verifiers", lambda name: verifier_page(name, folder / "verifiers"))


def _write_kind(folder: Path, kind: str, page: Callable[[str], str]) -> None:
    names = sorted(name for name in plugins(kind) if plugins(kind).source(name).startswith("diffscale "))
    lines = [
        f"# {kind.capitalize()}",
        "",
        INTRODUCTIONS[kind],
        "",
        "| name | what it does | when to use it |",
        "|---|---|---|",
    ]
    for name in names:
        (folder / f"{name}.md").write_text(page(name), encoding="utf-8")
        what = plugins(kind).summary(name).partition(" Price: ")[0].replace("|", "\\|")
        lines.append(f"| [`{name}`]({name}.md) | {what} | {ADVICE[kind].get(name, '')} |")
    lines += ["", "```{toctree}", ":hidden:", *names, "```", ""]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


INTRODUCTIONS = {
    "searches": """`--search NAME`, with settings as in `--search "draft steps=5 finals=2"`. What was measured is of
`shapes-flux`, searched by CLIPScore on 60 prompts at 80 and 320 NFE (four at 1280 too): intervals are wide, so read
them before you choose by the mean. A search of your own is a function: [how to write one](../../write_a_search.md).""",
    "verifiers": """`--verifier NAME`, with settings as in `--verifier "clip model=ID"`. `model=` takes a Hub id, a
folder or a shipped name; on models of Shapes each verifier loads its Shapes counterpart, of which the measured figures
are. A verifier of your own is a function: [how to write one](../../write_a_verifier.md).""",
}


def search_page(name: str, curves: dict[str, Any], folder: Path) -> str:
    """The page of a search."""
    search = plugins("searches")[name]
    first, _, rest = inspect.getdoc(search).partition("\n")
    what, _, price = first.partition(" Price: ")
    lines = [f"# {name}", "", what, ""]
    if price:
        lines += [f"**Price in NFE:** {price.rstrip('.')}, where `steps` (or T) are those of a sample.", ""]
    lines += [*_advice("searches", name), linked(rest.strip()), ""]
    traits = [text for trait, text in TRAITS.items() if diffscale.types.declares(search, trait)]
    lines += [*(f"* {text}" for text in traits), ""]
    lines += settings(search, skip=("env",))
    lines += [
        "```bash",
        f'diffscale generate "two red stars" --model shapes-flux --search {name} --budget 320',
        "```",
        "",
    ]
    own = [row for row in curves if row.split()[0] == name]
    if own:
        measured.draw_search(curves, own, folder / f"{name}.png")
        lines += ["## Measured", "", *measured.search_table(curves, own), "", f"![Scores against NFE]({name}.png)", ""]
        lines += [MEASURED]
    lines += measured.worth(name, folder / f"{name}-worth.png")
    return "\n".join(lines) + "\n"


MEASURED = """Of 60 prompts of `shapes-flux`, searched by CLIPScore; the judge took no part; 95% intervals over prompts
([all](../../quality_per_nfe/all-60-prompts.md), and [four at 1280 NFE](../../quality_per_nfe/60-prompts.md))."""
TRAITS = {
    "anytime": "A larger budget goes on from a smaller one, so prompts can share a budget (`--allocation`).",
    "independent": "Its candidates are independent samples: its first is the plain sample.",
    "rewords": "It draws from several wordings of the prompt (`--wordings`).",
}


def verifier_page(name: str, folder: Path) -> str:
    """The page of a verifier: what its factory says, and the class that has its name."""
    factory = plugins("verifiers")[name]
    first, _, rest = inspect.getdoc(factory).partition("\n")
    lines = [f"# {name}", "", first, "", *_advice("verifiers", name), linked(rest.strip()), ""]
    for other in _named(factory, name):
        lines += [linked(inspect.getdoc(other) or ""), ""]
    lines += settings(factory, skip=CONTEXT)
    lines += measured.verifier(name, folder / f"{name}.png")
    return "\n".join(lines) + "\n"


def _advice(kind: str, name: str) -> list[str]:
    return [f"**When to use it:** {ADVICE[kind][name]}", ""] if name in ADVICE[kind] else []


def _named(factory: Any, name: str) -> Iterator[type]:
    """Classes of the factory's module whose verifiers are called so."""
    for thing in vars(inspect.getmodule(factory)).values():
        fields = getattr(thing, "__dataclass_fields__", {})
        if isinstance(thing, type) and thing is not factory and "name" in fields and fields["name"].default == name:
            yield thing


def linked(text: str) -> str:
    """A docstring as Markdown: identifiers of papers become links."""

    text = re.sub(r"`?docs/(\w+)\.md`?", r"[\1](../../\1.md)", text)
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"doi (10\.\S+?)(?=[\s,;)]*(?:\s|$))", r"[doi \1](https://doi.org/\1)", text)
    return re.sub(r"(?<!`)\*(?!`)", r"\\*", text) if "**" not in text else text
