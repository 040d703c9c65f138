"""How old answers are is told: those of this run, and those that it carried."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from auditor.cli.render_run import print_inventory
from auditor.query.describe import age_line, choice_lines, length, limits, recheck_line
from auditor.query.devices import Selection, select_devices
from auditor.query.run import Run
from auditor.query.snapshot import freeze
from auditor.runs.folder import INVENTORY_JSON
from auditor.runs.manifest import AccountChoice, Choice, Recheck, RequestCounts
from auditor.runs.verify import verify
from tests.runs.run_folders import build, carrying, named, ok

FLEET = [named(n) for n in range(6)]
TIMES = ["2026-11-21 03:00:00", "2026-11-21 01:00:00", "2026-11-16 02:00:01", "2026-11-01 00:00:00"]
NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    known = [(ok(device, ("ble", "1")), at) for device, at in zip(FLEET[2:], TIMES, strict=True)]
    return carrying(tmp_path / "run", FLEET, [ok(device, ("ble", "2")) for device in FLEET[:2]], known).folder


def test_answers_are_counted_by_age_when_the_run_began(folder: Path) -> None:
    with Run(folder) as run:
        ages = run.ages
    assert (ages.fleet, ages.asked, ages.day, ages.week, ages.older) == (6, 2, 1, 2, 1)
    assert ages.first == datetime(2026, 11, 1, tzinfo=UTC)
    assert ages.median == datetime(2026, 11, 21, 1, tzinfo=UTC)
    assert age_line(ages, NOW) == (
        "carried: 4 of 6 devices; answers are from 2026-11-01 00:00 to 2026-11-22 02:00 UTC, half of them younger than 32 h"
    )


def test_json_says_how_much_is_carried_and_how_old_it_is(folder: Path, tmp_path: Path) -> None:
    assert verify(folder) == []
    sealed = orjson.loads((folder / INVENTORY_JSON).read_bytes())
    coverage = freeze(folder, tmp_path / "work").coverage
    for told in (sealed, coverage):
        assert (told["carried"], told["oldest"]) == (4, "2026-11-01T00:00:00.000Z")


def test_the_table_ends_with_the_age(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(folder) as run:
        print_inventory(run.manifest, run.devices, run.inventory(), ages=run.ages, now=NOW)
    assert capsys.readouterr().out.splitlines()[-1].startswith("carried: 4 of 6 devices; answers are from 2026-11-01")


def test_a_run_without_answers_has_no_age(tmp_path: Path) -> None:
    with Run(build(tmp_path / "run", FLEET, []).folder) as run:
        assert age_line(run.ages, NOW) is None


def test_devices_tell_where_their_answers_come_from_and_when_they_came(folder: Path) -> None:
    with select_devices(folder, Selection(source="carried")) as selected:
        assert [row[-2:] for row in selected.table] == [("carried", at) for at in TIMES]
    with select_devices(folder) as selected:
        assert selected.rows == 6


def test_what_was_checked_and_chosen_is_told_in_numbers() -> None:
    assert recheck_line(Recheck(9_500, 9_500, 9_500, 12, 0.0012632, 0.000653, 0.0022)) == (
        "checked: of 9,500 carried that were asked all the same 12 had changed: 0.13% (0.06 to 0.22%) of what is carried is "
        "wrong"
    )
    assert recheck_line(Recheck(10, 2, 0, 0)).endswith("none answered")
    account = AccountChoice(
        "eu",
        {"connected": 967, "never_seen": 3},
        carried=18_831,
        states=20_000,
        untold=2,
        requests=RequestCounts(400, 0, 0),
    )
    choice = Choice(
        "since",
        since="20261123T020000Z-n",
        calls=1_500,
        precision=0.02,
        precision_of="fleet",
        reached=0.0199,
        spent=True,
        accounts=(account,),
    )
    asked = "eu: chosen to be asked: 967 connected, 3 never seen"
    assert list(choice_lines(choice)) == [
        "answers are carried from 20261123T020000Z-n",
        f"{asked}; 18,831 to be carried; states of 20,000 devices in 400 requests, 2 of them not told",
        "precision: shares (fleet) are known to 1.99% either way; 2% was wanted",
        "the budget of 1,500 calls was spent before all that were chosen were asked",
    ]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.609, 0.633, "60.9 to 63.3%"),
        (0.6099, 0.6321, "60.9 to 63.3%"),
        (0.0004, 0.9996, "0.0 to 100.0%"),
        (0.29, 0.29, "29.0 to 29.0%"),
    ],
)
def test_limits_are_rounded_away_from_each_other(low: float, high: float, told: str) -> None:
    assert limits(low, high) == told


@pytest.mark.parametrize(("hours", "told"), [(0, "1 min"), (2, "120 min"), (26, "26 h"), (49, "3 days")])
def test_an_age_is_told_in_the_unit_that_says_it_best(hours: int, told: str) -> None:
    assert length(timedelta(hours=hours).total_seconds()) == told
