"""The site of the documents: built strictly, complete without a network, and readable for all."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.documents.conftest import DOCS
from tests.documents.pages import ROOT

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

PYTHON = ROOT / ".docs" / "bin" / "python"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
EACH_KIND = ("index", "settings", "python-api", "policy")
"""A page of each kind: links and a picture, wide tables, generated names, examples."""

REPEATED = """() => {
  for (const [parent, child] of [["tbody", "tr"], [".doc-contents", ".doc-object"], [".md-content", ".doc-object"], [".md-nav__list", "li"]])
    for (const each of document.querySelectorAll(parent))
      [...each.querySelectorAll(child)].slice(4).forEach((other) => other.remove());
}"""
"""Remove what repeats itself: an audit of thousands of equal rows takes minutes, and finds what it finds in four."""

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="NOT TESTED: the site of the documents, because there is no .docs (make .docs/.installed)",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [PYTHON, DOCS / "site_builder.py", folder / "site"]
    built = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert built.returncode == 0, built.stdout
    return folder / "site" / "pages"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("NOT TESTED: the site in a browser, because there is no chromium (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def test_each_document_is_a_page_and_in_the_navigation(site: Path) -> None:
    names = {path.stem for path in DOCS.glob("*.md")} | {"changelog", "security"}
    assert {path.stem for path in site.glob("*.html")} == names | {"404"}
    index = (site / "index.html").read_text(encoding="utf-8")
    assert [name for name in sorted(names - {"index"}) if f'href="./{name}.html"' not in index] == []


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(https?:)?//[^>]*>")
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert [found[0] for found in loaded.finditer(text)] == []
        assert "unpkg.com" not in text


def test_links_of_pages_lead_to_files_and_anchors(site: Path) -> None:
    ids = {
        page.name: set(re.findall(r'\bid="?([^"\s>]+)', page.read_text(encoding="utf-8")))
        for page in site.glob("*.html")
    }
    broken = []
    for page in site.glob("*.html"):
        for target in re.findall(r'<a [^>]*href="([^"]*)"', page.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            if target.startswith(("http:", "https:", "mailto:")) or page.name == "404.html":
                continue
            linked = site / name if name else page
            if not linked.exists() or (anchor and linked.suffix == ".html" and anchor not in ids[linked.name]):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def open_page(browser: Any, page: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """Open a page as a file, and return it with the addresses of other schemes that it requests."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, requested = context.new_page(), list[str]()
    tab.on("request", lambda request: requested.append(request.url) if request.url.startswith("http") else None)
    tab.goto(page.as_uri())
    tab.wait_for_function(
        "document.querySelector('table:not([class])') === null || document.querySelector('.md-typeset__scrollwrap') !== null"
    )
    return tab, requested


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_pages_fit_and_axe_finds_no_serious_fault(site: Path, browser: Any, width: int, scheme: str) -> None:
    for name in EACH_KIND:
        tab, requested = open_page(browser, site / f"{name}.html", width, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, name
        tab.evaluate(REPEATED)
        found = axe.Axe().run(tab).response["violations"]
        serious = [fault for fault in found if fault["impact"] in {"serious", "critical"}]
        assert {fault["id"]: [node["html"][:200] for node in fault["nodes"][:3]] for fault in serious} == {}, name
        assert requested == []
        tab.context.close()


@pytest.mark.slow
def test_search_finds_a_page_that_is_opened_as_a_file(site: Path, browser: Any) -> None:
    tab, requested = open_page(browser, site / "index.html", 1280, "light")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("quota_sharing")
    tab.wait_for_selector("a[href*='settings.html']:visible >> text=/quota|settings/i", timeout=20_000)
    assert requested == []
    tab.context.close()


def test_pages_that_no_section_names_are_guides() -> None:
    sys.path.append(str(DOCS))
    text = (DOCS / "zensical.toml").read_text(encoding="utf-8")
    script = import_module("site_builder")
    pages = {path.name for path in DOCS.glob("*.md")} | {"changelog.md", "security.md", "new.md"}
    sections = {name: each for part in script.read_navigation(text, pages) for name, each in part.items()}
    assert "new.md" in sections["How-to guides"]
    with pytest.raises(SystemExit, match=r"pages that do not exist: .*settings\.md"):
        script.read_navigation(text, pages - {"settings.md"})
