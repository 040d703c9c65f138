"""A page as a reader sees it: its figures by name, its tables, its words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "input", "br", "img"}


@dataclass
class Read:
    """What was found on a page; ``figures`` are the counts that it shows, by their names."""

    figures: dict[str, str] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    unclosed: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Read()
        self._open: list[str] = []
        self._figure: str | None = None
        self._said = ""
        self._in_rows = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.found.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if "data-figure" in attributes:
            self._figure, self._said = str(attributes["data-figure"]), ""
            self.found.figures[self._figure] = str(attributes["data-value"])
        if tag == "table":
            self._in_rows = attributes.get("id") == "rows"
        if self._in_rows and tag == "tr":
            self.found.rows.append([])
        if self._in_rows and tag == "td":
            self.found.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"
        if self._figure is not None and tag in {"span", "td"}:
            # What is read is what the data attribute says.
            assert self._said.replace(",", "").startswith(self.found.figures[self._figure]) or tag == "td"
            self._figure = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in {"script", "style"}:
            return
        self.found.text += data
        if self._figure is not None:
            self._said += data
        if self._in_rows and self._open and self._open[-1] == "td":
            self.found.rows[-1][-1] += data

    def done(self) -> Read:
        self.found.unclosed = self._open
        self.found.rows = [row for row in self.found.rows if row]
        self.found.text = " ".join(self.found.text.split())
        return self.found


def read(path: Path) -> Read:
    """Reads a page; an element that is not closed, or closed twice, is an error."""
    return read_text(path.read_text(encoding="utf-8"))


def read_text(text: str) -> Read:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.done()
