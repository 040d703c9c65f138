"""What a release consists of: the checklist finds what is open, and the provenance names what was built."""

import hashlib
import json
import subprocess
import tomllib
from pathlib import Path

import provenance
import pytest
import pythons
import release_check
import shell_files

from auditor.__about__ import VERSION
from auditor.cli.app import app


def build(folder: Path, *, commit: str, changed: tuple[str, ...] = ()) -> dict[str, object]:
    """Write files of a release, and the statement about them."""
    folder.mkdir(exist_ok=True)
    version = VERSION
    files = [
        folder / name for name in (f"auditor-{version}-py3-none-any.whl", f"auditor-{version}.tar.gz", "sbom.cdx.json")
    ]
    for path in files:
        path.write_text(path.name)
    stated = provenance.statement(files)
    definition = stated["predicate"]["buildDefinition"]
    definition["externalParameters"]["changed_files"] = list(changed)
    definition["resolvedDependencies"][0]["digest"]["gitCommit"] = commit
    (folder / "provenance.intoto.json").write_text(json.dumps(stated))
    return stated


@pytest.fixture
def head() -> str:
    return provenance.git("rev-parse", "HEAD")


def test_a_statement_has_the_digest_of_each_file(tmp_path: Path, head: str) -> None:
    stated = build(tmp_path, commit=head)
    subjects = {each["name"]: each["digest"]["sha256"] for each in stated["subject"]}  # type: ignore[attr-defined]
    for name, digest in subjects.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert len(subjects) == 3
    assert stated["_type"] == "https://in-toto.io/Statement/v1"
    assert stated["predicateType"] == "https://slsa.dev/provenance/v1"


def test_the_checklist_refuses_files_that_are_not_of_this_commit(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_check, "DIST", tmp_path / "dist")
    assert release_check.check_dist() == "run make dist"
    build(tmp_path / "dist", commit=head)
    assert release_check.check_dist() == ""
    build(tmp_path / "dist", commit="0" * 40)
    assert "another commit" in release_check.check_dist()
    build(tmp_path / "dist", commit=head, changed=(" M auditor/errors.py",))
    assert "changed files" in release_check.check_dist()
    build(tmp_path / "dist", commit=head)
    (tmp_path / "dist" / "sbom.cdx.json").write_text("{}")
    assert "another sbom.cdx.json" in release_check.check_dist()


@pytest.mark.parametrize(
    ("urls", "done"),
    [
        ("", 0),
        ('Source = "https://example.com/a"\nDocumentation = "https://a.org/"\nChangelog = "https://a.org/"', 0),
        ('Source = "https://code.org/a"\nDocumentation = "https://a.org/"\nChangelog = "https://a.org/"', 1),
    ],
)
def test_the_checklist_refuses_addresses_that_are_placeholders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, urls: str, done: int
) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'a'\n[project.urls]\n{urls}\n")
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    assert (release_check.check_urls() == "") == bool(done)


@pytest.mark.parametrize(("title", "done"), [(f"{VERSION} (2026-12-01)", 1), ("Unreleased (0.1.0)", 0)])
def test_the_checklist_reads_the_changelog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, done: int
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {title}\n")
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    assert (release_check.check_changelog() == "") == bool(done)


def test_the_manual_page_has_every_command_and_groff_accepts_it() -> None:
    page = shell_files.manual_page()
    names = [name for name in app if not name.startswith("-")]
    assert [name for name in names if f".SS auditor {name}\n" not in page] == []
    assert "--max-calls INT" in page.replace("\\-", "-")
    try:
        said = subprocess.run(
            ["groff", "-ww", "-man", "-Tutf8", "-z"], input=page, capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("groff is not installed")
    assert said.stderr == ""


def test_the_package_and_the_page_name_the_pythons_that_are_tested() -> None:
    root = Path(__file__).parents[1]
    classifiers = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    assert [each for each in classifiers if "Python ::" in each] == [
        f"Programming Language :: Python :: {version}" for version in pythons.SUPPORTED
    ]
    *others, newest = pythons.SUPPORTED
    page = (root / "docs" / "install.md").read_text(encoding="utf-8")
    assert f"tested on {', '.join(others)} and {newest}." in page


def test_an_unpacked_python_is_found_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythons, "ROOT", tmp_path)
    unpacked = tmp_path / "build" / "debian-forky" / "usr" / "bin"
    unpacked.mkdir(parents=True)
    for version, printed in (("9.1", "9.1"), ("9.2", "9.1")):
        program = unpacked / f"python{version}"
        program.write_text(f"#!/bin/sh\necho {printed}\n")
        program.chmod(0o755)
    assert pythons.find_python("9.1") == str(unpacked / "python9.1")
    assert pythons.find_python("9.2") is None
    assert pythons.find_python("9.3") is None
