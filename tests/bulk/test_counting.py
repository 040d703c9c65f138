"""Devices counted by the platform's index, compared with the devices of the simulated world."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import auditor
from auditor.bulk.counting import (
    CountQuery,
    _compare,
    _group_older,
    count_devices_by_version,
    exact_queries,
    queries_below,
)
from auditor.bulk.statements import count_statement, page_statement
from auditor.errors import AccountStoppedError, UsageError
from auditor.query.run import VersionCount
from auditor.query.versions import VersionOrder
from auditor.runs.folder import RunCatalog, StoredRun
from auditor.runs.manifest import Manifest
from auditor.simulator.search.language import parse_statement
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import stop_after
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio

WORLD = World(400, products=3, missing=0.1, silent=0.1, inactive=0.1)
MODULE = "default"


def truth(module: str, version: str | None, product: str | None = None) -> int:
    return sum(
        any(each.module_name == module and version in {None, each.module_version} for each in device.modules)
        for device in WORLD
        if device.exists and product in {None, device.product_key}
    )


def versions_of(module: str, product: str) -> set[str]:
    devices = [device for device in WORLD if device.exists and device.product_key == product]
    return {each.module_version for device in devices for each in device.modules if each.module_name == module}


def settings_of(platform: Simulator, folder: Path, **changes: object) -> auditor.Settings:
    return settings_for(folder, account_table(platform.endpoint, folder, fleet={"products": "all"}), **changes)


async def test_every_count_equals_the_devices_in_one_call_each(tmp_path: Path) -> None:
    async with Simulator(WORLD, index=IndexOptions(), record_arrivals=True) as platform:
        settings = settings_of(platform, tmp_path)
        queries = exact_queries(settings, MODULE, None, ())
        for key in WORLD.product_keys:
            for version in (None, *sorted(versions_of(MODULE, key)), "no-such-version"):
                queries += exact_queries(settings, MODULE, version, [key]) + exact_queries(
                    settings, MODULE, version, ()
                )
        queries = list(dict.fromkeys(queries))
        found = await count_devices_by_version(settings, queries)
        assert [each.query for each in found] == queries
        assert [each.devices for each in found] == [truth(MODULE, each.version, each.product_key) for each in queries]
        assert {name: len(times) for name, times in platform.arrivals_by_operation.items()} == {
            "QueryDeviceBySQL": len(queries)
        }


@pytest.mark.slow
async def test_versions_below_another_one_are_those_of_the_newest_run(tmp_path: Path) -> None:
    async with Simulator(WORLD, index=IndexOptions()) as platform:
        settings = settings_of(platform, tmp_path)
        with pytest.raises(UsageError, match="--below needs the versions of a complete run"):
            queries_below(settings, MODULE, "9", ())
        await auditor.run_audit(settings)
        for key in WORLD.product_keys:
            own = sorted(versions_of(MODULE, key))
            for below in own:
                queries = queries_below(settings, MODULE.upper(), below, [key]).queries
                found = await count_devices_by_version(settings, queries)
                order = VersionOrder(own)
                older = [version for version in own if version and order.compare(version, below) == "older"]
                assert len(found) <= len(older) + 1
                assert sum(each.devices for each in found[:-1]) == sum(truth(MODULE, each, key) for each in older)
                for each in found[:-1]:
                    label = each.query.version or ""
                    same = [
                        version
                        for version in own
                        if version == label or (each.query.is_prefix and version.startswith(label))
                    ]
                    assert each.devices == sum(truth(MODULE, version, key) for version in same)
                assert found[-1].devices == truth(MODULE, None, key)


def group_older(versions: Mapping[str | None, set[str]], below: str) -> dict[str, bool]:
    return _group_older({product: _compare(own, below) for product, own in versions.items()}, below)


def test_versions_that_begin_alike_are_counted_in_one_call() -> None:
    own = {"0.9.1", "1.0.1", "1.0.2", "1.0.3", "1.1.0", "1.1.1", "1.2.0", "1.10.0", "2.0.0"}
    assert group_older({"k": own}, "1.2.0") == {"1.0.": True, "1.1.": True, "0.9.1": False}
    assert group_older({"k": own}, "2.0.0") == {"1.": True, "0.9.1": False}
    # Of another product: the same beginning, and newer.
    assert group_older({"k": {"1.0.1", "1.0.2"}, "l": {"1.0.5"}}, "1.0.4") == {"1.0.1": False, "1.0.2": False}
    assert group_older({"k": {"v1.0.1", "V1.0.2", "v1.0.3"}}, "v2") == {
        "v1.0.1": False,
        "V1.0.2": False,
        "v1.0.3": False,
    }


def test_a_group_has_every_older_version_once_and_nothing_that_is_not_older() -> None:
    rng = random.Random(5)
    for _ in range(300):
        own = {
            rng.choice(("", "v")) + ".".join(str(rng.randrange(4)) for _ in range(rng.randint(1, 4))) for _ in range(12)
        }
        below = rng.choice(sorted(own))
        order = VersionOrder((*own, below))
        older = {version for version in own if order.compare(version, below) == "older"}
        groups = group_older({"k": own}, below)
        assert len(groups) <= len(older)
        for version in own:
            found = [
                each
                for each, is_prefix in groups.items()
                if version == each or (is_prefix and version.startswith(each))
            ]
            assert len(found) == (version in older)
        for prefix in (each for each, is_prefix in groups.items() if is_prefix):
            unknown = prefix + ".".join(str(rng.randrange(2_000)) for _ in range(rng.randint(1, 3)))
            assert VersionOrder((*own, below, unknown)).compare(unknown, below) == "older"


FLEETS = st.dictionaries(
    st.sampled_from(["k1", "k2", "k3"]),
    st.dictionaries(
        st.sampled_from(
            [
                *("04.10.2020", "27.09.2020", "04.99.2020", "01.01.1", "01.11.2020", "1.2.0", "1.2.1", "1.10.0", "1.3"),
                *("v1.2.0", "1.2.0-hotfix1", "banana", "", "20240115", "1000001", "1000002", "2.03", "2.1"),
            ]
        ),
        st.integers(1, 9),
        max_size=6,
    ),
    min_size=1,
)


BOUNDS = st.sampled_from(["1.2.1", "1.10", "2.1", "20240116", "01.11.2020", "27.09.2020"])
DATES = {"k1": {"04.10.2020": 3, "27.09.2020": 2}, "k2": {"04.99.2020": 4, "01.01.1": 5, "04.10.2020": 6}}


@pytest.mark.slow
@examples(max_examples=150, deadline=None)
@example(fleet=DATES, below="01.11.2020", by_product=False)
@given(fleet=FLEETS, below=BOUNDS, by_product=st.booleans())
def test_each_device_below_a_version_is_counted_once_and_no_other(
    fleet: dict[str, dict[str, int]], below: str, *, by_product: bool
) -> None:
    orders = {key: VersionOrder((*own, below)) for key, own in fleet.items()}
    found = {(key, each): orders[key].compare(each, below) for key, own in fleet.items() for each in own}

    def devices_with(order: str) -> int:
        return sum(fleet[key][each] for (key, each), compared in found.items() if compared == order)

    def counted(query: CountQuery) -> int:
        return sum(
            devices
            for key, own in fleet.items()
            for version, devices in own.items()
            if query.product_key in {None, key}
            and (query.version in {None, version} or (query.is_prefix and version.startswith(query.version or "")))
        )

    keys = {"access_key_id": {"env": "NO_SUCH_VARIABLE"}, "access_key_secret": {"env": "NO_SUCH_VARIABLE"}}
    settings = auditor.parse_settings({"account": [{"name": "eu", "endpoint": "https://example.com/", **keys}]})
    (account,) = settings.account
    rows = [
        VersionCount(account.name, key, MODULE, version, devices, 0.5)
        for key, own in fleet.items()
        for version, devices in own.items()
    ]
    run = StoredRun(cast("Manifest", None), Path("runs"))
    with (
        mock.patch("auditor.bulk.counting._newest_run", return_value=run),
        mock.patch("auditor.bulk.counting.Run") as opened,
    ):
        opened.return_value.__enter__.return_value.inventory.return_value = rows
        if found and set(found.values()) == {"unordered"}:
            with pytest.raises(UsageError, match="none of the versions of default in runs can be compared"):
                queries_below(settings, MODULE, below, sorted(fleet) if by_product else ())
            return
        below_queries = queries_below(settings, MODULE, below, sorted(fleet) if by_product else ())
    queries = below_queries.queries
    assert below_queries.uncompared == devices_with("unordered")
    assert sum(counted(each) for each in queries if each.version is not None) == devices_with("older")
    assert sum(counted(each) for each in queries if each.version is None) == sum(
        sum(x.values()) for x in fleet.values()
    )


async def test_versions_that_cannot_be_compared_are_counted_or_the_command_is_refused(tmp_path: Path) -> None:
    async with Simulator(WORLD, index=IndexOptions()) as platform:
        settings = settings_of(platform, tmp_path)
        await auditor.run_audit(settings)
        assert queries_below(settings, MODULE, "9", ()).uncompared == 0
        with pytest.raises(UsageError, match=r"--below banana: none of the versions of default in .* can be compared"):
            queries_below(settings, MODULE, "banana", ())


async def test_runs_that_did_not_read_the_module_are_named(tmp_path: Path) -> None:
    async with Simulator(WORLD, index=IndexOptions()) as platform:
        settings = settings_of(platform, tmp_path, modules=["default"])
        await auditor.run_audit(settings)
        assert queries_below(settings, MODULE, "9", ()).queries
        with pytest.raises(UsageError, match=r"module ble; .* its runs read only the module default; give --version"):
            queries_below(settings, "ble", "9", ())


@pytest.mark.slow
async def test_versions_below_another_one_are_those_of_a_complete_run(tmp_path: Path) -> None:
    async with Simulator(WORLD, index=IndexOptions(), latency=(0.005, 0.01)) as platform:
        settings = settings_of(platform, tmp_path)
        complete = await auditor.run_audit(settings)
        partial = await stop_after(
            platform.counts.answered + 50, platform, lambda stop: auditor.run_audit(settings, stop=stop)
        )
    newest = RunCatalog(tmp_path / "audits").named(settings.name)[0]
    assert (newest.folder, newest.sealed) == (partial.folder, True)
    assert queries_below(settings, MODULE, "9", ()).run == complete.folder


@pytest.mark.slow
async def test_a_platform_without_an_index_is_named_with_its_reason(tmp_path: Path) -> None:
    for index in (None, IndexOptions(is_refused=True)):
        async with Simulator(WORLD, index=index) as platform:
            settings = settings_of(platform, tmp_path)
            with pytest.raises(AccountStoppedError, match=r"its devices cannot be searched: .*; an audit counts them"):
                await count_devices_by_version(settings, exact_queries(settings, MODULE, None, ()))
    async with Simulator(WORLD) as platform:
        settings = settings_of(platform, tmp_path)
        result = await auditor.run_audit(settings)
        with pytest.raises(AccountStoppedError, match=f"auditor inventory {result.folder}"):
            await count_devices_by_version(settings, exact_queries(settings, MODULE, None, ()))


@pytest.mark.parametrize("text", ['1"2', "1\\2", "1\n2"])
def test_a_version_that_no_statement_can_have_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be searched for"):
        count_statement(module="ble", version=text)


def test_a_statement_is_not_longer_than_the_platform_allows() -> None:
    with pytest.raises(UsageError, match="the platform allows 400"):
        count_statement(product_key="k" * 200, module="m" * 200)


def test_statements_are_in_the_documented_language() -> None:
    date = "2020-04-04 16:38:17.000"
    assert parse_statement(page_statement("k1", after=date)).order == "gmt_create"
    assert [len(each) for each in parse_statement(page_statement("k1", at=date, prefix="a")).any_of] == [3]
    assert parse_statement(count_statement(product_key="k1", at=date, prefix="a")).counts
    assert CountQuery("a", None, "ble", None) != CountQuery("a", None, "ble", "1")
