"""Write the events of the log, with their levels and values, into docs/logs.md; --check compares instead.

Levels and values are read from the calls in the code.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from auditor.log import EVENTS, LINE_EVENTS

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "logs.md"
LEVELS = ("info", "warning", "error")
BLOCK = re.compile(r"(<!-- (?P<name>messages|lines) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LogCall:
    """A call that writes a message: where it is, and its level, event and the names of its values.

    ``event`` is None if it is not a constant.
    """

    where: str
    level: str
    event: str | None
    values: tuple[str, ...]


def log_calls() -> Iterator[LogCall]:
    """Yield every call of the log in the code."""
    for path in sorted((ROOT / "auditor").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            function = node.func
            if function.attr in LEVELS and isinstance(function.value, ast.Name) and function.value.id == "log":
                first = node.args[0] if node.args else None
                event = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
                values = tuple(name for keyword in node.keywords for name in _names(tree, keyword))
                yield LogCall(f"{path.relative_to(ROOT)}:{node.lineno}", function.attr, event, values)


def _names(tree: ast.Module, keyword: ast.keyword) -> Iterator[str]:
    """Yield the name of a keyword argument; of ``**values``, the keys of the dictionaries that it may be."""
    if keyword.arg is not None:
        yield keyword.arg
        return
    name = ast.unparse(keyword.value).partition("(")[0]
    for node in ast.walk(tree):
        returns = isinstance(node, ast.FunctionDef) and node.name == name
        assigns = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
        for found in ast.walk(node) if returns or assigns else ():
            if isinstance(found, ast.Dict):
                yield from (str(key.value) for key in found.keys if isinstance(key, ast.Constant))


def _messages() -> Iterator[str]:
    yield "| event | level | sentence | values |\n|---|---|---|---|"
    calls = list(log_calls())
    for event, sentence in EVENTS.items():
        own = [each for each in calls if each.event == event]
        levels = ", ".join(level for level in LEVELS if any(each.level == level for each in own))
        values = ", ".join(dict.fromkeys(f"`{name}`" for each in own for name in each.values))
        yield f"| `{event}` | {levels} | {sentence} | {values} |"


def _lines() -> Iterator[str]:
    yield "| event | meaning |\n|---|---|"
    yield from (f"| `{event}` | {meaning} |" for event, meaning in LINE_EVENTS.items())


def generate(text: str) -> str:
    """Return a document with current tables."""
    rows = {"messages": _messages, "lines": _lines}
    return BLOCK.sub(lambda found: found[1] + "\n".join((*rows[found["name"]](), found[3])), text)


def main() -> None:
    """Write the tables, or compare them if the first argument is ``--check``."""
    text = DOCUMENT.read_text()
    current = generate(text)
    if sys.argv[1:] != ["--check"]:
        DOCUMENT.write_text(current)
    elif text != current:
        sys.exit(f"not as generated: {DOCUMENT.name}; run make tables")


if __name__ == "__main__":
    main()
