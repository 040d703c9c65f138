"""What people see of an audit under way: as before with one account, each of them with several."""

from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from rich.console import Console

import auditor
from auditor.cli import progress as watching
from auditor.engine.progress import AccountProgress, Progress
from auditor.runs.manifest import DeviceCounts, RequestCounts
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, settings_for


def account(name: str, **changes: object) -> AccountProgress:
    calm = AccountProgress(name, 50, 48, 0, 2, 5.0, ended=False, stopped=None, trouble=None)
    return replace(calm, **changes)  # type: ignore[arg-type]


def progress(*accounts: AccountProgress, **changes: object) -> Progress:
    whole = Progress(
        folder=Path("runs/1"),
        fleet=400,
        devices=DeviceCounts(ok=100, pending=300),
        requests=RequestCounts(sent=100),
        in_flight=4,
        per_second=10.0,
        elapsed=10.0,
        accounts=accounts,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


LINE = "100/400 devices (25.0%), 10.0 requests/s (100% of the quota), 4 in flight, 0 failed, 30.0 s left"


def plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *shown: Progress) -> list[str]:
    """The lines that are written where there is no terminal."""
    monkeypatch.setattr(watching, "PLAIN_SECONDS", 0.0)
    with watching.watching() as watch:
        for each in shown:
            watch(each)
    return capsys.readouterr().err.splitlines()


def drawn(shown: Progress, width: int = 100) -> list[str]:
    """The lines of a terminal."""
    console = Console(width=width, legacy_windows=False)
    line, accounts = watching._View().of(shown)
    with console.capture() as captured:
        console.print(watching._drawn(shown, line, accounts))
    return [each.rstrip() for each in captured.get().splitlines()]


def test_one_account_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(monkeypatch, capsys, progress(account("eu"))) == [LINE]
    assert plain(monkeypatch, capsys, progress()) == [LINE]
    assert len(drawn(progress(account("eu")), width=200)) == 1


def test_several_accounts_are_a_second_line_with_those_in_trouble_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accounts = (
        account("eu"),
        account("us", trouble='account "us": nothing succeeds', failed=3),
        account("cn\x1b", stopped='account "cn\x1b": key refused', ended=True, done=0),
        account("in", ended=True),
    )
    first, second = plain(monkeypatch, capsys, progress(*accounts))
    assert first == LINE
    assert second.split("; ") == [
        "  us: 5.0 requests/s, in trouble, 48 done, 3 failed",
        "cn\\x1b: stopped, 0 done",
        "eu: 5.0 requests/s, 48 done",
        "in: ended, 48 done",
    ]
    assert plain(monkeypatch, capsys, progress(*accounts, sealing=True)) == ["100/400 devices in 10.0 s, sealing"]


def test_a_terminal_has_a_line_for_each_account_with_the_reason_of_its_trouble() -> None:
    accounts = (
        account("eu"),
        account("us", trouble='account "us": nothing succeeds', failed=3),
        account("cn\x1b", stopped='account "cn\x1b": key refused', ended=True, done=0),
        account("in", ended=True),
    )
    lines = drawn(progress(*accounts), width=200)
    assert lines[0].endswith(LINE)
    assert lines[1:] == [
        "us      5.0 requests/s, in trouble, 48 done, 3 failed, 2 in flight; nothing succeeds",
        "cn\\x1b  stopped, 0 done; key refused",
        "eu      5.0 requests/s, 48 done, 2 in flight",
        "in      ended, 48 done",
    ]
    narrow = drawn(progress(*accounts), width=60)
    assert all(len(line) <= 60 for line in narrow)
    assert [line.split()[0] for line in narrow[-4:]] == ["us", "cn\\x1b", "eu", "in"]


def test_twenty_accounts_at_most_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    many = progress(*(account(f"a{number}", trouble="late" if number == 24 else None) for number in range(25)))
    _, line = plain(monkeypatch, capsys, many)
    assert line.startswith("  a24: ")
    assert line.endswith("; a18: 5.0 requests/s, 48 done; and 5 more")
    lines = drawn(many, width=200)
    assert [line.split()[0] for line in lines[1:]] == ["a24", *(f"a{number}" for number in range(19)), "and"]
    assert lines[-1].split() == ["and", "5", "more"]


def test_an_accounts_rate_is_that_of_the_last_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def at(elapsed: float, sent: int) -> Progress:
        return progress(account("eu", sent=sent), account("us", sent=0), elapsed=elapsed)

    lines = plain(monkeypatch, capsys, at(10, 100), at(20, 200), at(30, 200), at(40, 200))
    assert [line.split()[1] for line in lines[1::2]] == ["10.0", "10.0", "0.0", "0.0"]


@pytest.mark.anyio
async def test_an_audit_tells_where_each_of_its_accounts_stands(tmp_path: Path) -> None:
    world = World(40, large=0, missing=0, silent=0, inactive=0)
    world.write_fleet(tmp_path / "fleet.csv")
    told: list[Progress] = []
    keys = [SimulatedAccount(key, DEFAULT_ACCOUNT.secret) for key in ("eu", "us")]
    async with Simulator(world, accounts=keys, latency=(0.05, 0.05)) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=name, access_key_id=name) for name in ("eu", "dead", "us")
        ]
        with anyio.fail_after(30):
            await auditor.run_audit(settings_for(tmp_path, *tables, at_once=6), watch=told.append)
    first, last = told[0].accounts, told[-1].accounts
    assert [(each.name, each.done, each.ended, each.stopped) for each in first] == [
        ("eu", 0, False, None),
        ("dead", 0, False, None),
        ("us", 0, False, None),
    ]
    assert [(each.name, each.sent, each.done, each.failed, each.ended) for each in last] == [
        ("eu", 40, 40, 0, True),
        ("dead", 1, 0, 0, True),
        ("us", 40, 40, 0, True),
    ]
    assert last[1].stopped is not None
    assert last[1].stopped.startswith('account "dead": the platform refuses it: InvalidAccessKeyId.NotFound')
    assert (last[0].stopped, last[0].trouble, last[1].trouble, last[0].in_flight) == (None, None, None, 0)
