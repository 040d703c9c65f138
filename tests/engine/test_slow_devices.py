"""Spans of slow devices: which are recorded, how many, and with which requests."""

import time
from collections.abc import Mapping
from typing import Any, cast

import pytest

from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, Operation
from auditor.client.responses import ApiResponse
from auditor.config.loader import parse_settings
from auditor.config.settings import Account
from auditor.engine.slow_devices import MAX_SPANS, PERIOD_NANOSECONDS, SLOW_NANOSECONDS, SlowDevices
from auditor.errors import TransientError
from auditor.models import Device, DeviceFailure, DeviceResult, Outcome
from auditor.tracing import FinishedSpan
from tests.test_tracing import Recorder

DEVICE = Device("eu", "k1", "meter-1", None)


def account() -> Account:
    table = {
        "name": "eu",
        "endpoint": "https://platform.example:8686/",
        "access_key_id": "key",
        "access_key_secret": {"env": "SECRET"},
        "fleet": {"file": "fleet.csv"},
    }
    return parse_settings({"account": [table]}).account[0]


class Clock:
    """Nanoseconds since 1970 that only requests and pauses take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**18
        monkeypatch.setattr(time, "time_ns", lambda: self.now)


class Reader:
    """Reads a device with requests that take so many seconds each; all but the last one fail."""

    def __init__(self, devices: SlowDevices, clock: Clock) -> None:
        self.clock, self.seconds, self.wait = clock, [0.1], 0.0
        self.send = devices.watch_requests(cast("Any", self._answer))
        self.fetch = devices.watch(self._fetch)

    async def _answer(
        self, operation: Operation, parameters: Mapping[str, str], *, fresh_connection: bool = False
    ) -> ApiResponse:
        seconds, *self.seconds = self.seconds
        self.clock.now += int(seconds * 1e9)
        if self.seconds:
            raise TransientError("ServiceUnavailable", "signed text", http_status=503)
        return cast("ApiResponse", None)

    async def _fetch(self, device: Device) -> Outcome:
        self.clock.now += int(self.wait * 1e9)  # for a permit
        attempts = len(self.seconds)
        for _ in range(attempts):
            try:
                await self.send(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, {})
            except TransientError as error:
                failure = error
            else:
                return DeviceResult(device, "ok", (), 0, 1, attempts, None, 0.0)
        return DeviceFailure(device, failure.code, "", 503, attempts, None, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_without_a_tracer_nothing_is_between_a_device_and_its_reader() -> None:
    devices = SlowDevices(account())

    async def fetch(device: Device) -> Outcome:
        raise AssertionError

    assert devices.watch(fetch) is fetch
    send = cast("Any", fetch)
    assert devices.watch_requests(send) is send


@pytest.mark.anyio
async def test_a_slow_device_has_a_span_for_each_request(clock: Clock) -> None:
    recorder = Recorder()
    devices = SlowDevices(account(), recorder)
    reader = Reader(devices, clock)
    reader.seconds, reader.wait = [0.7, 0.4], 30.0
    began = clock.now + 30 * 10**9
    await reader.fetch(DEVICE)
    http: dict[str, str | int | None] = {
        "http.request.method": "POST",
        "server.address": "platform.example",
        "server.port": 8686,
        "url.full": "https://platform.example:8686/",
        "auditor.operation": "ListOTAModuleVersionsByDevice",
    }
    failed = {**http, "http.response.status_code": 503, "http.request.resend_count": None}
    answered = {**http, "http.response.status_code": 200, "http.request.resend_count": 1}
    middle, ended = began + 700_000_000, began + 1_100_000_000
    attributes = {
        "auditor.account.name": "eu",
        "auditor.product.key": "k1",
        "auditor.device.name": "meter-1",
        "auditor.device.iot_id": None,
        "auditor.device.status": "ok",
        "auditor.device.attempts": 2,
    }
    requests = [
        FinishedSpan("POST", began, middle, failed, "ServiceUnavailable", is_request=True),
        FinishedSpan("POST", middle, ended, answered, None, is_request=True),
    ]
    assert recorder.lines == [FinishedSpan("device", began, ended, attributes, parts=requests)]
    assert devices.count == 1


@pytest.mark.anyio
async def test_a_device_that_waits_for_a_permit_is_not_slow(clock: Clock) -> None:
    recorder = Recorder()
    devices = SlowDevices(account(), recorder)
    reader = Reader(devices, clock)
    reader.seconds, reader.wait = [0.99], 100.0
    await reader.fetch(DEVICE)
    assert (recorder.lines, devices.count) == ([], 0)


@pytest.mark.anyio
async def test_so_many_of_a_period_are_recorded_and_all_are_counted(clock: Clock) -> None:
    recorder = Recorder()
    devices = SlowDevices(account(), recorder)
    reader = Reader(devices, clock)
    for _ in range(MAX_SPANS + 5):
        reader.seconds = [SLOW_NANOSECONDS / 1e9]
        clock.now -= SLOW_NANOSECONDS
        await reader.fetch(DEVICE)
    assert (len(recorder.lines), devices.count) == (MAX_SPANS, MAX_SPANS + 5)
    clock.now += PERIOD_NANOSECONDS
    reader.seconds = [2.0]
    await reader.fetch(DEVICE)
    assert len(recorder.lines) == MAX_SPANS + 1


@pytest.mark.anyio
async def test_requests_about_no_device_are_not_kept(clock: Clock) -> None:
    recorder = Recorder()
    reader = Reader(SlowDevices(account(), recorder), clock)
    reader.seconds = [5.0]
    await reader.send(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, {})
    reader.seconds = [0.1]
    await reader.fetch(DEVICE)
    assert recorder.lines == []
