"""Forms of answers where documents, models and samples differ: what is written, and that the client reads each."""

import math
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, timedelta, timezone
from itertools import product
from typing import Any, get_args, get_type_hints

import pytest
from msgspec import structs

from auditor.cli.commands import simulate
from auditor.client.client import ApiClient
from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    LIST_OTA_FIRMWARE,
    LIST_OTA_JOB_BY_FIRMWARE,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    LIST_OTA_TASK_BY_JOB,
    QUERY_DEVICE,
    QUERY_DEVICE_BY_SQL,
    QUERY_PRODUCT_LIST,
)
from auditor.client.parsers import (
    parse_connection_states,
    parse_device_count,
    parse_device_rows,
    parse_devices,
    parse_firmware,
    parse_jobs,
    parse_modules,
    parse_products,
    parse_tasks,
)
from auditor.client.responses import parse_module_page
from auditor.client.transport import Endpoint
from auditor.errors import PlatformError
from auditor.models import Dialect, ReportedTime
from auditor.simulator import forms as simulated
from auditor.simulator.forms import MODEL_FORMS, ResponseForms, TimeForm, reshape, time_member
from auditor.simulator.registry import device_record
from auditor.simulator.releases import FirmwareStore
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import call

pytestmark = pytest.mark.anyio

AT = 1_579_249_151_250
"""2020-01-17 08:19:11.250 UTC, in milliseconds since 1970."""

INDIA = timezone(timedelta(hours=5.5))

TIMES = {
    "text": "2020-01-17 13:49:11",
    "offset": "2020-01-17T13:49:11+05:30",
    "iso": "2020-01-17T08:19:11.250Z",
    "milliseconds": AT,
    "seconds": AT // 1000,
    "digits": str(AT),
    "unreadable": "17 January, afternoon",
    "empty": "",
    "null": None,
}


@pytest.mark.parametrize("form", get_args(TimeForm))
def test_a_time_is_written_in_each_form_in_the_configured_zone(form: TimeForm) -> None:
    if form == "absent":
        assert time_member("at", AT, form, INDIA, 0) == {}
    elif form == "mixed":
        written = [time_member("at", AT, form, INDIA, index)["at"] for index in range(8)]
        assert written == [TIMES[each] for each in ("text", "milliseconds", "iso", "digits")] * 2
    else:
        assert time_member("at", AT, form, INDIA, 7) == {"at": TIMES[form]}


async def test_both_times_of_a_state_have_forms_of_their_own(world: World) -> None:
    device, entries = world.device(1), []
    for forms in (
        ResponseForms(last_online="milliseconds"),
        ResponseForms(last_online="offset", timestamp="digits", zone=INDIA),
        ResponseForms(last_online="absent", timestamp="null"),
    ):
        async with Simulator(world, forms=forms) as platform:
            answer = await call(platform, "BatchGetDeviceState", **{"IotId.1": device.iot_id})
            entries += answer["deviceStatusList"]["deviceStatus"]
    exact, written, without = entries
    assert written["timestamp"] == str(exact["timestamp"])
    assert written["lastOnlineTime"] == time_member("at", exact["lastOnlineTime"], "offset", INDIA, 0)["at"]
    assert "lastOnlineTime" not in without
    assert without["timestamp"] is None


LISTS: dict[str, Any] = {
    "code": "",
    "data": {"deviceInfo": [{"nodeType": 0}], "total": 3},
    "pages": {"list": [True]},
    "none": {"list": []},
    "bare": [],
    "page": 1,
    "success": True,
}


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        (
            {"scalars": "text"},
            {
                "data": {"deviceInfo": [{"nodeType": "0"}], "total": "3"},
                "pages": {"list": ["true"]},
                "page": "1",
                "success": "true",
            },
        ),
        ({"arrays": "bare"}, {"pages": [True], "none": []}),
        ({"empty": "null"}, {"none": {"list": None}, "bare": None}),
        ({"empty": "object"}, {"none": {}, "bare": None}),
        ({"empty": "none"}, {"none": None, "bare": None}),
        ({"unused": "null"}, {"errorMessage": None, "nextToken": None}),
        ({"unused": "text"}, {"errorMessage": "", "nextToken": ""}),
        ({"unused": "text", "scalars": "text", "arrays": "bare", "empty": "null"}, ...),
    ],
)
def test_a_response_is_written_in_each_form(changes: dict[str, Any], differences: Any) -> None:
    reshaped = reshape(LISTS, replace(MODEL_FORMS, **changes))
    if differences is ...:
        differences = {
            "data": {"deviceInfo": [{"nodeType": "0"}], "total": "3"},
            "pages": ["true"],
            "none": {"list": None},
            "bare": None,
            "page": "1",
            "success": "true",
            "errorMessage": "",
            "nextToken": "",
        }
    assert reshaped == {**LISTS, **differences}


def every_form() -> list[ResponseForms]:
    """Each form on its own, and a fixed sample of their combinations."""
    options = {
        "scalars": get_args(simulated.ScalarForm),
        "arrays": get_args(simulated.ArrayForm),
        "empty": get_args(simulated.EmptyForm),
        "unused": get_args(simulated.UnusedForm),
    }
    single = [{name: form} for name, forms in options.items() for form in forms]
    combined = [dict(zip(options, each, strict=True)) for each in product(*options.values())]
    chosen = single + random.Random(8).sample(combined, 10)
    return list(dict.fromkeys(replace(MODEL_FORMS, **changes) for changes in chosen))


def client_of(platform: Simulator) -> ApiClient:
    return ApiClient(Endpoint(platform.endpoint), DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret)


async def results(platform: Simulator, world: World) -> AsyncIterator[Any]:
    """Yield what the client reads of every operation: pages of several kinds, empty ones, and errors."""
    key = world.product_keys[0]
    names = {f"IotId.{number}": world.device(number).iot_id for number in range(1, 20)}
    async with client_of(platform) as client:
        for index, page in ((0, 1), (0, 3), (0, 9), (1, 1), (2, 1)):
            parameters = {"IotId": world.device(index).iot_id, "CurrentPage": str(page), "PageSize": "200"}
            read = parse_module_page(await client.call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, parameters))
            yield structs.replace(read, request_id=None)
        for page in (1, 2, 9):
            parameters = {"CurrentPage": str(page), "PageSize": "3"}
            yield parse_products(await client.call(QUERY_PRODUCT_LIST, parameters))
            yield parse_devices(await client.call(QUERY_DEVICE, {**parameters, "ProductKey": key}), key)
        yield parse_modules(await client.call(LIST_OTA_MODULE_BY_PRODUCT, {"ProductKey": key}), key)
        yield parse_connection_states(await client.call(BATCH_GET_DEVICE_STATE, names), now=math.inf)
        store = FirmwareStore(world)
        job = max(store.jobs.values(), key=lambda job: len(store.tasks_of(job)))
        for page in (1, 2, 99):
            numbers = {"CurrentPage": str(page), "PageSize": "3"}
            yield parse_firmware(await client.call(LIST_OTA_FIRMWARE, {**numbers, "ProductKey": key}), key)
            for firmware_id in (job.firmware.firmware_id, next(iter(store.firmware))):
                of_firmware = {**numbers, "FirmwareId": firmware_id}
                yield parse_jobs(await client.call(LIST_OTA_JOB_BY_FIRMWARE, of_firmware), firmware_id)
            yield parse_tasks(await client.call(LIST_OTA_TASK_BY_JOB, {**numbers, "JobId": job.job_id}), job.job_id)
        for rows in (f'product_key = "{key}"', 'product_key = "k1nowhere"'):
            sql = {"SQL": f"SELECT * FROM device WHERE {rows} ORDER BY gmt_create LIMIT 50"}
            yield parse_device_rows(await client.call(QUERY_DEVICE_BY_SQL, sql), key)
        number = {"SQL": f'SELECT count(*) FROM device WHERE product_key = "{key}"'}
        yield parse_device_count(await client.call(QUERY_DEVICE_BY_SQL, number))
        # Without an array the states are unknown, and with an empty one there are none.
        yield (
            parse_connection_states(await client.call(BATCH_GET_DEVICE_STATE, {"IotId.1": "missing"}), now=math.inf)
            or ()
        )
        for operation, parameters in (
            (LIST_OTA_MODULE_VERSIONS_BY_DEVICE, {"IotId": "missing", "CurrentPage": "1", "PageSize": "200"}),
            (QUERY_DEVICE, {"ProductKey": key, "CurrentPage": "1", "PageSize": "99"}),
            (QUERY_PRODUCT_LIST, {"CurrentPage": "0"}),
            (LIST_OTA_MODULE_BY_PRODUCT, {}),
            (BATCH_GET_DEVICE_STATE, {"ProductKey": key}),
            (LIST_OTA_TASK_BY_JOB, {"CurrentPage": "1", "PageSize": "101"}),
        ):
            with pytest.raises(PlatformError) as caught:
                await client.call(operation, parameters)
            yield type(caught.value), caught.value.code, caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_the_client_reads_every_form_alike(world: World, dialect: Dialect) -> None:
    async with Simulator(world, dialect=dialect, index=IndexOptions()) as platform:
        expected = [result async for result in results(platform, world)]
    assert len(expected) == 35
    for forms in every_form():
        async with Simulator(world, dialect=dialect, index=IndexOptions(), forms=forms) as platform:
            found = [result async for result in results(platform, world)]
        assert found == expected, forms


NO_VALUE: tuple[TimeForm, ...] = ("empty", "null", "absent")


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_the_client_reads_every_form_of_a_time(world: World, dialect: Dialect) -> None:
    devices = [device for device in world if device.activated][:4]
    names = {f"IotId.{number}": device.iot_id for number, device in enumerate(devices, 1)}
    records = [device_record(device, world.began) for device in devices]
    for form in get_args(TimeForm):
        forms = ResponseForms(last_online=form, timestamp=form, zone=INDIA)
        async with Simulator(world, dialect=dialect, forms=forms) as platform, client_of(platform) as client:
            states = parse_connection_states(await client.call(BATCH_GET_DEVICE_STATE, names), now=math.inf) or ()
        assert [state.iot_id for state in states] == [device.iot_id for device in devices]
        for state, record in zip(states, records, strict=True):
            for reported, exact in ((state.changed, record.changed), (state.last_online, record.online)):
                assert exact is not None
                if form in NO_VALUE:
                    assert reported is None
                elif form == "unreadable":
                    assert reported == ReportedTime(None)
                else:
                    assert reported is not None
                    assert reported.milliseconds is not None
                    assert form in {"text", "mixed"} or reported.has_zone
                    local = 0 if reported.has_zone else INDIA.utcoffset(None).total_seconds() * 1000
                    assert 0 <= reported.milliseconds - local - exact <= 999


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_the_client_reads_every_form_of_the_times_of_releases(dialect: Dialect) -> None:
    world = World(40, products=1, day=3)
    store = FirmwareStore(world)
    job = max(store.jobs.values(), key=lambda job: len(store.tasks_of(job)))
    for form in get_args(TimeForm):
        forms = ResponseForms(utc=form, zone=UTC)
        async with Simulator(world, dialect=dialect, forms=forms) as platform, client_of(platform) as client:
            page = {"CurrentPage": "1", "PageSize": "100"}
            key, firmware_id = world.product_keys[0], job.firmware.firmware_id
            firmware = parse_firmware(await client.call(LIST_OTA_FIRMWARE, {**page, "ProductKey": key}), key)
            jobs = parse_jobs(
                await client.call(LIST_OTA_JOB_BY_FIRMWARE, {**page, "FirmwareId": firmware_id}), firmware_id
            )
            tasks = parse_tasks(await client.call(LIST_OTA_TASK_BY_JOB, {**page, "JobId": job.job_id}), job.job_id)
        assert firmware.items
        assert jobs.items
        assert tasks.items
        read = [(each.created, store.firmware[each.firmware_id].created) for each in firmware.items]
        read += [(each.created, store.jobs[each.job_id].created) for each in jobs.items]
        read += [(each.created, job.created) for each in tasks.items]
        for created, exact in read:
            if form in {*NO_VALUE, "unreadable"}:
                assert created is None
            else:
                assert created is not None
                assert 0 <= created - exact <= 999


def test_the_command_offers_every_form() -> None:
    parameters = get_type_hints(simulate.FormFlags)
    offered = {name: get_args(parameters[name]) for name in ("scalars", "arrays", "empty", "unused")}
    assert get_args(simulate.TimeForm) == get_args(TimeForm)
    assert offered == {
        "scalars": get_args(simulated.ScalarForm),
        "arrays": get_args(simulated.ArrayForm),
        "empty": get_args(simulated.EmptyForm),
        "unused": get_args(simulated.UnusedForm),
    }
