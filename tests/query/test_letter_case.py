"""Module names that differ in case only are one module of a product; each device keeps its spelling."""

from collections import Counter
from pathlib import Path

import pytest

from auditor.query.run import Run, VersionCount
from auditor.runs.folder import MODULES
from auditor.runs.verify import verify_run
from auditor.storage.database import sql_read_path
from tests.database import connect
from tests.runs.run_folders import build, named, ok, running

OUTCOMES = [
    ok(named(0), ("BLE", "1.0"), ("default", "7")),
    ok(named(1), ("ble", "1.0")),
    ok(named(2), ("Ble", "1.1")),
    ok(named(3), ("ble", "1.0")),
    ok(named(4, product="p2"), ("BLE", "1.0")),
    ok(named(5, account="other"), ("bLE", "1.0")),
]
FLEET = [outcome.device for outcome in OUTCOMES]

INVENTORY = [
    VersionCount("demo", "p1", "ble", "1.0", 3, 0.75),
    VersionCount("demo", "p1", "ble", "1.1", 1, 0.25),
    VersionCount("demo", "p1", "default", "7", 1, 1.0),
    VersionCount("demo", "p2", "BLE", "1.0", 1, 1.0),
    VersionCount("other", "p1", "bLE", "1.0", 1, 1.0),
]


@pytest.mark.parametrize("make", [build, running])
def test_two_spellings_are_one_module_in_the_inventory(tmp_path: Path, make: object) -> None:
    assert callable(make)
    folder = make(tmp_path / "run", FLEET, OUTCOMES).folder
    with Run(folder) as run:
        assert list(run.inventory()) == INVENTORY


def test_modules_keep_their_spelling_and_the_run_verifies(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", FLEET, OUTCOMES).folder
    rows = connect().execute(f"SELECT module_name FROM read_parquet({sql_read_path(folder / MODULES)})").fetchall()
    assert Counter(name for (name,) in rows) == {"BLE": 2, "ble": 2, "Ble": 1, "bLE": 1, "default": 1}
    assert verify_run(folder) == []


def test_non_ascii_letters_are_matched_regardless_of_case(tmp_path: Path) -> None:
    outcomes = [ok(named(0), ("MODÜL", "1")), ok(named(1), ("modül", "1")), ok(named(2), ("modul", "1"))]
    folder = build(tmp_path / "run", [outcome.device for outcome in outcomes], outcomes).folder
    with Run(folder) as run:
        assert [(row.module_name, row.devices, row.share) for row in run.inventory()] == [
            ("modul", 1, 1.0),
            ("modül", 2, 1.0),
        ]
    assert verify_run(folder) == []
