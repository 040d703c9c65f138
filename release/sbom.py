"""Write what an audit consists of as CycloneDX: sbom.py PARTS SBOM.

PARTS is what cyclonedx-py writes from requirements/audit.lock. It has no graph, no version of auditor, and the build backend
among its components. The metadata of the installed packages says which of them auditor needs, and which needs which.
"""

import json
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from auditor.__about__ import VERSION

ROOT = Path(__file__).parents[1]
EXTRAS = ("report", "redis")
"""Extras that requirements/audit.lock has."""


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(requirements: list[str], extras: frozenset[str]) -> set[tuple[str, frozenset[str]]]:
    """Return the packages of some requirements, on any machine, with the extras that are required of each."""
    found = set()
    for each in map(Requirement, requirements):
        # A marker about the machine or the Python applies to some of them, so it is ignored.
        of_extra = re.findall(r"extra == ['\"]([^'\"]+)['\"]", str(each.marker or ""))
        if not of_extra or extras.intersection(map(normalize, of_extra)):
            found.add((normalize(each.name), frozenset(map(normalize, each.extras))))
    return found


def complete(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the parts list with the version of auditor and the graph, without what auditor does not need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {normalize(each["name"]): each for each in parts["components"]}
    direct = [*project["dependencies"], *(need for extra in EXTRAS for need in project["optional-dependencies"][extra])]
    graph: dict[str, set[str]] = {}
    waiting = needs(direct, frozenset())
    of_root = {name for name, _ in waiting} & listed.keys()
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting - done:
        name, extras = (waiting - done).pop()
        done.add((name, extras))
        if name not in listed:
            continue
        try:
            found = needs(requires(name) or [], extras)
        except PackageNotFoundError:  # it is for other machines
            found = set()
        graph.setdefault(name, set()).update({each for each, _ in found} & listed.keys())
        waiting |= found
    root = parts["metadata"]["component"] | {"version": VERSION, "purl": f"pkg:generic/auditor@{VERSION}"}
    edges = {root["bom-ref"]: of_root} | {listed[name]["bom-ref"]: found for name, found in graph.items()}
    return parts | {
        "metadata": parts["metadata"] | {"component": root},
        "components": [each for name, each in listed.items() if name in graph],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(listed[name]["bom-ref"] for name in found)}
            for ref, found in sorted(edges.items())
        ],
    }


def main(parts: Path, sbom: Path) -> None:
    completed = complete(json.loads(parts.read_text(encoding="utf-8")))
    sbom.write_text(f"{json.dumps(completed, indent=2, sort_keys=True)}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
