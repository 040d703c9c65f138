"""`auditor policy`: exit codes, formats and output."""

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from auditor.cli.app import main
from tests.cli.conftest import Auditor
from tests.runs.run_folders import every_status

RULES = """
[[rule]]
name = "old ble"
module = "BLE"
minimum = "1.1"
severity = "{severity}"

[[rule]]
name = "required"
required = true
module = ["ble", "zigbee"]
severity = "note"
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "error.toml").write_text(RULES.format(severity="error"))
    (tmp_path / "warning.toml").write_text(RULES.format(severity="warning"))
    return every_status(tmp_path / "run").folder


def test_a_violated_error_exits_with_4_and_a_warning_does_not(auditor: Auditor, run: Path) -> None:
    done = auditor("policy", run, "error.toml")
    assert done.returncode == 4, done.stderr
    header, first, second = done.stdout.splitlines()
    assert header.split() == ["verdict", "severity", "rule", "found"]
    assert first.rstrip().endswith("2 of 4 devices violate it, 4 have no answer")
    assert second.split()[:3] == ["violated", "note", "required"]
    talk = done.stderr.splitlines()
    assert talk[0] == f"note: {run}: partial: 2 devices failed, 2 pending"
    assert talk[1] == "run by error.toml: 2 rules: 2 violated"
    assert talk[2] == "auditor: the policy is violated: old ble"
    assert auditor("policy", run, "warning.toml").returncode == 0


@pytest.mark.slow
def test_rules_and_devices_are_written_in_every_format(auditor: Auditor, tmp_path: Path, run: Path) -> None:
    document = json.loads(auditor("policy", run, "error.toml", "--format", "json").stdout)
    assert document["schema_version"] == 2
    assert document["devices"]["failed"] == 2
    assert document["warnings"]
    assert [(each["rule"], each["violated"]) for each in document["results"]] == [("old ble", 2), ("required", 1)]
    listed = auditor("policy", run, "error.toml", "--devices", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(listed)))
    assert [(row["rule"], row["device_name"], row["reason"]) for row in rows] == [
        ("old ble", "device0000", "is older than 1.1"),
        ("old ble", "device0001", "is older than 1.1"),
        ("required", "device0003", "reports no module ble or zigbee"),
    ]
    shown = auditor("policy", run, "error.toml", "--devices").stdout
    assert "device0003" in shown
    written = auditor("policy", run, "error.toml", "--format", "parquet", "-o", "rules.parquet")
    assert written.returncode == 4
    assert (tmp_path / "rules.parquet").read_bytes()[:4] == b"PAR1"


def test_formats_for_ci_and_chat_go_to_standard_output_or_a_file(auditor: Auditor, tmp_path: Path, run: Path) -> None:
    top = ET.fromstring(auditor("policy", run, "error.toml", "--format", "junit").stdout)
    assert top.get("failures") == "1"
    assert auditor("policy", run, "error.toml", "--format", "sarif", "-o", "f.sarif").returncode == 4
    assert json.loads((tmp_path / "f.sarif").read_text())["version"] == "2.1.0"
    assert auditor("policy", run, "error.toml", "--format", "markdown").stdout.startswith("**Failed**: `run`")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("error.toml", "--devices", "--format", "junit"), "--devices needs a table"),
        (("error.toml", "-o", "f.txt"), "f.txt: the name does not give a format"),
        (("error.toml", "--devices", "-o", "f.sarif"), "--devices needs a table"),
        (("none.toml",), "none.toml: cannot be read: No such file or directory"),
        (("broken.toml",), "broken.toml: rule 1: has no name"),
    ],
)
def test_invalid_options_of_policy_are_one_sentence(
    auditor: Auditor, tmp_path: Path, run: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "broken.toml").write_text("[[rule]]\nminimum = '1'\n")
    done = auditor("policy", run, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_one_rule_alone_decides_the_output_and_the_exit_code(auditor: Auditor, run: Path) -> None:
    done = auditor("policy", run, "error.toml", "--rule", "required")
    assert done.returncode == 0, "a note"
    assert [line.split()[2] for line in done.stdout.splitlines()] == ["rule", "required"]
    listed = auditor("policy", run, "error.toml", "--rule", "old ble", "--devices", "--format", "csv")
    assert listed.returncode == 4
    assert {row["rule"] for row in csv.DictReader(io.StringIO(listed.stdout))} == {"old ble"}
    refused = auditor("policy", run, "error.toml", "--rule", "old")
    assert refused.returncode == 2
    assert refused.stderr == "auditor: --rule old: error.toml has no such rule; its rules are old ble, required\n"


def test_a_table_that_is_too_long_has_a_part_for_each_rule(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.cli.commands.report.MAX_TABLE_ROWS", 1)
    assert main(("policy", str(run), str(tmp_path / "warning.toml"), "--devices")) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["old ble:", "required:"]
    assert sum("is older than 1.1" in line for line in lines) == 2
    assert "note: up to 1 rows of each rule; --rule NAME shows one rule, and --format " in printed.err


def test_names_of_devices_and_rules_are_escaped(auditor: Auditor, tmp_path: Path, run: Path) -> None:
    (tmp_path / "hostile.toml").write_text('[[rule]]\nname = "[red]x"\ndeny = "\\u001b[31m*"\nmodule = "="\n')
    done = auditor("policy", run, "hostile.toml")
    assert "[red]x" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert 'note: rule "[red]x" matches nothing of the devices that answered' in done.stderr


@pytest.mark.parametrize(
    ("name", "beginning"), [("p.xml", b"<?xml"), ("p.sarif", b"{"), ("p.md", b"**"), ("p.xlsx", b"PK")]
)
def test_the_name_of_a_file_gives_its_format(
    auditor: Auditor, tmp_path: Path, run: Path, name: str, beginning: bytes
) -> None:
    done = auditor("policy", run, "warning.toml", "-o", name)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name).read_bytes().lstrip().startswith(beginning)
