"""Every answer of the simulator, judged by the vendor's typed models: operation x outcome x dialect x method.

The vendor's client builds, signs and sends the requests, and reads the errors of the gateway.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

import pytest
from alibabacloud_tea_openapi.exceptions import AlibabaCloudException, ClientException, ServerException
from alibabacloud_tea_openapi.exceptions import ThrottlingException as VendorThrottling
from anyio.from_thread import start_blocking_portal

from auditor.client.operations import TASK_STATUSES
from auditor.models import Dialect, Secret
from auditor.simulator.faults import FaultKind
from auditor.simulator.forms import ResponseForms, TimeForm
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.releases import FirmwareStore, SimulatedJob
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.simulator.api_requests import PRODUCT_ERRORS, call
from tests.simulator.vendor import (
    OPERATIONS,
    body_model,
    given_paths,
    member_paths,
    model_errors,
    request_model,
    send,
    to_pascal_case,
)

STATES, DETAILS, FIRMWARE, JOBS, MODULES, VERSIONS, TASKS, DEVICES, ROWS, PRODUCTS = OPERATIONS

METHODS = "GET", "POST"

WORLD = World(300, missing=0.1, silent=0.1, inactive=0.1, module_counts={0: 450, 1: 3, 2: 0}, day=4)
STORE = FirmwareStore(WORLD)

THROTTLED = SimulatedAccount("throttled", Secret("s"), quotas=dict.fromkeys(OPERATIONS, 0.001))
REVOKED = SimulatedAccount("revoked", Secret("s"))
UNKNOWN = SimulatedAccount("unknown", Secret("s"))


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and the code of the answer; ``""`` is a success."""

    operation: str
    name: str
    parameters: Mapping[str, object] = field(hash=False)
    code: str = ""
    outage: FaultKind | None = None


def find(matches: Callable[[SimulatedDevice], bool]) -> SimulatedDevice:
    return next(device for device in WORLD if matches(device))


@cache
def cases() -> list[Case]:
    key = WORLD.product_keys[0]
    own = [device.device_name for device in WORLD if device.product_key == key]
    kinds = {
        "large": WORLD.device(0),
        "ordinary": find(lambda device: device.index > 2 and len(device.modules) > 1),
        "silent": find(lambda device: device.exists and device.activated and not device.modules),
    }
    inactive = find(lambda device: device.exists and not device.activated)
    missing = find(lambda device: not device.exists)
    page: dict[str, object] = {"CurrentPage": 1, "PageSize": 50}
    found = [
        Case(VERSIONS, f"{kind} by {named}", page | parameters)
        for kind, device in kinds.items()
        for named, parameters in {"id": by_id(device), "name": by_name(device)}.items()
    ]
    found += [
        Case(VERSIONS, "last page", {**by_name(WORLD.device(0)), "CurrentPage": 9, "PageSize": 50}),
        Case(VERSIONS, "past the end", {**by_name(WORLD.device(0)), "CurrentPage": 10, "PageSize": 50}),
        Case(VERSIONS, "instance", {**page, **by_name(WORLD.device(1)), "IotInstanceId": "iot-instance"}),
        Case(VERSIONS, "never activated", page | by_name(inactive), "iot.device.InactiveDevice"),
        Case(VERSIONS, "missing by name", page | by_name(missing), "iot.device.NotExistedDevice"),
        Case(VERSIONS, "missing by id", {**page, "IotId": missing.iot_id}, "iot.device.InvalidIoTId"),
        Case(VERSIONS, "no name", {**page, "ProductKey": key}, "iot.device.NullDeviceName"),
        Case(VERSIONS, "odd name", {**page, "ProductKey": key, "DeviceName": "a b c"}, "iot.device.InvalidFormattedDeviceName"),
        Case(VERSIONS, "large page", {**page, **by_name(WORLD.device(1)), "PageSize": 201}, "iot.common.InvalidPageParams"),
        Case(PRODUCTS, "all", page),
        Case(PRODUCTS, "second page", {"CurrentPage": 2, "PageSize": 3}),
        Case(PRODUCTS, "past the end", {"CurrentPage": 9, "PageSize": 3}),
        Case(PRODUCTS, "page 0", {"CurrentPage": 0, "PageSize": 3}, "iot.common.InvalidPageParams"),
        Case(DEVICES, "first page", {**page, "ProductKey": key}),
        Case(DEVICES, "last page", {"ProductKey": key, "CurrentPage": 3, "PageSize": 50}),
        Case(DEVICES, "past the end", {"ProductKey": key, "CurrentPage": 9, "PageSize": 50}),
        Case(DEVICES, "odd token", {**page, "ProductKey": key, "NextToken": "odd"}, "iot.common.InvalidPageParams"),
        Case(DEVICES, "large page", {**page, "ProductKey": key, "PageSize": 51}, "iot.common.InvalidPageParams"),
        Case(MODULES, "all", {"ProductKey": key}),
        Case(STATES, "by id", {"IotId": [device.iot_id for device in list(WORLD)[:50]]}),
        Case(STATES, "never activated", {"IotId": [inactive.iot_id]}),
        Case(STATES, "missing", {"IotId": [missing.iot_id]}),
        Case(STATES, "too many ids", {"IotId": [device.iot_id for device in list(WORLD)[:51]]}, "iot.system.IllegalRequest"),
    ]  # fmt: skip
    for operation, limit in ((STATES, 50), (DETAILS, 100)):
        named: dict[str, object] = {"ProductKey": key, "DeviceName": own[:limit]}
        found += [
            Case(operation, "by name", named),
            Case(operation, "never activated by name", {**by_name(inactive), "DeviceName": [inactive.device_name]}),
            Case(operation, "missing by name", {**by_name(missing), "DeviceName": [missing.device_name]}),
            Case(operation, "too many", {**named, "DeviceName": own[: limit + 1]}, "iot.system.IllegalRequest"),
            Case(operation, "no name", {"ProductKey": key}, "iot.device.NullDeviceName"),
            Case(operation, "odd name", {**named, "DeviceName": ["a b c"]}, "iot.device.InvalidFormattedDeviceName"),
        ]
    found += release_cases(page, key) + search_cases(key)
    parameters = {case.operation: case.parameters for case in reversed(found) if not case.code}
    for operation in OPERATIONS:
        if operation not in (PRODUCTS, JOBS, TASKS, ROWS):
            named = (
                {**page, "DeviceName": "dev-0000"} if operation == VERSIONS else {**page, "DeviceName": ["dev-0000"]}
            )
            found += [Case(operation, code, {**named, "ProductKey": key}, code) for key, code in PRODUCT_ERRORS]
        found.append(Case(operation, "business", parameters[operation], "iot.system.SystemException", "business"))
    return found


def search_cases(key: str) -> list[Case]:
    def case(name: str, sql: str, code: str = "") -> Case:
        return Case(ROWS, name, {"SQL": sql}, code)

    own, refused = f'product_key = "{key}"', "iot.system.IllegalRequest"
    return [
        case("first page", f"SELECT * FROM device WHERE {own} ORDER BY gmt_create LIMIT 0, 50"),
        case("some fields", f"SELECT name, status, tag.tag_name FROM device WHERE {own} LIMIT 3"),
        case("count", f"SELECT count(*) FROM device WHERE {own}"),
        case("none", 'SELECT * FROM device WHERE product_key = "k1nowhere"'),
        case("a version", 'SELECT * FROM device WHERE ota_module.name = "default" AND ota_module.version = "0" OR nickname LIKE "Unit 1%"'),
        case("large page", f"SELECT * FROM device WHERE {own} LIMIT 51", refused),
        case("too deep", f"SELECT * FROM device WHERE {own} LIMIT 9951, 50", refused),
        case("six conditions", "SELECT * FROM device WHERE " + " OR ".join([own] * 6), refused),
        case("too long", f"SELECT * FROM device WHERE {own}{' ' * 400}", refused),
        case("no condition", "SELECT * FROM device", refused),
    ]  # fmt: skip


def release_cases(page: dict[str, object], key: str) -> list[Case]:
    page = {**page, "PageSize": 3}
    release = next(each for each in STORE.firmware.values() if len(STORE.jobs_of(each.firmware_id)) > 4)
    without_jobs = next(each for each in STORE.firmware.values() if not STORE.jobs_of(each.firmware_id))
    jobs = {job.name: job for job in STORE.jobs.values() if STORE.tasks_of(job)}
    assert set(jobs) == {"old", "verification", "wave", "cancelled", "planned"}
    largest = max(STORE.jobs.values(), key=lambda job: len(STORE.tasks_of(job)))
    found = [
        Case(FIRMWARE, "of a product", {**page, "ProductKey": key}),
        Case(FIRMWARE, "of all products", {**page, "CurrentPage": 2}),
        Case(FIRMWARE, "of a version", {**page, "DestVersion": release.version.module_version}),
        Case(FIRMWARE, "past the end", {**page, "ProductKey": key, "CurrentPage": 99}),
        Case(FIRMWARE, "large page", {**page, "PageSize": 101}, "iot.common.InvalidPageParams"),
        Case(JOBS, "first page", {**page, "FirmwareId": release.firmware_id}),
        Case(JOBS, "second page", {**page, "FirmwareId": release.firmware_id, "CurrentPage": 2}),
        Case(JOBS, "large", {**page, "FirmwareId": release.firmware_id, "PageSize": 100}),
        Case(JOBS, "none", {**page, "FirmwareId": without_jobs.firmware_id}),
        Case(JOBS, "unknown", {**page, "FirmwareId": "unknown"}, "iot.ota.NotExistedFirmware"),
        Case(TASKS, "largest", {**task_page(page, largest), "PageSize": 100}),
        Case(TASKS, "past the end", {**task_page(page, largest), "CurrentPage": 999}),
        Case(TASKS, "deepest", {**task_page(page, largest), "PageSize": 100, "CurrentPage": 1_000}),
        Case(TASKS, "too deep", {**task_page(page, largest), "PageSize": 100, "CurrentPage": 1_001}, "iot.common.InvalidPageParams"),
        Case(TASKS, "unknown", {**page, "JobId": "unknown"}, "iot.ota.NotExistedJob"),
        Case(TASKS, "unknown status", {**task_page(page, largest), "TaskStatus": "DONE"}, "iot.system.IllegalRequest"),
        Case(TASKS, "of devices", {**task_page(page, largest), "DeviceNames": [
            WORLD.device(task.index).device_name for task in STORE.tasks_of(largest)[:2]
        ]}),
    ]  # fmt: skip
    found += [Case(TASKS, name, task_page(page, job)) for name, job in jobs.items()]
    found += [
        Case(TASKS, f"status {status}", {**task_page(page, jobs["wave"]), "TaskStatus": status})
        for status in TASK_STATUSES
    ]
    return found


def task_page(page: dict[str, object], job: SimulatedJob) -> dict[str, object]:
    return {**page, "JobId": job.job_id}


def by_id(device: SimulatedDevice) -> dict[str, object]:
    return {"IotId": device.iot_id}


def by_name(device: SimulatedDevice) -> dict[str, object]:
    return {"ProductKey": device.product_key, "DeviceName": device.device_name}


@pytest.fixture(scope="module", params=["tuya", "alibaba"])
def platform(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A platform in a thread of its own, because the vendor's client blocks."""
    dialect: Dialect = request.param
    accounts = (DEFAULT_ACCOUNT, THROTTLED, REVOKED)
    simulator = Simulator(WORLD, dialect=dialect, accounts=accounts, index=IndexOptions(), send_retry_after=True)
    simulator.revoke(REVOKED.access_key_id)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(simulator) as running:
        yield running


def answer_of(platform: Simulator, case: Case, method: str) -> Any:
    """The answer to a case in Alibaba's dialect; in Tuya's its names are replaced by those of Alibaba's."""
    platform.outage = case.outage
    try:
        answer = send(platform.port, case.operation, case.parameters, method=method)
    finally:
        platform.outage = None
    assert ("requestId" in answer) == (platform._dialect == "tuya")
    return to_pascal_case(answer) if platform._dialect == "tuya" else answer


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.operation}-{case.name}")
def test_the_vendors_model_accepts_every_answer(platform: Simulator, case: Case) -> None:
    for method in METHODS:
        answer = answer_of(platform, case, method)
        assert model_errors(body_model(case.operation), answer) == []
        assert (answer["Code"], answer["Success"]) == (case.code, not case.code)
        assert "ErrorMessage" in answer or not case.code
        assert not {"Data", "DeviceStatusList"} & answer.keys() or not case.code


@pytest.mark.parametrize(
    "case", [case for case in cases() if not case.code], ids=lambda case: f"{case.operation}-{case.name}"
)
def test_the_requests_of_the_matrix_have_the_types_of_the_vendors_models(case: Case) -> None:
    model = type(request_model(case.operation, {}))
    assert model_errors(model, case.parameters) == []


@pytest.fixture(scope="module")
def answers(platform: Simulator) -> dict[str, list[Any]]:
    """The answers of all cases in Alibaba's names, by operation."""
    found = defaultdict(list)
    for case in cases():
        found[case.operation].append(answer_of(platform, case, "POST"))
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_answers_have_every_member_of_the_vendors_models(answers: dict[str, list[Any]], operation: str) -> None:
    assert given_paths(answers[operation]) - member_paths(body_model(operation)) <= {"Data.DeviceInfo", "Data.Data"}
    assert member_paths(body_model(operation)) - given_paths(answers[operation]) == set()


def shortened(value: Any) -> Any:
    """The same with the first and last item of each array only."""
    if isinstance(value, dict):
        return {name: shortened(member) for name, member in value.items()}
    return [shortened(item) for item in [*value[:1], *value[1:][-1:]]] if isinstance(value, list) else value


def members_of(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every member and item: its path, its object or array, its key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        place = f"{path}.{key}"
        yield place, value, key
        if isinstance(value[key], dict | list):
            yield from members_of(value[key], place)


def other_types(value: Any) -> Iterator[Any]:
    """Values of other types, and objects and arrays that have something else in them."""
    for other in ("text", 7, 1.5, True, None, {"Other": 1}, ["text"], [value], {"Other": value}, {}, []):
        if type(other) is not type(value) or (isinstance(other, dict | list) and other):
            yield other


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_member_of_another_type_or_name_is_an_error(answers: dict[str, list[Any]], operation: str) -> None:
    mutated, model = set[str](), body_model(operation)
    for answer in map(shortened, answers[operation]):
        for path, holder, key in members_of(answer):
            if path in mutated:
                continue
            mutated.add(path)
            original = holder[key]
            for other in other_types(copy.deepcopy(original)):
                holder[key] = other
                assert model_errors(model, answer), f"{path}: {other!r} was accepted for {original!r}"
            holder[key] = original
            if isinstance(holder, dict):
                del holder[key]
                for name in (key[0].lower() + key[1:], key + "s"):
                    holder[name] = original
                    assert model_errors(model, answer), f"{name} was accepted for {key}"
                    del holder[name]
                holder[key] = original
        assert model_errors(model, answer) == []
    assert len(mutated) > 10


ACCEPTED = {
    "last_online": {"text", "iso", "offset", "digits", "unreadable", "empty", "absent"},
    "timestamp": {"milliseconds", "seconds", "absent"},
}
"""Forms that the model accepts: of a text, and of an integer."""


@pytest.mark.anyio
@pytest.mark.parametrize("member", ACCEPTED)
@pytest.mark.parametrize("form", get_args(TimeForm))
async def test_the_vendors_model_accepts_a_time_of_the_annotated_type_only(member: str, form: TimeForm) -> None:
    forms = ResponseForms(last_online=form) if member == "last_online" else ResponseForms(timestamp=form)
    world = World(4, products=1, missing=0, inactive=0)
    ids = {f"IotId.{number}": device.iot_id for number, device in enumerate(world, 1)}
    async with Simulator(world, dialect="alibaba", forms=forms) as platform:
        answer = await call(platform, STATES, **ids)
    assert (model_errors(body_model(STATES), answer) == []) == (form in ACCEPTED[member])


REPEATED = {"SignatureNonceUsed", "Throttling.User"}
"""Errors of the second of two requests."""

GATEWAY_ERRORS: dict[tuple[str, int], dict[str, Any]] = {
    ("MissingSignatureNonce", 400): {"SignatureNonce": ""},
    ("MissingTimestamp", 400): {"Timestamp": ""},
    ("InvalidVersion", 400): {"Version": "2014-05-26"},
    ("InvalidTimeStamp.Format", 400): {"Timestamp": "yesterday"},
    ("InvalidTimeStamp.Expired", 400): {"Timestamp": "2020-01-17T16:19:11Z"},
    ("InvalidAccessKeyId.NotFound", 404): {"account": UNKNOWN},
    ("InvalidAccessKeyId.Inactive", 403): {"account": REVOKED},
    ("SignatureDoesNotMatch", 400): {"secret": "wrong"},
    ("SignatureNonceUsed", 400): {"SignatureNonce": "again"},
    ("UnsupportedHTTPMethod", 405): {"method": "PUT"},
    ("Throttling.User", 400): {"account": THROTTLED},
}


@pytest.mark.parametrize("error", GATEWAY_ERRORS, ids=lambda error: error[0])
def test_the_vendors_client_reads_the_errors_of_the_gateway(platform: Simulator, error: tuple[str, int]) -> None:
    for case in typical_cases():
        for method in METHODS:
            options = {"method": method, **GATEWAY_ERRORS[error]}
            if error[0] in REPEATED:
                with suppress(AlibabaCloudException):
                    send(platform.port, case.operation, case.parameters, **options)
            with pytest.raises(AlibabaCloudException) as caught:
                send(platform.port, case.operation, case.parameters, **options)
            assert_gateway_error(caught.value, *error)
            assert isinstance(caught.value, VendorThrottling if error[0] == "Throttling.User" else ClientException)


def typical_cases() -> list[Case]:
    """One success of each operation."""
    return [next(case for case in cases() if case.operation == name and not case.code) for name in OPERATIONS]


@pytest.mark.parametrize("kind", ["unavailable", "nonce", "throttle"])
@pytest.mark.parametrize("case", typical_cases(), ids=lambda case: case.operation)
def test_the_vendors_client_reads_the_faults_of_the_platform(platform: Simulator, case: Case, kind: FaultKind) -> None:
    platform.outage = kind
    try:
        for _ in range(4):
            with pytest.raises(AlibabaCloudException) as caught:
                send(platform.port, case.operation, case.parameters)
            assert caught.value.code.startswith(
                {"unavailable": "ServiceUnavailable", "nonce": "SignatureNonceUsed", "throttle": "Throttling"}[kind]
            )
            assert isinstance(
                caught.value, ServerException if kind == "unavailable" else ClientException | VendorThrottling
            )
            assert_gateway_error(caught.value, caught.value.code, caught.value.status_code)
    finally:
        platform.outage = None


def test_an_unknown_operation_is_an_error_of_the_gateway(platform: Simulator) -> None:
    with pytest.raises(ClientException) as caught:
        send(platform.port, "QueryDevice", {}, Action="QueryNothing")
    assert_gateway_error(caught.value, "InvalidAction.NotFound", 404)


def assert_gateway_error(error: AlibabaCloudException, code: str, status: int) -> None:
    """The gateway's error has the four documented members, all of them texts."""
    assert (error.code, error.status_code) == (code, status)
    data = {name: value for name, value in error.data.items() if name != "statusCode"}
    assert {name: type(value) for name, value in data.items()} == dict.fromkeys(
        ("RequestId", "HostId", "Code", "Message"), str
    )
    assert re.fullmatch(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", error.request_id)
