"""A message that says how to install something names no package that another person could register."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from auditor.text.extras import describe_extra

PROGRAM = Path(__file__).parents[2] / "auditor"


class Installed(metadata.PathDistribution):
    """A distribution of auditor in a folder."""

    def __init__(self, folder: Path, **direct_url: object) -> None:
        folder.mkdir()
        lines = ["Name: auditor", "Requires-Dist: rich>=14", "Requires-Dist: jinja2<4,>=3.1; extra == 'report'"]
        lines += ["Requires-Dist: xlsxwriter<4; extra == 'report'", "Requires-Dist: redis; extra == 'redis'"]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", *lines, ""]))
        if direct_url:
            (folder / "direct_url.json").write_text(json.dumps(direct_url))
        super().__init__(folder)


def install(monkeypatch: pytest.MonkeyPatch, installed: Installed) -> None:
    monkeypatch.setattr(metadata.Distribution, "from_name", lambda _name: installed)


def test_the_checkout_or_wheel_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "a wheel.whl"
    wheel.write_bytes(b"")
    for number, source in enumerate((tmp_path, wheel)):
        install(monkeypatch, Installed(tmp_path / f"auditor-{number}.dist-info", url=source.as_uri()))
        assert describe_extra("report") == f"pip install '{source}[report]'"


@pytest.mark.parametrize("url", ["file:///gone/auditor.whl", "https://host/auditor.whl", "", None])
def test_otherwise_the_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str | None) -> None:
    install(monkeypatch, Installed(tmp_path / "auditor.dist-info", **({} if url is None else {"url": url})))
    assert describe_extra("report") == "pip install 'jinja2<4,>=3.1' 'xlsxwriter<4'"
    assert describe_extra("redis") == "pip install redis"


def test_the_name_auditor_is_given_to_pip_nowhere() -> None:
    pattern = re.compile(r"(?:pip|pipx|uv tool) install\s+(?:-\S+\s+)*['\"]?auditor\b")
    documents = [*(PROGRAM.parent / "docs").glob("*.md"), *PROGRAM.parent.glob("*.md")]
    found = [str(path) for path in (*PROGRAM.rglob("*.py"), *documents) if pattern.search(path.read_text())]
    assert found == []
