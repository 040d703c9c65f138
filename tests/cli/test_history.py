"""`auditor history`, and the formats and labels that all commands for reading runs share."""

import json
import os
import pty
import shlex
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.models import Outcome
from auditor.runs.folder import INVENTORY_JSON, MODULES
from tests.cli.conftest import Auditor, command, read_terminal
from tests.runs.run_folders import build, edit_manifest, every_status, failed, named, ok, running

ESCAPE = "\x1b[31mred"


@pytest.fixture
def audits(tmp_path: Path) -> Path:
    """Six nights of ten devices: one device more is upgraded each night; partial, tampered and running ones."""
    fleet = [named(number) for number in range(10)]
    for day in range(6):
        folder = tmp_path / "audits" / f"night-{day}"
        answers: list[Outcome] = [
            ok(device, ("ble", "2.0" if number < day else "1.0"), (ESCAPE, ESCAPE))
            for number, device in enumerate(fleet)
        ]
        if day == 2:
            answers[9] = failed(fleet[9])
        (running if day == 5 else build)(folder, fleet, answers)
        edit_manifest(folder, lambda manifest, day=day: replace(manifest, started_at=f"2026-11-0{day + 1}T02:00:00.000Z"))  # type: ignore[misc]  # fmt: skip
    bad = tmp_path / "audits" / "night-3" / INVENTORY_JSON
    bad.write_bytes(bad.read_bytes().replace(b'"2.0"', b'"9.9"'))
    return tmp_path / "audits"


@pytest.mark.slow
def test_adoption_is_shown_and_incomplete_runs_are_marked(auditor: Auditor, audits: Path) -> None:
    done = auditor("history", "--module", "BLE")
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "nightly: 6 runs, 2026-11-01 to 2026-11-06"
    runs = [line.split() for line in lines[3:9]]
    assert runs[0] == ["2026-11-01", "02:00", "complete", "10", "10", "0", "0"]
    assert runs[2] == ["2026-11-03", "02:00", "~", "partial", "10", "9", "1", "0"]
    assert runs[3][2:4] == ["!", "complete"]
    assert runs[5] == ["2026-11-06", "02:00", "?", "killed", "10", "10", "0", "0"]
    assert lines[9:12] == [
        "~ incomplete: not of the complete fleet", "! damaged: see the notes", "? not sealed: no versions yet",
    ]  # fmt: skip
    target = lines[lines.index("demo p1 ble  reported by 10 devices in the run of 2026-11-05 02:00") + 1]
    sentence = "40% of devices, +10.0 points a day, moving for 3 runs, done by 2026-11-11; 6 behind"
    assert target == f"target 2.0 (newest): {sentence}"
    old, new, marks = (line.split() for line in lines[16:19])
    assert old == ["1.0", 4 * "█" + 4 * "█" + 4 * "▇" + 4 * "▆" + 4 * "▅", "60.0%", "-40.0", "6"]
    assert new == ["2.0", 4 * "·" + 4 * "▁" + 4 * "▂" + 4 * "▃" + 4 * "▄", "40.0%", "+40.0", "4"]
    assert marks == ["~~~~!!!!", "????"]
    rows = [line.split()[2:] for line in lines[-6:]]
    assert rows == [
        ["100.0%"], ["90.0%", "10.0%"], ["~", "77.8%", "22.2%"], ["!", "70.0%", "30.0%"], ["60.0%", "40.0%"],
        ["?", "?", "?"],
    ]  # fmt: skip
    assert f"note: {audits.name}/night-3: inventory.json is not the file that was sealed" in done.stderr
    assert "note: 2 of 6 runs do not cover the whole fleet (killed, partial)" in done.stderr


def test_device_names_are_escaped_and_a_narrow_terminal_is_enough(audits: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(("history", audits)), stdout=theirs, stderr=subprocess.DEVNULL, cwd=audits.parent,
        env=os.environ | {"TERM": "dumb", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(theirs)
    shown = read_terminal(ours)
    assert process.wait(20) == 0
    text = shown.decode()
    assert "\\x1b[31mred" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_terminal_without_unicode_gets_plain_lines(audits: Path) -> None:
    done = subprocess.run(
        command(("history", audits, "--module", "ble")), env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1.0      ########****++++====      60.0%" in done.stdout
    assert done.stdout.isascii()


def test_the_newest_runs_are_selected(auditor: Auditor, audits: Path) -> None:
    done = auditor("history", audits, "--limit", 2, "--product", "p1", "--format", "json")
    document = json.loads(done.stdout)
    assert [run["run"] for run in document["runs"]] == ["night-4", "night-5"]
    assert [row["devices"] for row in document["rows"] if row["module_name"] == "ble"] == [6, 4]
    for wrong in (
        ("--limit", 0),
        ("--name", "odd"),
        ("--module", "odd"),
        ("--where", "site=x"),
        ("--format", "table", "-o", "x.csv"),
    ):
        refused = auditor("history", audits, *wrong)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr


def test_a_table_shows_thirty_runs_and_other_formats_all(auditor: Auditor, tmp_path: Path) -> None:
    folder = build(tmp_path / "one", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    (tmp_path / "audits").mkdir()
    for day in range(31):
        subprocess.run(["cp", "-r", folder, tmp_path / "audits" / f"run-{day:02}"], check=True)
    done = auditor("history")
    assert done.stdout.startswith("nightly: 30 runs")
    assert "note: the newest 30 runs; --limit shows more" in done.stderr
    assert len(auditor("history", "--format", "jsonl").stdout.splitlines()) == 31
    assert auditor("history", "--limit", 31).stdout.startswith("nightly: 31 runs")


BEGINS = {"csv": b"", "json": b"{", "jsonl": b"{", "parquet": b"PAR1", "XLSX": b"PK"}


@pytest.mark.parametrize("ending", BEGINS)
def test_the_name_of_a_file_gives_its_format(auditor: Auditor, tmp_path: Path, ending: str) -> None:
    every_status(tmp_path / "audits" / "run")
    done = auditor("inventory", "audits", "-o", f"out.{ending}")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    whole = (tmp_path / f"out.{ending}").read_bytes()
    assert whole.startswith(BEGINS[ending])
    if ending == "csv":
        assert whole.startswith(b"account,product_key,module_name")


@pytest.mark.parametrize(
    "arguments", [("devices",), ("sql", "FROM inventory"), ("diff", "other", "--all"), ("history",)]
)
def test_every_command_that_reads_runs_writes_excel_files(
    auditor: Auditor, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    every_status(tmp_path / "audits" / "run")
    every_status(tmp_path / "other")
    verb, *more = arguments
    done = auditor(verb, "audits", *more, "-o", "out.xlsx")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with zipfile.ZipFile(tmp_path / "out.xlsx") as archive:
        assert b"p1" in archive.read("xl/worksheets/sheet1.xml")
        assert b"partial" in archive.read("xl/worksheets/sheet2.xml")


def test_a_name_without_a_format_is_refused_unless_one_is_given(auditor: Auditor, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    refused = auditor("inventory", "run", "-o", "out.odd")
    assert refused.returncode == 2
    assert refused.stderr == (
        "auditor: out.odd: the name does not give a format; use --format csv, json, jsonl, parquet or xlsx\n"
    )
    explicit = auditor("inventory", "run", "-o", "out.csv", "--format", "xlsx")
    assert explicit.returncode == 0, explicit.stderr
    assert zipfile.is_zipfile(tmp_path / "out.csv")


@pytest.mark.parametrize("form", ["xlsx", "parquet"])
def test_binary_formats_go_through_a_pipe_but_not_to_a_terminal(tmp_path: Path, form: str) -> None:
    every_status(tmp_path / "run")
    shown = shlex.join(command(("inventory", "run", "--format", form)))
    piped = subprocess.run(["bash", "-c", f"{shown} | head -c 2"], cwd=tmp_path, capture_output=True, check=True)
    assert piped.stdout in (b"PK", b"PA")
    ours, theirs = pty.openpty()
    refused = subprocess.run(
        command(("inventory", "run", "--format", form)),
        cwd=tmp_path, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert refused.returncode == 2
    assert refused.stderr == f"auditor: {form} cannot be shown on a terminal; name a file with -o\n"


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_the_inventory_of_a_tampered_run_is_labelled(auditor: Auditor, tmp_path: Path, form: str) -> None:
    folder = build(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    assert auditor("inventory", folder, "--format", form).stderr == ""
    other = build(tmp_path / "other", [named(0)], [ok(named(0), ("ble", "2"))]).folder
    (other / MODULES).replace(folder / MODULES)
    done = auditor("inventory", folder, "--format", form)
    assert done.returncode == 0
    warning = f"{folder}: {MODULES} is not the file that was sealed (its digest differs)"
    assert done.stderr == f"note: {warning}\n"
    if form == "json":
        assert json.loads(done.stdout)["warnings"] == [{"kind": "tampered", "message": warning}]
