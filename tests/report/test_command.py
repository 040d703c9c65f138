"""The command `auditor report`."""

import subprocess
from dataclasses import replace
from pathlib import Path

from tests import forked
from tests.report.pages import parse_html, parse_page
from tests.runs.run_folders import edit_manifest, every_status


def auditor(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run("report", *arguments, cwd=folder, timeout=120)


def test_report_is_written_and_warnings_are_printed(tmp_path: Path) -> None:
    every_status(tmp_path / "audits" / "now")
    done = auditor(tmp_path, "audits")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fleet.html\n"
    assert ": partial: 2 devices failed, 2 pending" in done.stderr
    assert parse_page(tmp_path / "fleet.html").figures["devices.fleet"] == "10"


def test_report_with_a_policy_goes_to_standard_output(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "audits" / "now").folder
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "recalled"\ndeny = ["1.0"]\n')
    done = auditor(tmp_path, folder, "--rules", "rules.toml", "-o", "-")
    assert done.returncode == 0, done.stderr
    assert parse_html(done.stdout).figures["policy.violated"] == "1"
    assert not (tmp_path / "fleet.html").exists()


def test_rules_of_the_run_are_named_and_not_read(tmp_path: Path) -> None:
    folder, rules = every_status(tmp_path / "audits" / "now").folder, tmp_path / "of the run.toml"
    rules.write_text("[[rule]]\n")
    edit_manifest(folder, lambda manifest: replace(manifest, settings={"policy": {"file": str(rules)}}))
    done = auditor(tmp_path, "audits")
    assert done.returncode == 0, done.stderr
    assert f"the rules of the run are not evaluated; add --rules '{rules}'\n" in done.stderr
    page = (tmp_path / "fleet.html").read_text()
    assert "The rules of the run are not evaluated" in page
    assert "Its settings name of the run.toml; --rules adds them" in page
    assert "'of the run.toml'" in parse_html(page).text, "the command that evaluates them"
    rules.write_text('[[rule]]\nname = "recalled"\ndeny = ["1.0"]\n')
    done = auditor(tmp_path, "audits", "--rules", rules)
    assert parse_page(tmp_path / "fleet.html").figures["policy.violated"] == "1"
    assert "rules" not in done.stderr


def test_errors_are_one_sentence(tmp_path: Path) -> None:
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
