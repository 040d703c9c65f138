"""Everything in the code has its entry in the reference, and the reference has nothing that is not in the code."""

import re
import shlex
import sys
import tomllib
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest
from cyclopts import App
from prometheus_client.parser import text_string_to_metric_families

from auditor.cli.app import app
from auditor.config.settings import Settings
from auditor.errors import DESCRIBED_CODES, OWN_CODES, ExitReasonCode, find_code, find_documents, refer_to_code
from auditor.hooks import metric_samples
from auditor.models import WarningKind
from auditor.policy.loader import RuleTable
from auditor.runs import folder as run_folder
from auditor.runs.manifest import MANIFEST
from auditor.storage.database import parquet
from tests import forked
from tests.database import connect
from tests.documents.conftest import DOCS
from tests.documents.examples import ENVIRONMENT
from tests.documents.pages import ROOT


@cache
def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@cache
def script(name: str) -> ModuleType:
    """Import a module of docs/, whose modules import each other by name."""
    if str(DOCS) not in sys.path:
        sys.path.append(str(DOCS))
    return import_module(name)


def targets(name: str) -> list[str]:
    return re.findall(r'<a id="([^"]+)">', page(name))


def structs(kind: Any, around: tuple[Any, ...] = ()) -> Iterator[type[msgspec.Struct]]:
    """Yield a struct and those of its fields, each of them once or more."""
    if kind in around:
        return
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from structs(hint, (*around, kind))
    for argument in get_args(kind):
        yield from structs(argument, around)


@pytest.mark.parametrize(("name", "top"), [("settings.md", Settings), ("rules-file.md", RuleTable)])
def test_each_key_of_a_file_has_its_entry(name: str, top: type[msgspec.Struct]) -> None:
    keys = {f"{kind.__name__}.{field.encode_name}" for kind in structs(top) for field in msgspec.structs.fields(kind)}
    documented = targets(name)
    assert len(documented) == len(set(documented)) > 10
    assert set(documented) == keys


@pytest.mark.parametrize("top", [Settings, RuleTable])
def test_each_example_of_a_key_has_its_type(top: type[msgspec.Struct]) -> None:
    examples = script("settings_examples").EXAMPLES
    for kind in set(structs(top)):
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        assert set(examples.get(kind.__name__, {})) <= set(fields)
        for key, text in examples.get(kind.__name__, {}).items():
            if "…" not in text:
                value = tomllib.loads(f"key = {text}")["key"]
                msgspec.convert(value, fields[key].type)  # raises an error that names the type


@pytest.mark.slow
def test_pages_are_as_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["references.py", "--check"])
    script("references").main()


def leaf_commands(parent: App = app, words: str = "") -> dict[str, App]:
    """Return the commands that have no commands of their own, by their words."""
    found: dict[str, App] = {}
    for name in (name for name in parent if not name.startswith("-")):
        child, at = parent[name], f"{words} {name}".strip()
        found |= leaf_commands(child, at) or {at: child}
    return found


def flags_of(command: App) -> set[str]:
    """Return the flags of a command, as its parser has them."""
    arguments = command.assemble_argument_collection()
    return {name for each in arguments if each.parameter.show is not False for name in each.names if name[:2] == "--"}


def test_each_command_and_flag_has_its_entry() -> None:
    sections = dict(re.findall(r"<!-- help: auditor ([a-z ]+) -->\n(.*?)<!-- end -->", page("commands.md"), re.DOTALL))
    commands = leaf_commands()
    groups = {name.rpartition(" ")[0] for name in commands} - {""}
    assert set(sections) == set(commands) | groups
    for command in commands:
        text = sections[command]
        names = re.findall(r"(?:^ (?:\*  )?|^ .*?[ (])(--[a-z][a-z-]*)", text, re.MULTILINE)
        flags = flags_of(commands[command])
        assert {flag for flag in flags if flag not in text} == set(), command
        listed = {
            name
            for line in text.splitlines()
            if re.match(r" (?:\*  )?\S*--", line)
            for name in names
            if f" {name}" in line[:30]
        }
        assert listed - flags - {"--help"} == set(), command


def test_each_metric_has_its_entry() -> None:
    assert sorted(targets("metrics.md")) == sorted(metric_samples.HELP)


def test_labels_of_metrics_are_those_of_a_run(examples_folder: Path) -> None:
    words = "metrics audits -o run.prom --rules rules.toml --group-by site"
    done = forked.run(*shlex.split(words), cwd=examples_folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    labels = script("metric_labels").LABELS
    group = labels["auditor_group_devices"][0]
    found = {
        family.name: {name for sample in family.samples for name in sample.labels} - {"run"}
        for family in text_string_to_metric_families((examples_folder / "run.prom").read_text())
    }
    assert len(found) > 30
    assert {name: {"site" if label == group else label for label in labels[name]} for name in found} == found


def test_each_file_of_a_run_has_its_entry() -> None:
    constants = {
        MANIFEST, run_folder.FLEET, run_folder.RESULTS, run_folder.FAILURES, run_folder.CHANGES,
        *run_folder.OPTIONAL, *run_folder.SEALED, *run_folder.PRESENTATION_FILES,
    }  # fmt: skip
    rows = re.findall(r"^\| (`.*?`(?:, `.*?`)*)[^|]* \|", page("run-folder.md"), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([^`]+\.[a-z]+)`", row)}
    assert documented - {"failures.1.jsonl"} == constants


@pytest.mark.slow
def test_each_column_of_a_run_has_its_entry(examples_folder: Path) -> None:
    words = ("run", "nightly.toml", "--since", "last", "--recheck", "5%")
    done = forked.run(*words, cwd=examples_folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    runs = sorted((examples_folder / "audits").iterdir())[-2:]  # the one before has firmware and tasks
    tables = dict(re.findall(r"^### (\w+\.parquet)\n(.*?)(?=^###|\Z)", page("tables.md"), re.MULTILINE | re.DOTALL))
    others = page("fresh.md") + page("run-folder.md")
    files = {path.name: path for run in runs for path in run.glob("*.parquet")}
    assert set(files) >= set(tables)
    with connect() as database:
        for name, path in files.items():
            columns = [column for column, *_ in database.execute(f"DESCRIBE FROM {parquet(path)}").fetchall()]
            if name in tables:
                assert re.findall(r"^\| `(\w+)`", tables[name], re.MULTILINE) == columns, name
            else:
                (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", others, re.MULTILINE)
                assert [column for column in columns if not re.search(rf"\b{column}\b", row)] == [], name


@pytest.mark.slow
def test_each_error_code_has_its_entry() -> None:
    codes = script("error_codes").own_codes(ROOT / "auditor")
    assert len(codes) > 10
    assert set(re.findall(r"^### (auditor\.\w+)$", page("errors.md"), re.MULTILINE)) == codes


def test_each_kind_of_warning_has_its_entry() -> None:
    documented = [each.removeprefix("warning.") for each in targets("errors.md") if each.startswith("warning.")]
    assert sorted(documented) == sorted(get_args(WarningKind))


def test_each_exit_reason_and_code_has_its_entry() -> None:
    assert set(targets("exit-codes.md")) == set(get_args(ExitReasonCode))
    numbers = {
        int(number)
        for row in re.findall(r"^\| ([\d, ]+) \|", page("exit-codes.md"), re.MULTILINE)
        for number in row.split(",")
    }
    text = import_module("auditor.cli.app").EXIT_CODES
    assert numbers == {
        int(each) for each in re.findall(r"^  (\d+)|(?<=, )(\d+)$", text, re.MULTILINE) for each in each if each
    }


@pytest.mark.parametrize(
    "message", re.findall(r"^\| `([^`]*)`", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
)
def test_messages_of_the_troubleshooting_page_are_in_the_code(message: str) -> None:
    for part in message.split("…"):
        assert part.strip() in sources()


@cache
def sources() -> str:
    """Return the text of the package, with the parts of each message put together."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "auditor").rglob("*.py"))
    return re.sub(r"\"\s*\n\s*f?\"", "", text)


def test_each_error_code_has_an_anchor_of_its_name() -> None:
    codes = script("error_codes")
    assert targets("errors.md").count("auditor.Timeout") == 1
    assert {*codes.OWN_CODES, *codes.PLATFORM_CODES} == set(DESCRIBED_CODES) <= set(targets("errors.md"))
    assert set(OWN_CODES) == set(codes.OWN_CODES)
    for code in DESCRIBED_CODES:
        assert refer_to_code("1 failed", code) == f"1 failed; see docs/errors.md#{code}"
    for unknown in ("auditor.Run", "Throttling.Other", "", None):
        assert refer_to_code("1 failed", unknown) == "1 failed"


def test_a_message_names_the_documents_that_a_wheel_has_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "share" / "doc" / "auditor" / "docs").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    find_documents.cache_clear()
    expected = f"1 failed; see {tmp_path}/share/doc/auditor/docs/errors.md#auditor.Timeout"
    assert refer_to_code("1 failed", "auditor.Timeout") == expected
    find_documents.cache_clear()


@pytest.mark.parametrize(
    ("sentence", "reason", "code"),
    [
        ("412 of 9,156 devices failed, most of them with Throttling.User", "too_many_failed", "Throttling.User"),
        ("1 failed, most of them with Throttling: the deadline is over", "too_many_failed", "Throttling"),
        ('account "eu": no usable answer; last error: auditor.DNS: no', "unreachable_account", "auditor.DNS"),
        ('account "Throttling": NoPermission: InternalError: no', "refused_account", "NoPermission"),
        ('account "a: Throttling: b": the key is wrong', "refused_account", None),
        ("p1/InternalError failed with Throttling.Other", "too_many_failed", None),
        ("the policy is violated: InternalError", "policy_violated", None),
        ("AttributeError: module auditor.Run has no attribute x", "unexpected_error", None),
        ("stopped: auditor.Run: no", "refused_account", None),
    ],
)
def test_a_code_is_found_where_a_sentence_has_one(sentence: str, reason: ExitReasonCode, code: str | None) -> None:
    assert find_code(sentence, reason) == code
