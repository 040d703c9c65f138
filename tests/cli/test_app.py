"""The other commands: check, demo, simulate, completion, help."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest

from auditor.cli.app import app
from auditor.cli.commands.config import config
from auditor.simulator.world import World
from tests.cli.conftest import SECRET, Auditor, Platform, StartPlatform, command, read_terminal, settings_file
from tests.report.pages import parse_html

COMMANDS = (
    "check", "completion", "config", "count", "cut", "demo", "device", "devices", "diff", "fetch", "fleet", "history", "init", "inventory", "metrics", "notify", "plan", "policy",
    "prune", "publish", "report", "resume", "run", "runs", "shard", "simulate", "sql", "status", "stop", "verify",
)  # fmt: skip


def test_check_makes_one_call_per_account_and_prints_the_result(auditor: Auditor, platform: Platform) -> None:
    done = auditor("check", platform.settings)
    assert done.returncode == 0
    assert re.search(r"ok +simulated \(http://127\.0\.0\.1:\d+/\): 120 devices; answers in \d+ ms", done.stdout)


def test_check_of_a_refused_key_exits_with_3_and_names_the_cause(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    done = auditor("check", settings, env={"CANARY": "wrong"})
    assert done.returncode == 3
    assert "FAIL eu" in done.stdout
    assert "SignatureDoesNotMatch" in done.stdout
    assert done.stdout.endswith("; see docs/errors.md#SignatureDoesNotMatch\n")


def test_check_finds_a_directory_in_which_no_run_can_be_created(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    settings = settings_file(tmp_path, platform.endpoint, directory="fleet.csv/audits")
    done = auditor("check", settings, env={"CANARY": SECRET})
    assert done.returncode == 3
    assert f"FAIL directory: {tmp_path}/fleet.csv/audits: this user cannot create a run there" in done.stdout
    done = auditor("check", settings_file(tmp_path, platform.endpoint), env={"CANARY": SECRET})
    assert "directory" not in done.stdout


def test_a_device_comes_before_the_directory(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "my audits").mkdir()
    done = auditor("device", "my audits", "dev-1")
    assert done.returncode == 2
    assert done.stderr == (
        "auditor: dev-1: no such directory; the device comes first: auditor device dev-1 'my audits'\n"
    )


def test_check_of_a_key_that_is_not_set_exits_with_2(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    done = auditor("check", settings_file(tmp_path, platform.endpoint), env={"CANARY": ""})
    assert done.returncode == 2
    assert "the environment variable CANARY is not set" in done.stderr


def test_the_demonstration_ends_with_a_page_to_open_and_each_printed_command_works(
    auditor: Auditor, tmp_path: Path
) -> None:
    done = subprocess.run(  # in no process that is called auditor
        command(("demo", "--devices", 400, "--nights", 2, "--out", "my audits")),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = sum(device.exists for device in World(400, large=0))
    assert len(re.findall(rf"^OK +{there} devices", done.stderr, re.MULTILINE)) == 2
    opening, page, commands = re.split("Open in a browser:\n|\n\nTry:\n", done.stdout)
    assert (opening.strip(), page) == ("", "my audits/demo.html")
    html = (tmp_path / page).read_text()
    assert html.startswith("<!doctype html>")

    def try_command(line: str) -> str:
        words = shlex.split(line, comments=True)
        words = words[next(at for at, word in enumerate(words) if word in COMMANDS) :]
        tried = auditor(*words)
        assert tried.returncode == 0, (line, tried.stderr)
        assert len(tried.stdout.splitlines()) > 3, line
        return words[0]

    assert [try_command(line) for line in commands.splitlines()] == ["inventory", "diff", "policy"]
    copied = {
        unescape(re.sub("</?span>", "", line))
        for line in re.findall(r'<div class="command">.*?<code>(.*?)</code>', html)
    }
    copied |= {entry["command"] for entry in parse_html(html).island["modules"] if entry["command"]}
    assert {try_command(line) for line in copied} >= {"devices", "policy"}
    finds_auditor = done.stderr.partition("let the shell find auditor: ")[2].splitlines()[0]
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{finds_auditor}; {min(copied)}"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shell.returncode, shell.stderr.startswith("/bin/sh")) == (0, False), shell.stderr
    next_steps = auditor("status", "my audits").stdout.partition("\nnext: ")[2].splitlines()[1:]
    assert [try_command(line) for line in next_steps] == ["diff"]
    first, last = sorted((tmp_path / "my audits").glob("*-demo"))
    assert all(auditor("verify", folder).returncode == 0 for folder in (first, last))
    assert json.loads((last / "run.json").read_text())["requests"]["retried"] > 0


def test_simulate_prints_its_endpoint_and_ends_on_a_signal(start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 5)
    assert platform.endpoint.startswith("http://127.0.0.1:")
    platform.process.send_signal(signal.SIGINT)
    assert platform.process.wait(10) == 0


def test_a_taken_port_is_one_sentence(auditor: Auditor, platform: Platform) -> None:
    port = platform.endpoint.rsplit(":", 1)[1].strip("/")
    done = auditor("simulate", "--port", port)
    assert done.returncode == 3
    assert done.stderr.startswith("auditor: the simulated platform cannot start:")
    assert done.stderr.endswith("; give another --port; 0 is any that is free\n")


@pytest.mark.parametrize("option", [("--faults", 1.5), ("--latency", 50, 20), ("--devices", -1), ("--per-second", -1)])
def test_invalid_options_of_simulate_are_refused(auditor: Auditor, option: tuple[object, ...]) -> None:
    done = auditor("simulate", "--port", 0, *option)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_progress_on_a_terminal_is_live_and_leaves_only_the_summary(tmp_path: Path, platform: Platform) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(("run", platform.settings, "--out", "runs")),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = read_terminal(ours)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"\x1b[" in shown
    assert b"OK       120 devices: " in re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_have_every_command(auditor: Auditor, shell: str) -> None:
    done = auditor("completion", shell)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.slow
def test_zsh_gets_the_line_that_a_new_home_does_not_have_once(auditor: Auditor, tmp_path: Path) -> None:
    for _ in range(2):
        assert auditor("completion", "zsh", "--install", env={"HOME": str(tmp_path)}).returncode == 0
        assert (tmp_path / ".zshrc").read_text().splitlines().count("autoload -Uz compinit && compinit") == 1


@pytest.mark.parametrize("name", ["show", "validate", "schema"])
def test_each_command_of_config_has_an_example_of_its_own(auditor: Auditor, name: str) -> None:
    assert re.findall(r"Example: (.*?) *$", auditor("config", name, "--help").stdout, re.MULTILINE)[0].startswith(
        f"auditor config {name} "
    )


def test_help_lists_every_command_and_version_is_printed(auditor: Auditor) -> None:
    shown = auditor("--help").stdout
    assert all(re.search(rf"^ *{name} ", shown, re.MULTILINE) for name in COMMANDS)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", auditor("--version").stdout)


def test_only_the_help_of_the_program_has_exit_codes_and_each_command_has_an_example(auditor: Auditor) -> None:
    assert "Exit codes:" in auditor("--help").stdout
    parts = [("config", part) for part in config if not part.startswith("-")]
    assert len(parts) == 3
    for words in [(name,) for name in COMMANDS] + parts:
        shown = auditor(*words, "--help").stdout
        assert "Exit codes:" not in shown
        assert f"Example: auditor {' '.join(words)}" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run",), "Missing CONFIG. Usage: auditor run [OPTIONS] CONFIG (auditor run --help)"),
        (("run", "x.toml", "--limit"), "--limit needs a value (auditor run --help)"),
        (("run", "x.toml", "--calls", "3"), "--calls is now called --max-calls (auditor run --help)"),
        (
            ("run", "x.toml", "--since-rule=strict"),
            "--since-rule is now called --change-detection (auditor run --help)",
        ),
        (("prune",), "nothing says which runs to keep; give a number of runs (--keep) or of days (--keep-days)"),
    ],
)
def test_wrong_arguments_are_one_sentence_with_the_help_to_read(
    auditor: Auditor, arguments: tuple[str, ...], sentence: str
) -> None:
    done = auditor(*arguments)
    assert (done.returncode, done.stderr) == (2, f"auditor: {sentence}\n")


def test_every_command_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    names = {name for name in app if not name.startswith("-")}
    assert names == set(COMMANDS)
    assert all(f"auditor {name} --help" in document for name in names)


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    folder = auditor("run", platform.settings).stdout.strip()
    piped = " ".join(command(("inventory", folder, "--format", "jsonl")))
    done = subprocess.run(f"{piped} | head -n 1", shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout)["devices"] >= 1


@pytest.mark.slow
def test_a_closed_pipe_does_not_change_the_exit_code(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    folder = tmp_path / auditor("run", platform.settings).stdout.strip()
    (folder / "inventory.csv").write_text("tampered")
    piped = " ".join(command(("verify", folder)))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {piped} | true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.slow
def test_a_damaged_run_and_a_full_disk_are_one_sentence(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    folder = tmp_path / auditor("run", platform.settings).stdout.strip()
    full = " ".join(command(("inventory", folder, "--format", "csv")))
    done = subprocess.run(["bash", "-c", f"{full} > /dev/full"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "auditor: output: No space left on device\n")
    whole = (folder / "modules.parquet").read_bytes()
    (folder / "modules.parquet").write_bytes(whole[:20] + bytes(len(whole) - 40) + whole[-20:])
    for form in ("table", "json", "csv"):
        damaged = auditor("inventory", folder, "--format", form)
        assert damaged.returncode == 2
        assert "cannot be read" in damaged.stderr
        assert "Traceback" not in damaged.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "2>/dev/full"])
@pytest.mark.slow
def test_closed_or_full_streams_do_not_fail_an_audit(
    tmp_path: Path, platform: Platform, auditor: Auditor, closed: str
) -> None:
    shown = " ".join(command(("run", platform.settings, "--out", "runs")))
    done = subprocess.run(["bash", "-c", f"{shown} {closed}"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert auditor("verify", "runs").returncode == 0


@pytest.mark.slow
def test_two_signals_end_a_run_that_reads_its_fleet(tmp_path: Path, platform: Platform) -> None:
    words = command(("run", platform.settings, "--fleet", "-", "--out", "runs"))
    with subprocess.Popen(words, cwd=tmp_path, stdin=-1, stderr=-1, text=True) as process:
        try:
            deadline = time.monotonic() + 20
            while not list((tmp_path).glob("runs/.new-*/*.reading")) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert "stopping" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()


def test_a_secret_is_not_in_any_output(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    done = auditor("run", settings, "--log-level", "debug", env={"CANARY": SECRET})
    assert done.returncode == 1
    assert 'account "eu": none of 3 queried devices exists' in done.stderr
    assert "stopped:" not in done.stderr
    shown = [done.stdout, done.stderr, auditor("check", settings, env={"CANARY": SECRET}).stdout]
    shown += [path.read_bytes().decode("latin-1") for path in (tmp_path / done.stdout.strip()).iterdir()]
    assert not any(SECRET in text for text in shown)


@pytest.mark.parametrize(
    "words", [("metrics", "x", "-o", "m.prom"), ("check", "s.toml"), ("check", "s.toml", "--log-format", "json")]
)
def test_an_unexpected_error_has_a_traceback_which_is_one_line_in_json(words: tuple[str, ...]) -> None:
    breaking = (
        "import auditor.runs.folder as a, auditor.config.loader as b; a.is_cut_run = b.load_settings = lambda _: 1 / 0"
    )
    code = f"import sys; {breaking}; from auditor.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    if "json" in words:
        (line,) = map(json.loads, done.stderr.splitlines())
        assert (line["level"], line["event"], line["exit_code"]) == ("error", "command_failed", 1)
        assert line["message"] == "auditor: unexpected ZeroDivisionError: division by zero"
        assert "1 / 0" in line["traceback"] or "<string>" in line["traceback"]
    else:
        assert done.stderr.startswith("Traceback (most recent call last):\n")
        assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
