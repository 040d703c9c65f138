"""How faults of settings are printed."""

import json
from pathlib import Path

from tests.cli.conftest import Auditor

TWO_FAULTS = """
concurrency = 0
[[account]]
name = "eu"
endpoint = "si.tuyacloud.com"
access_key_id = "LTAI"
access_key_secret = { env = "SECRET" }
"""


def test_every_command_prints_all_faults_of_its_settings_a_line_each(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "nightly.toml").write_text(TWO_FAULTS)
    for command in ("run", "check", "plan"):
        ended = auditor(command, "nightly.toml")
        assert ended.returncode == 2
        assert ended.stderr.splitlines() == [
            "auditor: nightly.toml: concurrency: give a whole number from 1 to 10,000",
            'auditor: nightly.toml: account 1 ("eu"): endpoint: is not an address such as https://HOST:PORT/',
        ]


def test_faults_are_json_lines_in_a_log_of_json_lines(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "nightly.toml").write_text(TWO_FAULTS)
    lines = [json.loads(line) for line in auditor("run", "nightly.toml", "--log-format", "json").stderr.splitlines()]
    assert [each["level"] for each in lines] == ["error", "error"]
