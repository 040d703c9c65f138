"""The newest version and the shares of modules equal the same computed in plain Python."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.query.versions import compare_versions
from auditor.report.model import COMPLETE_ROLLOUT, VersionSection
from auditor.report.versions import MAX_MODULES, MAX_VERSIONS, read_versions
from auditor.runs.views import define_sealed_views
from auditor.storage.database import open_database
from tests.report.fleets import build_wide_run
from tests.runs.run_folders import build, named, ok

VERSION = st.sampled_from(["1.0", "1.1", "v1.1", "1.1.0", "1.10", "2.03", "2.1", "hot", "", "1.0-rc1", "x" * 300, "V2"])


def read_section(folder: Path) -> VersionSection:
    with TemporaryDirectory() as work:
        database = open_database()
        try:
            define_sealed_views(database, folder)
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
def test_newest_version_equals_the_comparison_of_all_pairs(devices: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as temporary:
        fleet = [named(number, product=product) for number, (product, _) in enumerate(devices)]
        answers = [ok(device, ("ble", version)) for device, (_, version) in zip(fleet, devices, strict=True)]
        shares = read_section(build(Path(temporary, "run"), fleet, answers).folder)
    expected = {}
    for product in {product for product, _ in devices}:
        counts = Counter(version for each, version in devices if each == product)
        newest = newest_among(set(counts))
        part = sum(counts[version] for version in newest) / counts.total() if newest else None
        expected[product] = (counts.total(), len(counts), part)
        for row in shares.rows:
            if row.product_key == product:
                version = next(each for each in counts if each[:201] == row.module_version)
                assert row.devices == counts[version]
                assert row.order == ("unordered" if not newest else "newest" if version in newest else "older")
    found = {each.product_key: (each.devices, each.version_count, each.on_newest) for each in shares.modules}
    assert found == expected
    parts = [part for _, _, part in expected.values()]
    assert shares.complete_rollouts == sum(part is not None and part >= COMPLETE_ROLLOUT for part in parts)
    assert shares.unordered_modules == parts.count(None)


def test_charts_are_bounded_and_have_the_newest_version(tmp_path: Path) -> None:
    shares = read_section(build_wide_run(tmp_path / "run", 5, 4, 30))
    assert (len(shares.modules), shares.module_count, shares.row_count) == (MAX_MODULES, 20, 5 * 4 * 29)
    for module in shares.modules:
        assert len(module.versions) == MAX_VERSIONS
        assert (
            [each.module_version for each in module.versions if each.order == "newest"] == [module.newest] == ["1.29"]
        )
        assert module.other_versions == 29 - MAX_VERSIONS
        assert module.other_devices == module.devices - sum(each.devices for each in module.versions)


def test_module_with_unordered_versions_has_no_newest_version(tmp_path: Path) -> None:
    fleet = [named(0), named(1)]
    shares = read_section(
        build(tmp_path / "run", fleet, [ok(fleet[0], ("m", "hot")), ok(fleet[1], ("m", "1.0"))]).folder
    )
    assert [(each.newest, each.on_newest) for each in shares.modules] == [(None, None)]
    assert {row.order for row in shares.rows} == {"unordered"}
    assert shares.unordered_modules == 1


@pytest.mark.parametrize("modules", [0, 1])
def test_run_without_modules_has_no_versions(tmp_path: Path, modules: int) -> None:
    fleet = [named(0)]
    shares = read_section(build(tmp_path / "run", fleet, [ok(fleet[0], *[("m", "1")] * modules)]).folder)
    assert len(shares.modules) == shares.row_count == modules
