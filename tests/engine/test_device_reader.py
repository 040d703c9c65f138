import math
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.client.responses import Answer
from auditor.engine import device_reader as pages
from auditor.engine.device_reader import MODULES_LIMIT, READINGS, Call, read_device
from auditor.errors import (
    AccountStoppedError,
    ForbiddenDeviceError,
    NeverActivatedError,
    NotFoundError,
    PlatformError,
    RefusedRequestError,
    TransientError,
)
from auditor.models import Answered, Device, Failed, ModuleVersion, Outcome, Sent
from tests.engine.page_answers import BY_ID, NAMED, Catalogue, Script, entries, entry, page

pytestmark = pytest.mark.anyio

INCONSISTENT = "auditor.InconsistentPages"


async def read(call: Call, device: Device = NAMED, page_size: int = 200) -> Outcome:
    return await read_device(call, device, page_size=page_size, now=lambda: 7.5)


async def answered(call: Call, device: Device = NAMED, page_size: int = 200) -> Answered:
    outcome = await read(call, device, page_size)
    assert isinstance(outcome, Answered), outcome
    return outcome


async def contradiction(call: Call, device: Device = NAMED) -> str:
    outcome = await read(call, device)
    assert isinstance(outcome, Failed), outcome
    assert outcome.code == INCONSISTENT
    return outcome.message


async def test_one_page_is_one_request_and_tells_everything() -> None:
    script = Script(page([entry("ble", "1.0"), entry("default", "")], 2, 1))
    assert await read(script) == Answered(
        NAMED, "ok", (ModuleVersion("ble", "1.0"), ModuleVersion("default", "")), 2, 1, 1, "r-1", 7.5
    )
    assert script.asked == [
        {"CurrentPage": "1", "PageSize": "200", "ProductKey": "p1", "DeviceName": "device001"},
    ]


@pytest.mark.parametrize("modules", [1, 199, 200, 201, 399, 400, 401, 1000])
@pytest.mark.parametrize("page_size", [1, 7, 200])
async def test_reading_ends_exactly_when_the_total_is_reached(modules: int, page_size: int) -> None:
    catalogue = Catalogue(modules)
    outcome = await answered(catalogue, page_size=page_size)
    needed = math.ceil(modules / page_size)
    assert catalogue.asked == list(range(1, needed + 1))
    assert (outcome.status, outcome.total, outcome.pages, outcome.attempts) == ("ok", modules, needed, needed)
    assert [module.module_name for module in outcome.modules] == [f"m{number}" for number in range(modules)]
    assert outcome.request_id == f"r-{needed}"


@pytest.mark.parametrize(
    "answer",
    [
        page([], 0),
        page(None, 0),
        page({}, 0),
        page({"simpleOTAModuleInfo": None}, 0),
        page("", 0),
        page([], "0"),
        page(None, None, pagecount=0),
        Answer({"total": 0}, "r-1"),
    ],
)
async def test_a_device_that_reports_nothing_is_empty_after_one_request(answer: Answer) -> None:
    script = Script(answer)
    assert await read(script) == Answered(NAMED, "empty", (), 0, 1, 1, "r-1", 7.5)
    assert script.pages == [1]


async def test_data_may_be_the_bare_array() -> None:
    bare = Answer({"data": [entry("ble")], "total": 1}, "r-1")
    assert (await answered(Script(bare))).modules == (ModuleVersion("ble", "1.0"),)


@pytest.mark.parametrize(("error", "status"), [(NotFoundError, "not_found"), (NeverActivatedError, "empty")])
async def test_no_such_device_and_never_activated_are_conclusive(error: type[PlatformError], status: str) -> None:
    outcome = await answered(Script(error("iot.device.X", "no", http_status=200, request_id="r-9"), attempts=3))
    assert (outcome.device, outcome.status, outcome.modules, outcome.total) == (NAMED, status, (), 0)
    assert (outcome.attempts, outcome.request_id) == (3, "r-9")


@pytest.mark.parametrize("error", [RefusedRequestError, TransientError, ForbiddenDeviceError])
async def test_other_errors_fail_the_device_once_with_the_platform_s_words(error: type[PlatformError]) -> None:
    script = Script(error("iot.odd", "why", http_status=400, request_id="r-9"), attempts=5)
    assert await read(script) == Failed(NAMED, "iot.odd", "why", 400, 5, "r-9", 7.5)
    assert len(script.asked) == 1


async def test_an_error_on_a_later_page_fails_the_device_with_the_sum_of_attempts() -> None:
    script = Script(page(entries(200), 300), TransientError("auditor.Timeout"), attempts=4)
    outcome = await read(script)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.attempts, script.pages) == ("auditor.Timeout", 8, [1, 2])


async def test_a_stopped_account_passes_through() -> None:
    async def stopped(_operation: object, _parameters: object, /) -> Any:
        raise AccountStoppedError("demo", "refused")

    with pytest.raises(AccountStoppedError):
        await read(stopped)


def pages_always_1(_call: int, fields: dict[str, Any]) -> None:
    fields.update(data={"simpleOTAModuleInfo": entries(200)}, currentpage=1)


def pages_repeated_as_asked(_call: int, fields: dict[str, Any]) -> None:
    fields.update(data={"simpleOTAModuleInfo": entries(200)})


async def test_page_1_again_instead_of_page_2_never_counts() -> None:
    for lie, says in ((pages_always_1, "asked for page 2, got page 1"), (pages_repeated_as_asked, "comes twice")):
        catalogue = Catalogue(400, lie)
        assert says in await contradiction(catalogue)
        assert catalogue.asked == [1, 2] * READINGS


def growing(call: int, fields: dict[str, Any]) -> None:
    fields["total"] += call


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (Script(page(None, 3)), "empty at 0 of 3"),
        (Script(page(entries(2), None)), "no total"),
        (Script(page(entries(2), -1)), "no total"),
        (Script(page(entries(2), True)), "no total"),
        (Script(page(entries(2), 1.5)), "no total"),
        (Script(page(entries(2), None, pagecount=1)), "no total"),
        (Script(page(entries(2), 0)), "2 modules where the total is 0"),
        (Script(page(entries(2), 1)), "2 modules where the total is 1"),
        (Script(page(entries(1), 1, 2)), "asked for page 1, got page 2"),
        (Script(page([entry("ble"), entry("ble", "2")], 2)), "ble comes twice"),
        (Script(page([entry("ble"), entry("BLE")], 2)), "BLE comes twice"),
        (Script(page([entry("ble", deviceName="other")], 1)), "asked for device001, got an answer about other"),
        (Script(page([entry("ble", productKey="p2")], 1)), "asked for p1, got an answer about p2"),
        (Script(page([entry("a", iotId="i1"), entry("b", iotId="i2")], 2)), "asked for i1, got an answer about i2"),
        (Script(page(entries(1), MODULES_LIMIT + 1)), f"more than {MODULES_LIMIT}"),
        (Script(page(entries(1), 10**18)), f"more than {MODULES_LIMIT}"),
        (Script(page([{"moduleName": "ble"}], 1)), "no module name or version"),
        (Script(page([entry("")], 1)), "no module name or version"),
        (Script(page(["ble"], 1)), "no module name or version"),
        (Script(page([entry("x" * 600_000, "y" * 600_000)], 1)), "characters"),
    ],
)
async def test_a_contradiction_fails_the_device_in_a_sentence_after_few_requests(script: Script, says: str) -> None:
    assert says in await contradiction(script)
    assert script.pages == [1] * READINGS


async def test_an_empty_page_before_the_total_is_a_contradiction() -> None:
    def hollow(_call: int, fields: dict[str, Any]) -> None:
        if fields["currentpage"] == 2:
            fields["data"] = None

    assert "page 2 is empty at 200 of 300" in await contradiction(Catalogue(300, hollow))


async def test_another_device_s_iot_id_is_a_contradiction() -> None:
    script = Script(page([entry("ble", iotId="other")], 1))
    assert "asked for iot001, got an answer about other" in await contradiction(script, BY_ID)


async def test_a_total_that_grows_forever_fails_after_a_bounded_number_of_requests() -> None:
    catalogue = Catalogue(400, growing)
    assert "the total changed from 407 to 408" in await contradiction(catalogue)
    assert catalogue.asked == [1, 2] * READINGS


async def test_a_reading_that_settles_counts_and_its_attempts_are_added_up() -> None:
    script = Script(
        page(entries(200), 201),
        page(entries(1, 200), 202),
        page(entries(200), 202),
        page(entries(2, 200), 202),
        attempts=2,
    )
    outcome = await answered(script)
    assert script.pages == [1, 2, 1, 2]
    assert (outcome.status, outcome.total, outcome.pages, outcome.attempts) == ("ok", 202, 2, 8)


async def test_a_lying_page_count_changes_nothing() -> None:
    for lie in (0, 1, 99, None, "many"):

        def count(_call: int, fields: dict[str, Any], lie: object = lie) -> None:
            fields["pagecount"] = lie

        catalogue = Catalogue(300, count)
        assert (await answered(catalogue)).total == 300
        assert catalogue.asked == [1, 2]


async def test_a_device_asked_by_its_iot_id_learns_its_names() -> None:
    told = {"productKey": "p1", "deviceName": "device001", "iotId": "iot001"}
    script = Script(page([entry("ble", **told), entry("default", **told)], 2))
    assert (await answered(script, BY_ID)).device == Device("demo", "p1", "device001", "iot001")
    assert script.asked == [{"CurrentPage": "1", "PageSize": "200", "IotId": "iot001"}]


async def test_names_may_be_told_by_any_entry() -> None:
    script = Script(page([entry("ble", productKey="p1"), entry("default", deviceName="device001")], 2))
    assert (await answered(script, BY_ID)).device == Device("demo", "p1", "device001", "iot001")


async def test_a_device_asked_by_its_names_learns_its_iot_id_and_keeps_its_names() -> None:
    script = Script(page([entry("ble", iotId="iot001")], 1))
    assert (await answered(script)).device == Device("demo", "p1", "device001", "iot001")


async def test_a_failed_device_stays_as_it_was_asked() -> None:
    script = Script(page([entry("ble", deviceName="device001")], 2), page([], 2))
    outcome = await read(script, BY_ID)
    assert isinstance(outcome, Failed)
    assert outcome.device == BY_ID


async def test_one_module_a_page_is_bounded_by_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MODULES_LIMIT", 50)
    asked = []

    async def drip(_operation: object, parameters: Any, /) -> Any:
        asked.append(int(parameters["CurrentPage"]))
        return Sent(page([entry(f"m{len(asked)}")], 50 if asked[-1] < 50 else 49), 1)

    await contradiction(drip)
    assert len(asked) == 50 * READINGS


names = st.sampled_from(["a", "A", "b", "c", "d", "ß", "ss"])
told = st.fixed_dictionaries({}, optional={"deviceName": st.sampled_from(["device001", "other"])})
reported = st.builds(lambda name, version, told: entry(name, version, **told), names, st.text(max_size=3), told)
replies = st.one_of(
    st.builds(
        page,
        st.one_of(st.lists(reported, max_size=4), st.none()),
        st.one_of(st.integers(0, 6), st.none()),
        st.one_of(st.none(), st.none(), st.integers(0, 3)),
    ),
    st.builds(TransientError, st.just("auditor.Timeout")),
)


def reading_of(script: Script) -> list[Answer]:
    """The pages of the last reading."""
    begin = max(index for index, number in enumerate(script.pages) if number == 1)
    given = [script.replies[min(index, len(script.replies) - 1)] for index in range(begin, len(script.asked))]
    return [reply for reply in given if isinstance(reply, Answer)]


@settings(max_examples=300, deadline=None)
@given(st.lists(replies, min_size=1, max_size=8))
def test_ok_means_one_consistent_reading_of_exactly_total_distinct_modules(said: list[Answer | PlatformError]) -> None:
    script = Script(*said)
    outcome = anyio.run(read, script)
    assert len(script.asked) <= READINGS * 7
    if not isinstance(outcome, Answered):
        return
    reading = reading_of(script)
    listed: list[Any] = [item for answer in reading for item in _items(answer)]
    assert [(m.module_name, m.module_version) for m in outcome.modules] == [
        (item["moduleName"], item["moduleVersion"]) for item in listed
    ]
    assert {answer.fields["total"] for answer in reading} == {outcome.total} == {len(listed)}
    assert len({item["moduleName"].casefold() for item in listed}) == outcome.total
    assert all(item.get("deviceName", "device001") == "device001" for item in listed)
    assert [answer.fields["currentpage"] or index for index, answer in enumerate(reading, 1)] == list(
        range(1, len(reading) + 1)
    )
    assert outcome.status == ("ok" if listed else "empty")


def _items(answer: Answer) -> list[Any]:
    data: Any = answer.fields["data"]
    return data["simpleOTAModuleInfo"] if data else []
