"""Build the documents as a site of HTML pages: python docs/site_builder.py FOLDER.

The pages and what they link to are copied to FOLDER, where Zensical builds them, and stops at a broken link or anchor.
The site is complete: it has a copy of every file of the repository that a page links to, and loads nothing from a
network. Search works in pages that are opened as files, too.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
"""Pages that are at the top of the repository, where people look for them."""

DEFAULT_SECTION = "How-to guides"
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SHIM = "https://unpkg.com/iframe-worker/shim"


def read_navigation(text: str, pages: set[str]) -> list[dict[str, list[str]]]:
    """Return the sections of a configuration, with the pages that none of them names added to the how-to guides.

    Raises:
        SystemExit: a section names a page that does not exist.
    """
    sections: list[dict[str, list[str]]] = tomllib.loads(text)["project"]["nav"]
    named = [page for section in sections for each in section.values() for page in each]
    if missing := sorted(set(named) - pages):
        sys.exit(f"docs/zensical.toml names pages that do not exist: {', '.join(missing)}")
    for section in sections:
        if DEFAULT_SECTION in section:
            section[DEFAULT_SECTION] += sorted(pages - set(named))
    return sections


def write_configuration(folder: Path, pages: set[str]) -> None:
    """Write the configuration of the site, with the navigation of all pages."""
    text = (DOCS / "zensical.toml").read_text(encoding="utf-8")
    sections = read_navigation(text, pages)
    lines = [f"  {{{json.dumps(name)} = {json.dumps(each)}}}," for part in sections for name, each in part.items()]
    text = re.sub(
        r"^nav = \[.*?^\]$", lambda _: "\n".join(["nav = [", *lines, "]"]), text, flags=re.DOTALL | re.MULTILINE
    )
    python = f"\n[project.plugins.mkdocstrings.handlers.python]\npaths = [{json.dumps(str(ROOT))}]\n"
    (folder / "zensical.toml").write_text(text + python, encoding="utf-8")


def copy_page(path: Path, name: str, source: Path) -> None:
    """Copy a page, and the files outside of the documents that it links to, and let its links lead to the copies."""

    def replace_link(found: re.Match[str]) -> str:
        target = (path.parent / found["target"]).resolve()
        anchor = found["anchor"] or ""
        if target.parent == DOCS:
            return f"{found['before']}{target.name}{anchor}"
        inside = str(target.relative_to(ROOT))
        if inside in ROOT_PAGES:
            return f"{found['before']}{ROOT_PAGES[inside]}{anchor}"
        if not target.is_file():
            sys.exit(f"{path.relative_to(ROOT)}: {found['target']} is no file")
        copy = Path("files", f"{inside}.txt" if target.suffix == ".md" else inside)  # a page would be rendered
        (source / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, source / copy)
        return f"{found['before']}{copy}"

    text = path.read_text(encoding="utf-8")
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [LINK.sub(replace_link, text[end : code.start()]), code[0]]
        end = code.end()
    parts.append(LINK.sub(replace_link, text[end:]))
    (source / name).write_text("".join(parts), encoding="utf-8")


def write_sources(folder: Path) -> set[str]:
    """Write what the site is built from, and return the names of its pages."""
    source = folder / "source"
    source.mkdir(parents=True)
    pages = {path.name: path for path in DOCS.glob("*.md")} | {name: ROOT / file for file, name in ROOT_PAGES.items()}
    for name, path in pages.items():
        copy_page(path, name, source)
    for picture in DOCS.glob("*.png"):
        shutil.copyfile(picture, source / picture.name)
    shutil.copytree(DOCS / "assets", source / "assets")
    return set(pages)


def finish_pages(site: Path) -> None:
    """Let pages load what search needs in files from the site itself, and hide what a reader cannot use.

    Zensical has the address of a public server, and hidden inputs that the keyboard reaches.
    """
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8").replace(SHIM, "assets/iframe-worker.js")
        page.write_text(
            text.replace('<input class="md-option"', '<input tabindex="-1" class="md-option"'), encoding="utf-8"
        )


def main(folder: Path) -> int:
    """Build the site in a folder, which is replaced, and return the exit code."""
    shutil.rmtree(folder, ignore_errors=True)
    write_configuration(folder, write_sources(folder))
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run([zensical, "build", "--strict", "--clean"], cwd=folder, check=False)
    if built.returncode == 0:
        finish_pages(folder / "pages")
    return built.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
