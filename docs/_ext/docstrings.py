"""Docstrings of diffscale are plain text with `code` in single backticks, as Markdown has it; Sphinx reads RST."""

import re
from typing import Any


def to_rst(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of one docstring in place."""
    text = "\n".join(lines)
    pieces = re.split(r"(`[^`]+`)", text)
    lines[:] = "".join(_piece(piece) for piece in pieces).split("\n")


def _piece(piece: str) -> str:
    if piece.startswith("`") and len(piece) > 2:
        # The sign that ends a literal may stand before a letter only if it is told so.
        return f"\\ ``{' '.join(piece[1:-1].split())}``\\ "
    return re.sub(r"(\*|\||_(?=\W|$))", r"\\\1", piece)
