"""Links lead somewhere, sentences are short, and words are those of the glossary."""

import re
import statistics
import tomllib
from pathlib import Path

import pytest

from tests.documents.pages import PAGES, WORD, anchors, links, named, prose, sentences
from tests.test_vocabulary import refused

ROOT = PAGES[0].parent
MEDIAN, MOST = 18, 40
FIRST_READ, MOST_FIRST_READ = (
    {"README.md", "index.md", "install.md", "nightly.md", "start.md", "troubleshooting.md"},
    30,
)
"""Pages that newcomers read, and the longest sentence there in words."""
MAX_README = 150
GENERATED = {"commands.md", "tables.md", "schemas.md", "python-api.md"}
"""Pages whose sentences are those of help texts and docstrings."""


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_to_files_and_anchors(path: Path) -> None:
    broken = []
    for target in links(path):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        if not linked.is_file() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_each_anchor_is_written_once(path: Path) -> None:
    names = re.findall(r'<a id="([^"]*)"', path.read_text(encoding="utf-8"))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["README.md", "docs/start.md", "docs/install.md"])
def test_pages_have_the_python_version_of_the_package(name: str) -> None:
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert re.findall(r"auditor needs Python ([\d.]+ \w+ \w+)", (ROOT / name).read_text()) == [f"{lowest} or newer"]


@pytest.mark.parametrize("path", [each for each in PAGES if each.name not in GENERATED], ids=named)
def test_sentences_are_short(path: Path) -> None:
    lengths = {sentence: len(WORD.findall(sentence)) for sentence in sentences(path)}
    assert lengths
    most = MOST_FIRST_READ if path.name in FIRST_READ else MOST
    assert {sentence: words for sentence, words in lengths.items() if words > most} == {}
    assert statistics.median(lengths.values()) <= MEDIAN


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_words_are_those_of_the_glossary(path: Path) -> None:
    words = "|".join(re.escape(word) for word in sorted(refused("Words")))
    pattern = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)
    text = re.sub(r"`[^`]*`", "", prose(path))
    if path.name == "contributing.md":
        before, _, after = text.partition("\n## Words\n")
        text = before + after.partition("\n## Where things are\n")[2]
    assert [found[0] for found in pattern.finditer(text)] == []
