"""The address of a dead man's switch is read from settings that have any other fault."""

from pathlib import Path

import pytest

from auditor.config.ping import PingSettings, read_ping
from auditor.config.settings import SecretSource

PING = SecretSource(env="HEALTHCHECK")


@pytest.mark.parametrize(
    "text",
    [
        'ping = { env = "HEALTHCHECK" }',
        'ping = { env = "HEALTHCHECK" }\nat_once = 3\n[[account]]\nname = 7',
        'name = 3\nping={ env = "HEALTHCHECK" }',
        'nam = "x"\nping = { env = "HEALTHCHECK" }\nconcurrency = = 3',
        '[[account\nping = { env = "HEALTHCHECK" }',
        'name = "unclosed\nping = { env = "HEALTHCHECK" } # daily',
    ],
)
def test_a_file_with_other_faults_has_its_switch(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    assert read_ping(tmp_path / "s.toml") == PingSettings(PING, tmp_path / "audits")


@pytest.mark.parametrize(
    "text",
    [
        "", "ping = 3", "ping = {}", 'ping = { env = "A", file = "b" }', 'ping = { envv = "A" }',
        '[x]\n ping = { env = "A" }\n', "ping = { env =", "\0",
    ],
)  # fmt: skip
def test_a_file_without_a_switch_that_can_be_used_has_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    assert read_ping(tmp_path / "s.toml").ping is None


def test_paths_are_relative_to_the_settings_and_missing_files_have_no_switch(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('directory = "runs"\nping = { file = "hc" }\nx = [')
    found = read_ping(tmp_path / "s.toml")
    assert found == PingSettings(SecretSource(file=str(tmp_path / "hc")), tmp_path / "runs")
    assert read_ping(tmp_path / "none.toml") == PingSettings(None, tmp_path / "audits")
    assert read_ping(tmp_path).ping is None
    (tmp_path / "s.toml").write_bytes(b"\xff")
    assert read_ping(tmp_path / "s.toml").ping is None
