"""Write the pages of the reference that the code describes; --check compares instead.

The settings, the policy and the JSON documents come from their JSON Schemas, which come from the types (``schemas``).
Words with a meaning, such as the kinds of warnings, come from the docstrings below them.
"""

import ast
import json
import sys
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import schemas
from error_codes import OWN_CODES, PLATFORM_CODES, own_codes
from metric_labels import LABELS
from settings_examples import EXAMPLES, TABLES

import auditor
from auditor.client.error_codes import classify_error, make_error
from auditor.errors import DESCRIBED_CODES, AccountDeniedError
from auditor.hooks.metric_samples import HELP

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = "<!-- Written by `make references`. -->\n"
Schema = dict[str, Any]


NAMES = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "table", "array": "list"}


def describe_type(schema: Schema, definitions: Schema) -> str:
    """Return the type of a value for people."""
    kind = NAMES.get(schema.get("type", ""), schema.get("type", "any value"))
    match schema:
        case {"$ref": str(reference)}:
            definition = definitions[reference.rpartition("/")[2]]
            kind = "table" if "properties" in definition else describe_type(definition, definitions)
        case {"const": value}:
            kind = f"`{json.dumps(value)}`"
        case {"enum": values}:
            kind = ", ".join(f"`{json.dumps(value)}`" for value in values)
        case {"anyOf": options} | {"oneOf": options}:
            found = [describe_type(each, definitions) for each in options if each.get("type") != "null"]
            kind = " or ".join(dict.fromkeys(found)) + (" or null" if len(found) < len(options) else "")
        case {"type": "array", "items": items}:
            kind = f"list of {describe_type(items, definitions)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            kind = f"table of {describe_type(values, definitions)}"
    return kind


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def anchor(*names: str) -> str:
    """Return the target of a link to a key."""
    return f'<a id="{".".join(names)}"></a>'


def settings_table(name: str, schema: Schema, definitions: Schema) -> Iterator[str]:
    """Yield the lines that describe a table of the settings or of a policy."""
    heading, introduction = TABLES.get(name, (name, schema["description"]))
    required = schema.get("required", [])
    yield f"## {heading}\n\n{introduction}\n\n| key | type | default | example | meaning |\n|---|---|---|---|---|"
    for key, value in schema["properties"].items():
        default = value.get("default")
        shown = "required" if key in required else "–" if default in (None, {}, []) else f"`{json.dumps(default)}`"
        example = EXAMPLES.get(name, {}).get(key) or (None if default is None else json.dumps(default))
        if example is None:
            sys.exit(f"docs/settings_examples.py: {name}: give an example of {key}")
        kind = describe_type(value, definitions).removesuffix(" or null")
        meaning = value["description"].replace("null: ", "without it: ").replace("None: ", "without it: ")
        cells = [f"{anchor(name, key)}`{key}`", kind, shown, f"`{cell(example)}`", cell(meaning)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def settings_page(kind: str, introduction: str) -> str:
    """Return the page about the keys of a file that users write."""
    schema: Schema = json.loads(schemas.generate(kind))
    definitions = schema.get("$defs", {})
    tables = {"Settings": schema, **definitions} if kind == "settings" else definitions
    lines = [
        line
        for name, each in tables.items()
        if "properties" in each
        for line in settings_table(name, each, definitions)
    ]
    return "\n".join([introduction, *lines])


def schemas_page() -> str:
    """Return the page about the JSON documents."""
    parts = [SCHEMAS]
    for kind, (_, title) in schemas.DOCUMENTS.items():
        place = {"settings": "settings.md", "rules": "rules-file.md"}.get(kind, f"#{kind}")
        parts.append(f"- [{title}]({place}): [`{kind}.schema.json`](../auditor/schemas/{kind}.schema.json)")
    for kind, (_, title) in schemas.DOCUMENTS.items():
        if kind in schemas.INPUTS:
            continue
        schema: Schema = json.loads(schemas.generate(kind))
        definitions = schema.get("$defs", {})
        parts += [f"\n## {kind}\n\n{title}. {schema['description']}\n", *json_table(kind, schema, definitions)]
        for name, each in definitions.items():
            if "properties" in each:
                parts += [
                    f"\n### {kind}: {name}\n\n{each['description']}\n",
                    *json_table(f"{kind}.{name}", each, definitions),
                ]
    return "\n".join(parts) + "\n"


def json_table(name: str, schema: Schema, definitions: Schema) -> Iterator[str]:
    """Yield the lines of a table of an object's keys."""
    yield "| key | type | meaning |\n|---|---|---|"
    required = schema.get("required", [])
    for key, value in schema["properties"].items():
        optional = "" if key in required else ", may be absent"
        kind = describe_type(value, definitions) + optional
        yield f"| {anchor(name, key)}`{key}` | {kind} | {cell(value.get('description', ''))} |"


def read_docstring(path: str, name: str) -> str:
    """Return the text below a constant of a module."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for constant, text in pairwise(body):
        targets = constant.targets if isinstance(constant, ast.Assign) else []
        if any(isinstance(each, ast.Name) and each.id == name for each in targets):
            return str(ast.literal_eval(text.value)) if isinstance(text, ast.Expr) else ""
    raise LookupError(name)


def word_rows(path: str, name: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield for each row of a table in a docstring the words of its first cell, and the other cells."""
    for line in read_docstring(path, name).splitlines():
        if line.startswith("| ``"):
            first, *others = (part.strip().replace("``", "`") for part in line.strip("|").split("|"))
            yield [word.strip("` ") for word in first.split(",")], others


def errors_page() -> str:
    """Return the page about the codes of failed devices, and about warnings."""
    if missing := own_codes(ROOT / "auditor") ^ set(OWN_CODES):
        sys.exit(f"docs/error_codes.py: codes that are not in the code, or not there: {', '.join(sorted(missing))}")
    if missing := set(DESCRIBED_CODES) ^ {*OWN_CODES, *PLATFORM_CODES}:
        sys.exit(f"docs/error_codes.py: codes that auditor/errors.py does not name, or only: {', '.join(missing)}")
    parts = [ERRORS]
    for code, (meaning, remedy) in sorted(OWN_CODES.items()):
        parts.append(f"{anchor(code)}\n\n### {code}\n\n{meaning}\n\n**What to do:** {remedy}\n")
    parts.append(PLATFORM)
    for code, meaning in PLATFORM_CODES.items():
        error = make_error(code, "", http_status=400, request_id=None)
        kind = CLASSES[classify_error(code).__name__]
        advice = f"; {error.advice}" if isinstance(error, AccountDeniedError) else ""
        parts.append(f"| {anchor(code)}`{code}` | {meaning} | {kind}{advice} |")
    parts.append(WARNINGS)
    for words, (meaning,) in word_rows("auditor/models.py", "WarningKind"):
        parts += [f"| {anchor('warning', word)}`{word}` | {meaning} |" for word in words]
    return "\n".join(parts) + "\n"


def exit_codes_page() -> str:
    """Return the page about exit codes and their reasons."""
    parts = [EXIT_CODES, "| word | exit code | meaning |\n|---|---|---|"]
    for words, (code, meaning) in word_rows("auditor/errors.py", "ExitReasonCode"):
        parts.append(f"| {', '.join(f'{anchor(word)}`{word}`' for word in words)} | {code} | {meaning} |")
    return "\n".join(parts) + "\n"


def metrics_page() -> str:
    """Return the page about the metrics of a run."""
    if missing := set(HELP) ^ set(LABELS):
        sys.exit(f"docs/metric_labels.py: metrics without labels, or not in the code: {', '.join(sorted(missing))}")
    rows = [
        f"| {anchor(name)}`{name}` | {', '.join(labels) or '–'} | {cell(HELP[name])} |"
        for name, labels in LABELS.items()
    ]
    return "\n".join([METRICS, *rows, METRIC_LIMITS])


def api_page() -> str:
    """Return the page about the names of the package, which the site completes with their docstrings."""
    parts = [API]
    names = [name for name in auditor.__all__ if name != "__version__"]
    for module, members in groupby(names, key=lambda name: auditor._MODULE_OF[name].split(".")[1]):  # noqa: SLF001
        parts += [f"\n## {module}\n", *(f"::: auditor.{name}\n" for name in members)]
    parts.append(
        "\n## Errors by what to do next\n\n::: auditor.errors\n    options:\n      members: false\n      show_root_heading: false\n"
    )
    return "\n".join(parts)


SETTINGS = f"""# Settings

{GENERATED}
Every key of a settings file. The file is TOML; see [the first run](start.md) for a complete one, and [configs](../configs/tuya.toml) for
examples with comments. A key that does not exist is refused, and the error suggests a similar one. Paths are relative to
the settings file, and `~/` at the start is the home directory. [`settings.schema.json`](../auditor/schemas/settings.schema.json)
is the JSON Schema, for editors.
"""
RULES = f"""# Policy rules

{GENERATED}
Every key of a file of policy rules. [Policies](policy.md) describes conditions and verdicts;
[`rules.schema.json`](../auditor/schemas/rules.schema.json) is the JSON Schema, for editors.
"""
SCHEMAS = f"""# JSON documents

{GENERATED}
Every key of the JSON that auditor writes. Each document has a JSON Schema, which the package contains. `schema_version`
increases when a key changes its meaning or is removed. Strings come from devices: escape them where you show them.
"""
ERRORS = f"""# Error codes

{GENERATED}
A device without a conclusive answer has a `code` in `failures.jsonl`, in `run.json` and in `auditor devices --status failed`.
This page describes each code. [Troubleshooting](troubleshooting.md) begins with the messages of commands.

## Codes of auditor

These codes begin with `auditor.`: no response of the platform could be used. The request is retried, and the device fails after
`max_attempts` requests. Before the first answer of an account, requests that get no connection (`auditor.DNS`, `auditor.Proxy`, `auditor.TLS`,
`auditor.Unreachable`) are repeated until the account is stopped: [outages](quotas.md#outages) says when. They count against `max_calls`.
"""
PLATFORM = """## Codes of the platform

Codes are compared without case. A code that no row has is retried, and its device fails after `max_attempts` requests.
`HTTP 502` and the like are responses without a code.

| code | meaning | what auditor does |
|---|---|---|"""
WARNINGS = """
## Warnings

A warning says why numbers do not cover the whole fleet, or are not reliable. These are the `kind`s of warnings in JSON, in
webhooks, and in notes on standard error.

| kind | meaning |
|---|---|"""
CLASSES = {
    "TransientError": "retries the request",
    "NonceUsedError": "retries the request with a new nonce",
    "ClockSkewError": "corrects its clock by the platform's answers, and retries",
    "ThrottledError": "slows the account down, and retries; this is no attempt of the device",
    "NotFoundError": "stores `not_found`, which is conclusive",
    "NeverActivatedError": "stores `empty` with the reason `never_activated`, which is conclusive",
    "InvalidRequestError": "fails the device without a retry",
    "DeviceDeniedError": "fails the device; if the first ones are all refused, stops the account",
    "AccountDeniedError": "stops the account",
}
EXIT_CODES = f"""# Exit codes

{GENERATED}
| code | meaning |
|---|---|
| 0 | success |
| 1 | more devices failed or are pending than `max_failed` allows, or an account is silent. Also: a product could not be listed, a run does not verify, or a plan does not fit its window |
| 2 | the usage, the settings or the fleet file is wrong, and no request was sent; or the platform lists no device that matches the settings |
| 3 | the platform refuses an account (credentials, permission) or gives it no answer, or the run cannot be written |
| 4 | `--fail-on` matched (drift, or a difference of a fleet file); a rule of severity `error` is violated; or the policy of a run that ended with 0 could not be evaluated |
| 75 | another process has taken over the shard of this one (`shard`); do not start it again |
| 130 | interrupted by SIGINT; `run`, `resume`, `fleet` and `demo` also by SIGTERM or SIGHUP. All results are kept |
| 129, 143 | another command was ended by SIGHUP or SIGTERM; so was one of these in its first second, before it handles signals |

The last line of `run` and `resume` is the exit code with its reason, such as
`exit 1 (too_many_failed): 412 of 9,156 devices failed (4.5%, limit 0.5%), most of them with auditor.Timeout; see docs/errors.md#auditor.Timeout`.
The word in parentheses is `exit_reason.code` in `run.json`, and a label of the metric `auditor_run_exit_reason`.
"""
METRICS = f"""# Metrics

{GENERATED}
What a run writes for Prometheus. [Monitoring](monitoring.md) describes how the metrics are read, and which alerts there are.

They are gauges, and all have the label `run`, the name in the settings. Use a separate file for each name. A run writes them if
`report.metrics` is set, and `auditor metrics RUN -o FILE` writes those of any run.

| metric | other labels | meaning |
|---|---|---|"""
METRIC_LIMITS = """
## Limits

Each metric has at most the 1,000 series with the most devices, and rollouts and groups at most 100; the metrics that end in `_omitted` and
`_combined` count the others. Those of a policy are only written with rules. Those of groups need `group_by`: the label of a group is the name of its attribute, with
`_` for what no label may have. The others are combined in a group with the label `other`, which is `other_` where an attribute is `other`.

Characters of names that cannot be printed are escaped (`\\x00`), and labels are cut at 200 characters. Versions that are equal after that are one
series. `auditor_last_success_timestamp_seconds` is the end of the newest run of this name in the same directory that covers the fleet and is `complete` or
`within_tolerance`, which `prune` keeps. The age of the data is `time() - auditor_oldest_answer_timestamp_seconds`.
"""
API = f"""# Python API

{GENERATED}
Every name of the package `auditor`. [From Python](python.md) has examples. `auditor.X` is imported when it is first used.
"""


def main() -> None:
    """Write the pages, or compare them if the first argument is ``--check``."""
    pages = {
        "settings.md": settings_page("settings", SETTINGS),
        "rules-file.md": settings_page("rules", RULES),
        "schemas.md": schemas_page(),
        "errors.md": errors_page(),
        "exit-codes.md": exit_codes_page(),
        "python-api.md": api_page(),
        "metrics.md": metrics_page(),
    }
    different = [
        name for name, text in pages.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text
    ]
    if sys.argv[1:] != ["--check"]:
        for name in different:
            (DOCS / name).write_text(pages[name], encoding="utf-8")
    elif different:
        sys.exit(f"not as generated: {', '.join(different)}; run make references")


if __name__ == "__main__":
    main()
