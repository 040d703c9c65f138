"""Drift between samples: significant changes of shares; unsampled devices have not left."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from auditor.analysis.drift import Drift, diff_runs
from auditor.models import Device, Outcome
from auditor.runs.manifest import file_info
from auditor.stats.intervals import Stratum, difference_interval, share_interval
from auditor.stats.ratio_estimator import combined_unseen_share_limit
from tests.runs.run_folders import HOSTILE, build, failed, named, ok
from tests.runs.sampled_runs import carried_run, sampled_run

Row = dict[str, object]


def rows(drift: Drift) -> list[Row]:
    assert drift.shares is not None
    return [dict(zip(drift.shares.table.columns, row, strict=True)) for row in drift.shares.table]


def of(found: list[Row], version: str, level: str = "product") -> Row:
    (row,) = (row for row in found if row["module_version"] == version and row["level"] == level)
    return row


def draw(folder: Path, versions: Sequence[tuple[Device, str]], number: int, seed: int) -> Path:
    """A sample of devices that run these versions of ble; of each product the same part."""
    chance = random.Random(seed)
    products = sorted({str(device.product_key) for device, _ in versions})
    drawn = []
    for key in products:
        those = [each for each in versions if each[0].product_key == key]
        drawn += chance.sample(those, round(number * len(those) / len(versions)))
    outcomes: list[Outcome] = [ok(device, ("ble", version)) for device, version in drawn]
    return sampled_run(folder, [device for device, _ in versions], [device for device, _ in drawn], outcomes).folder


def fleet_of(*, rolled: float = 0.0) -> list[tuple[Device, str]]:
    """Two products with ten versions each, and of the first the newest on a further part of the devices."""
    chance = random.Random(5)
    versions = [f"1.{number}" for number in range(10)]
    found = []
    for key, devices in (("p1", 2_000), ("p2", 1_000)):
        for number in range(devices):
            version = chance.choices(versions, [2**-at for at in range(10)])[0]
            rolls = key == "p1" and chance.random() < rolled
            found.append((named(number, product=key), "2.0" if rolls else version))
    return found


def test_an_unsampled_device_has_not_left_and_its_modules_are_not_removed(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(6)]
    old = sampled_run(
        tmp_path / "old", fleet, fleet[:3], [ok(fleet[0], ("rare", "1")), *(ok(d, ("ble", "1")) for d in fleet[1:3])]
    )
    new = sampled_run(
        tmp_path / "new",
        fleet,
        fleet[1:5],
        [ok(fleet[1], ("ble", "2")), failed(fleet[2]), ok(fleet[3]), ok(fleet[4], ("new", "1"))],
    )
    with diff_runs(old.folder, new.folder) as drift:
        counts = drift.counts
        assert (counts.compared, counts.upgraded, counts.not_seen, counts.unsampled) == (1, 1, 1, 4)
        assert (counts.joined, counts.left, counts.added, counts.removed) == (0, 0, 0, 0)
        assert {row[5] for row in drift.devices} == {"upgraded", "not_seen"}
        at = drift.modules.columns.index("unsampled")
        assert {row[2]: row[at] for row in drift.modules} == {"rare": 1, "ble": 0, "new": 1}
        assert {row[3] for row in drift.modules} == {"kept"}


def test_a_product_that_both_samples_contain_completely_can_lose_a_module(tmp_path: Path) -> None:
    fleet = [named(0), *(named(number, product="p2") for number in range(5))]
    old = sampled_run(tmp_path / "old", fleet, fleet[:2], [ok(fleet[0], ("gone", "1")), ok(fleet[1], ("gone", "1"))])
    new = sampled_run(tmp_path / "new", fleet, fleet[:2], [ok(fleet[0]), ok(fleet[1])])
    with diff_runs(old.folder, new.folder) as drift:
        assert {row[1]: row[3] for row in drift.modules} == {"p1": "removed", "p2": "kept"}


@pytest.mark.slow
def test_two_samples_of_a_fleet_that_did_not_change_have_no_significant_changes(tmp_path: Path) -> None:
    fleet = fleet_of()
    told = shares = 0
    for seed in range(0, 16, 2):
        old, new = (draw(tmp_path / str(each), fleet, 600, each) for each in (seed, seed + 1))
        with diff_runs(old, new) as drift:
            assert drift.shares is not None
            counts = drift.shares.counts
            told += counts.grew + counts.shrank
            shares += counts.shares
            assert counts.shares == counts.not_significant + counts.unknown + counts.grew + counts.shrank
    assert shares > 200
    assert told <= 1


@pytest.mark.slow
def test_a_rollout_is_significant_only_in_its_product(tmp_path: Path) -> None:
    old, new = draw(tmp_path / "old", fleet_of(), 600, 1), draw(tmp_path / "new", fleet_of(rolled=0.3), 600, 2)
    with diff_runs(old, new) as drift:
        found = rows(drift)
    told = [(row["product_key"], row["module_version"], row["verdict"]) for row in found if row["level"] == "product"]
    changed = [each for each in told if each[2] in {"grew", "shrank"}]
    assert changed[0] == ("p1", "2.0", "grew")
    assert ("p1", "1.0", "shrank") in changed
    assert all(key == "p1" for key, _, _ in changed)
    assert of(found, "2.0", "fleet")["verdict"] == "grew"
    verdicts = [row["verdict"] in {"grew", "shrank"} for row in found]
    assert verdicts == sorted(verdicts, reverse=True)  # what changed comes first
    assert all(float(str(row["change_low"])) > 0 for row in found if row["verdict"] == "grew")
    assert all(float(str(row["change_high"])) < 0 for row in found if row["verdict"] == "shrank")


def test_a_complete_fleet_has_intervals_without_width(tmp_path: Path) -> None:
    versions = [(named(number), "1.0" if number < 300 else "2.0") for number in range(400)]
    old = build(
        tmp_path / "old", [d for d, _ in versions], [ok(device, ("ble", version)) for device, version in versions]
    )
    later = [(device, "2.0") for device, _ in versions]
    new = draw(tmp_path / "new", later, 50, 1)
    with diff_runs(old.folder, new) as drift:
        assert drift.counts.unsampled == 350
        gone = of(rows(drift), "1.0")
        assert drift.shares is not None
        drift.shares.table.write(tmp_path / "d.json", "json")
    assert (gone["old_share"], gone["old_low"], gone["old_high"]) == (0.75, 0.75, 0.75)
    high = combined_unseen_share_limit([Stratum(400, 50, 50, 0)])
    assert (gone["new_share"], gone["new_low"], gone["new_high"]) == (0, 0, round(high, 6))
    changed = difference_interval(share_interval(400, 400, 400, 300), share_interval(400, 50, 50, 0))
    assert (gone["change"], gone["change_high"], gone["verdict"]) == (-0.75, round(changed.high, 6), "shrank")
    document = json.loads((tmp_path / "d.json").read_bytes())
    assert document["verdicts"] == {"grew": 2, "shrank": 2, "not_significant": 0, "unknown": 0}
    assert len(document["shares"]) == 4


def test_a_module_outside_a_sample_has_no_share_in_its_product_but_one_in_the_fleet(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(100)]
    old = sampled_run(tmp_path / "old", fleet, fleet[:50], [ok(device) for device in fleet[:50]])
    new = sampled_run(tmp_path / "new", fleet, fleet[50:], [ok(device, ("ble", "1")) for device in fleet[50:]])
    with diff_runs(old.folder, new.folder) as drift:
        found = rows(drift)
    assert (of(found, "1")["verdict"], of(found, "1")["old_share"]) == ("unknown", None)
    assert (of(found, "1", "fleet")["verdict"], of(found, "1", "fleet")["old_share"]) == ("grew", 0)


def test_whole_fleets_have_no_shares_to_compare(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(3)]
    runs = [
        build(tmp_path / str(at), fleet, [ok(device, ("ble", str(at))) for device in fleet]).folder for at in (1, 2)
    ]
    with diff_runs(*runs) as drift:
        assert drift.shares is None
        assert (drift.counts.upgraded, drift.counts.unsampled, drift.counts.carried) == (3, 0, 0)


def test_hostile_versions_are_compared_unchanged(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(60)]
    versions = {text for text in HOSTILE if text}
    outcomes = [ok(device, *((f"m{at}", text) for at, text in enumerate(sorted(versions)))) for device in fleet[:30]]
    run = sampled_run(
        tmp_path / "old", fleet, fleet[:30], [*outcomes[:29], ok(fleet[29], ("m", "1"), ("M", "2"))]
    ).folder
    other = sampled_run(tmp_path / "new", fleet, fleet[:30], outcomes).folder
    with diff_runs(run, other) as drift:
        assert {str(row["module_version"]) for row in rows(drift)} == versions | {"1", "2"}


def test_answers_about_a_product_outside_the_fleet_are_ignored(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(20)]
    stray = ok(named(99, product="stray"), ("ble", "9"))
    runs = [
        sampled_run(
            tmp_path / name, fleet, fleet[:10], [*(ok(device, ("ble", "1")) for device in fleet[:10]), stray]
        ).folder
        for name in ("old", "new")
    ]
    with diff_runs(*runs) as drift:
        assert {row["module_version"] for row in rows(drift)} == {"1"}


@pytest.mark.slow
def test_answers_carried_from_the_old_run_are_counted(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(4)]
    old = build(tmp_path / "old", fleet, [ok(device, ("ble", "1")) for device in fleet])
    since = [(fleet[0], "ble", "1"), (fleet[1], "ble", "1")]
    read_later = carried_run(tmp_path / "later", fleet, [ok(fleet[2], ("ble", "2")), ok(fleet[3])], since, read=2e9)
    carried = carried_run(tmp_path / "new", fleet, [ok(fleet[2], ("ble", "2")), ok(fleet[3])], since)
    with diff_runs(old.folder, carried.folder) as drift:
        assert (drift.counts.compared, drift.counts.same, drift.counts.carried) == (4, 2, 2)
    with diff_runs(old.folder, read_later.folder) as drift:
        assert drift.counts.carried == 0  # they were read again, by a run in between


@pytest.mark.slow
def test_a_comparison_does_not_change_the_runs(tmp_path: Path) -> None:
    runs = [draw(tmp_path / str(seed), fleet_of(), 100, seed) for seed in (1, 2)]
    before = [file_info(path) for run in runs for path in sorted(run.iterdir())]
    with diff_runs(*runs) as drift:
        assert rows(drift)
    assert [file_info(path) for run in runs for path in sorted(run.iterdir())] == before
