"""The pages of the documents, and their parts: prose, links, anchors."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]*)\)")
SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+(?=[^a-z])")
WORD = re.compile(r"[\w’'%.,-]*\w[\w’'%.,-]*")


def named(path: Path) -> str:
    return path.name


def prose(path: Path) -> str:
    """Return the text of a page without code, comments and what is generated from code."""
    text = COMMENT.sub("", FENCE.sub("", path.read_text(encoding="utf-8")))
    return re.sub(r"^::: .*(?:\n {4}.*)*", "", text, flags=re.MULTILINE)


def sentences(path: Path) -> Iterator[str]:
    """Yield the sentences of paragraphs and lists, without those of tables; code is one word."""
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", prose(path)):
        block = re.sub(r"^(?:[-*]|\d+\.) ", "", part.strip())
        if block and not block.startswith(("#", "|", "![")):
            block = LINK.sub(lambda found: found[0].partition("](")[0][1:], re.sub(r"`[^`]*`", "Code", block))
            yield from SENTENCE_END.split(" ".join(block.split()))


def links(path: Path) -> Iterator[str]:
    """Yield the targets of the links of a page."""
    text = re.sub(
        r"`[^`\n]*`",
        lambda found: "" if "](" in found[0] else found[0],
        COMMENT.sub("", FENCE.sub("", path.read_text(encoding="utf-8"))),
    )
    yield from (found["target"] for found in re.finditer(r"\]\((?P<target>[^)\s]*)\)", text))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page: of headings, and of keys and codes."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", each.replace("`", "")).strip().lower()) for each in headings
    }
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))
