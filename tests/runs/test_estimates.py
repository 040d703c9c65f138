"""A run that asked a random sample is shown as one, wherever its numbers appear."""

import csv
from collections import Counter
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import orjson
import pytest

from auditor.analysis.history import read_history
from auditor.cli.render_history import print_history
from auditor.cli.render_run import describe_coverage, print_inventory
from auditor.models import Device, Outcome, RunWarning
from auditor.query.devices import select_devices
from auditor.query.filters import DeviceFilter
from auditor.query.run import Run
from auditor.query.snapshot import open_snapshot
from auditor.query.sql import query_run
from auditor.query.warnings import state_label
from auditor.runs.estimates import MAX_NAME_CHARACTERS
from auditor.runs.folder import INVENTORY_CSV, INVENTORY_JSON
from auditor.runs.verify import verify_run
from auditor.stats.intervals import share_interval, unseen_share_limit
from tests.runs.run_folders import (
    HOSTILE,
    build,
    by_id,
    edit_manifest,
    failed,
    named,
    not_found,
    ok,
    running_sampled,
    sampled,
)

FLEET = [*(named(n) for n in range(300)), *(named(n, product="p2") for n in range(300, 400))]
SAMPLED = [*FLEET[:60], *FLEET[300:320]]


def outcomes() -> list[Outcome]:
    """Two versions in each product; a device of p1 is not found, and 5 of p1 report nothing."""
    found: list[Outcome] = [ok(device, ("ble", "2" if n % 4 else "1")) for n, device in enumerate(SAMPLED[:54])]
    found += [ok(device) for device in SAMPLED[54:59]]
    found.append(not_found(SAMPLED[59]))
    found += [ok(device, ("BLE", "2" if n % 2 else "1")) for n, device in enumerate(SAMPLED[60:])]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sampled(tmp_path / "runs" / "run", FLEET, SAMPLED, outcomes()).folder


def test_the_inventory_has_the_limits_of_each_share_within_its_product(folder: Path) -> None:
    with (folder / INVENTORY_CSV).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "account", "product_key", "module_name", "module_version", "devices", "share", "low", "high",
    ]  # fmt: skip
    for row in rows:
        devices, asked, reporting = (300, 60, 54) if row["product_key"] == "p1" else (100, 20, 20)
        whole = share_interval(devices, asked, reporting, int(row["devices"]))
        told = [float(row[name]) for name in ("share", "low", "high")]
        assert told == [round(each, 6) for each in (whole.share, whole.low, whole.high)]
    assert len(rows) == 4
    assert verify_run(folder) == []


def test_the_summary_of_a_sample_is_within_its_bounds_and_valid(folder: Path) -> None:
    document = orjson.loads((folder / INVENTORY_JSON).read_bytes())
    schema = orjson.loads(resources.files("auditor").joinpath("schemas", "inventory.schema.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(document)
    assert list(document) == [name for name in schema["properties"] if name in document]
    sample = document["sample"]
    assert [sample[name] for name in ("devices", "sampled", "answered", "never_activated", "omitted")] == [
        400,
        80,
        80,
        0,
        0,
    ]
    assert document["unsampled"] == 320
    assert sample["unseen"] == pytest.approx(unseen_share_limit(400, 80), rel=0.05)
    assert [(each["module_name"], each["module_version"], each["devices"]) for each in sample["fleet"]] == [
        ("ble", "2", 50), ("ble", "1", 24),
    ]  # fmt: skip
    for each in sample["fleet"]:
        for part in ("of_fleet", "of_module"):
            assert each[part]["low"] < each[part]["share"] < each[part]["high"]
        assert each["of_fleet"]["share"] == each["devices"] / 80
    del document["inventory"][0]["low"]
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(document))


def test_a_complete_run_has_no_interval_columns(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", SAMPLED, outcomes()).folder
    first = (folder / INVENTORY_CSV).read_text().splitlines()[0]
    assert first == "account,product_key,module_name,module_version,devices,share"
    assert list(orjson.loads((folder / INVENTORY_JSON).read_bytes())) == [
        "schema_version", "complete", "devices", "inventory",
    ]  # fmt: skip
    with Run(folder) as run:
        assert run.sample is None


def test_edited_limits_fail_verification(folder: Path) -> None:
    path = folder / INVENTORY_CSV
    path.write_bytes(path.read_bytes().replace(b",0.7", b",0.6", 1))
    assert any(INVENTORY_CSV in problem and "does not follow" in problem for problem in verify_run(folder))


def test_a_running_sample_has_intervals(tmp_path: Path, folder: Path) -> None:
    half = running_sampled(tmp_path / "half", FLEET, SAMPLED, outcomes()[:30]).folder
    with Run(half) as run, Run(folder) as sealed:
        sample = run.sample
        assert sample is not None
        assert (sample.sampled, sample.answered) == (80, 30)
        assert all(row.low is not None and row.high is not None for row in run.inventory())
        wide = {
            (row.product_key, row.module_version): row.high - row.low for row in run.inventory() if row.low and row.high
        }
        narrow = {(row.product_key, row.module_version): (row.low, row.high) for row in sealed.inventory()}
        for place, width in wide.items():
            low, high = narrow[place]
            assert low is not None
            assert high is not None
            assert width > high - low
        first, second = run.warnings
        sample_detail = (
            "random sample: 320 of 400 devices were not sampled; shares are estimates with 95% intervals, "
            "and counts cover the sampled devices only"
        )
        assert first == RunWarning("sample", str(half), sample_detail)
        assert second == RunWarning("running", str(half), "killed: 0 devices failed, 50 pending in the sample")


def test_devices_that_were_not_sampled_cause_no_warning_of_their_own(folder: Path, tmp_path: Path) -> None:
    (warning,) = open_snapshot(folder, tmp_path / "work").warnings
    assert warning.kind == "sample"
    assert "random sample: 320 of 400 devices" in warning.detail
    assert "pending" not in warning.detail


def test_a_sample_with_failures_has_both_warnings(tmp_path: Path) -> None:
    outcome = [*outcomes()[:-1], failed(SAMPLED[-1])]
    folder = sampled(tmp_path / "run", FLEET, SAMPLED, outcome).folder
    with Run(folder) as run:
        sample = run.sample
        assert sample is not None
        assert (sample.sampled, sample.answered) == (80, 79)
        assert run.warnings[1].detail == "partial: 1 devices failed, 0 pending in the sample"
        assert state_label("partial", run.devices, 320, tolerated=False) == "partial sample"
    edit_manifest(folder, lambda manifest: replace(manifest, max_failed="2%"))
    with Run(folder) as run:
        assert [warning.kind for warning in run.warnings] == ["sample"]
        assert describe_coverage(run.manifest, run.devices).startswith("sample: 400 devices")


def test_the_table_shows_intervals_and_the_number_of_omitted_rows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(folder) as run:
        print_inventory(run.manifest, run.devices, run.inventory(), sample=run.sample)
    out = capsys.readouterr().out
    assert "95% interval" in out.splitlines()[0]
    assert "sample: 400 devices: 74 ok, 5 empty, 1 not found, 0 failed, 0 pending, 320 not sampled" in out
    sentence = (
        "random sample: 80 of 80 sampled devices answered, the fleet has 400; shares are estimates with 95% intervals"
    )
    assert sentence in out
    assert "ble 2: 62.5% (" in out
    assert "a version that is not listed runs on at most" in out


@pytest.mark.parametrize("versions", [HOSTILE, ["x" * (MAX_NAME_CHARACTERS + 1), "1"]])
def test_versions_of_any_name_have_limits_and_the_head_stays_small(tmp_path: Path, versions: list[str]) -> None:
    fleet = [named(n) for n in range(10 * len(versions))]
    drawn = fleet[: len(versions)]
    found: list[Outcome] = [ok(device, ("ble", version)) for device, version in zip(drawn, versions, strict=True)]
    folder = sampled(tmp_path / "runs" / "run", fleet, drawn, found).folder
    assert verify_run(folder) == []
    with Run(folder) as run:
        rows = Counter(row.module_version for row in run.inventory() if row.low is not None and 0 < row.low < 1)
        assert rows == Counter(versions)
        sample = run.sample
        assert sample is not None
        assert len(sample.fleet) + sample.omitted == len(versions)
    with read_history(tmp_path / "runs") as history:
        assert [run.tampered for run in history.runs] == [False]


def test_a_module_spelled_in_two_ways_counts_its_device_once(tmp_path: Path) -> None:
    found: list[Outcome] = [ok(device, ("ble", "1"), ("BLE", "1")) for device in SAMPLED[:60]]
    folder = sampled(tmp_path / "run", FLEET, SAMPLED, found).folder
    with Run(folder) as run:
        (row,) = run.inventory()
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.share <= row.high


def test_a_fleet_that_is_named_by_iot_id_is_one_stratum(tmp_path: Path) -> None:
    fleet = [by_id(n) for n in range(100)]
    learnt = [Device("demo", f"p{n % 2}", f"d{n}", f"iot{n:04}") for n in range(20)]
    found: list[Outcome] = [ok(learnt[n], ("ble", "1" if n < 12 else "2")) for n in range(20)]
    folder = sampled(tmp_path / "run", fleet, fleet[:20], found).folder
    assert verify_run(folder) == []
    with Run(folder) as run:
        assert all(
            row.low is not None and row.high is not None and row.low < row.share < row.high for row in run.inventory()
        )


def test_a_sample_without_answers_has_no_estimate(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "run", FLEET, SAMPLED, [failed(device) for device in SAMPLED]).folder
    assert verify_run(folder) == []
    with Run(folder) as run:
        sample = run.sample
        assert sample is not None
        assert (sample.answered, sample.unseen, sample.fleet) == (0, None, ())


def test_queries_and_filters_show_devices_outside_the_sample(folder: Path) -> None:
    with query_run(folder, "SELECT count(*) FROM inventory WHERE low < share AND share < high") as answer:
        assert list(answer.table) == [(4,)]
    with select_devices(folder, DeviceFilter(source="unsampled")) as selected:
        assert selected.rows == 320
        assert selected.run.coverage["unsampled"] == 320


def test_history_labels_a_sample_and_does_not_count_unsampled_devices_as_pending(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = build(folder.parent / "before", SAMPLED, outcomes()).folder
    edit_manifest(whole, lambda manifest: replace(manifest, started_at="2026-11-20T02:00:00.000Z"))
    with read_history(folder.parent) as history:
        print_history(history)
        (warning,) = history.warnings
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if " sample " in line and line.startswith("2026"))
    assert line.split()[2:] == ["s", "sample", "400", "80", "0", "0", "320"]
    assert "random sample: 320 of 400 devices" in warning.detail
    assert "reported by 54 devices of a sample" in out
