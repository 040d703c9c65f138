import math
import weakref
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from auditor.client.responses import ApiResponse
from auditor.engine import device_reader
from auditor.engine.device_reader import (
    MAX_MODULES,
    MAX_READINGS,
    MAX_WITHOUT_DEVICE,
    RECENT_ANSWERS,
    AnswerTrust,
    CallOperation,
    fetch_device,
)
from auditor.errors import (
    AccountStoppedError,
    DeviceDeniedError,
    InvalidRequestError,
    NeverActivatedError,
    NotFoundError,
    PlatformError,
    TransientError,
)
from auditor.models import CallResult, Device, DeviceFailure, DeviceResult, ModuleVersion, Outcome
from tests.engine.page_answers import BY_ID, NAMED, PagingCall, ScriptedCall, entries, entry, page

pytestmark = pytest.mark.anyio

INCONSISTENT = "auditor.InconsistentPages"


async def fetch(call: CallOperation, device: Device = NAMED, page_size: int = 200) -> Outcome:
    return await fetch_device(call, device, page_size=page_size, now=lambda: 7.5)


async def fetch_result(call: CallOperation, device: Device = NAMED, page_size: int = 200) -> DeviceResult:
    outcome = await fetch(call, device, page_size)
    assert isinstance(outcome, DeviceResult), outcome
    return outcome


async def fetch_inconsistency(call: CallOperation, device: Device = NAMED) -> str:
    outcome = await fetch(call, device)
    assert isinstance(outcome, DeviceFailure), outcome
    assert outcome.code == INCONSISTENT
    return outcome.message


async def test_one_page_takes_one_request() -> None:
    script = ScriptedCall(page([entry("ble", "1.0"), entry("default", "")], 2, 1))
    assert await fetch(script) == DeviceResult(
        NAMED, "ok", (ModuleVersion("ble", "1.0"), ModuleVersion("default", "")), 2, 1, 1, "r-1", 7.5
    )
    assert script.requests == [
        {"CurrentPage": "1", "PageSize": "200", "ProductKey": "p1", "DeviceName": "device001"},
    ]


@pytest.mark.parametrize("modules", [1, 199, 200, 201, 399, 400, 401, 1000])
@pytest.mark.parametrize("page_size", [1, 7, 200])
async def test_reading_ends_exactly_when_the_total_is_reached(modules: int, page_size: int) -> None:
    paging = PagingCall(modules)
    outcome = await fetch_result(paging, page_size=page_size)
    needed = math.ceil(modules / page_size)
    assert paging.pages == list(range(1, needed + 1))
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
        ApiResponse({"total": 0}, "r-1"),
    ],
)
async def test_a_device_without_modules_is_empty_after_one_request(answer: ApiResponse) -> None:
    script = ScriptedCall(answer)
    assert await fetch(script) == DeviceResult(NAMED, "empty", (), 0, 1, 1, "r-1", 7.5)
    assert script.pages == [1]


async def test_data_may_be_the_bare_array() -> None:
    bare = ApiResponse({"data": [entry("ble")], "total": 1}, "r-1")
    assert (await fetch_result(ScriptedCall(bare))).modules == (ModuleVersion("ble", "1.0"),)


@pytest.mark.parametrize(("error", "status"), [(NotFoundError, "not_found"), (NeverActivatedError, "empty")])
async def test_no_such_device_and_never_activated_are_conclusive(error: type[PlatformError], status: str) -> None:
    outcome = await fetch_result(
        ScriptedCall(error("iot.device.X", "no", http_status=200, request_id="r-9"), attempts=3)
    )
    assert (outcome.device, outcome.status, outcome.modules, outcome.total) == (NAMED, status, (), 0)
    assert (outcome.attempts, outcome.request_id) == (3, "r-9")


@pytest.mark.parametrize("error", [InvalidRequestError, TransientError, DeviceDeniedError])
async def test_other_errors_fail_the_device_once_with_the_platform_s_message(error: type[PlatformError]) -> None:
    script = ScriptedCall(error("iot.odd", "why", http_status=400, request_id="r-9"), attempts=5)
    assert await fetch(script) == DeviceFailure(NAMED, "iot.odd", "why", 400, 5, "r-9", 7.5)
    assert len(script.requests) == 1


async def test_an_error_on_a_later_page_fails_the_device_with_the_sum_of_attempts() -> None:
    script = ScriptedCall(page(entries(200), 300), TransientError("auditor.Timeout"), attempts=4)
    outcome = await fetch(script)
    assert isinstance(outcome, DeviceFailure)
    assert (outcome.code, outcome.attempts, script.pages) == ("auditor.Timeout", 8, [1, 2])


async def test_a_stopped_account_passes_through() -> None:
    async def stopped(_operation: object, _parameters: object, /, **_options: object) -> Any:
        raise AccountStoppedError("demo", "refused")

    with pytest.raises(AccountStoppedError):
        await fetch(stopped)


def always_page_1(_call: int, fields: dict[str, Any]) -> None:
    fields.update(data={"simpleOTAModuleInfo": entries(200)}, currentpage=1)


def requested_numbers_with_page_1(_call: int, fields: dict[str, Any]) -> None:
    fields.update(data={"simpleOTAModuleInfo": entries(200)})


async def test_page_1_instead_of_page_2_is_never_accepted() -> None:
    for corruption, says in (
        (always_page_1, "requested page 2, got page 1"),
        (requested_numbers_with_page_1, "is listed twice"),
    ):
        paging = PagingCall(400, corruption)
        assert says in await fetch_inconsistency(paging)
        assert paging.pages == [1, 2] * MAX_READINGS


def growing(call: int, fields: dict[str, Any]) -> None:
    fields["total"] += call


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (ScriptedCall(page(None, 3)), "empty at 0 of 3"),
        (ScriptedCall(page(entries(2), None)), "no total"),
        (ScriptedCall(page(entries(2), -1)), "no total"),
        (ScriptedCall(page(entries(2), True)), "no total"),
        (ScriptedCall(page(entries(2), 1.5)), "no total"),
        (ScriptedCall(page(entries(2), None, pagecount=1)), "no total"),
        (ScriptedCall(page(entries(2), 0)), "2 modules where the total is 0"),
        (ScriptedCall(page(entries(2), 1)), "2 modules where the total is 1"),
        (ScriptedCall(page(entries(1), 1, 2)), "requested page 1, got page 2"),
        (ScriptedCall(page([entry("ble"), entry("ble", "2")], 2)), "ble is listed twice"),
        (ScriptedCall(page([entry("ble"), entry("BLE")], 2)), "BLE is listed twice"),
        (ScriptedCall(page([entry("ble", deviceName="other")], 1)), "requested device001, got an answer about other"),
        (ScriptedCall(page([entry("ble", productKey="p2")], 1)), "requested p1, got an answer about p2"),
        (
            ScriptedCall(page([entry("a", iotId="i1"), entry("b", iotId="i2")], 2)),
            "requested i1, got an answer about i2",
        ),
        (ScriptedCall(page(entries(1), MAX_MODULES + 1)), f"more than {MAX_MODULES}"),
        (ScriptedCall(page(entries(1), 10**18)), f"more than {MAX_MODULES}"),
        (ScriptedCall(page([{"moduleName": "ble"}], 1)), "module ble has no version"),
        (ScriptedCall(page([entry("")], 1)), "has no module name"),
        (ScriptedCall(page(["ble"], 1)), "has no module name"),
        (ScriptedCall(page([entry("x" * 600_000, "y" * 600_000)], 1)), "characters"),
    ],
)
async def test_an_inconsistent_page_fails_the_device_after_few_requests(script: ScriptedCall, says: str) -> None:
    assert says in await fetch_inconsistency(script)
    assert script.pages == [1] * MAX_READINGS


async def test_an_empty_page_before_the_total_is_inconsistent() -> None:
    def hollow(_call: int, fields: dict[str, Any]) -> None:
        if fields["currentpage"] == 2:
            fields["data"] = None

    assert "page 2 is empty at 200 of 300" in await fetch_inconsistency(PagingCall(300, hollow))


async def test_the_iot_id_of_another_device_is_inconsistent() -> None:
    script = ScriptedCall(page([entry("ble", iotId="other")], 1))
    assert "requested iot001, got an answer about other" in await fetch_inconsistency(script, BY_ID)


async def test_a_total_that_grows_forever_fails_after_a_bounded_number_of_requests() -> None:
    paging = PagingCall(400, growing)
    assert "the total changed from 407 to 408" in await fetch_inconsistency(paging)
    assert paging.pages == [1, 2] * MAX_READINGS


async def test_a_consistent_retry_is_accepted_and_all_attempts_are_counted() -> None:
    script = ScriptedCall(
        page(entries(200), 201),
        page(entries(1, 200), 202),
        page(entries(200), 202),
        page(entries(2, 200), 202),
        attempts=2,
    )
    outcome = await fetch_result(script)
    assert script.pages == [1, 2, 1, 2]
    assert (outcome.status, outcome.total, outcome.pages, outcome.attempts) == ("ok", 202, 2, 8)


async def test_a_wrong_page_count_changes_nothing() -> None:
    for corruption in (0, 1, 99, None, "many"):

        def count(_call: int, fields: dict[str, Any], corruption: object = corruption) -> None:
            fields["pagecount"] = corruption

        paging = PagingCall(300, count)
        assert (await fetch_result(paging)).total == 300
        assert paging.pages == [1, 2]


async def test_a_device_queried_by_iot_id_gets_its_names() -> None:
    reported = {"productKey": "p1", "deviceName": "device001", "iotId": "iot001"}
    script = ScriptedCall(page([entry("ble", **reported), entry("default", **reported)], 2))
    assert (await fetch_result(script, BY_ID)).device == Device("demo", "p1", "device001", "iot001")
    assert script.requests == [{"CurrentPage": "1", "PageSize": "200", "IotId": "iot001"}]


async def test_names_may_be_reported_by_any_entry() -> None:
    script = ScriptedCall(page([entry("ble", productKey="p1"), entry("default", deviceName="device001")], 2))
    assert (await fetch_result(script, BY_ID)).device == Device("demo", "p1", "device001", "iot001")


async def test_a_device_queried_by_its_names_gets_its_iot_id_and_keeps_its_names() -> None:
    script = ScriptedCall(page([entry("ble", iotId="iot001")], 1))
    assert (await fetch_result(script)).device == Device("demo", "p1", "device001", "iot001")


async def test_a_failed_device_keeps_the_names_it_was_queried_by() -> None:
    script = ScriptedCall(page([entry("ble", deviceName="device001")], 2), page([], 2))
    outcome = await fetch(script, BY_ID)
    assert isinstance(outcome, DeviceFailure)
    assert outcome.device == BY_ID


@pytest.mark.parametrize(
    ("total", "page_size", "requests"), [(26, 200, 4), (25, 200, 25), (5_000, 200, 4), (40, 1, 40)]
)
async def test_a_device_has_no_more_pages_than_its_modules_need(total: int, page_size: int, requests: int) -> None:
    numbers = []

    async def drip(_operation: object, parameters: Any, /, **_options: object) -> Any:
        numbers.append(int(parameters["CurrentPage"]))
        return CallResult(page([entry(f"m{numbers[-1]}")], total), 1)

    outcome = await fetch_device(drip, NAMED, page_size=page_size)
    assert len(numbers) == requests
    assert isinstance(outcome, DeviceResult if requests > MAX_READINGS else DeviceFailure)


async def test_pages_that_become_shorter_end_at_the_limit() -> None:
    numbers = []

    async def shrink(_operation: object, parameters: Any, /, **_options: object) -> Any:
        numbers.append(int(parameters["CurrentPage"]))
        begin = 100 + numbers[-1] if numbers[-1] > 1 else 0
        return CallResult(page(entries(100 if numbers[-1] == 1 else 1, begin), 1_000), 1)

    assert "102 of 1000 modules on 3 pages" in await fetch_inconsistency(shrink)
    assert len(numbers) == MAX_READINGS * 3


@pytest.mark.parametrize(
    "replies", [[page([], 3)], [NotFoundError("iot.device.NotExistedDevice", "no", http_status=200, request_id="x")]]
)
async def test_a_device_is_not_read_again_when_the_budget_is_exhausted(replies: list[Any]) -> None:
    trust = AnswerTrust()
    trust.mismatches = 1
    script = ScriptedCall(*replies)
    outcome = await fetch_device(script, NAMED, trust=trust, may_retry=lambda: False)
    assert isinstance(outcome, DeviceFailure)
    assert (outcome.code, len(script.requests)) == ("auditor.InconsistentPages", 1)


async def test_a_page_is_not_kept_in_memory_while_the_next_one_is_requested() -> None:
    class Fields(dict[str, object]):
        """An answer with a weak reference."""

    kept: list[Any] = []

    async def answer(_operation: object, parameters: Any, /, **_options: object) -> Any:
        assert [each for each in kept if each() is not None] == []
        number = int(parameters["CurrentPage"])
        fields = Fields({"data": {"simpleOTAModuleInfo": [entry(f"m{number}")]}, "total": 3})
        kept.append(weakref.ref(fields))
        return CallResult(ApiResponse(fields, "r"), 1)

    assert isinstance(await fetch_device(answer, NAMED), DeviceResult)
    assert len(kept) == 3


names = st.sampled_from(["a", "A", "b", "c", "d", "ß", "ss"])
device_names = st.fixed_dictionaries({}, optional={"deviceName": st.sampled_from(["device001", "other"])})
reported = st.builds(
    lambda name, version, fields: entry(name, version, **fields), names, st.text(max_size=3), device_names
)
replies = st.one_of(
    st.builds(
        page,
        st.one_of(st.lists(reported, max_size=4), st.none()),
        st.one_of(st.integers(0, 6), st.none()),
        st.one_of(st.none(), st.none(), st.integers(0, 3)),
    ),
    st.builds(TransientError, st.just("auditor.Timeout")),
)


def reading_of(script: ScriptedCall) -> list[ApiResponse]:
    """The pages of the last reading."""
    begin = max(index for index, number in enumerate(script.pages) if number == 1)
    given = [script.replies[min(index, len(script.replies) - 1)] for index in range(begin, len(script.requests))]
    return [reply for reply in given if isinstance(reply, ApiResponse)]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(replies, min_size=1, max_size=8))
def test_ok_means_one_consistent_reading_of_exactly_total_distinct_modules(
    answers: list[ApiResponse | PlatformError],
) -> None:
    script = ScriptedCall(*answers)
    outcome = anyio.run(fetch, script)
    assert len(script.requests) <= MAX_READINGS * 7
    if not isinstance(outcome, DeviceResult):
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


def _items(answer: ApiResponse) -> list[Any]:
    data: Any = answer.fields["data"]
    return data["simpleOTAModuleInfo"] if data else []


def unnamed_page(version: str | None, request_id: str | None) -> ApiResponse:
    data = [] if version is None else [{"moduleName": "ble", "moduleVersion": version}]
    return structs.replace(page(data, len(data)), request_id=request_id)


def named_page(device_name: str = "device001", request_id: str = "n") -> ApiResponse:
    return structs.replace(
        page([entry("ble", "1.0", productKey="p1", deviceName=device_name)], 1), request_id=request_id
    )


def half_named_page() -> ApiResponse:
    return structs.replace(page([entry("ble", "2.0", deviceName="device001")], 1), request_id="h")


NO_DEVICE = NotFoundError("iot.device.NotExistedDevice", "no", http_status=200, request_id="x")


async def read_with(trust: AnswerTrust, *replies: Any) -> tuple[Outcome, list[bool]]:
    script = ScriptedCall(*replies)
    outcome = await fetch_device(script, NAMED, trust=trust, now=lambda: 7.5)
    return outcome, script.fresh_connections


async def test_an_answer_about_another_device_is_replaced_over_a_fresh_connection_and_counted() -> None:
    trust = AnswerTrust()
    outcome, fresh = await read_with(trust, named_page("other"), named_page())
    assert isinstance(outcome, DeviceResult)
    assert (fresh, trust.mismatches, trust.undecided_mismatches) == ([False, True], 1, 0)


async def test_a_device_that_is_always_named_differently_is_no_mismatch_of_the_account() -> None:
    trust = AnswerTrust()
    outcome, fresh = await read_with(trust, named_page("other"))
    assert isinstance(outcome, DeviceFailure)
    assert (len(fresh), trust.mismatches, trust.undecided_mismatches) == (MAX_READINGS, 0, 0)


@pytest.mark.parametrize(
    ("replies", "status", "requests", "mismatches"),
    [
        ([unnamed_page(None, "1"), unnamed_page(None, "2")], "empty", 2, 0),
        ([NO_DEVICE, NO_DEVICE], "not_found", 2, 0),
        ([unnamed_page(None, "1"), NO_DEVICE, unnamed_page(None, "2")], "empty", 3, 1),
        ([NO_DEVICE, named_page()], "ok", 2, 1),
        ([half_named_page(), named_page()], "ok", 2, 1),  # another product may have a device of this name
        ([named_page()], "ok", 1, 0),
        ([unnamed_page("1", "1"), unnamed_page("2", "2"), unnamed_page("1", "3")], "ok", 3, 1),
    ],
)
async def test_after_a_mismatch_an_answer_that_names_no_device_needs_a_second_one_that_agrees(
    replies: list[Any], status: str, requests: int, mismatches: int
) -> None:
    trust = AnswerTrust()
    trust.mismatches = 1
    outcome, fresh = await read_with(trust, *replies)
    assert isinstance(outcome, DeviceResult)
    assert (outcome.status, len(fresh), trust.mismatches - 1) == (status, requests, mismatches)
    assert fresh == [False] + [True] * (requests - 1)


async def test_answers_that_name_no_device_and_never_agree_fail_the_device() -> None:
    trust = AnswerTrust()
    trust.mismatches = 1
    outcome, fresh = await read_with(trust, *(unnamed_page(str(number), None) for number in range(50)))
    assert isinstance(outcome, DeviceFailure)
    assert outcome.message == f"{MAX_WITHOUT_DEVICE} answers that name no device contradict each other"
    assert len(fresh) == MAX_WITHOUT_DEVICE


async def test_a_repeated_request_id_is_confirmed_where_ids_are_unique() -> None:
    trust = AnswerTrust()
    for number in range(10):
        await read_with(trust, unnamed_page(str(number), f"id-{number}"))
    outcome, fresh = await read_with(trust, unnamed_page("3", "id-3"), unnamed_page("7", "a"), unnamed_page("7", "b"))
    assert isinstance(outcome, DeviceResult)
    assert outcome.modules == (ModuleVersion("ble", "7"),)
    assert (fresh, trust.mismatches) == ([False, True, True], 1)


async def test_modules_without_names_need_a_second_answer_on_a_fresh_connection() -> None:
    trust = AnswerTrust()
    for number in range(3):
        outcome, fresh = await read_with(trust, unnamed_page(str(number), f"id-{number}"))
        assert isinstance(outcome, DeviceResult)
        assert fresh == [False, True]
    assert trust.mismatches == 0
    outcome, fresh = await read_with(trust, unnamed_page("late", "a"), unnamed_page("1", "b"), unnamed_page("1", "c"))
    assert isinstance(outcome, DeviceResult)
    assert ([module.module_version for module in outcome.modules], fresh) == (["1"], [False, True, True])
    assert trust.mismatches == 1


@pytest.mark.parametrize("unnamed", [1, 2, 3])
async def test_a_reading_is_believed_only_if_each_page_names_the_device(unnamed: int) -> None:
    def pages(version: str, *, names: bool) -> list[ApiResponse]:
        return [
            page(
                [
                    entry(f"m{number}", version)
                    if names or number != unnamed
                    else {"moduleName": f"m{number}", "moduleVersion": "of another device"}
                ],
                3,
            )
            for number in (1, 2, 3)
        ]

    script = ScriptedCall(*pages("1", names=False), *pages("1", names=True))
    outcome = await fetch_device(script, NAMED, trust=AnswerTrust(), page_size=1)
    assert isinstance(outcome, DeviceResult)
    assert {module.module_version for module in outcome.modules} == {"1"}
    assert script.fresh_connections == [False] * 3 + [True] * 3


async def test_one_id_for_all_answers_costs_an_account_one_request() -> None:
    trust, requests = AnswerTrust(), 0
    for _ in range(50):
        outcome, fresh = await read_with(trust, unnamed_page(None, "r1"))
        assert isinstance(outcome, DeviceResult)
        requests += len(fresh)
    assert (requests, trust.mismatches) == (51, 0)


async def test_one_id_for_all_answers_that_begins_late_costs_as_many_requests_as_are_counted() -> None:
    trust, requests = AnswerTrust(), 0
    for number in range(10_000):
        assert not trust.needs_confirmation(f"id-{number}")
    for _ in range(2_000):
        _, fresh = await read_with(trust, unnamed_page(None, "r1"))
        requests += len(fresh)
    assert requests <= 2_000 + RECENT_ANSWERS
    assert trust.mismatches == 0


def test_the_memory_of_request_ids_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_reader, "IDS_PER_GENERATION", 100)
    trust = AnswerTrust()
    assert not any(trust.needs_confirmation(f"id-{number}") for number in range(1_000))
    assert trust.needs_confirmation("id-920")
    assert not trust.needs_confirmation("id-700")


async def test_more_answers_must_agree_where_fresh_connections_bring_mismatches_too() -> None:
    trust = AnswerTrust()
    for _ in range(20):
        await read_with(trust, named_page("other"), named_page("another"), named_page())
    assert trust.mismatches == 40
    outcome, fresh = await read_with(trust, unnamed_page(None, None))
    assert isinstance(outcome, DeviceResult)
    assert len(fresh) == trust.needed == 6
