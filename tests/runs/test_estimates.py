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
from auditor.cli.render_run import print_inventory
from auditor.models import Device, Outcome
from auditor.query.devices import Selection, select_devices
from auditor.query.run import Run
from auditor.query.snapshot import freeze
from auditor.query.sql import query_run
from auditor.query.warnings import label_of
from auditor.runs.estimates import NAMES
from auditor.runs.folder import INVENTORY_CSV, INVENTORY_JSON
from auditor.runs.verify import verify
from auditor.stats.intervals import share_within, unseen
from tests.runs.run_folders import (
    HOSTILE,
    build,
    by_id,
    edit_manifest,
    failed,
    named,
    not_found,
    ok,
    sampled,
    under_way_sampled,
)

FLEET = [*(named(n) for n in range(300)), *(named(n, product="p2") for n in range(300, 400))]
DRAWN = [*FLEET[:60], *FLEET[300:320]]


def outcomes() -> list[Outcome]:
    """Two versions in each product; a device of p1 is not found, and 5 of p1 report nothing."""
    found: list[Outcome] = [ok(device, ("ble", "2" if n % 4 else "1")) for n, device in enumerate(DRAWN[:54])]
    found += [ok(device) for device in DRAWN[54:59]]
    found.append(not_found(DRAWN[59]))
    found += [ok(device, ("BLE", "2" if n % 2 else "1")) for n, device in enumerate(DRAWN[60:])]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sampled(tmp_path / "runs" / "run", FLEET, DRAWN, outcomes()).folder


def test_the_inventory_has_the_limits_of_each_share_within_its_product(folder: Path) -> None:
    with (folder / INVENTORY_CSV).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "account", "product_key", "module_name", "module_version", "devices", "share", "low", "high",
    ]  # fmt: skip
    for row in rows:
        devices, asked, reporting = (300, 60, 54) if row["product_key"] == "p1" else (100, 20, 20)
        whole = share_within(devices, asked, reporting, int(row["devices"]))
        told = [float(row[name]) for name in ("share", "low", "high")]
        assert told == [round(each, 6) for each in (whole.share, whole.low, whole.high)]
    assert len(rows) == 4
    assert verify(folder) == []


def test_what_a_sample_tells_of_the_fleet_holds_its_bounds_and_the_schema(folder: Path) -> None:
    document = orjson.loads((folder / INVENTORY_JSON).read_bytes())
    schema = orjson.loads(resources.files("auditor").joinpath("schemas", "inventory.schema.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(document)
    assert list(document) == [name for name in schema["properties"] if name in document]
    sample = document["sample"]
    assert [sample[name] for name in ("devices", "drawn", "answered", "known", "left_out")] == [400, 80, 80, 0, 0]
    assert document["unsampled"] == 320
    assert sample["unseen"] == pytest.approx(unseen(400, 80), rel=0.05)
    assert [(each["module_name"], each["module_version"], each["devices"]) for each in sample["fleet"]] == [
        ("ble", "2", 50), ("ble", "1", 24),
    ]  # fmt: skip
    for each in sample["fleet"]:
        for part in ("of_fleet", "of_module"):
            assert each[part]["low"] < each[part]["share"] < each[part]["high"]
        assert each["of_fleet"]["share"] == each["devices"] / 80
    del document["inventory"][0]["low"]
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(document))


def test_a_run_that_asked_all_has_the_columns_that_it_always_had(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", DRAWN, outcomes()).folder
    first = (folder / INVENTORY_CSV).read_text().splitlines()[0]
    assert first == "account,product_key,module_name,module_version,devices,share"
    assert list(orjson.loads((folder / INVENTORY_JSON).read_bytes())) == [
        "schema_version", "complete", "devices", "inventory",
    ]  # fmt: skip
    with Run(folder) as run:
        assert run.sample is None


def test_limits_that_were_edited_do_not_verify(folder: Path) -> None:
    path = folder / INVENTORY_CSV
    path.write_bytes(path.read_bytes().replace(b",0.7", b",0.6", 1))
    assert any(INVENTORY_CSV in problem and "does not follow" in problem for problem in verify(folder))


def test_a_sample_that_is_under_way_has_intervals_too(tmp_path: Path, folder: Path) -> None:
    half = under_way_sampled(tmp_path / "half", FLEET, DRAWN, outcomes()[:30]).folder
    with Run(half) as run, Run(folder) as sealed:
        sample = run.sample
        assert sample is not None
        assert (sample.drawn, sample.answered) == (80, 30)
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
        first, second = run.doubts
        assert first == (
            f"{half} is a random sample: of 400 devices 320 were not drawn; its shares are estimates with 95% intervals, "
            "and its counts are of the others alone"
        )
        assert second == f"{half} is running: 0 devices failed and 50 are pending of those that were drawn"


def test_devices_that_were_not_drawn_are_no_doubt_of_their_own(folder: Path, tmp_path: Path) -> None:
    (doubt,) = freeze(folder, tmp_path / "work").doubts
    assert "is a random sample: of 400 devices 320 were not drawn" in doubt
    assert "pending" not in doubt


def test_a_sample_of_which_some_failed_says_both(tmp_path: Path) -> None:
    outcome = [*outcomes()[:-1], failed(DRAWN[-1])]
    folder = sampled(tmp_path / "run", FLEET, DRAWN, outcome).folder
    with Run(folder) as run:
        sample = run.sample
        assert sample is not None
        assert (sample.drawn, sample.answered) == (80, 79)
        assert run.doubts[1] == f"{folder} is partial: 1 devices failed and 0 are pending of those that were drawn"
        assert label_of("partial", run.devices, 320) == "partial sample"


def test_the_table_tells_intervals_and_what_is_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(folder) as run:
        print_inventory(run.manifest, run.devices, run.inventory(), sample=run.sample)
    out = capsys.readouterr().out
    assert "95% interval" in out.splitlines()[0]
    assert "sample: 400 devices: 74 ok, 5 empty, 1 not found, 0 failed, 0 pending, 320 not drawn" in out
    assert "a sample: 80 of 400 devices were drawn and 80 answered; shares are estimates with 95% intervals" in out
    assert "ble 2: 62.5% (" in out
    assert "a version that is not shown is held by at most" in out


@pytest.mark.parametrize("versions", [HOSTILE, ["x" * (NAMES + 1), "1"]])
def test_versions_of_any_name_have_limits_and_the_head_stays_small(tmp_path: Path, versions: list[str]) -> None:
    fleet = [named(n) for n in range(10 * len(versions))]
    drawn = fleet[: len(versions)]
    found: list[Outcome] = [ok(device, ("ble", version)) for device, version in zip(drawn, versions, strict=True)]
    folder = sampled(tmp_path / "runs" / "run", fleet, drawn, found).folder
    assert verify(folder) == []
    with Run(folder) as run:
        rows = Counter(row.module_version for row in run.inventory() if row.low is not None and 0 < row.low < 1)
        assert rows == Counter(versions)
        sample = run.sample
        assert sample is not None
        assert len(sample.fleet) + sample.left_out == len(versions)
    with read_history(tmp_path / "runs") as history:
        assert [run.tampered for run in history.runs] == [False]


def test_a_module_that_a_device_spells_in_two_ways_is_no_device_more(tmp_path: Path) -> None:
    found: list[Outcome] = [ok(device, ("ble", "1"), ("BLE", "1")) for device in DRAWN[:60]]
    folder = sampled(tmp_path / "run", FLEET, DRAWN, found).folder
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
    assert verify(folder) == []
    with Run(folder) as run:
        assert all(
            row.low is not None and row.high is not None and row.low < row.share < row.high for row in run.inventory()
        )


def test_nothing_answered_is_nothing_known(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "run", FLEET, DRAWN, [failed(device) for device in DRAWN]).folder
    assert verify(folder) == []
    with Run(folder) as run:
        sample = run.sample
        assert sample is not None
        assert (sample.answered, sample.unseen, sample.fleet) == (0, None, ())


def test_a_question_and_a_selection_know_who_was_not_drawn(folder: Path) -> None:
    with query_run(folder, "SELECT count(*) FROM inventory WHERE low < share AND share < high") as answer:
        assert list(answer.table) == [(4,)]
    with select_devices(folder, Selection(source="unsampled")) as selected:
        assert selected.rows == 320
        assert selected.run.coverage["unsampled"] == 320


def test_history_labels_a_sample_and_counts_none_of_the_rest_as_pending(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = build(folder.parent / "before", DRAWN, outcomes()).folder
    edit_manifest(whole, lambda manifest: replace(manifest, started_at="2026-11-20T02:00:00.000Z"))
    with read_history(folder.parent) as history:
        print_history(history)
        (doubt,) = history.doubts
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if " sample " in line and line.startswith("2026"))
    assert line.split()[2:] == ["s", "sample", "400", "80", "0", "0", "320"]
    assert "is a random sample: of 400 devices 320 were not drawn" in doubt
    assert "54 devices of a sample report it" in out
