"""A page as a reader sees it: its figures by name, its tables, its text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson

from auditor.report.filters import format_percent

VOID = {"meta", "link", "input", "br", "img"}


@dataclass
class ParsedPage:
    """Contents of a page; ``figures`` are its counts by name."""

    figures: dict[str, str] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    island: dict[str, Any] = field(default_factory=dict)
    unclosed: list[str] = field(default_factory=list)


def shows(text: str, value: str) -> bool:
    """Return whether a text shows a value: the number itself, a share of it in percent, or a sign for zero."""
    if "." in value:
        return text == format_percent(float(value))
    return (
        text.replace(",", "").startswith(value)
        or (value == "0" and text in {"·", "none violated", "0%"})
        or (value == "1" and text == "100%")
    )


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = ParsedPage()
        self._open: list[str] = []
        self._figure: str | None = None
        self._figure_text = ""
        self._figure_tag = ("", 0)
        self._in_rows = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.page.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if "data-figure" in attributes:
            self._figure_tag = tag, len(self._open) - 1
            self._figure, self._figure_text = str(attributes["data-figure"]), ""
            value = str(attributes["data-value"])
            # A number that the page has twice is the same number.
            assert self.page.figures.setdefault(self._figure, value) == value, self._figure
        if tag == "table":
            self._in_rows = attributes.get("id") == "rows"
        if self._in_rows and tag == "tr":
            self.page.rows.append([])
        if self._in_rows and tag == "td":
            self.page.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"
        if self._figure is not None and self._figure_tag == (tag, len(self._open)):
            assert shows(self._figure_text, self.page.figures[self._figure]), (self._figure, self._figure_text)
            self._figure = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in {"script", "style"}:
            if data.startswith('{"runs"'):
                self.page.island = orjson.loads(data)
            return
        self.page.text += data
        if self._figure is not None:
            self._figure_text += data
        if self._in_rows and self._open and self._open[-1] == "td":
            self.page.rows[-1][-1] += data

    def finish(self) -> ParsedPage:
        self.page.unclosed = self._open
        self.page.rows = [row for row in self.page.rows if row]
        self.page.text = " ".join(self.page.text.split())
        return self.page


def parse_page(path: Path) -> ParsedPage:
    """Parse a page; an element that is not closed, or closed twice, is an error."""
    return parse_html(path.read_text(encoding="utf-8"))


def parse_html(text: str) -> ParsedPage:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.finish()
