"""What commands write to terminals and pipes: any encoding, escaped text, and no traceback after a signal."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from auditor.cli import app, console, output
from auditor.cli.execution import describe_plain_http
from auditor.cli.signals import READING_COMMANDS
from auditor.config.loader import parse_settings
from auditor.text.formatting import escape_lines
from tests.cli.conftest import command
from tests.runs.run_folders import build, named, ok

ESCAPES = "\x1b[2J\x9b31m\u202egpj.exe\u2066\r\x07版本"
"""Clears a terminal, colours it, turns text around, and has characters that Latin-1 does not have."""

RULES = '[[rule]]\nname = "灯"\nmodule = "default"\nminimum = "2"\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    device = named(0, product="灯-1")
    return build(tmp_path / "run", [device], [ok(device, ("default", ESCAPES))]).folder


def reading_commands(run: Path) -> list[list[str]]:
    rules = run.parent / "rules.toml"
    rules.write_text(RULES, encoding="utf-8")
    name = str(run)
    return [
        ["inventory", name],
        ["devices", name],
        ["devices", name, "--format", "csv"],
        ["devices", name, "--format", "jsonl"],
        ["history", str(run.parent)],
        ["policy", name, str(rules), "--devices"],
        ["policy", name, str(rules), "--format", "markdown"],
        ["sql", name, "SELECT * FROM modules"],
        ["sql", name, "SELECT '灯' AS 灯"],
        ["sql", name, "SELECT 灯"],
        ["metrics", name],
        ["verify", name],
        ["--help"],
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "shift_jis"])
@pytest.mark.slow
def test_no_command_fails_where_the_encoding_lacks_characters(
    run: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr("auditor.cli.commands.query.MAX_QUERY_MEMORY", 1 << 40)  # that of this process, too
    for words in reading_commands(run):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        assert app.main(words) in {0, 2, 4}, words


def test_a_file_is_utf_8_whatever_the_terminal_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert app.main(["inventory", str(run), "-o", str(tmp_path / "inventory.json")]) == 0
    assert "版本" in (tmp_path / "inventory.json").read_text(encoding="utf-8")
    piped = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", piped)
    assert app.main(["inventory", str(run), "--format", "jsonl"]) == 0
    assert "版本".encode() in piped.buffer.getvalue()


@pytest.mark.slow
def test_a_terminal_gets_no_text_that_it_would_act_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in reading_commands(run):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        errors = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        monkeypatch.setattr(sys, "stderr", errors)
        with mock.patch.object(stream, "isatty", return_value=True):
            monkeypatch.setattr(sys, "stdout", stream)
            app.main(words)
        for written in (stream, errors):
            text = written.buffer.getvalue().decode()
            for sign in ("\x1b[2J", "\x9b", "\u202e", "\u2066", "\r", "\x07"):
                assert sign not in text, words


def test_lines_keep_their_ends_and_nothing_else_that_is_not_printed() -> None:
    assert escape_lines("a\tb\nc") == "a\tb\nc"
    assert escape_lines("\x1b[31m\x85\u2028\ud800") == "\\x1b[31m\\x85\\u2028\\ud800"


def test_a_path_that_is_not_utf_8_is_exact_in_a_pipe_and_escaped_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path(os.fsdecode(b"audits/n\xe9\x1b"))
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", pipe)
    console.print_path(path)
    assert pipe.buffer.getvalue() == b"audits/n\xe9\x1b\n"
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with mock.patch.object(terminal, "isatty", return_value=True):
        console.print_path(path)
        output.write_to_stdout(io.BytesIO(b"caf\xe9\x1b\r\n"))
    written = terminal.buffer.getvalue()
    assert written == b"audits/n\\udce9\\x1b\ncaf\\xe9\\x1b\n"


SLOW = "SELECT count(*) FROM range(10000000000) a, range(1000000) b"

VALUE = "SELECT len(range(1000000000))"
"""A single value of 8 GB."""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [("verify",), ("sql", SLOW), ("report", "-o", "r.html"), ("devices", "-o", "d.csv")])
def test_a_signal_ends_a_reading_command_in_time_and_nothing_remains(
    run: Path, tmp_path: Path, words: tuple[str, ...], sent: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    name, *others = words
    assert name in READING_COMMANDS
    process = subprocess.Popen(
        command((name, run, *others)),
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(random.uniform(0.8, 2.5))
    running = process.poll() is None
    started = time.monotonic()
    process.send_signal(sent)
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - started < 3
    assert "Traceback" not in errors
    assert process.returncode in {0, 128 + sent} if name != "sql" or not running else process.returncode == 128 + sent
    assert list(temporary.iterdir()) == []
    assert not [each.name for each in tmp_path.iterdir() if each.name.startswith((".", "tmp_"))]


@pytest.mark.slow
def test_a_query_is_bounded_in_memory_and_time(run: Path) -> None:
    limited = subprocess.run(command(("sql", run, VALUE)), capture_output=True, text=True, check=False, timeout=60)
    assert limited.returncode == 2
    assert "the query fails: Out of Memory" in limited.stderr
    late = subprocess.run(
        command(("sql", run, SLOW, "--timeout", "1s")), capture_output=True, text=True, check=False, timeout=60
    )
    assert (late.returncode, late.stdout) == (2, "")
    assert "takes longer than 1s; give more time with --timeout" in late.stderr


@pytest.mark.parametrize(
    ("endpoint", "warns"),
    [
        ("http://platform.example/", 1),
        ("HTTP://10.0.0.1:8686/", 1),
        ("http://[2001:db8::1]/", 1),
        ("http://127.0.0.1.example/", 1),
        ("http://127.9.9.9:80/", 0),
        ("http://[::1]:80/", 0),
        ("http://localhost:80/", 0),
        ("https://platform.example/", 0),
    ],
)
def test_requests_that_are_not_encrypted_are_warned_about(endpoint: str, warns: int) -> None:
    fleet = {"file": "fleet.csv"}
    keys = {"access_key_id": "key", "access_key_secret": {"env": "SECRET"}}
    table = {"name": "nightly", "account": [{"name": "eu", "endpoint": endpoint, "fleet": fleet, **keys}]}
    settings = parse_settings(table, where="settings.toml", folder=Path("/tmp"))
    assert [each.partition(": ")[0] for each in describe_plain_http(settings.account)] == ['account "eu"'] * warns
