"""Which version is the newest, and what the page shows of a module: equal to the same in plain Python."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.query.versions import compare_versions
from auditor.report.model import ENOUGH, Shares
from auditor.report.versions import MODULES, VERSIONS, read_shares
from auditor.runs.views import define_sealed_views
from auditor.storage.database import open_database
from tests.report.fleets import wide
from tests.runs.run_folders import build, named, ok

VERSION = st.sampled_from(["1.0", "1.1", "v1.1", "1.1.0", "1.10", "2.03", "2.1", "hot", "", "1.0-rc1", "x" * 300, "V2"])


def shares_of(folder: Path) -> Shares:
    with TemporaryDirectory() as work:
        database = open_database()
        try:
            define_sealed_views(database, folder)
            return read_shares(database, Path(work))
        finally:
            database.close()


def newest_of(versions: set[str]) -> set[str]:
    """Those that every other one is older than, or the same as; by the rule, pair by pair."""
    if len(versions) == 1:
        return versions
    return {
        one
        for one in versions
        if len(one) <= 200 and all(compare_versions(other, one) in ("older", "same") for other in versions)
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["p1", "p2"]), VERSION), min_size=1, max_size=12))
def test_the_newest_version_is_the_one_that_the_rules_say(devices: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as temporary:
        fleet = [named(number, product=product) for number, (product, _) in enumerate(devices)]
        answers = [ok(device, ("ble", version)) for device, (_, version) in zip(fleet, devices, strict=True)]
        shares = shares_of(build(Path(temporary, "run"), fleet, answers).folder)
    expected = {}
    for product in {product for product, _ in devices}:
        counts = Counter(version for each, version in devices if each == product)
        newest = newest_of(set(counts))
        part = sum(counts[version] for version in newest) / counts.total() if newest else None
        expected[product] = (counts.total(), len(counts), part)
        for row in shares.rows:
            if row.product_key == product:
                version = next(each for each in counts if each[:201] == row.module_version)
                assert row.devices == counts[version]
                assert row.order == ("unordered" if not newest else "newest" if version in newest else "older")
    found = {each.product_key: (each.devices, each.all_versions, each.on_newest) for each in shares.modules}
    assert found == expected
    parts = [part for _, _, part in expected.values()]
    assert shares.done == sum(part is not None and part >= ENOUGH for part in parts)
    assert shares.unknown == parts.count(None)


def test_pictures_are_bounded_and_have_the_newest(tmp_path: Path) -> None:
    shares = shares_of(wide(tmp_path / "run", 5, 4, 30))
    assert (len(shares.modules), shares.all_modules, shares.all_rows) == (MODULES, 20, 5 * 4 * 29)
    for module in shares.modules:
        assert len(module.versions) == VERSIONS
        assert [each.text for each in module.versions if each.order == "newest"] == [module.newest] == ["1.29"]
        assert module.others == 29 - VERSIONS
        assert module.others_devices == module.devices - sum(each.devices for each in module.versions)


def test_a_module_that_no_rule_orders_has_no_newest(tmp_path: Path) -> None:
    fleet = [named(0), named(1)]
    shares = shares_of(build(tmp_path / "run", fleet, [ok(fleet[0], ("m", "hot")), ok(fleet[1], ("m", "1.0"))]).folder)
    assert [(each.newest, each.on_newest) for each in shares.modules] == [(None, None)]
    assert {row.order for row in shares.rows} == {"unordered"}
    assert shares.unknown == 1


@pytest.mark.parametrize("modules", [0, 1])
def test_a_run_without_modules_has_no_shares(tmp_path: Path, modules: int) -> None:
    fleet = [named(0)]
    shares = shares_of(build(tmp_path / "run", fleet, [ok(fleet[0], *[("m", "1")] * modules)]).folder)
    assert len(shares.modules) == shares.all_rows == modules
