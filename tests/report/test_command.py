"""`auditor report` as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.report.pages import read, read_text
from tests.runs.run_folders import every_status


def auditor(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "auditor", "report", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_becomes_a_page_and_its_doubts_are_told(tmp_path: Path) -> None:
    every_status(tmp_path / "audits" / "now")
    done = auditor(tmp_path, "audits")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fleet.html\n"
    assert "is partial: 2 devices failed and 2 are pending" in done.stderr
    assert read(tmp_path / "fleet.html").figures["devices.fleet"] == "10"


def test_a_page_goes_to_standard_output_with_verdicts(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "audits" / "now").folder
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "recalled"\ndeny = ["1.0"]\n')
    done = auditor(tmp_path, folder, "--rules", "rules.toml", "-o", "-")
    assert done.returncode == 0, done.stderr
    assert read_text(done.stdout).figures["policy.violated"] == "1"
    assert not (tmp_path / "fleet.html").exists()


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "audits" / "now").folder
    (tmp_path / "rules.toml").write_text("[[rule]]\n")
    for code, arguments in (
        (2, ["nowhere"]),
        (2, [folder, "--rules", "rules.toml"]),
        (3, [folder, "-o", "nowhere/fleet.html"]),
    ):
        done = auditor(tmp_path, *arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[-1].startswith("auditor: ")
        assert "Traceback" not in done.stderr
