"""The address of a dead man's switch is read from settings that have any other fault."""

from pathlib import Path

import pytest

from auditor.config.loader import load_settings
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
        '\ufeffping = { env = "HEALTHCHECK" }',
        '\ufeffping = { env = "HEALTHCHECK" }\nname = ',
        'name = \n \t ping = { env = "HEALTHCHECK" }',
        'name = \r\nping = { env = "HEALTHCHECK" }\r\n',
        'name = \nping.env = "HEALTHCHECK"',
        'name = \nping . "env" = "HEALTHCHECK"',
        'name = \n"ping" = { env = "HEALTHCHECK" }',
        "name = \n'ping' = { env = 'HEALTHCHECK' }",
        f'ping = {{ env = "HEALTHCHECK" }}\nname = {"[" * 5_000}',
        f'ping = {{ env = "HEALTHCHECK" }}\nlimit = {"1" * 5_000}',
        'ping = { env = "HEALTHCHECK" }\nname =\n[quota_sharing]\ndirectory = "/run/auditor"\n[x]\nping = 3',
    ],
)
def test_a_file_with_other_faults_has_its_switch(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_bytes(text.encode())
    assert read_ping(tmp_path / "s.toml") == PingSettings(PING, tmp_path / "audits")


@pytest.mark.parametrize(
    "text",
    [
        "", "ping = 3", "ping = {}", 'ping = { env = "A", file = "b" }', 'ping = { envv = "A" }',
        '[x]\n ping = { env = "A" }\n', "ping = { env =", "\0", 'ping = { file = "a\\u0000" }',
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


@pytest.mark.parametrize("place", [b"# caf\xe9\n%s", b"%s\n# caf\xe9", b"name = 'caf\xe9'\n%s", b"[x\xe9\n%s"])
def test_a_byte_that_is_no_text_hides_no_switch(tmp_path: Path, place: bytes) -> None:
    (tmp_path / "s.toml").write_bytes(place % b'ping = { env = "HEALTHCHECK" }')
    assert read_ping(tmp_path / "s.toml").ping == PING


ACCOUNT = """
[[account]]
name = "eu"
endpoint = "https://iot.example"
access_key_id = { env = "ID" }
access_key_secret = { env = "SECRET" }
"""

FORMS = (
    "",
    'ping = { env = "HEALTHCHECK" }',
    'ping.command = ["pass", "hc"]',
    ' "ping" = { file = "hc" }',
    'directory = "runs"\nping.env = "HEALTHCHECK"',
    "'directory' = '/srv/runs'",
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("form", FORMS)
def test_each_file_that_an_audit_accepts_is_read_as_the_audit_reads_it(
    tmp_path: Path, form: str, newline: str, encoding: str
) -> None:
    path = tmp_path / "s.toml"
    for text in (f"{form}\n{ACCOUNT}", f"{ACCOUNT}\n[ping]\nenv = 'X'\n" if not form else f"# é\n{form}\n{ACCOUNT}"):
        path.write_bytes(text.replace("\n", newline).encode(encoding))
        settings = load_settings(path)
        assert read_ping(path) == PingSettings(settings.ping, Path(settings.directory))
