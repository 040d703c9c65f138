"""Fleets that the platform lists in part: the run says what is missing, and a resume lists it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.client.operations import QUERY_DEVICE, QUERY_PRODUCT_LIST, Operation
from auditor.models import Secret
from auditor.runs.manifest import ListingFacts
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import Churn
from auditor.simulator.responses import Refused
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import asked, assert_complete_and_true, ended_after, plain
from tests.integration.test_audit import account_table, lines_of, settings_for
from tests.integration.test_discovery import ALL, fleet_of, listed

pytestmark = pytest.mark.anyio

Document = dict[str, Any]
Change = Callable[[Any, Document], Document]


def altered(platform: Simulator, operation: Operation, change: Change) -> Callable[[], None]:
    """The platform answers an operation otherwise from now on; gives what ends that."""
    answer = platform._operations[operation.name]

    def otherwise(parameters: Any, *more: Any) -> Document:
        return change(parameters, answer(parameters, *more))

    platform._operations[operation.name] = otherwise
    return lambda: platform._operations.__setitem__(operation.name, answer)


def only_first(key: str, devices: int) -> Change:
    """The list of a product ends early, and says that there are no more; the product's own number is another."""

    def change(parameters: Any, document: Document) -> Document:
        if parameters["ProductKey"] != key:
            return document
        shown = document["data"]["deviceInfo"] if parameters["CurrentPage"] == "1" else []
        return {**document, "data": {"deviceInfo": shown[:devices]}, "total": devices, "nextToken": None}

    return change


def counted_as(key: str, devices: int) -> Change:
    """The list of products tells another number of a product's devices."""

    def change(_: Any, document: Document) -> Document:
        for product in document["data"]["list"]["productInfo"]:
            if product["productKey"] == key:
                product["deviceCount"] = devices
        return document

    return change


def listing_of(result: auditor.Result) -> ListingFacts:
    (facts,) = result.manifest.listings
    return facts


async def test_a_product_that_lists_fewer_devices_than_it_has_is_a_gap_that_a_resume_closes(tmp_path: Path) -> None:
    world = World(120, products=1, missing=0, silent=0, inactive=0, large=0)
    key = world.product_keys[0]
    async with Simulator(world, record_answers=True) as platform:
        whole_again = altered(platform, QUERY_DEVICE, only_first(key, 50))
        first = await auditor.run_audit(listed(tmp_path, platform))
        facts = listing_of(first)
        assert (first.exit_code, first.manifest.state, first.manifest.devices.ok) == (1, "partial", 50)
        assert (facts.state, facts.devices, facts.missing, facts.unlisted) == ("partial", 50, 70, 0)
        assert first.manifest.error == f'account "eu": a gap: product {key}: 50 of 120 devices listed'
        assert auditor.verify(first.folder) == []
        allowed = await auditor.run_audit(listed(tmp_path, platform, name="allowed", max_failed="60%"))
        assert (allowed.exit_code, allowed.manifest.state) == (0, "partial")
        whole_again()
        before = asked(platform).total()
        result = await auditor.resume_audit(first.folder)
        assert asked(platform).total() - before == 70
    assert_complete_and_true(world, result)
    assert (listing_of(result).state, listing_of(result).missing) == ("complete", 0)


async def test_a_number_of_devices_that_was_right_before_or_after_is_no_gap(tmp_path: Path) -> None:
    """Devices that are removed while others are listed are not missed, whichever number counts them."""
    world = World(120, products=1, missing=0, silent=0, inactive=0, large=0)
    for name, told in (("more", 130), ("fewer", 10)):
        async with Simulator(world) as platform:
            mended = altered(platform, QUERY_PRODUCT_LIST, counted_as(world.product_keys[0], told))

            def first_time(parameters: Any, document: Document, mended: Callable[[], None] = mended) -> Document:
                if parameters["CurrentPage"] == "2":
                    mended()
                return document

            altered(platform, QUERY_DEVICE, first_time)
            result = await auditor.run_audit(listed(tmp_path, platform, name=name))
        assert (result.exit_code, result.manifest.state, listing_of(result).gaps) == (0, "complete", ())
        assert result.manifest.devices.ok == 120


async def test_a_number_of_devices_that_stays_higher_than_the_list_is_a_gap(tmp_path: Path) -> None:
    world = plain(60)
    key = world.product_keys[0]
    async with Simulator(world) as platform:
        altered(platform, QUERY_PRODUCT_LIST, counted_as(key, 1_000))
        result = await auditor.run_audit(listed(tmp_path, platform))
    facts = listing_of(result)
    (gap,) = facts.gaps
    assert (result.exit_code, result.manifest.state, facts.state) == (1, "partial", "partial")
    assert (gap.product_key, gap.device_count, facts.missing) == (key, 1_000, 1_000 - gap.listed)


async def test_products_that_are_told_of_and_not_listed_are_a_gap(tmp_path: Path) -> None:
    world = World(90, products=3, missing=0, silent=0, inactive=0, large=0)

    def hide_one(_: Any, document: Document) -> Document:
        document["data"]["list"]["productInfo"] = document["data"]["list"]["productInfo"][:2]
        return document

    async with Simulator(world) as platform:
        whole_again = altered(platform, QUERY_PRODUCT_LIST, hide_one)
        first = await auditor.run_audit(listed(tmp_path, platform, max_failed="100%"))
        facts = listing_of(first)
        assert (first.exit_code, facts.state, facts.products, facts.unlisted) == (1, "partial", 2, 1)
        assert first.manifest.error == 'account "eu": a gap: 2 of 3 products listed'
        whole_again()
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_true(world, result)


async def test_a_limit_is_reached_though_devices_come_twice_or_are_not_wanted(tmp_path: Path) -> None:
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
        result = await auditor.run_audit(listed(tmp_path, platform, ALL | unwanted, name="unwanted"), limit=100)
        assert (result.manifest.state, result.manifest.devices.ok) == ("complete", 100)
        altered(platform, QUERY_DEVICE, twice)
        result = await auditor.run_audit(listed(tmp_path, platform, name="twice"), limit=200)
    assert (result.manifest.state, result.manifest.devices.ok) == ("complete", 200)
    assert listing_of(result).repeats > 0


async def test_a_kill_between_growing_and_saying_so_keeps_to_the_limit_of_all_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = [plain(80, seed=1), plain(80, seed=2)]
    accounts = [SimulatedAccount(f"key-{n}", Secret("s"), world=world) for n, world in enumerate(worlds)]
    (tmp_path / "s").write_text("s")

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    async with Simulator(worlds[0], accounts=accounts, record_answers=True) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=f"a{n}", access_key_id=f"key-{n}", fleet=ALL)
            | {"access_key_secret": {"file": str(tmp_path / "s")}}
            for n in range(2)
        ]
        with monkeypatch.context() as patched:
            patched.setattr("auditor.audit.device_source.sha256_of", killed)
            with pytest.raises((KilledError, BaseExceptionGroup)):
                await auditor.run_audit(settings_for(tmp_path, *tables), limit=100)
        (folder,) = (tmp_path / "audits").iterdir()
        assert len(fleet_of(folder)) == 80
        result = await auditor.resume_audit(folder)
        assert set(asked(platform).values()) == {1}
    assert (result.exit_code, result.manifest.state, result.manifest.devices.ok) == (0, "complete", 100)
    assert [sum(row["account"] == f"a{n}" for row in fleet_of(folder)) for n in range(2)] == [80, 20]
    assert auditor.verify(folder) == []


async def test_a_device_that_was_registered_anew_meanwhile_keeps_its_line(tmp_path: Path) -> None:
    """A resume lists it with another iot_id; the run asked it by the one that it had."""
    world = World(90, products=2, missing=0, silent=0, inactive=0, large=0)
    sick = max(world.product_keys, key=lambda key: sum(device.product_key == key for device in world))

    def broken(parameters: Any, document: Document) -> Document:
        if parameters["ProductKey"] == sick and parameters["CurrentPage"] == "1":
            raise Refused("iot.system.Odd", "Something is odd.")
        return document

    def anew(parameters: Any, document: Document) -> Document:
        if parameters["ProductKey"] != sick:
            for device in document["data"]["deviceInfo"]:
                device["iotId"] = "anew" + device["iotId"][4:]
        return document

    async with Simulator(world, record_answers=True) as platform:
        mended = altered(platform, QUERY_DEVICE, broken)
        first = await auditor.run_audit(listed(tmp_path, platform, attempts=2))
        assert 0 < first.manifest.devices.ok < 90
        mended()
        altered(platform, QUERY_DEVICE, anew)
        result = await auditor.resume_audit(first.folder)
        assert set(asked(platform).values()) == {1}
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    names = [(line["product_key"], line["device_name"]) for line in lines_of(result.folder / "devices.jsonl")]
    assert len(names) == len(set(names)) == 90
    assert auditor.verify(result.folder) == []


async def test_a_list_that_shrinks_faster_than_it_can_be_read_is_doubted_and_the_run_ends(tmp_path: Path) -> None:
    world = World(9_000, products=1, missing=0, silent=0, inactive=0, large=0)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 10_000, quotas={"QueryDevice": 10_000}
    )
    total = iter(range(9_000, -1_000_000, -55))

    def shrinking(_: Any, document: Document) -> Document:
        return {**document, "total": max(next(total), 4_000 + next(total) % 2_000)}

    async with Simulator(world, accounts=[account]) as platform:
        altered(platform, QUERY_DEVICE, shrinking)
        result = await auditor.run_audit(listed(tmp_path, platform, quotas={"QueryDevice": 10_000}, per_second=10_000))
    (gap,) = listing_of(result).gaps
    assert (result.exit_code, result.manifest.state) == (1, "partial")
    assert "it changed faster than it could be read" in str(gap)


def without(key: str) -> Change:
    """The list of products does not have a product."""

    def change(_: Any, document: Document) -> Document:
        products = document["data"]["list"]["productInfo"]
        document["data"]["list"]["productInfo"] = [each for each in products if each["productKey"] != key]
        document["data"]["total"] -= len(products) - len(document["data"]["list"]["productInfo"])
        return document

    return change


async def test_a_gap_is_not_hidden_by_what_was_listed_before_and_is_gone(tmp_path: Path) -> None:
    """50 of 120 are listed; these are removed, and of the other 70 only 20 come."""
    world = World(120, products=1, missing=0, silent=0, inactive=0, large=0)
    key = world.product_keys[0]

    async with Simulator(world) as platform:
        whole_again = altered(platform, QUERY_DEVICE, only_first(key, 50))
        first = await auditor.run_audit(listed(tmp_path, platform))
        assert listing_of(first).missing == 70
        whole_again()
        answer = platform._operations[QUERY_DEVICE.name]

        def others_only(parameters: Any, *more: Any) -> Document:
            document: Document = answer({**parameters, "CurrentPage": "2"}, *more)
            shown = document["data"]["deviceInfo"][:20] if parameters["CurrentPage"] == "1" else []
            page = int(parameters["CurrentPage"])
            return {**document, "data": {"deviceInfo": shown}, "total": 70, "page": page, "nextToken": None}

        platform._operations[QUERY_DEVICE.name] = others_only
        altered(platform, QUERY_PRODUCT_LIST, counted_as(key, 70))
        result = await auditor.resume_audit(first.folder)
    facts = listing_of(result)
    assert (result.exit_code, result.manifest.state, facts.state, facts.missing) == (1, "partial", "partial", 50)
    assert (facts.repeats, facts.devices) == (0, 70)  # those that were asked stay in the fleet


async def test_a_product_that_is_deleted_meanwhile_is_no_gap(tmp_path: Path) -> None:
    world = World(120, products=2, missing=0, silent=0, inactive=0, large=0)
    key = world.product_keys[0]

    async with Simulator(world) as platform:

        def deleted(parameters: Any, document: Document) -> Document:
            if parameters["ProductKey"] == key:
                platform._operations[QUERY_PRODUCT_LIST.name] = gone
                raise Refused("iot.prod.NotExistedProduct", "No such product.")
            return document

        products = platform._operations[QUERY_PRODUCT_LIST.name]

        def gone(parameters: Any, *more: Any) -> Document:
            return without(key)(parameters, products(parameters, *more))

        altered(platform, QUERY_DEVICE, deleted)
        result = await auditor.run_audit(listed(tmp_path, platform))
    assert (result.exit_code, result.manifest.state, listing_of(result).gaps) == (0, "complete", ())
    assert result.manifest.devices.ok == sum(device.product_key != key for device in world)


async def test_every_gap_is_listed_once_more_however_many_there_are(tmp_path: Path) -> None:
    world = World(450, products=150, missing=0, silent=0, inactive=0, large=0)

    def one(_: Any, document: Document) -> Document:
        return {**document, "data": {"deviceInfo": document["data"]["deviceInfo"][:1]}, "total": 1, "nextToken": None}

    async with Simulator(world) as platform:
        whole_again = altered(platform, QUERY_DEVICE, one)
        first = await auditor.run_audit(listed(tmp_path, platform))
        assert listing_of(first).gap_count > 100
        whole_again()
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_true(world, result)
    assert (listing_of(result).repeats, result.manifest.fleet.duplicates) == (0, 0)


async def test_a_resume_keeps_to_the_limit_though_others_are_listed_first_by_now(tmp_path: Path) -> None:
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
        first = await auditor.run_audit(listed(tmp_path, platform), limit=60)
        assert (first.manifest.devices.ok, listing_of(first).state) == (30, "partial")
        platform._operations[QUERY_DEVICE.name] = whole
        result = await auditor.resume_audit(first.folder)
    assert (result.exit_code, result.manifest.state, result.manifest.devices.ok) == (0, "complete", 60)
    assert {row["product_key"] for row in fleet_of(result.folder)} == {key}


@pytest.mark.parametrize("products_missing", [False, True])
async def test_what_is_in_the_fleet_is_asked_though_the_gaps_may_not_be_listed_any_more(
    tmp_path: Path, *, products_missing: bool
) -> None:
    def one_hidden(_: Any, document: Document) -> Document:
        document["data"]["total"] += 1
        return document

    world = World(90, products=3, missing=0, silent=0, inactive=0, large=0)
    async with Simulator(world, latency=(0.01, 0.02)) as platform:
        if products_missing:
            altered(platform, QUERY_PRODUCT_LIST, one_hidden)
        altered(platform, QUERY_DEVICE, only_first(world.product_keys[0], 20))
        settings = listed(tmp_path, platform, at_once=2)
        first = await ended_after(25, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert (listing_of(first).state, first.manifest.devices.pending > 0) == ("partial", True)

        def denied(*_: Any) -> Document:
            raise Refused("iot.common.RamActionPermissionDeny", "The key may not do this.")

        platform._operations[QUERY_PRODUCT_LIST.name] = denied
        platform._operations[QUERY_DEVICE.name] = denied
        result = await auditor.resume_audit(first.folder)
    ended = (3, "aborted", 0) if products_missing else (1, "partial", 0)
    assert (result.exit_code, result.manifest.state, result.manifest.devices.pending) == ended
    assert "RamActionPermissionDeny" in str(result.manifest.error)


async def test_tokens_that_are_refused_again_and_again_end_a_listing_with_a_gap(tmp_path: Path) -> None:
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
            raise Refused("iot.system.InvalidNextToken", "No such token.")
        return document

    async with Simulator(world, accounts=[account]) as platform:
        altered(platform, QUERY_DEVICE, refusing)
        settings = listed(tmp_path, platform, quotas={"QueryDevice": 10_000}, per_second=10_000)
        result = await auditor.run_audit(settings)
    (gap,) = listing_of(result).gaps
    assert (result.exit_code, gap.listed) == (1, 204 * 50)
    assert "InvalidNextToken" in str(gap.reason)
    assert asked_for.total() < 300


@pytest.mark.live
async def test_heavy_removal_ends_in_a_whole_list_or_a_doubt(tmp_path: Path) -> None:
    world = World(6_000, products=1, missing=0, large=0)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 10_000, quotas={"QueryDevice": 100}
    )
    churn = Churn(remove_per_second=300, seed=2)
    async with Simulator(world, accounts=[account], churn=churn, latency=(0.01, 0.03)) as platform:
        settings = listed(tmp_path, platform, quotas={"QueryDevice": 100}, per_second=10_000)
        result = await auditor.run_audit(settings)
        removed = set(platform.removed)
    names = {row["device_name"] for row in fleet_of(result.folder)}
    missed = {device.device_name for device in world if device.index not in removed} - names
    assert len(removed) > 300
    assert not missed or listing_of(result).state == "partial"
