"""Incomplete discoveries: the run records the gaps, and a resume closes them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.client.operations import QUERY_DEVICE, QUERY_PRODUCT_LIST, Operation
from auditor.models import Secret
from auditor.runs.manifest import DiscoveryInfo
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import Churn
from auditor.simulator.responses import RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import assert_complete_and_correct, plain_world, query_counts, stop_after
from tests.integration.test_audit import account_table, read_lines, settings_for
from tests.integration.test_discovery import ALL_PRODUCTS, discovery_settings, read_fleet

pytestmark = pytest.mark.anyio

Document = dict[str, Any]
Change = Callable[[Any, Document], Document]


def modified_operation(platform: Simulator, operation: Operation, change: Change) -> Callable[[], None]:
    """The platform answers an operation otherwise from now on; gives what ends that."""
    answer = platform._operations[operation.name]

    def otherwise(parameters: Any, *more: Any) -> Document:
        return change(parameters, answer(parameters, *more))

    platform._operations[operation.name] = otherwise
    return lambda: platform._operations.__setitem__(operation.name, answer)


def first_devices_only(key: str, devices: int) -> Change:
    """The list of a product ends early, and says that there are no more; the product's own number is another."""

    def change(parameters: Any, document: Document) -> Document:
        if parameters["ProductKey"] != key:
            return document
        shown = document["data"]["deviceInfo"] if parameters["CurrentPage"] == "1" else []
        return {**document, "data": {"deviceInfo": shown[:devices]}, "total": devices, "nextToken": None}

    return change


def with_device_count(key: str, devices: int) -> Change:
    """The list of products tells another number of a product's devices."""

    def change(_: Any, document: Document) -> Document:
        for product in document["data"]["list"]["productInfo"]:
            if product["productKey"] == key:
                product["deviceCount"] = devices
        return document

    return change


def discovery_of(result: auditor.AuditResult) -> DiscoveryInfo:
    (facts,) = result.manifest.discovery
    return facts


@pytest.mark.slow
async def test_product_that_lists_too_few_devices_is_a_gap_that_a_resume_closes(tmp_path: Path) -> None:
    world = World(120, products=1, missing=0, silent=0, inactive=0, large=0)
    key = world.product_keys[0]
    async with Simulator(world, record_responses=True) as platform:
        whole_again = modified_operation(platform, QUERY_DEVICE, first_devices_only(key, 50))
        first = await auditor.run_audit(discovery_settings(tmp_path, platform))
        facts = discovery_of(first)
        assert (first.exit_code, first.manifest.state, first.manifest.devices.ok) == (1, "partial", 50)
        assert (facts.state, facts.devices, facts.missing, facts.gaps_of_unknown_size) == ("partial", 50, 70, 0)
        assert first.manifest.error == f'account "eu": a gap: product {key}: 50 of 120 devices listed'
        assert auditor.verify_run(first.folder) == []
        allowed = await auditor.run_audit(discovery_settings(tmp_path, platform, name="allowed", max_failed="60%"))
        assert (allowed.exit_code, allowed.manifest.state) == (0, "within_tolerance")
        whole_again()
        before = query_counts(platform).total()
        result = await auditor.resume_audit(first.folder)
        assert query_counts(platform).total() - before == 70
    assert_complete_and_correct(world, result)
    assert (discovery_of(result).state, discovery_of(result).missing) == ("complete", 0)


@pytest.mark.slow
async def test_device_count_that_was_right_before_or_after_is_no_gap(tmp_path: Path) -> None:
    """Devices that are removed while others are listed are not missed, whichever number counts them."""
    world = World(120, products=1, missing=0, silent=0, inactive=0, large=0)
    for name, count in (("more", 130), ("fewer", 10)):
        async with Simulator(world) as platform:
            corrected = modified_operation(
                platform, QUERY_PRODUCT_LIST, with_device_count(world.product_keys[0], count)
            )

            def first_time(parameters: Any, document: Document, corrected: Callable[[], None] = corrected) -> Document:
                if parameters["CurrentPage"] == "2":
                    corrected()
                return document

            modified_operation(platform, QUERY_DEVICE, first_time)
            result = await auditor.run_audit(discovery_settings(tmp_path, platform, name=name))
        assert (result.exit_code, result.manifest.state, discovery_of(result).gaps) == (0, "complete", ())
        assert result.manifest.devices.ok == 120


async def test_device_count_that_stays_higher_than_the_list_is_a_gap(tmp_path: Path) -> None:
    world = plain_world(60)
    key = world.product_keys[0]
    async with Simulator(world) as platform:
        modified_operation(platform, QUERY_PRODUCT_LIST, with_device_count(key, 1_000))
        result = await auditor.run_audit(discovery_settings(tmp_path, platform))
    facts = discovery_of(result)
    (gap,) = facts.gaps
    assert (result.exit_code, result.manifest.state, facts.state) == (1, "partial", "partial")
    assert (gap.product_key, gap.device_count, facts.missing) == (key, 1_000, 1_000 - gap.listed)


@pytest.mark.slow
async def test_products_that_are_counted_and_not_listed_are_a_gap(tmp_path: Path) -> None:
    world = World(90, products=3, missing=0, silent=0, inactive=0, large=0)

    def hide_one(_: Any, document: Document) -> Document:
        document["data"]["list"]["productInfo"] = document["data"]["list"]["productInfo"][:2]
        return document

    async with Simulator(world) as platform:
        whole_again = modified_operation(platform, QUERY_PRODUCT_LIST, hide_one)
        first = await auditor.run_audit(discovery_settings(tmp_path, platform, max_failed="100%"))
        facts = discovery_of(first)
        assert (first.exit_code, facts.state, facts.products, facts.gaps_of_unknown_size) == (1, "partial", 2, 1)
        assert first.manifest.error == 'account "eu": a gap: 2 of 3 products listed'
        whole_again()
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_limit_is_reached_despite_duplicate_and_excluded_devices(tmp_path: Path) -> None:
    world = World(600, products=1, missing=0, silent=0, inactive=0, large=0)
    seen: dict[str, Document] = {}

    def twice(parameters: Any, document: Document) -> Document:
        """Each page begins with the second half of the page before."""
        page = int(parameters["CurrentPage"])
        seen[str(page)] = document
        before = seen[str(page - 1)]["data"]["deviceInfo"] if page > 1 else []
        shown = document["data"]["deviceInfo"]
        return {**document, "data": {"deviceInfo": (before[25:] + shown[:25]) if before else shown}}

    async with Simulator(world) as platform:
        unwanted = {"exclude": {"device_name": ["*1", "*2", "*3", "*4", "*5", "*6"]}}
        result = await auditor.run_audit(
            discovery_settings(tmp_path, platform, ALL_PRODUCTS | unwanted, name="unwanted"), limit=100
        )
        assert (result.manifest.state, result.manifest.devices.ok) == ("complete", 100)
        modified_operation(platform, QUERY_DEVICE, twice)
        result = await auditor.run_audit(discovery_settings(tmp_path, platform, name="twice"), limit=200)
    assert (result.manifest.state, result.manifest.devices.ok) == ("complete", 200)
    assert discovery_of(result).duplicates > 0


@pytest.mark.slow
async def test_kill_between_fleet_and_manifest_keeps_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = [plain_world(80, seed=1), plain_world(80, seed=2)]
    accounts = [SimulatedAccount(f"key-{n}", Secret("s"), world=world) for n, world in enumerate(worlds)]
    (tmp_path / "s").write_text("s")

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    async with Simulator(worlds[0], accounts=accounts, record_responses=True) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=f"a{n}", access_key_id=f"key-{n}", fleet=ALL_PRODUCTS)
            | {"access_key_secret": {"file": str(tmp_path / "s")}}
            for n in range(2)
        ]
        with monkeypatch.context() as patched:
            patched.setattr("auditor.audit.device_source.sha256_of", killed)
            with pytest.raises((KilledError, BaseExceptionGroup)):
                await auditor.run_audit(settings_for(tmp_path, *tables), limit=100)
        (folder,) = (tmp_path / "audits").iterdir()
        assert len(read_fleet(folder)) == 80
        result = await auditor.resume_audit(folder)
        assert set(query_counts(platform).values()) == {1}
    assert (result.exit_code, result.manifest.state, result.manifest.devices.ok) == (0, "complete", 100)
    assert [sum(row["account"] == f"a{n}" for row in read_fleet(folder)) for n in range(2)] == [80, 20]
    assert auditor.verify_run(folder) == []


@pytest.mark.slow
async def test_device_that_is_registered_again_meanwhile_keeps_its_row(tmp_path: Path) -> None:
    """A resume lists it with another iot_id; the run keeps the one that it queried."""
    world = World(90, products=2, missing=0, silent=0, inactive=0, large=0)
    sick = max(world.product_keys, key=lambda key: sum(device.product_key == key for device in world))

    def broken(parameters: Any, document: Document) -> Document:
        if parameters["ProductKey"] == sick and parameters["CurrentPage"] == "1":
            raise RequestRejected("iot.system.Odd", "Something is odd.")
        return document

    def with_new_iot_id(parameters: Any, document: Document) -> Document:
        if parameters["ProductKey"] != sick:
            for device in document["data"]["deviceInfo"]:
                device["iotId"] = "anew" + device["iotId"][4:]
        return document

    async with Simulator(world, record_responses=True) as platform:
        corrected = modified_operation(platform, QUERY_DEVICE, broken)
        first = await auditor.run_audit(discovery_settings(tmp_path, platform, max_attempts=2))
        assert 0 < first.manifest.devices.ok < 90
        corrected()
        modified_operation(platform, QUERY_DEVICE, with_new_iot_id)
        result = await auditor.resume_audit(first.folder)
        assert set(query_counts(platform).values()) == {1}
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    names = [(line["product_key"], line["device_name"]) for line in read_lines(result.folder / "devices.jsonl")]
    assert len(names) == len(set(names)) == 90
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_list_that_shrinks_faster_than_it_is_read_is_a_gap_and_the_run_ends(tmp_path: Path) -> None:
    world = World(9_000, products=1, missing=0, silent=0, inactive=0, large=0)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 10_000, quotas={"QueryDevice": 10_000}
    )
    total = iter(range(9_000, -1_000_000, -55))

    def shrinking(_: Any, document: Document) -> Document:
        return {**document, "total": max(next(total), 4_000 + next(total) % 2_000)}

    async with Simulator(world, accounts=[account]) as platform:
        modified_operation(platform, QUERY_DEVICE, shrinking)
        result = await auditor.run_audit(
            discovery_settings(
                tmp_path, platform, quotas={"QueryDevice": 10_000}, calls_per_second=10_000, sample_size=20
            )
        )
    (gap,) = discovery_of(result).gaps
    assert (result.exit_code, result.manifest.state) == (1, "partial")
    assert "it changed faster than it could be read" in str(gap)


def without_device(key: str) -> Change:
    """The list of products does not have a product."""

    def change(_: Any, document: Document) -> Document:
        products = document["data"]["list"]["productInfo"]
        document["data"]["list"]["productInfo"] = [each for each in products if each["productKey"] != key]
        document["data"]["total"] -= len(products) - len(document["data"]["list"]["productInfo"])
        return document

    return change


@pytest.mark.slow
async def test_gap_is_not_hidden_by_devices_that_were_listed_before_and_removed(tmp_path: Path) -> None:
    """50 of 120 are listed; these are removed, and of the other 70 only 20 come."""
    world = World(120, products=1, missing=0, silent=0, inactive=0, large=0)
    key = world.product_keys[0]

    async with Simulator(world) as platform:
        whole_again = modified_operation(platform, QUERY_DEVICE, first_devices_only(key, 50))
        first = await auditor.run_audit(discovery_settings(tmp_path, platform))
        assert discovery_of(first).missing == 70
        whole_again()
        answer = platform._operations[QUERY_DEVICE.name]

        def others_only(parameters: Any, *more: Any) -> Document:
            document: Document = answer({**parameters, "CurrentPage": "2"}, *more)
            shown = document["data"]["deviceInfo"][:20] if parameters["CurrentPage"] == "1" else []
            page = int(parameters["CurrentPage"])
            return {**document, "data": {"deviceInfo": shown}, "total": 70, "page": page, "nextToken": None}

        platform._operations[QUERY_DEVICE.name] = others_only
        modified_operation(platform, QUERY_PRODUCT_LIST, with_device_count(key, 70))
        result = await auditor.resume_audit(first.folder)
    facts = discovery_of(result)
    assert (result.exit_code, result.manifest.state, facts.state, facts.missing) == (1, "partial", "partial", 50)
    assert (facts.duplicates, facts.devices) == (0, 70)  # those that were queried stay in the fleet


async def test_product_that_is_deleted_meanwhile_is_no_gap(tmp_path: Path) -> None:
    world = World(120, products=2, missing=0, silent=0, inactive=0, large=0)
    key = world.product_keys[0]

    async with Simulator(world) as platform:

        def deleted(parameters: Any, document: Document) -> Document:
            if parameters["ProductKey"] == key:
                platform._operations[QUERY_PRODUCT_LIST.name] = gone
                raise RequestRejected("iot.prod.NotExistedProduct", "No such product.")
            return document

        products = platform._operations[QUERY_PRODUCT_LIST.name]

        def gone(parameters: Any, *more: Any) -> Document:
            return without_device(key)(parameters, products(parameters, *more))

        modified_operation(platform, QUERY_DEVICE, deleted)
        result = await auditor.run_audit(discovery_settings(tmp_path, platform))
    assert (result.exit_code, result.manifest.state, discovery_of(result).gaps) == (0, "complete", ())
    assert result.manifest.devices.ok == sum(device.product_key != key for device in world)


@pytest.mark.slow
async def test_every_gap_is_retried_however_many_there_are(tmp_path: Path) -> None:
    world = World(450, products=150, missing=0, silent=0, inactive=0, large=0)

    def one(_: Any, document: Document) -> Document:
        return {**document, "data": {"deviceInfo": document["data"]["deviceInfo"][:1]}, "total": 1, "nextToken": None}

    async with Simulator(world) as platform:
        whole_again = modified_operation(platform, QUERY_DEVICE, one)
        first = await auditor.run_audit(discovery_settings(tmp_path, platform))
        assert discovery_of(first).gap_count > 100
        whole_again()
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_correct(world, result)
    assert (discovery_of(result).duplicates, result.manifest.fleet.duplicates) == (0, 0)


@pytest.mark.slow
async def test_resume_keeps_the_limit_when_other_devices_are_listed_first(tmp_path: Path) -> None:
    world = World(140, products=1, missing=0, silent=0, inactive=0, large=0)
    key = world.product_keys[0]
    async with Simulator(world) as platform:
        whole = platform._operations[QUERY_DEVICE.name]

        def older(parameters: Any, *more: Any) -> Document:
            """Without the 20 newest, and it ends early."""
            document: Document = whole(parameters, *more)
            shown = document["data"]["deviceInfo"][20:] if parameters["CurrentPage"] == "1" else []
            return {**document, "data": {"deviceInfo": shown}, "total": 30, "nextToken": None}

        platform._operations[QUERY_DEVICE.name] = older
        first = await auditor.run_audit(discovery_settings(tmp_path, platform), limit=60)
        assert (first.manifest.devices.ok, discovery_of(first).state) == (30, "partial")
        platform._operations[QUERY_DEVICE.name] = whole
        result = await auditor.resume_audit(first.folder)
    assert (result.exit_code, result.manifest.state, result.manifest.devices.ok) == (0, "complete", 60)
    assert {row["product_key"] for row in read_fleet(result.folder)} == {key}


@pytest.mark.slow
@pytest.mark.parametrize("products_missing", [False, True])
async def test_known_devices_are_queried_when_gaps_may_not_be_retried(
    tmp_path: Path, *, products_missing: bool
) -> None:
    def one_hidden(_: Any, document: Document) -> Document:
        document["data"]["total"] += 1
        return document

    world = World(90, products=3, missing=0, silent=0, inactive=0, large=0)
    async with Simulator(world, latency=(0.01, 0.02)) as platform:
        if products_missing:
            modified_operation(platform, QUERY_PRODUCT_LIST, one_hidden)
        modified_operation(platform, QUERY_DEVICE, first_devices_only(world.product_keys[0], 20))
        settings = discovery_settings(tmp_path, platform, concurrency=2)
        first = await stop_after(25, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert (discovery_of(first).state, first.manifest.devices.pending > 0) == ("partial", True)

        def denied(*_: Any) -> Document:
            raise RequestRejected("iot.common.RamActionPermissionDeny", "The key may not do this.")

        platform._operations[QUERY_PRODUCT_LIST.name] = denied
        platform._operations[QUERY_DEVICE.name] = denied
        result = await auditor.resume_audit(first.folder)
    ended = (3, "aborted", 0) if products_missing else (1, "partial", 0)
    assert (result.exit_code, result.manifest.state, result.manifest.devices.pending) == ended
    assert "RamActionPermissionDeny" in str(result.manifest.error)


@pytest.mark.slow
async def test_repeatedly_rejected_tokens_end_a_discovery_with_a_gap(tmp_path: Path) -> None:
    world = World(10_600, products=1, missing=0, silent=0, inactive=0, large=0)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 10_000, quotas={"QueryDevice": 10_000}
    )
    asked_for = Counter[int]()

    def refusing(parameters: Any, document: Document) -> Document:
        page = int(parameters["CurrentPage"])
        asked_for[page] += 1
        # The one now and then, the other always.
        if page == 205 or (page == 203 and asked_for[page] % 2):
            raise RequestRejected("iot.system.InvalidNextToken", "No such token.")
        return document

    async with Simulator(world, accounts=[account]) as platform:
        modified_operation(platform, QUERY_DEVICE, refusing)
        settings = discovery_settings(
            tmp_path, platform, quotas={"QueryDevice": 10_000}, calls_per_second=10_000, sample_size=20, max_attempts=4
        )
        result = await auditor.run_audit(settings)
    (gap,) = discovery_of(result).gaps
    assert (result.exit_code, gap.listed) == (1, 204 * 50)
    assert "InvalidNextToken" in str(gap.reason)
    assert asked_for.total() < 300


@pytest.mark.live
@pytest.mark.slow
async def test_heavy_removal_ends_in_a_complete_list_or_a_gap(tmp_path: Path) -> None:
    world = World(6_000, products=1, missing=0, large=0)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 10_000, quotas={"QueryDevice": 100}
    )
    churn = Churn(remove_per_second=300, seed=2)
    async with Simulator(world, accounts=[account], churn=churn, latency=(0.01, 0.03)) as platform:
        settings = discovery_settings(
            tmp_path, platform, quotas={"QueryDevice": 100}, calls_per_second=10_000, sample_size=20
        )
        result = await auditor.run_audit(settings)
        removed = set(platform.registry_for().removed)
    names = {row["device_name"] for row in read_fleet(result.folder)}
    missed = {device.device_name for device in world if device.index not in removed} - names
    assert len(removed) > 300
    assert not missed or discovery_of(result).state == "partial"
