"""Secrets from the environment, files and commands: what is wrong with one is a sentence, and never tells it."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
import structlog

import auditor
from auditor.audit.preflight import preflight
from auditor.config import secrets as keys
from auditor.config.loader import load_settings
from auditor.config.secrets import read_secret
from auditor.config.serialization import settings_to_dict
from auditor.config.settings import SecretSource
from auditor.errors import AuditInterruptedError, SettingsError
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import SLOW_LATENCY, assert_complete_and_correct, interrupted_audit, plain_world
from tests.integration.test_audit import account_table, settings_for

HIDDEN = "s3cr3t-of-the-account"


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EU_SECRET", f" {HIDDEN}\n")
    (tmp_path / "key").write_text(f"\ufeff{HIDDEN}\r\n", encoding="utf-8")
    for source in (SecretSource(env="EU_SECRET"), SecretSource(file=str(tmp_path / "key")), HIDDEN):
        assert read_secret(source, account="eu", key="access_key_secret").reveal() == HIDDEN


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    monkeypatch.delenv("EU_SECRET", raising=False)
    if text is not None:
        monkeypatch.setenv("EU_SECRET", text)
    with pytest.raises(SettingsError, match=r'account "eu": access_key_id: .* EU_SECRET is not set'):
        read_secret(SecretSource(env="EU_SECRET"), account="eu", key="access_key_id")


@pytest.mark.parametrize(
    ("name", "says"), [("pipe", "is a pipe"), ("/dev/zero", "is a device"), ("large", "more than 1,048,576 bytes")]
)
def test_a_secret_file_that_may_never_end_is_refused(tmp_path: Path, name: str, says: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(SettingsError, match=f"access_key_secret: .* cannot be read: .*{says}"):
        read_secret(SecretSource(file=str(tmp_path / name)), account="eu", key="access_key_secret")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (HIDDEN.encode() + b"\xff", "not UTF-8"),
        (HIDDEN.encode() + b"\nmore", "several lines"),
        (HIDDEN.encode("utf-16-le"), "control character"),
    ],
)
def test_a_secret_file_without_a_secret_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=says) as caught:
        read_secret(SecretSource(file=str(path)), account="eu", key="access_key_secret")
    assert str(path) in str(caught.value)
    assert HIDDEN not in str(caught.value)
    assert HIDDEN not in repr([caught.value.__cause__, caught.value.__context__])


def test_a_variable_that_is_not_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "EU_SECRET", HIDDEN + "\udcff")
    with pytest.raises(SettingsError, match="EU_SECRET contains") as caught:
        read_secret(SecretSource(env="EU_SECRET"), account="eu", key="access_key_secret")
    assert HIDDEN not in str(caught.value)


def by_command(*words: str) -> str:
    return read_secret(SecretSource(command=words), account="eu", key="access_key_secret").reveal()


def program(folder: Path, text: str) -> str:
    """A program of that text, and its path."""
    path = folder / "key"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_a_secret_is_what_a_command_prints() -> None:
    assert by_command("printf", f"\ufeff {HIDDEN} \r\n") == HIDDEN


def test_no_shell_reads_a_command() -> None:
    assert by_command("echo", "$HOME; `id` > x") == "$HOME; `id` > x"


def test_a_command_has_no_input_and_its_errors_are_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert by_command(program(tmp_path, f"cat; echo unlocking >&2; echo {HIDDEN}")) == HIDDEN
    assert capfd.readouterr() == ("", "unlocking\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"echo {HIDDEN}; exit 3", "exited with 3; run it by hand"),
        (f"echo {HIDDEN}; kill -9 $$", "was killed by signal 9; run it by hand"),
        ("echo", "is empty"),
        ("true", "is empty"),
        (f"echo {HIDDEN}; echo more", "several lines"),
        (f"printf '{HIDDEN}\\377'", "is not UTF-8"),
        (f"printf '{HIDDEN}\\033[0m'", "control character"),
        (f"yes {HIDDEN}", "prints more than 65,536 bytes"),
    ],
)
def test_a_command_without_a_secret_is_named_and_its_output_is_not_quoted(tmp_path: Path, text: str, says: str) -> None:
    path = program(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        by_command(path, "an argument")
    assert str(caught.value).startswith('account "eu": access_key_secret: ')
    assert f"the command {path}" in str(caught.value)
    assert says in str(caught.value)
    assert HIDDEN not in repr([caught.value, caught.value.__cause__, caught.value.__context__])


@pytest.mark.parametrize(
    ("word", "says"), [("no-such-program", "No such file"), ("/", "denied"), ("a\0b", "null character")]
)
def test_a_program_that_cannot_be_started_is_named(word: str, says: str) -> None:
    with pytest.raises(SettingsError, match=f"the command {word} cannot be started: .*{says}"):
        by_command(word)


def test_a_command_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "COMMAND_TIMEOUT", 0.3)
    for text in (f"echo {HIDDEN}; exec sleep 20", f"echo {HIDDEN}; exec >&-; exec sleep 20"):
        with pytest.raises(SettingsError, match=r"did not end within 0\.3 s") as caught:
            by_command(program(tmp_path, text))
        assert HIDDEN not in repr([caught.value, caught.value.__context__])


def test_the_path_of_a_program_is_relative_to_the_settings_folder_and_kept_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, f"echo {HIDDEN}")
    (tmp_path / "nightly.toml").write_text(
        """
        quota_sharing = { redis = "redis://cache", password = { command = ["pass", "redis/cache"] } }
        [[account]]
        name = "eu"
        endpoint = "https://si.tuyacloud.com/"
        access_key_id = { command = ["pass", "show", "iot/eu"] }
        access_key_secret = { command = ["./key", "iot/eu"] }
        proxy = { command = ["../acc/key", "./proxy"] }
        [[notify]]
        name = "ops"
        webhook = { command = ["./key"] }
        """
    )
    monkeypatch.chdir(tmp_path)
    read = load_settings("nightly.toml")
    monkeypatch.chdir("/")
    stored = read.account[0].access_key_secret
    assert stored is not None
    assert read_secret(stored, account="eu", key="k").reveal() == HIDDEN
    kept = json.loads(json.dumps(settings_to_dict(read)))
    assert kept["quota_sharing"]["password"] == {"command": ["pass", "redis/cache"]}
    assert kept["account"][0]["access_key_id"] == {"command": ["pass", "show", "iot/eu"]}
    assert kept["account"][0]["access_key_secret"] == {"command": [str(tmp_path / "key"), "iot/eu"]}
    assert kept["account"][0]["proxy"] == {"command": [str(tmp_path.parent / "acc/key"), "./proxy"]}
    assert kept["notify"][0]["webhook"] == {"command": [str(tmp_path / "key")]}
    assert settings_to_dict(auditor.parse_settings(kept)) == settings_to_dict(read)


@pytest.mark.slow
@pytest.mark.anyio
async def test_an_audit_whose_key_a_command_prints_is_resumed(tmp_path: Path) -> None:
    path = program(tmp_path, f"echo {DEFAULT_ACCOUNT.secret.reveal()}")
    world = plain_world(100)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        table = account_table(platform.endpoint, tmp_path, access_key_secret={"command": [path]})
        before = await interrupted_audit(platform, settings_for(tmp_path, table, concurrency=4))
        result = await auditor.resume_audit(before.folder)
    assert_complete_and_correct(world, result)
    assert DEFAULT_ACCOUNT.secret.reveal() not in (result.folder / "run.json").read_text()


@pytest.mark.anyio
async def test_a_slow_command_blocks_nothing_and_a_stop_request_works_meanwhile(tmp_path: Path) -> None:
    path = program(tmp_path, f"sleep 1; echo {HIDDEN}")
    settings = settings_for(
        tmp_path, account_table("http://127.0.0.1:1/", tmp_path, access_key_secret={"command": [path]})
    )
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    stop, began = auditor.StopToken(), time.monotonic()
    async with anyio.create_task_group() as group:

        async def wish() -> None:
            await anyio.sleep(0.1)
            stop.request("ended by a test")

        group.start_soon(wish)
        with pytest.raises(AuditInterruptedError, match="stopped before any device was queried: ended by a test"):
            await auditor.run_audit(settings, stop=stop)
    assert time.monotonic() - began < 0.8


def warnings_of(paths: list[Path]) -> list[Any]:
    with structlog.testing.capture_logs() as logs:
        for path in paths:
            read_secret(SecretSource(file=str(path)), account="eu", key="access_key_secret")
    return logs


@pytest.fixture
def in_the_open() -> Iterator[Path]:
    """A folder that everybody can enter, as he can all those above it."""
    with TemporaryDirectory(prefix="auditor-test-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


def test_a_file_that_all_users_can_read_is_warned_of_once(in_the_open: Path) -> None:
    path, link = in_the_open / "the key", in_the_open / "link"
    path.write_text(HIDDEN)
    path.chmod(0o604)
    link.symlink_to(path)
    (said,) = warnings_of([path, path, link])
    assert said == {
        "event": "secret_readable", "log_level": "warning",
        "file": str(path), "advice": f"chmod o-rwx '{path}'",
    }  # fmt: skip


@pytest.mark.parametrize(("mode", "folder_mode"), [(0o640, 0o755), (0o600, 0o755), (0o604, 0o750), (0o644, 0o700)])
def test_a_file_that_others_cannot_reach_gives_no_warning(in_the_open: Path, mode: int, folder_mode: int) -> None:
    folder = in_the_open / "secrets"
    folder.mkdir()
    folder.chmod(folder_mode)
    path = folder / "key"
    path.write_text(HIDDEN)
    path.chmod(mode)
    assert warnings_of([path]) == []


@pytest.mark.anyio
async def test_one_key_in_two_variables_is_one_quota_and_no_call_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EU_ID", DEFAULT_ACCOUNT.access_key_id)
    monkeypatch.setenv("US_ID", DEFAULT_ACCOUNT.access_key_id)
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    async with Simulator(World(1)) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=name, access_key_id={"env": variable}, calls_per_second=5)
            for name, variable in (("eu", "EU_ID"), ("us", "US_ID"))
        ]
        settings = settings_for(tmp_path, *tables)
        for ask in (auditor.run_audit, preflight):
            with pytest.raises(SettingsError, match=r'^account "us": has the .* as account "eu"'):
                await ask(settings)
        with pytest.raises(SettingsError, match="both would use one quota"):
            async with auditor.stream_outcomes(settings):
                pass
        assert platform.counts.received == 0
        await auditor.run_audit(settings.restrict_to_accounts(["us"]))
    assert platform.counts.received == 1
