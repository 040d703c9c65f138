"""Commands to copy: what a run or a settings file names is never an option of them, and stays one word."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from auditor.errors import ExitReasonCode
from auditor.query.describe import describe_next_steps
from auditor.report.attention import list_attention
from auditor.report.builder import build_report
from auditor.runs.manifest import read_manifest
from auditor.text.shell import format_command, quote_path
from tests.runs.run_folders import edit_manifest, every_status

OWN_FLAGS = {"--since=none", "--status", "--status=failed", "--devices", "--since", "none", "failed"}


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("-x/run", "./-x/run"),
        ("--trust=1", "./--trust=1"),
        ("-", "./-"),
        ("a b", "'a b'"),
        ("/-x", "/-x"),
        ("a\nb", "'a\\nb'"),
    ],
)
def test_a_path_is_one_word_and_no_option(path: str, word: str) -> None:
    assert quote_path(path) == word


@pytest.mark.parametrize("value", ["-eu", "--resume", "eu west", "it's", "", "a;b"])
def test_a_value_belongs_to_its_flag(value: str) -> None:
    line = format_command("auditor check", "-x.toml", flags=[("--account", value), ("--devices", None)])
    assert shlex.split(line) == ["auditor", "check", "./-x.toml", f"--account={value}", "--devices"]


def test_a_hostile_run_puts_no_option_into_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    every_status(tmp_path / "-audits" / "-run")
    folder = Path("-audits/-run")
    rules, settings = "--trust=0123", "--settings=/tmp/evil.toml; reboot"
    edit_manifest(folder, lambda run: replace(run, settings_file=settings, settings={"policy": {"file": rules}}))
    manifest = read_manifest(folder)
    for code in get_args(ExitReasonCode):
        lines = [*describe_next_steps(manifest, code, folder)[1]]
        if code == "success":
            lines += [each.line for item in list_attention(build_report(folder)) for each in item.commands]
        for line in lines:
            program, _, *words = shlex.split(line)
            assert program == "auditor"
            own = {word for word in words if word.startswith("-")}
            assert own <= OWN_FLAGS | {"--since=last~1"} or all(
                word.startswith(("--product=", "--module=", "--below=", "--account=", "--status=")) for word in own
            ), line
