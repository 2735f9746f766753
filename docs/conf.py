"""How the documentation is built: `sphinx-build -W docs outputs/docs`, with the extra `docs` installed."""

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import catalogue  # noqa: E402
import diffusers  # noqa: E402
import docstrings  # noqa: E402
import transformers  # noqa: E402

import diffscale  # noqa: E402

project = "diffscale"
copyright = "the diffscale maintainers, Apache-2.0"
version = release = diffscale.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_block"]
myst_heading_anchors = 4
# Tables of papers and raw numbers are no pages: reproduction.html, which is copied as it is, shows them.
exclude_patterns = ["_ext", "reproduction", "gallery", "sg_execution_times.rst", "**/sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold what cannot be pickled

html_theme = "furo"
html_title = f"diffscale {version}"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_extra_path = ["reproduction"]
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["generated/gallery"],
    "filename_pattern": r"\.py$",
    "image_scrapers": ("matplotlib",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "plot_gallery": os.environ.get("DIFFSCALE_DOCS_GALLERY", "run") == "run",
}


# Bars of what is loaded would fill the pages of the gallery.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


def name_outside(docname: str, text: str) -> str:
    """Name files and folders of the repository that are no pages, instead of linking to them."""
    here = (HERE / docname).parent

    def named(link: re.Match[str]) -> str:
        label, target = link.groups()
        there = (here / target).resolve()
        if there.is_relative_to(HERE) or not there.exists() or "://" in target:
            return link[0]
        path = there.relative_to(HERE.parent).as_posix()
        return f"`{path}`" if label.strip("`") in path else f"{label} (`{path}`)"

    return re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)#\s]+)\)", named, text)


def complete(app: Any, docname: str, source: list[str]) -> None:
    """List on the front page the guides in docs/ that no list has yet, so that new pages are found; give a title to
    tables that benchmarks wrote without one."""
    if docname == "index":
        listed = source[0] + (HERE / "results" / "index.md").read_text(encoding="utf-8")
        named = {line.strip().removeprefix("../") for line in listed.splitlines()}
        rest = sorted(page.stem for page in HERE.glob("*.md") if page.stem not in {*named, "index"})
        source[0] = source[0].replace("<!-- all other guides -->", "\n".join(rest))
    elif not source[0].lstrip().startswith(("# ", "..", "```{include}")) and not docname.startswith("generated/"):
        words = docname.rpartition("/")[2].replace("_", " ").replace("-", " ")
        source[0] = f"# {words.capitalize()}\n\n{source[0]}"
    up = "../" * docname.count("/")
    page = re.compile(r"\[([^\]]+)\]\((?:\.\./)*reproduction/reproduction\.html\)")  # made elsewhere, copied as it is
    source[0] = name_outside(docname, page.sub(rf'<a href="{up}reproduction.html">\1</a>', source[0]))


def setup(app: Any) -> None:
    """Pages that are made of the code, before anything is read."""
    catalogue.write_pages(HERE / "generated")
    app.connect("autodoc-process-docstring", docstrings.to_rst)
    app.connect("source-read", complete)
