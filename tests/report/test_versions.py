"""The newest version of each module, and the ages of versions, equal the same computed in plain Python."""

from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.query.filters import define_product_names
from auditor.query.versions import VersionOrder, compare_versions
from auditor.report.builder import build_report
from auditor.report.model import VersionSection
from auditor.report.versions import NEWER, OLDER, ON_TARGET, UNORDERED, place_versions, read_versions
from auditor.runs.folder import FIRMWARE
from auditor.runs.views import FIRMWARE_COLUMNS, define_sealed_views, products_query
from auditor.storage.database import open_database
from tests.database import connect
from tests.runs.run_folders import build, edit_manifest, named, ok, running

VERSION = st.sampled_from(["1.0", "1.1", "v1.1", "1.1.0", "1.10", "2.03", "2.1", "hot", "", "1.0-rc1", "x" * 300, "V2"])


def read_section(folder: Path) -> VersionSection:
    with TemporaryDirectory() as work:
        database = open_database()
        try:
            define_sealed_views(database, folder)
            database.execute(f"CREATE TABLE products AS {products_query(folder)}")
            define_product_names(database)
            return read_versions(database, Path(work))
        finally:
            database.close()


def newest_among(versions: set[str]) -> set[str]:
    """Return the versions that no other one is newer than, by comparing all pairs."""
    if len(versions) == 1:
        return versions
    return {
        one
        for one in versions
        if len(one) <= 200 and all(compare_versions(other, one) in ("older", "same") for other in versions)
    }


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["p1", "p2", "p3", "p4"]), VERSION), min_size=1, max_size=24))
@pytest.mark.slow
def test_newest_version_equals_the_comparison_of_all_pairs(devices: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as temporary:
        fleet = [named(number, product=product) for number, (product, _) in enumerate(devices)]
        answers = [ok(device, ("ble", version)) for device, (_, version) in zip(fleet, devices, strict=True)]
        shares = read_section(build(Path(temporary, "run"), fleet, answers).folder)
    unordered = 0
    for product in {product for product, _ in devices}:
        counts = Counter(version for each, version in devices if each == product)
        newest = newest_among(set(counts))
        unordered += not newest
        for row in shares.rows:
            if row.product_key == product:
                version = next(each for each in counts if each[:201] == row.module_version)
                assert row.devices == counts[version]
                assert row.order == ("unordered" if not newest else "newest" if version in newest else "older")
    assert shares.unordered_modules == unordered
    assert shares.module_count == len({product for product, _ in devices})


def expected_age(version: str, target: str, versions: list[str]) -> int:
    """Return the age of a version by comparing all pairs; only the versions between it and the target count."""
    order = VersionOrder([*versions, target])
    if version == target or (place := order.compare(version, target)) == "same":
        return ON_TARGET
    if place in ("newer", "unordered"):
        return NEWER if place == "newer" else UNORDERED
    older = [each for each in versions if each != target and order.compare(each, target) == "older"]
    if any(order.compare(one, other) == "unordered" for one in older for other in older):
        return OLDER
    between = [each for each in older if order.compare(each, version) == "newer"]
    distinct: list[str] = []
    for each in between:
        if all(order.compare(each, other) != "same" for other in distinct):
            distinct.append(each)
    return min(1 + len(distinct), OLDER)


@given(st.lists(VERSION, min_size=1, max_size=9, unique=True), st.data())
def test_ages_equal_the_number_of_versions_between(versions: list[str], data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(versions))
    ages = place_versions(versions, target)
    assert ages == {version: expected_age(version, target, versions) for version in versions}
    order = VersionOrder(versions)
    ordered = [version for version, age in ages.items() if age in (NEWER, ON_TARGET, 1, 2)]
    assert all(order.compare(one, other) != "older" for one, other in pairwise(ordered))


def test_module_with_unordered_versions_has_no_newest_version(tmp_path: Path) -> None:
    fleet = [named(0), named(1)]
    shares = read_section(
        build(tmp_path / "run", fleet, [ok(fleet[0], ("m", "hot")), ok(fleet[1], ("m", "1.0"))]).folder
    )
    assert {row.order for row in shares.rows} == {"unordered"}
    assert shares.unordered_modules == 1


@pytest.mark.parametrize("modules", [0, 1])
def test_run_without_modules_has_no_versions(tmp_path: Path, modules: int) -> None:
    fleet = [named(0)]
    shares = read_section(build(tmp_path / "run", fleet, [ok(fleet[0], *[("m", "1")] * modules)]).folder)
    assert shares.module_count == shares.row_count == modules


def write_firmware(folder: Path, *packages: tuple[str, str, str]) -> None:
    """Write the released firmware of a run: version, verification and time of each package of the module ble."""
    rows = ", ".join(
        f"('demo', 'p1', 'ble', '{version}', '{verification}', TIMESTAMP '{created_at}')"
        for version, verification, created_at in packages
    )
    with connect() as database:
        columns = ", ".join(f"{name} {kind}" for name, kind in FIRMWARE_COLUMNS.items())
        database.execute(f"CREATE TEMP TABLE firmware ({columns})")
        names = "account, product_key, module_name, version, verification, created_at"
        database.execute(f"INSERT INTO firmware ({names}) VALUES {rows}")
        database.execute(f"COPY firmware TO '{folder / FIRMWARE}' (FORMAT parquet)")


@pytest.mark.parametrize(("released_at", "moved"), [("2026-11-22 12:00:00", 1), ("2026-11-21 12:00:00", 0)])
def test_a_target_moved_if_it_was_released_after_the_previous_run(tmp_path: Path, released_at: str, moved: int) -> None:
    fleet = [named(n) for n in range(4)]
    for day, version in (("22", "1.0"), ("23", "1.1")):
        folder = build(tmp_path / "runs" / day, fleet, [ok(each, ("ble", version)) for each in fleet]).folder
        write_firmware(folder, ("1.0", "verified", "2026-11-01"), ("1.1", "verified", released_at))
        began = f"2026-11-{day}T02:00:00.000Z"
        edit_manifest(folder, lambda manifest, began=began: replace(manifest, started_at=began))  # type: ignore[misc]
    found = build_report(folder).rollouts
    assert found.rollouts[0].rollout.target_source == "released"
    assert found.moved_targets == moved


def test_firmware_is_on_target_by_its_date_where_its_versions_have_no_order(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(12)]
    texts = ["build-new"] * 8 + ["build-old"] * 2 + ["build-beta", "unlisted"]
    folder = build(tmp_path / "run", fleet, [ok(d, ("ble", t)) for d, t in zip(fleet, texts, strict=True)]).folder
    write_firmware(folder, ("build-old", "verified", "2026-11-01"), ("build-new", "verified", "2026-11-10"),
                   ("build-beta", "unverified", "2026-11-20"))  # fmt: skip
    found = build_report(folder).rollouts
    (detail,) = found.rollouts
    assert (detail.rollout.target, detail.rollout.on_target) == ("build-new", 9)
    assert {each.version: each.age for each in detail.versions} == {
        "build-beta": NEWER, "build-new": ON_TARGET, "build-old": OLDER, "unlisted": OLDER,
    }  # fmt: skip
    assert [each.version for each in detail.versions][:2] == ["build-beta", "build-new"]
    assert (found.on_target, found.devices, found.ages) == (9, 12, ((9, 0, 0, 3, 0),))
    killed = running(
        tmp_path / "killed", fleet, [ok(fleet[0], ("ble", "build-old")), ok(fleet[1], ("ble", "3"))]
    ).folder
    edit_manifest(killed, lambda manifest: replace(manifest, started_at="2026-11-23T02:00:00.000Z"))
    (detail,) = build_report(killed).rollouts.rollouts
    assert (detail.rollout.target, detail.rollout.target_source) == ("build-new", "released")
    assert (detail.rollout.released_at, detail.rollout.on_target) == (datetime(2026, 11, 10), 0)  # noqa: DTZ001
