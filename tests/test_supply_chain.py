"""What is installed is pinned with hashes, and the pins agree with each other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import sbom

from auditor.__about__ import VERSION

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<rest>(?:.*\\\n)*.*)$", re.MULTILINE)
FOR_DEVELOPERS = {"test", "check", "fuzz", "docs"}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    return {normalize(each["name"]): each["version"] for each in REQUIREMENT.finditer(path.read_text(encoding="utf-8"))}


def named_in(requirements: list[str]) -> set[str]:
    return {normalize(re.split(r"[\[<>=;! ]", each, maxsplit=1)[0]) for each in requirements} - {"auditor"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes_and_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = list(REQUIREMENT.finditer(text))
    assert len(found) > (0 if path.stem == "grafana" else 20)  # it has no dependencies
    assert [each["name"] for each in found if not HASH.search(each["rest"])] == []
    assert "://" not in text
    assert "--index" not in text


def test_the_locks_have_all_dependencies_in_the_constrained_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    audit, tests = (pins(ROOT / "requirements" / f"{name}.lock") for name in ("audit", "test"))
    assert named_in([*project["dependencies"], *extras["report"], *extras["redis"]]) <= audit.keys()
    assert named_in([*extras["test"], *extras["check"]]) <= tests.keys()
    assert audit.items() <= tests.items()
    constraints = pins(ROOT / "constraints.txt")
    assert len(constraints) > 50
    assert {name: tests[name] for name in constraints if name in tests} == {
        name: version for name, version in constraints.items() if name in tests
    }
    assert constraints.keys() - tests.keys() == {"atheris"}  # it is ready-made for one platform only


def test_the_extras_of_users_are_locked_in_the_tested_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name not in FOR_DEVELOPERS}
    locked, tests = (pins(ROOT / "requirements" / f"{name}.lock") for name in ("extras", "test"))
    assert named_in([*project["dependencies"], *(each for needs in extras.values() for each in needs)]) <= locked.keys()
    assert locked.items() <= tests.items()


def test_the_build_backend_is_locked() -> None:
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    (backend,) = system["requires"]
    name, _, version = backend.partition("==")
    assert pins(ROOT / "requirements" / "audit.lock")[name] == version


@pytest.fixture
def bill() -> dict[str, Any]:
    """The parts list of requirements/audit.lock."""
    locked = pins(ROOT / "requirements" / "audit.lock")
    parts = [{"bom-ref": f"line of {name}", "name": name, "version": version} for name, version in locked.items()]
    return sbom.complete({"metadata": {"component": {"bom-ref": "root", "name": "auditor"}}, "components": parts})


def test_the_parts_list_has_the_version_and_the_graph(bill: dict[str, Any]) -> None:
    assert bill["metadata"]["component"]["version"] == VERSION
    edges = {each["ref"]: set(each["dependsOn"]) for each in bill["dependencies"]}
    components = {each["bom-ref"] for each in bill["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert edges["root"] >= {f"line of {name}" for name in named_in(project["dependencies"])}
    assert edges.keys() == components | {"root"}
    assert set().union(*edges.values()) == components  # each is needed by something
    assert "line of markupsafe" in edges["line of jinja2"]
    assert "line of multidict" in edges["line of yarl"]


def test_what_only_a_build_needs_is_no_part_and_not_in_the_image(bill: dict[str, Any]) -> None:
    locked = pins(ROOT / "requirements" / "audit.lock").keys()
    for_builds = locked - {each["name"] for each in bill["components"]}
    assert for_builds >= {"hatchling", "editables", "trove-classifiers", "pluggy"}
    image = (ROOT / "deploy" / "container" / "Containerfile").read_text(encoding="utf-8")
    removed = {name for words in re.findall(r"uninstall --quiet --yes (.*?) \\", image) for name in words.split()}
    assert removed == for_builds | {"pip", "setuptools"}
