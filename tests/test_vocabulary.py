"""One concept has one word, one class has one name, and imports point downwards: read from the syntax tree."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES, MAX_MODULES = 500, 14
"""Lines of a file, and files of a package: larger ones have more than one subject."""

MODULES = sorted((ROOT / "auditor").rglob("*.py"))
GLOSSARY = ROOT / "docs" / "contributing.md"
ROW = re.compile(r"^\| (?P<standard>[^|]+) \| (?P<refused>[^|]+) \|$", re.MULTILINE)
PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
"""A part of an identifier: `AccountSession`, `max_calls` and `MAX_CALLS` have two each."""


def refused(heading: str) -> set[str]:
    """Return the words of a glossary table's last column, in lower case."""
    _, _, rest = GLOSSARY.read_text(encoding="utf-8").partition(f"\n### {heading}\n")
    table = rest.partition("\n### ")[0].partition("\n## ")[0]
    return {word for row in ROW.finditer(table) for word in re.findall(r"`([^`]+)`", row["refused"])}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and name of everything that a module defines: classes, functions, parameters, variables, fields."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str()):
                yield getattr(node, "lineno", 0), str(node.asname)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring, those below a constant or field included, without literals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            # Literals are what a user or the platform writes, not prose.
            yield node.lineno, re.sub(r"``.*?``|`[^`]*`", " ", node.value.value, flags=re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_identifiers_use_the_words_of_the_glossary(path: Path) -> None:
    parts, names = refused("Words"), refused("Names")
    assert len(parts) > 50
    found = [
        f"{named(path)}:{line}: {name}"
        for line, name in identifiers(tree_of(path))
        if not name.startswith("__")
        and (name.strip("_").lower() in names or any(part.lower() in parts for part in PART.findall(name)))
    ]
    assert found == []


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_docstrings_use_the_words_of_the_glossary(path: Path) -> None:
    words = "|".join(re.escape(word) for word in sorted(refused("Words")))
    pattern = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)
    found = [
        f"{named(path)}:{line}: {match[0]}"
        for line, text in docstrings(tree_of(path))
        for match in pattern.finditer(" ".join(text.split()))
    ]
    assert found == []


def test_no_two_public_classes_share_a_name() -> None:
    homes = defaultdict(list)
    for path in MODULES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(named(path))
    assert len(homes) > 100
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def layers() -> dict[str, tuple[int, int, bool]]:
    """Return for each package its layer (0 is the highest), its place in it, and whether its layer's packages are strangers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (lines,) = (each["layers"] for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    return {
        name.strip(): (number, place, "|" in line)
        for number, line in enumerate(lines)
        for place, name in enumerate(re.split(r"[|:]", line))
    }


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and module of every import that is executed, those inside functions included."""
    pending: list[ast.AST] = [tree_of(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, each.name) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.lineno, f"{node.module}.{each.name}") for each in node.names)
        pending += ast.iter_child_nodes(node)


def package_of(module: str, packages: dict[str, tuple[int, int, bool]]) -> str | None:
    parts = module.split(".")
    return next((name for n in range(len(parts), 1, -1) if (name := ".".join(parts[:n])) in packages), None)


def test_no_import_points_upwards() -> None:
    packages = layers()
    upwards, placed = [], 0
    for path in MODULES:
        module = named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if (importer := package_of(module, packages)) is None:
            assert module == "auditor", f"{module} is in no layer"
            continue
        for line, name in imports(path):
            if (imported := package_of(name, packages)) is None or imported == importer:
                continue
            placed += 1
            (above, _, strangers), (below, _, _) = packages[importer], packages[imported]
            if below < above or (below == above and strangers):
                upwards.append(f"{named(path)}:{line}: {importer} imports {imported}")
    assert placed > 300
    assert upwards == []


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_file_has_one_subject(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert len([each for each in path.parent.glob("*.py") if each.name != "__init__.py"]) <= MAX_MODULES
