"""Filters and groups of comparisons and histories equal counts in plain Python over the devices that match."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from auditor.analysis.drift import diff_runs
from auditor.analysis.history import read_history
from auditor.analysis.net_changes import read_changes_since
from auditor.analysis.recorded_changes import record_changes
from auditor.cli.app import main
from auditor.errors import UsageError
from auditor.query.filters import DeviceFilter, arrange
from auditor.runs.folder import CHANGES
from auditor.runs.manifest import read_manifest, write_manifest
from auditor.runs.retention import prune_runs
from auditor.storage.tables import ResultTable
from tests.runs.run_folders import build, build_once, edit_manifest, named, ok, sampled
from tests.runs.test_document_schemas import validate

ODD = '{odd} "site" = \'; DROP'

SITES = ["a1", "a1", "b2", None, "b2"]
"""Site of each device; the last one moves from b2 to a1 between the runs."""

VERSIONS = [("1.0", "1.1"), ("1.1", "1.0"), ("1.0", "1.1"), ("1.0", "1.1"), ("1.0", "1.1")]


def details(site: str | None, number: int) -> Mapping[str, object]:
    product = {"product_name": "Lamp" if number else "Plug"}
    attributes = product | ({} if site is None else {"site": site, ODD: site, "upgraded": site})
    return {"device_status": "ONLINE" if number % 2 else "OFFLINE", "attributes": attributes}


def write(directory: Path, day: int, sites: Sequence[str | None], versions: Sequence[str]) -> Path:
    fleet = [named(number, product="p1" if number else "p2") for number in range(len(versions))]
    outcomes = [ok(device, ("ble", text), ("wifi", "7")) for device, text in zip(fleet, versions, strict=True)]
    more = [details(site, number) for number, site in enumerate(sites)]
    folder = build(directory / f"202611{day:02}T020000Z-nightly", fleet, outcomes, details=more).folder
    edit_manifest(folder, lambda manifest: replace(manifest, started_at=f"2026-11-{day:02}T02:00:00.000Z"))
    write_manifest(folder, record_changes(folder, read_manifest(folder)))
    return folder


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs of five devices; a sixth one is in the older run only."""
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "audits"

    def make() -> None:
        write(directory, 1, [*SITES, "c3"], [*(old for old, _ in VERSIONS), "1.0"])
        write(directory, 2, [*SITES[:4], "a1"], [new for _, new in VERSIONS])

    build_once(directory, "selected devices", make)
    return directory


def rows(table: ResultTable) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table]


def both(directory: Path, criteria: DeviceFilter, group_by: Sequence[str] = ()) -> Iterator[Any]:
    """The changes of both runs: compared, and as they were recorded."""
    old, new = sorted(directory.glob("2026*"))
    with diff_runs(old, new, criteria=criteria, group_by=group_by) as drift:
        yield drift
    with read_changes_since(directory, "last~1", criteria=criteria, group_by=group_by) as found:
        assert found.recorded == 1
        yield found


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        (DeviceFilter(where=("site=a1",)), [0, 1, 4]),
        (DeviceFilter(where=(f"{ODD}=b2",)), [2]),
        (DeviceFilter(where=("site=",)), [3]),
        (DeviceFilter(where=("site!=a1",)), [2, 3, 5]),
        (DeviceFilter(where=("site=c3",)), [5]),
        (DeviceFilter(product="Lamp"), [1, 2, 3, 4, 5]),
        (DeviceFilter(product="p2"), [0]),
        (DeviceFilter(online=True, account=("demo",)), [1, 3, 5]),
        (DeviceFilter(online=True, module="BLE"), [1, 3]),
    ],
)
def test_the_changes_of_matching_devices_are_found(
    directory: Path, criteria: DeviceFilter, expected: list[int]
) -> None:
    changes = {n: "left" if n == 5 else "downgraded" if n == 1 else "upgraded" for n in expected}
    for found in both(directory, criteria):
        assert {int(row["device_name"][-1]): row["change"] for row in rows(found.devices)} == changes
        counts = found.counts if isinstance(found.counts, dict) else vars_of(found.counts)
        assert {name: counts[name] for name in ("upgraded", "downgraded", "left")} == {
            name: Counter(changes.values())[name] for name in ("upgraded", "downgraded", "left")
        }


def vars_of(counts: Any) -> dict[str, int]:
    return {name: getattr(counts, name) for name in counts.__dataclass_fields__}


def test_changes_are_counted_by_attributes_and_by_columns(directory: Path) -> None:
    for found in both(directory, DeviceFilter(), (ODD, "upgraded", "module_name", "product_name")):
        keys = (ODD, "attributes.upgraded", "module_name", "product_name", "upgraded", "downgraded", "left")
        assert [tuple(row[key] for key in keys) for row in rows(found.groups)] == [
            ("a1", "a1", "ble", "Lamp", 1, 1, 0),
            ("a1", "a1", "ble", "Plug", 1, 0, 0),
            ("b2", "b2", "ble", "Lamp", 1, 0, 0),
            ("c3", "c3", None, "Lamp", 0, 0, 1),
            (None, None, "ble", "Lamp", 1, 0, 0),
        ]


def test_changes_that_are_not_requested_are_left_out_and_rows_are_ordered(directory: Path) -> None:
    old, new = sorted(directory.glob("2026*"))
    with diff_runs(old, new, changes=["downgraded", "left"]) as drift:
        assert [row["device_name"][-1] for row in rows(drift.devices)] == ["1", "5"]
        assert [row["module_name"] for row in rows(drift.modules)] == ["ble", "wifi"]  # device 5 had both
        ordered = arrange(drift.devices, DeviceFilter(sort="-device_name", limit=1))
        assert [row["device_name"][-1] for row in rows(ordered)] == ["5"]
        assert drift.counts.upgraded == 4
    with read_changes_since(directory, "last~1", changes=["left"]) as found:
        assert [(row["change"], row["product_name"], row["devices"]) for row in rows(found.versions)] == [
            ("left", "Lamp", 1)
        ]


def test_a_device_of_a_deleted_run_has_names_and_no_attributes(directory: Path) -> None:
    write(directory, 3, [*SITES[:4], "a1"], [new for _, new in VERSIONS])
    prune_runs(directory, keep=2)
    write(directory, 4, SITES[:4], [new for _, new in VERSIONS[:4]])
    prune_runs(directory, keep=1)
    for where, expected in (("site=a1", 0), ("site!=a1", 1)):
        with read_changes_since(directory, "last~2", criteria=DeviceFilter(where=(where,))) as found:
            assert (found.recorded, found.counts["left"]) == (2, expected)


def test_a_gap_in_the_recorded_changes_keeps_the_filter(directory: Path) -> None:
    (directory / "20261102T020000Z-nightly" / CHANGES).unlink()
    with read_changes_since(
        directory, "last~1", criteria=DeviceFilter(where=("site=a1",)), group_by=("site",)
    ) as found:
        assert found.recorded == 0
        assert found.groups is not None
        assert [(row["site"], row["upgraded"], row["downgraded"]) for row in rows(found.groups)] == [("a1", 2, 1)]


def test_a_history_counts_the_devices_that_match_in_each_run(directory: Path) -> None:
    def series(criteria: DeviceFilter, *group_by: str) -> list[tuple[object, ...]]:
        with read_history(directory, criteria=criteria, group_by=group_by) as history:
            names = ("module_version", *group_by, "devices", "share")
            return [tuple(row[name] for name in names) for row in rows(history.table)]

    only = DeviceFilter(where=("site=a1",), module="ble")
    assert series(only) == [("1.1", 1, 1.0), ("1.0", 1, 1.0), ("1.0", 1, 0.5), ("1.1", 1, 0.5), ("1.1", 1, 1.0)]
    assert sorted(series(DeviceFilter(module="ble", product="Plug"))) == [("1.0", 1, 1.0), ("1.1", 1, 1.0)]
    grouped = series(DeviceFilter(module="ble", product="p1"), ODD)
    assert Counter(grouped) == Counter(
        [
            ("1.1", "a1", 1, 1.0),
            ("1.0", "b2", 2, 1.0),
            ("1.0", "c3", 1, 1.0),
            ("1.0", None, 1, 1.0),
            ("1.0", "a1", 1, 0.5),
            ("1.1", "a1", 1, 0.5),
            ("1.1", "b2", 1, 1.0),
            ("1.1", None, 1, 1.0),
        ]
    )


def test_what_a_limit_leaves_out_is_said(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--last",), ("--since", "last~1")):
        assert main(("diff", *arguments, "--group-by", "site", "--sort", "-site", "--limit", "1")) == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines()[1].split()[0] == "c3"
        assert "note: 1 of 4 rows" in printed.err


@pytest.mark.slow
def test_unknown_values_name_the_closest_one(directory: Path) -> None:
    for criteria, sentence in (
        (DeviceFilter(where=("stie=a1",)), "no device has stie; did you mean site?"),
        (DeviceFilter(where=("site=a11",)), "no device has site=a11; did you mean a1?"),
        (DeviceFilter(account=("dmeo",)), "no device is of the account dmeo; did you mean demo?"),
        (DeviceFilter(product="Lmap"), "did you mean Lamp?"),
        (DeviceFilter(module="wifii"), "no device reports the module wifii; did you mean wifi?"),
        (DeviceFilter(module="ble", below="2"), "leave out version, below"),
    ):
        for opened in (
            diff_runs(directory / "last~1", directory, criteria=criteria),
            read_changes_since(directory, "last~1", criteria=criteria),
            read_history(directory, criteria=criteria),
        ):
            with pytest.raises(UsageError, match=sentence.replace("?", r"\?")), opened:
                pass


def test_samples_are_not_filtered(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(4)]
    answers = [ok(device, ("ble", "1")) for device in fleet[:2]]
    old, new = (sampled(tmp_path / str(number), fleet, fleet[:2], answers).folder for number in range(2))
    with pytest.raises(UsageError, match="leave out filters"), diff_runs(old, new, criteria=DeviceFilter(module="ble")):
        pass


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("diff", ("diff", "--last", "--group-by", "site,change")),
        ("diff", ("diff", "--last", "--where", "site=a1", "--devices")),
        ("changes", ("diff", "--since", "last~1", "--group-by", "site", "--sort", "-upgraded", "--limit", "2")),
        ("changes", ("diff", "--since", "last~1", "--product", "Lamp", "--devices", "--changed", "left")),
        ("history", ("history", "--group-by", "site", "--module", "ble")),
        ("history", ("history", "--product", "Plug", "--where", "site=a1")),
    ],
)
def test_the_commands_have_the_filters(
    directory: Path, capsys: pytest.CaptureFixture[str], kind: str, arguments: tuple[str, ...]
) -> None:
    assert main((*arguments, "--format", "json")) == 0
    document = json.loads(capsys.readouterr().out)
    validate(kind, document)
    assert any(document.get(key) for key in ("groups", "changes", "rows"))
    assert main(arguments) == 0
    assert "ble" in (shown := capsys.readouterr().out) or "site" in shown or "left" in shown
