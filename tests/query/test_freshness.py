"""The age of results, queried and carried, and how it is described."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from auditor.cli.render_run import print_inventory
from auditor.query.describe import describe_ages, describe_recheck, describe_selection, format_limits
from auditor.query.devices import select_devices
from auditor.query.filters import DeviceFilter
from auditor.query.run import Run
from auditor.query.snapshot import open_snapshot
from auditor.runs.folder import INVENTORY_JSON
from auditor.runs.selection_info import AccountSelection, Recheck, RequestCounts, SelectionInfo
from auditor.runs.verify import verify_run
from auditor.text.formatting import format_rough_duration
from tests.runs.run_folders import build, carried_run, named, ok

FLEET = [named(n) for n in range(6)]
TIMES = ["2026-11-21 03:00:00", "2026-11-21 01:00:00", "2026-11-16 02:00:01", "2026-11-01 00:00:00"]
NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    known = [(ok(device, ("ble", "1")), at) for device, at in zip(FLEET[2:], TIMES, strict=True)]
    return carried_run(tmp_path / "run", FLEET, [ok(device, ("ble", "2")) for device in FLEET[:2]], known).folder


def test_answers_are_counted_by_their_age_at_the_start_of_the_run(folder: Path) -> None:
    with Run(folder) as run:
        ages = run.ages
    assert (ages.fleet, ages.queried, ages.day, ages.week, ages.older) == (6, 2, 1, 2, 1)
    assert ages.first == datetime(2026, 11, 1, tzinfo=UTC)
    assert ages.median == datetime(2026, 11, 21, 1, tzinfo=UTC)
    assert describe_ages(ages, NOW) == (
        "4 of 6 devices have carried results; results are from 2026-11-01 00:00 to 2026-11-22 02:00 UTC, "
        "half of them younger than 32 h"
    )


def test_json_has_the_number_and_age_of_carried_answers(folder: Path, tmp_path: Path) -> None:
    assert verify_run(folder) == []
    sealed = orjson.loads((folder / INVENTORY_JSON).read_bytes())
    coverage = open_snapshot(folder, tmp_path / "work").coverage
    for told in (sealed, coverage):
        assert (told["carried"], told["oldest_answer_at"]) == (4, "2026-11-01T00:00:00.000Z")


def test_the_table_ends_with_the_age(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(folder) as run:
        print_inventory(run.manifest, run.devices, run.inventory(), ages=run.ages, now=NOW)
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("4 of 6 devices have carried results; results are from 2026-11-01")
    )


def test_a_run_without_answers_has_no_age(tmp_path: Path) -> None:
    with Run(build(tmp_path / "run", FLEET, []).folder) as run:
        assert describe_ages(run.ages, NOW) is None


def test_devices_have_the_source_and_time_of_their_answers(folder: Path) -> None:
    with select_devices(folder, DeviceFilter(source="carried")) as selected:
        names = list(selected.table.columns)
        source, time = names.index("source"), names.index("audited_at")
        assert [(row[source], row[time]) for row in selected.table] == [("carried", at) for at in TIMES]
    with select_devices(folder) as selected:
        assert selected.rows == 6


def test_spot_checks_and_the_selection_are_described_in_numbers() -> None:
    assert describe_recheck(Recheck(9_500, 9_500, 9_500, 12, 0.0012632, 0.000653, 0.0022)) == (
        "recheck: 12 of 9,500 results without a sign of change were outdated: 0.13% (95% interval 0.06 to 0.22%)"
    )
    assert describe_recheck(Recheck(10, 2, 0, 0)) == "recheck: none of 2 queried devices answered"
    account = AccountSelection(
        "eu",
        {"connected": 967, "never_seen": 3},
        carried=18_831,
        states_requested=20_000,
        states_unknown=2,
        requests=RequestCounts(400, 0, 0),
    )
    selection = SelectionInfo(
        "incremental",
        baseline_run="20261123T020000Z-n",
        max_calls=1_500,
        precision=0.02,
        precision_of="fleet",
        achieved_precision=0.0199,
        budget_exhausted=True,
        accounts=(account,),
    )
    selected = "eu: 970 devices to query (967 connected, 3 never seen)"
    assert list(describe_selection(selection)) == [
        "results of devices that are not queried are those of 20261123T020000Z-n",
        f"{selected}; 18,831 carried; 20,000 connection states read in 400 requests, 2 of them unknown",
        "precision: ±1.99% for the shares (fleet), ±2% required",
        "the budget of 1,500 calls was exhausted before all were queried",
    ]
    every = replace(selection, accounts=(AccountSelection("eu", {"oldest": 152, "violating": 244}),))
    assert "eu: 396 devices to query" in list(describe_selection(every))


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
    assert format_limits(low, high) == told


@pytest.mark.parametrize(("hours", "told"), [(0, "1 min"), (2, "120 min"), (26, "26 h"), (49, "3 days")])
def test_an_age_is_formatted_in_one_unit(hours: int, told: str) -> None:
    assert format_rough_duration(timedelta(hours=hours).total_seconds()) == told
