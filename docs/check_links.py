"""Checks that every link and picture inside the built documentation leads somewhere, without the network.

python docs/check_links.py outputs/docs
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Collects what a page links to, and the anchors that it offers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser for each tag."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(folder: Path) -> list[str]:
    """A line for each link from a page of `folder` to a file or an anchor that is not there."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        for link in sorted(page.links):
            scheme, host, target, _, anchor = urlsplit(link)
            if scheme or host:
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            if not there.is_file():
                wrong.append(f"{path.relative_to(folder.resolve())}: {link} is no file")
            elif there in pages and unquote(anchor) not in pages[there].anchors:
                wrong.append(f"{path.relative_to(folder.resolve())}: {link} has no such anchor")
    return wrong


if __name__ == "__main__":
    found = broken(Path(sys.argv[1]))
    sys.exit("\n".join(found) if found else 0)
