"""Devices that a fleet names twice are found by the names in their answers."""

from dataclasses import replace
from pathlib import Path

import pytest

from auditor.cli.render_summary import summarize_audit
from auditor.errors import RunFolderError
from auditor.query.warnings import completeness_warnings
from auditor.runs.folder import DEVICES, FLEET
from auditor.runs.inventory import AliasCounts, read_aliases
from auditor.runs.manifest import DeviceCounts, FleetInfo, Manifest
from tests.database import connect

Row = tuple[str, str | None, str | None, str | None]
"""Account, product key, device name and iot_id."""


def sealed(folder: Path, fleet: list[Row], devices: list[Row]) -> Path:
    for name, rows in ((FLEET, fleet), (DEVICES, devices)):
        with connect() as database:
            database.execute(
                "CREATE TEMP TABLE t (ordinal BIGINT, account TEXT, product_key TEXT, device_name TEXT, iot_id TEXT)"
            )
            database.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", [(at, *row) for at, row in enumerate(rows)])
            database.execute(f"COPY t TO '{folder / name}' (FORMAT parquet)")
    return folder


BY_NAME: Row = ("eu", "k", "a", None)
BY_ID: Row = ("eu", None, None, "1")
ANSWERED: Row = ("eu", "k", "a", "1")


@pytest.mark.parametrize(
    ("fleet", "devices", "counts"),
    [
        ([BY_NAME, BY_ID], [ANSWERED, ANSWERED], (1, 0)),
        ([BY_NAME, BY_ID], [ANSWERED, ("eu", "k", "b", "1")], (1, 0)),
        ([BY_NAME, BY_ID], [ANSWERED, ("eu", "k", "b", "2")], (0, 0)),
        ([BY_NAME, BY_ID], [BY_NAME, BY_ID], (0, 1)),
        ([BY_NAME, BY_ID], [ANSWERED, BY_ID], (1, 0)),
        ([BY_NAME, BY_ID], [("eu", "k", "a", "2"), BY_ID], (0, 0)),
        ([BY_NAME, ("us", None, None, "1")], [ANSWERED, ("us", "k", "a", "1")], (0, 0)),
        ([BY_NAME, BY_NAME], [ANSWERED, ANSWERED], (0, 0)),
        ([BY_ID, ANSWERED], [ANSWERED, ANSWERED], (0, 0)),
        ([("eu", None, "a", "1"), BY_NAME], [ANSWERED, ANSWERED], (1, 0)),
    ],
)
def test_two_rows_of_one_device_are_found_by_its_answers(
    tmp_path: Path, fleet: list[Row], devices: list[Row], counts: tuple[int, int]
) -> None:
    found = read_aliases(sealed(tmp_path, fleet, devices))
    assert (found.aliases, found.possible_aliases) == counts


def test_many_devices_are_counted_once_each(tmp_path: Path) -> None:
    names: list[Row] = [("eu", "k", str(at), None) for at in range(60)]
    ids: list[Row] = [("eu", None, None, f"i{at}") for at in range(50)]
    answers: list[Row] = [("eu", "k", str(at), f"i{at}") for at in range(60)]
    found = sealed(tmp_path, [*names, *ids], [*answers[:40], *names[40:], *answers[:45], *ids[45:]])
    assert read_aliases(found) == AliasCounts(40, 5, 0)


def by_id(iot_id: str) -> Row:
    return ("eu", None, None, iot_id)


@pytest.mark.parametrize(
    ("fleet", "devices", "shared"),
    [
        (
            [by_id("1"), by_id("2"), by_id("3")],
            [("eu", "k", "a", "1"), ("eu", "k", "a", "2"), ("eu", "k", "b", "3")],
            2,
        ),
        ([by_id("1"), ("us", None, None, "2")], [("eu", "k", "a", "1"), ("us", "k", "a", "2")], 0),
        ([by_id("1"), by_id("2")], [("eu", "k", "a", "1"), ("eu", "k2", "a", "2")], 0),
        ([by_id("1"), by_id("2")], [by_id("1"), by_id("2")], 0),
        ([BY_NAME, ("eu", "k", "b", None)], [ANSWERED, ("eu", "k", "b", "1")], 2),
        ([BY_NAME, ("eu", "k", "b", None)], [BY_NAME, ("eu", "k", "b", None)], 0),
        ([("eu", "k", "a", "1"), ("eu", "k", "b", None)], [ANSWERED, ("eu", "k", "b", "1")], 2),
        ([BY_NAME, BY_ID], [ANSWERED, ANSWERED], 0),
        ([BY_NAME, BY_ID], [("eu", "k", "a", "2"), ANSWERED], 2),
        ([BY_NAME, BY_ID, by_id("2")], [ANSWERED, ANSWERED, ("eu", "k", "a", "2")], 3),
    ],
)
def test_devices_with_answers_that_name_one_device_are_counted_unless_they_are_aliases(
    tmp_path: Path, fleet: list[Row], devices: list[Row], shared: int
) -> None:
    assert read_aliases(sealed(tmp_path, fleet, devices)).shared_identities == shared


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / FLEET).write_bytes(b"x")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_aliases(tmp_path)


def test_a_sentence_says_what_is_counted_twice_and_what_cannot_be_determined() -> None:
    def sentence(aliases: int, possible: int) -> str | None:
        return FleetInfo("f", 9, 0, "", aliases=aliases, possible_aliases=possible).describe_aliases()

    assert sentence(0, 0) is None
    assert str(sentence(3, 0)).startswith("3 devices are in the fleet and in the counts twice, by iot_id")
    assert "and up to 2 more may be; name each in one way" in str(sentence(3, 2))
    assert str(sentence(0, 2)).startswith("up to 2 devices may be in the fleet twice")


def test_the_summary_of_a_run_reports_dropped_and_double_devices() -> None:
    fleet = FleetInfo("f.csv", 9, 3, "", aliases=2)
    manifest = Manifest("1", "run", "complete", "2026-11-22T02:00:00.000Z", (), fleet, devices=DeviceCounts(ok=9))
    lines = {line.label: line.text for line in summarize_audit(manifest, Path("run"), 1.0)}
    assert lines["warning"] == f"{fleet.describe_aliases()}; 3 rows of the fleet that named a device again dropped"
    quiet = replace(manifest, fleet=FleetInfo("f.csv", 9, 0, ""))
    assert "warning" not in [line.label for line in summarize_audit(quiet, Path("run"), 1.0)]
    warnings = completeness_warnings(Path("run"), manifest, manifest.devices)
    assert [each.kind for each in warnings] == ["aliases"]
