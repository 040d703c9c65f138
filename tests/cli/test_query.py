"""The commands that read runs: devices, sql, diff."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.cli.commands.query import sql
from auditor.errors import UsageError
from tests.cli.conftest import Auditor
from tests.runs.run_folders import build, edit_manifest, every_status, failed, named, ok

ESCAPE = "\x1b[31mred"


@pytest.fixture
def nights(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs: of four devices one is upgraded, one downgraded, one has an odd version, one failed the second night."""
    fleet = [named(number) for number in range(4)]
    old = build(tmp_path / "audits" / "old", fleet, [ok(device, ("ble", "1.2")) for device in fleet]).folder
    versions = ["1.10", "1.1", ESCAPE]
    answers = [ok(device, ("BLE", version)) for device, version in zip(fleet, versions, strict=False)]
    new = build(tmp_path / "audits" / "new", fleet, [*answers, failed(fleet[3])]).folder
    edit_manifest(new, lambda manifest: replace(manifest, started_at="2026-11-23T02:00:00.000Z"))
    return old, new


def test_devices_are_filtered_and_incomparable_versions_are_counted(
    auditor: Auditor, nights: tuple[Path, Path]
) -> None:
    done = auditor("devices", nights[1], "--module", "ble", "--below", "1.2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["p1", "device0001", "ok", "BLE", "1.1"]
    assert "1 devices run a version that cannot be compared with 1.2" in done.stderr
    assert f"note: {nights[1]}: partial: 1 devices failed, 0 pending" in done.stderr


def test_a_version_is_filtered_and_device_names_are_escaped(auditor: Auditor, nights: tuple[Path, Path]) -> None:
    done = auditor("devices", nights[1], "--version", ESCAPE)
    assert done.returncode == 0, done.stderr
    assert "\\x1b[31mred" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    limited = auditor("devices", nights[1], "--limit", 2)
    assert len(limited.stdout.splitlines()) == 3
    assert "2 of 4 rows" in limited.stderr


@pytest.mark.parametrize(
    "arguments", [("--below", "1"), ("--limit", "0"), ("--limit", "9" * 23), ("--status", "odd"), ("-o", "f.txt")]
)
def test_meaningless_filters_are_refused(
    auditor: Auditor, nights: tuple[Path, Path], arguments: tuple[str, ...]
) -> None:
    done = auditor("devices", nights[0], *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_formats_go_completely_to_standard_output_or_a_file(auditor: Auditor, tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    shown = auditor("devices", folder, "--module", "=CMD", "--format", "csv", "-o", "-")
    assert list(csv.reader(io.StringIO(shown.stdout)))[1][5:7] == ["'=cmd", "'@evil"]
    assert auditor("devices", folder, "--format", "json", "--out", "out.json").stdout == ""
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 12
    answered = auditor("sql", folder, "SELECT count(*) AS n FROM devices", "--format", "jsonl")
    assert json.loads(answered.stdout) == {"n": 10}


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_that_is_a_file_is_written_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    code = (
        "from pathlib import Path\nimport sys\nfrom auditor.cli.output import emit_file, is_stdout\n"
        "out = Path(sys.argv[1])\nassert is_stdout(out)\n"
        "print('before')\nemit_file(out, lambda path: path.write_text('a,b\\n'))\nprint('after')"
    )
    with (tmp_path / "out.csv").open("w") as file:
        done = subprocess.run([sys.executable, "-c", code, name], stdout=file, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out.csv").read_text() == "before\na,b\nafter\n"


def test_sql_returns_rows_or_refuses_in_one_sentence(auditor: Auditor, tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    done = auditor("sql", folder, "SELECT status, count(*) AS n FROM devices GROUP BY ALL ORDER BY ALL")
    assert done.stdout.split()[:4] == ["status", "n", "empty", "1"]
    for query in ("FROM read_csv('/etc/passwd')", "SET threads = 4", "FROM nowhere", "INSTALL httpfs"):
        refused = auditor("sql", folder, query)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith("auditor: the query ")
        assert "Traceback" not in refused.stderr


def test_a_time_limit_that_is_no_duration_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--timeout 'soon' is not a duration"):
        sql(Path("audits"), "SELECT 1", timeout="soon")


def test_a_table_is_cut_and_says_so(auditor: Auditor, tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    done = auditor("sql", folder, "SELECT range FROM range(2000)")
    assert len(done.stdout.splitlines()) == 1001
    assert "note: the table shows 1,000 rows" in done.stderr


def test_drift_is_printed_by_module_and_by_device(auditor: Auditor, nights: tuple[Path, Path]) -> None:
    done = auditor("diff", *nights)
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.splitlines()[-2:]
    assert row.split()[:2] == ["p1", "ble"]
    assert "downgraded" in header
    assert "vanished" not in header
    assert "old to new: 3 devices compared, 1 not seen" in done.stderr
    assert "1 of 1 module of products changed" in done.stderr
    assert "of products changed" not in auditor("diff", *nights, "--format", "csv").stderr
    assert f"note: {nights[1]}: partial: 1 devices failed" in done.stderr
    rows = list(csv.DictReader(io.StringIO(auditor("diff", *nights, "--devices", "--format", "csv").stdout)))
    assert [row["change"] for row in rows] == ["upgraded", "downgraded", "changed", "not_seen"]


def test_the_last_two_runs_of_a_directory_are_compared(
    auditor: Auditor, tmp_path: Path, nights: tuple[Path, Path]
) -> None:
    named_ = auditor("diff", *nights, "--format", "jsonl").stdout
    assert auditor("diff", "--last", "--format", "jsonl").stdout == named_
    assert auditor("diff", "--last", tmp_path / "audits", "--format", "jsonl").stdout == named_
    assert json.loads(named_)["not_seen"] == 1


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [("downgraded,vanished", 4), ("vanished", 0), ("vanished, not_seen", 4), ("left,removed", 0), ("odd", 2), ("", 2)],
)
def test_drift_that_matches_fail_on_exits_with_4(
    auditor: Auditor, nights: tuple[Path, Path], fail_on: str, code: int
) -> None:
    done = auditor("diff", *nights, "--fail-on", fail_on)
    assert done.returncode == code
    if code == 4:
        assert "auditor: --fail-on matched: 1 " in done.stderr


@pytest.mark.parametrize("arguments", [(), ("audits",), ("audits", "audits", "--last"), ("audits", "nowhere")])
def test_missing_runs_are_requested(auditor: Auditor, nights: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    done = auditor("diff", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
