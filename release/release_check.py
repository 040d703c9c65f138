"""Walk the checklist of a release: print each step, whether it is done, and what to do if not.

Run it by `make release-check`, after `make dist`. It changes nothing.
"""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from auditor.__about__ import VERSION

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PLACEHOLDER = re.compile(r"example|todo|localhost|\.invalid|<|>", re.IGNORECASE)

BY_HAND = (
    "make test, make check and make install-test passed for this commit",
    "sign dist/provenance.intoto.json, and keep the signature beside it",
    f"git tag --sign v{VERSION} and push the tag",
    "publish the files of dist/; register the name before documents name it to pip",
    "start the next section of CHANGELOG.md",
)
"""Steps that this script cannot see."""


def run(*words: str | Path) -> str | None:
    """Return what a command of the checkout prints; None if it fails."""
    ended = subprocess.run([str(each) for each in words], cwd=ROOT, capture_output=True, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else None


def make(target: str) -> str:
    """Return what to do if a target of the Makefile fails; empty if it passes."""
    return "" if run("make", "--silent", target) is not None else f"make {target} fails; run it to see why"


def check_tree() -> str:
    """Return what to do if files are changed."""
    return "" if run("git", "status", "--porcelain") == "" else "commit or remove what `git status` lists"


def check_tag() -> str:
    """Return what to do if this version was released already."""
    return (
        f"v{VERSION} exists: raise VERSION in auditor/__about__.py"
        if run("git", "tag", "--list", f"v{VERSION}")
        else ""
    )


def check_changelog() -> str:
    """Return what to do if the newest section is not of this version."""
    found = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    title = found[1] if found else "no section"
    return "" if re.fullmatch(rf"{re.escape(VERSION)} \(\d{{4}}-\d\d-\d\d\)", title) else (
        f'CHANGELOG.md begins with "{title}": write "{VERSION} (YYYY-MM-DD)"'
    )  # fmt: skip


def check_urls() -> str:
    """Return what to do if the project has no address, or one that is a placeholder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls: dict[str, str] = project.get("urls", {})
    missing = [name for name in ("Source", "Documentation", "Changelog") if name not in urls]
    wrong = [name for name, url in urls.items() if PLACEHOLDER.search(url) or not url.startswith("https://")]
    if missing or wrong:
        return f"[project.urls] in pyproject.toml: set {', '.join(missing + wrong)} to where the project is hosted"
    return ""


def check_dist() -> str:
    """Return what to do if the files of dist/ are not those of this commit."""
    try:
        stated: dict[str, Any] = json.loads((DIST / "provenance.intoto.json").read_text(encoding="utf-8"))
    except OSError:
        return "run make dist"
    build = stated["predicate"]["buildDefinition"]
    if build["externalParameters"]["changed_files"]:
        return "dist/ was built with changed files: commit them, and run make dist"
    if build["resolvedDependencies"][0]["digest"]["gitCommit"] != run("git", "rev-parse", "HEAD"):
        return "dist/ was built from another commit: run make dist"
    digests = {each["name"]: each["digest"]["sha256"] for each in stated["subject"]}
    wanted = {f"auditor-{VERSION}-py3-none-any.whl", f"auditor-{VERSION}.tar.gz", "sbom.cdx.json"}
    if not wanted <= digests.keys():
        return f"dist/ has no {', '.join(sorted(wanted - digests.keys()))}: run make dist"
    changed = [
        name
        for name, digest in digests.items()
        if not (DIST / name).is_file() or hashlib.sha256((DIST / name).read_bytes()).hexdigest() != digest
    ]
    return f"dist/ has another {', '.join(changed)} than the provenance says: run make dist" if changed else ""


STEPS: dict[str, Callable[[], str]] = {
    "all changes are committed": check_tree,
    "the version was not released yet": check_tag,
    "the changelog has this version and its date": check_changelog,
    "the project's addresses are real": check_urls,
    "dist/ is built from this commit, with SBOM and provenance": check_dist,
    "style, types, help texts, schemas and units are up to date": lambda: make("check"),
    "every library has a permitted licence": lambda: make("licences"),
    "no library has a published vulnerability": lambda: make("vulnerabilities"),
}
"""Each step, and the function that returns what to do; an empty text if it is done."""


def main() -> int:
    open_steps = 0
    for step, check in STEPS.items():
        todo = check()
        open_steps += bool(todo)
        print(f"TODO  {step}: {todo}" if todo else f"ok    {step}", flush=True)
    for step in BY_HAND:
        print(f"hand  {step}")
    print(f"{open_steps} of {len(STEPS)} steps are open" if open_steps else f"ready to release {VERSION}")
    return 1 if open_steps else 0


if __name__ == "__main__":
    sys.exit(main())
