"""Progress of a running audit: one line, and a line for each account if there are several."""

import json
import math
import re
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import anyio
import jsonschema
import pytest
from rich.console import Console

import auditor
from auditor.cli import progress as progress_module
from auditor.cli.console import LOG_STYLE, ProgressStyle
from auditor.cli.runtime import log_to_stderr
from auditor.engine.progress import AccountProgress, DiscoveryProgress, Progress
from auditor.runs.manifest import DeviceCounts
from auditor.runs.selection_info import RequestCounts
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, settings_for


def account(name: str, **changes: object) -> AccountProgress:
    healthy = AccountProgress(name, 50, 48, 0, 2, 5.0, finished=False, stopped=None, problem=None)
    return replace(healthy, **changes)  # type: ignore[arg-type]


def progress(*accounts: AccountProgress, **changes: object) -> Progress:
    default = Progress(
        folder=Path("runs/1"),
        fleet=400,
        devices=DeviceCounts(ok=100, pending=300),
        requests=RequestCounts(sent=100),
        in_flight=4,
        target_rate=10.0,
        elapsed=10.0,
        accounts=accounts,
    )
    return replace(default, **changes)  # type: ignore[arg-type]


LINE = "100/400 devices (25.0%), 10.0 requests/s (100% of 10/s), 4 in flight, 0 failed, 30.0 s left"


def plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *shown: Progress) -> list[str]:
    """Return the lines that are printed without a terminal, without their times."""
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL", 0.0)
    with progress_module.show_progress() as watch:
        for each in shown:
            watch(each)
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "
    lines = capsys.readouterr().err.splitlines()
    assert LOG_STYLE.format == "json" or all(re.match(time, line) for line in lines if " devices" in line[:30])
    return [re.sub(f"^{time}", "", line) for line in lines]


def test_a_file_gets_a_line_every_five_seconds_in_the_first_minute_and_then_every_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    found: list[float] = []
    with progress_module.show_progress() as watch:
        for now in map(float, range(1, 601)):
            watch(progress())
            found += [now] * len(capsys.readouterr().err.splitlines())
    assert found == [*range(5, 60, 5), *range(115, 600, 60)]


def terminal_lines(shown: Progress, width: int = 100) -> list[str]:
    """Return the lines on a terminal."""
    console = Console(width=width, legacy_windows=False)
    with console.capture() as captured:
        console.print(progress_module._render(shown, progress_module._ProgressView().describe(shown)))
    return [each.rstrip() for each in captured.get().splitlines()]


@pytest.mark.parametrize(("term", "lines"), [("dumb", 1), ("xterm", 0)])
def test_terminal_without_a_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], term: str, lines: int
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    printed = plain_lines(monkeypatch, capsys, progress(account("eu")))
    assert printed.count(LINE) == lines
    if term == "dumb":
        assert printed == [LINE]


DISCOVERY = DiscoveryProgress(1, products=4, products_done=1, devices=90, devices_reported=None, pages=3)


def test_progress_is_part_of_a_log_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(LOG_STYLE, "format", "json")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    (line,) = plain_lines(monkeypatch, capsys, progress(account("eu", discovery=DISCOVERY)))
    listed = {"accounts": 1, "products": 4, "products_done": 1, "devices": 90, "devices_reported": None, "pages": 3}
    assert json.loads(line) | {"timestamp": ""} == {
        "event": "progress",
        "message": LINE,
        "run": "1",
        "stage": "querying",
        "resumed": False,
        "elapsed": 10.0,
        "fleet": 400,
        "devices": {"ok": 100, "empty": 0, "not_found": 0, "failed": 0, "pending": 300},
        "requests": {"sent": 100, "retried": 0, "throttled": 0},
        "in_flight": 4,
        "requests_per_second": 10.0,
        "target_rate": 10.0,
        "learned_rate": None,
        "remaining_seconds": 30.0,
        "other_processes": 0,
        "problem": None,
        "discovery": None,
        "states": None,
        "release_pages": None,
        "accounts": [
            {
                "name": "eu",
                "state": "listing",
                "done": 48,
                "failed": 0,
                "sent": 50,
                "throttled": 0,
                "in_flight": 2,
                "paused": 0,
                "requests_per_second": 5.0,
                "configured_rate": None,
                "learned_rate": 5.0,
                "other_processes": 0,
                "problem": None,
                "discovery": listed,
            }
        ],
        "level": "info",
        "timestamp": "",
    }


def test_records_have_each_stage_and_their_schema(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = (
        progress(fleet=0, devices=DeviceCounts(), discovery=DISCOVERY, elapsed=0.0),
        progress(states=(10, 50), elapsed=1.0),
        progress(*SEVERAL, elapsed=2.0),
        progress(release_pages=3, problem="nothing\x1b succeeds", elapsed=3.0),
        progress(sealing=True, elapsed=3.0),
    )
    log_to_stderr("warning", progress="json")
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL", math.inf)
    with progress_module.show_progress() as watch:
        for each in shown:
            watch(each)
            watch(each)
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["stage"] for line in lines] == ["discovery", "states", "querying", "releases", "sealing"]
    assert [each["name"] for each in lines[2]["accounts"]][:2] == ["us", "cn\\x1b"]
    schema = json.loads(resources.files("auditor").joinpath("schemas", "progress.schema.json").read_bytes())
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for line in lines for error in validator.iter_errors(line)] == []
    assert validator.is_valid(lines[0] | {"trace_id": "0" * 32, "span_id": "0" * 16})
    assert not validator.is_valid(lines[0] | {"stage": "later"})


@pytest.mark.parametrize(("style", "lines"), [("auto", []), ("line", [LINE]), ("none", [])])
def test_the_style_of_progress_can_be_selected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], style: ProgressStyle, lines: list[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log_to_stderr("warning", progress=style)
    printed = plain_lines(monkeypatch, capsys, progress(account("eu")))
    assert [line for line in printed if line == LINE] == lines
    assert (printed == lines) == (style != "auto")


def test_without_progress_a_resumed_run_is_still_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("warning", progress="none")
    assert plain_lines(monkeypatch, capsys, progress(account("eu"), resumed=True)) == [
        "resuming runs/1: 300 of 400 devices remain"
    ]


def test_one_account_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain_lines(monkeypatch, capsys, progress(account("eu"))) == [LINE]
    assert plain_lines(monkeypatch, capsys, progress()) == [LINE]


def test_accounts_are_a_second_line_with_unhealthy_ones_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accounts = (
        account("eu"),
        account("us", problem='account "us": nothing succeeds', failed=3),
        account("cn\x1b", stopped='account "cn\x1b": key refused', finished=True, done=0),
        account("in", finished=True),
    )
    first, second = plain_lines(monkeypatch, capsys, progress(*accounts))
    assert first == LINE
    assert second.split("; ") == [
        "  us: 5.0 requests/s, unhealthy, 48 devices, 3 failed",
        "cn\\x1b: stopped, 0 devices",
        "eu: 5.0 requests/s, 48 devices",
        "in: done, 48 devices",
    ]
    assert plain_lines(monkeypatch, capsys, progress(*accounts, sealing=True)) == ["100/400 devices in 10.0 s, sealing"]


def test_pages_of_released_firmware_are_counted_after_the_devices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = plain_lines(monkeypatch, capsys, progress(release_pages=1_234))
    assert line.endswith(" devices; reading released firmware: 1,234 pages")


SEVERAL = (
    account("eu", configured_rate=10.0, rate=5.0, throttled=3),
    account("us", problem='account "us": nothing succeeds', failed=3),
    account("cn\x1b", stopped='account "cn\x1b": key refused', finished=True, done=0),
    account("in", finished=True),
    account("jp", configured_rate=5.0, other_processes=1, done=123),
)


def test_a_terminal_has_a_line_for_each_account_in_fixed_columns() -> None:
    lines = terminal_lines(progress(*SEVERAL), width=120)
    assert lines[0].split()[:5] == ["100", "/", "400", "25%", lines[0].split()[4]]
    assert lines[0].endswith("  30.0 s left")
    assert len(lines[0]) == 120
    assert lines[1:] == [
        "  us      failing   48          5/s    3 failed  nothing succeeds",
        "  cn\\x1b  stopped    0                 0 failed  key refused",
        "  eu      slowed    48    5/s of 10    0 failed  quota refused 3x, 5.0/s accepted",
        "  in      done      48                 0 failed",
        "  jp      ok       123     5/s of 5    0 failed  shared with 1 other",
    ]


def test_lines_of_a_narrow_terminal_are_cut_and_keep_their_columns() -> None:
    narrow = terminal_lines(progress(*SEVERAL), width=60)
    assert all(len(line) <= 60 for line in narrow)
    assert [line.split()[0] for line in narrow[1:]] == ["us", "cn\\x1b", "eu", "in", "jp"]
    assert {line.index(" failed") for line in narrow[1:]} == {narrow[1].index(" failed")}


def test_columns_stay_where_they_are_while_numbers_grow() -> None:
    first, second = (
        terminal_lines(
            progress(account("eu", done=done, configured_rate=10.0), devices=DeviceCounts(done, pending=400 - done))
        )
        for done in (1, 350)
    )
    assert first[0].index("/") == second[0].index("/")
    assert first[1].index("/s of") == second[1].index("/s of")
    assert first[1].index("failed") == second[1].index("failed")


def test_the_bar_is_red_only_where_something_is_wrong() -> None:
    def colours(*accounts: AccountProgress, **changes: object) -> set[str]:
        shown = progress(*accounts, **changes)
        console = Console(width=80, force_terminal=True, color_system="standard", legacy_windows=False)
        with console.capture() as captured:
            console.print(progress_module._render(shown, progress_module._ProgressView().describe(shown)))
        return set(re.findall(r"\x1b\[(\d+)m", captured.get().splitlines()[0]))

    assert "34" in colours(account("eu"))
    assert "31" not in colours(account("eu"))
    assert "31" in colours(account("eu", stopped="x", finished=True))
    assert "31" in colours(account("eu"), problem="nothing succeeds")


def tail(pending: int, *accounts: AccountProgress) -> Progress:
    return progress(*accounts, devices=DeviceCounts(ok=400 - pending, pending=pending))


def test_the_last_devices_are_described_by_what_they_wait_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = account("us", finished=True, in_flight=0)
    last = tail(4, account("eu", in_flight=3, paused=1, longest_wait=27.2, timeout=30.0), done)
    expected = "last 4 devices: 3 waiting for answers, longest 27 of 30 s; 1 waiting for a retry"
    lines = terminal_lines(last)
    assert lines[-1] == expected
    assert "left" not in lines[0]
    line, _ = plain_lines(monkeypatch, capsys, last)
    assert line.endswith(f", 0 failed, {expected}")
    one = tail(1, account("eu", in_flight=1, longest_wait=2.0, timeout=30.0))
    assert terminal_lines(one)[-1] == "last 1 device: 1 waiting for an answer, longest 2 of 30 s"
    for others in (tail(5, account("eu", in_flight=3, paused=1)), tail(0, account("eu", in_flight=3))):
        assert not [line for line in terminal_lines(others) if line.startswith("last ")]


def test_at_most_twenty_accounts_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    many = progress(*(account(f"a{number}", problem="late" if number == 24 else None) for number in range(25)))
    _, line = plain_lines(monkeypatch, capsys, many)
    assert line.startswith("  a24: ")
    assert line.endswith("; a18: 5.0 requests/s, 48 devices; and 5 more")
    lines = terminal_lines(many, width=200)
    assert [line.split()[0] for line in lines[1:]] == ["a24", *(f"a{number}" for number in range(19)), "and"]
    assert lines[-1].split() == ["and", "5", "more", "accounts"]


def test_the_rate_of_an_account_is_of_the_last_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def at(elapsed: float, sent: int) -> Progress:
        return progress(account("eu", sent=sent), account("us", sent=0), elapsed=elapsed)

    lines = plain_lines(monkeypatch, capsys, at(10, 100), at(20, 200), at(30, 200), at(40, 200))
    assert [line.split()[1] for line in lines[1::2]] == ["10.0", "10.0", "0.0", "0.0"]


@pytest.mark.anyio
async def test_an_audit_reports_the_progress_of_each_account(tmp_path: Path) -> None:
    world = World(40, large=0, missing=0, silent=0, inactive=0)
    world.write_fleet(tmp_path / "fleet.csv")
    reports: list[Progress] = []
    keys = [SimulatedAccount(key, DEFAULT_ACCOUNT.secret) for key in ("eu", "us")]
    async with Simulator(world, accounts=keys, latency=(0.05, 0.05)) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=name, access_key_id=name) for name in ("eu", "dead", "us")
        ]
        with anyio.fail_after(30):
            await auditor.run_audit(settings_for(tmp_path, *tables, concurrency=6), on_progress=reports.append)
    first, last = reports[0].accounts, reports[-1].accounts
    assert [(each.name, each.done, each.finished, each.stopped) for each in first] == [
        ("eu", 0, False, None),
        ("dead", 0, False, None),
        ("us", 0, False, None),
    ]
    assert [(each.name, each.sent, each.done, each.failed, each.finished) for each in last] == [
        ("eu", 40, 40, 0, True),
        ("dead", 1, 0, 0, True),
        ("us", 40, 40, 0, True),
    ]
    assert last[1].stopped is not None
    assert last[1].stopped.startswith('account "dead": the platform refuses it: InvalidAccessKeyId.NotFound')
    assert (last[0].stopped, last[0].problem, last[1].problem, last[0].in_flight) == (None, None, None, 0)


def test_a_problem_that_lasts_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = ("nothing succeeds", "nothing succeeds", "no connection", None, "no connection")
    lines = plain_lines(monkeypatch, capsys, *(progress(account("eu"), problem=each) for each in problems))
    ends = ("; nothing succeeds", "; the problem lasts", "; no connection", "", "; no connection")
    assert lines == [f"{LINE}{end}" for end in ends]
