"""Reading the version of module ``default`` of up to 100 devices of a product in one call, by BatchQueryDeviceDetail.

A device is queried itself if the answer does not have
it, has it twice, or has no version of it; so are all devices of an answer that has others than requested. Where the
platform refuses the operation, all devices are queried themselves, and the run remembers that.
"""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import anyio

from auditor.client.operations import BATCH_QUERY_DEVICE_DETAIL, device_detail_params
from auditor.client.parsers import DEFAULT_MODULE, parse_device_details
from auditor.client.responses import ApiResponse
from auditor.concurrency import StopToken
from auditor.engine.account_session import AccountSession
from auditor.engine.device_reader import MAX_READINGS
from auditor.errors import (
    InconsistentResponseError,
    NotFoundError,
    OperationDeniedError,
    OperationUnavailableError,
    PlatformError,
    ThrottledError,
    TransientError,
)
from auditor.log import log
from auditor.models import Device, DeviceDetails, DeviceResult, ModuleVersion, Outcome
from auditor.storage.files import translate_os_errors

DETAILS_FOLDER = ".details"
"""Folder in the run folder with an empty file for each account that refused the operation, until the run has ended."""

MAX_ERRORS = 3
"""Failed batches before the first answer after which no more are sent: all of them would fail."""


class DetailReader:
    """Reads the devices of one account.

    Args:
        session: the account.
        folder: the run folder.
        fetch: queries one device.
        write: records an outcome.
        stop: a request to end early; devices that are not read before that stay pending.
    """

    def __init__(
        self,
        session: AccountSession,
        folder: Path,
        fetch: Callable[[Device], Awaitable[Outcome]],
        write: Callable[[Outcome], Awaitable[None]],
        stop: StopToken,
    ) -> None:
        self._session, self._fetch, self._write, self._stop = session, fetch, write, stop
        self._marker = folder / DETAILS_FOLDER / hashlib.sha256(session.name.encode()).hexdigest()[:16]
        self._is_used = not self._marker.exists()
        self._has_answered, self._errors, self._first = False, 0, anyio.Lock()

    def divide(self, devices: Iterator[Device]) -> Iterator[list[Device]]:
        """Yield the devices in batches for one request each: those of one product, or one that is queried itself.

        One incomplete batch of each product is in memory.
        """
        batches: dict[str, list[Device]] = {}
        for device in devices:
            if device.product_key is None or device.device_name is None or not self._is_used:
                yield [device]
                continue
            batch = batches.setdefault(device.product_key, [])
            batch.append(device)
            if len(batch) == BATCH_QUERY_DEVICE_DETAIL.page_size:
                yield batches.pop(device.product_key)
        yield from batches.values()

    async def read(self, batch: Sequence[Device]) -> None:
        """Read the devices of a batch, and write their outcomes."""
        found = await self._read_details(batch) if len(batch) > 1 else {}
        for result in found.values():
            await self._write(result)
            self._session.count_unqueried()
        for device in batch:
            if device.device_name not in found and self._stop.reason is None:
                await self._write(await self._fetch(device))

    async def _read_details(self, batch: Sequence[Device]) -> dict[str, DeviceResult]:
        """Return the results of devices by name, as far as one answer decides them."""
        if not self._has_answered:
            async with self._first:  # alone: an account without the operation costs one request
                if not self._has_answered:
                    return await self._request(batch)
        return await self._request(batch)

    async def _request(self, batch: Sequence[Device]) -> dict[str, DeviceResult]:
        attempts, error = 0, None
        for _ in range(MAX_READINGS if self._is_used else 0):
            sent = await self._session.call_optional(BATCH_QUERY_DEVICE_DETAIL, device_detail_params(batch))
            attempts += sent.attempts
            if isinstance(sent.result, PlatformError):
                error = sent.result
                break
            try:
                details = _details_by_name(sent.result, batch)
            except InconsistentResponseError as inconsistency:
                error = inconsistency
                continue
            self._has_answered = True
            result = partial(self._result, request_id=sent.result.request_id, attempts=attempts)
            results = ((device, result(device, details.get(str(device.device_name)))) for device in batch)
            return {str(device.device_name): each for device, each in results if each is not None}
        if error is not None and not isinstance(error, NotFoundError):
            self._record_error(error)
        return {}

    def _result(
        self, device: Device, details: DeviceDetails | None, *, request_id: str | None, attempts: int
    ) -> DeviceResult | None:
        """Return the result of a device; None if its details do not decide it."""
        if details is None or (details.iot_id is not None and device.iot_id not in {None, details.iot_id}):
            return None
        is_inactive = details.status == "UNACTIVE"
        if (details.version is None) != is_inactive:
            return None
        modules = () if details.version is None else (ModuleVersion(DEFAULT_MODULE, details.version),)
        identity = Device(device.account, device.product_key, device.device_name, device.iot_id or details.iot_id)
        return DeviceResult(
            identity,
            "ok" if modules else "empty",
            modules,
            len(modules),
            1,
            attempts,
            request_id,
            self._session.platform_time(),
            "never_activated" if is_inactive else None,
            source="details",
        )

    def _record_error(self, error: PlatformError) -> None:
        """Stop using the operation if it is denied, or has never worked; a resume tries again what may pass."""
        self._errors += 1
        fails = not self._has_answered and self._errors == MAX_ERRORS
        if not self._is_used or not (fails or isinstance(error, OperationDeniedError | OperationUnavailableError)):
            return
        self._is_used = False
        log.warning(
            "details_unavailable",
            account=self._session.name,
            reason=str(error),
        )
        if not isinstance(error, TransientError | ThrottledError | OperationUnavailableError):
            with translate_os_errors(f"{self._marker}: cannot be written"):
                self._marker.parent.mkdir(mode=0o700, exist_ok=True)
                self._marker.touch()


def _details_by_name(response: ApiResponse, batch: Sequence[Device]) -> dict[str, DeviceDetails]:
    """Return the details of an answer, without those of devices that it has twice.

    Raises:
        InconsistentResponseError: it is about another device or product than requested, so it may be another's answer.
    """
    details = parse_device_details(response)
    requested = {device.device_name for device in batch}
    for each in details:
        if each.device_name not in requested or each.product_key not in {None, batch[0].product_key}:
            raise InconsistentResponseError(f"requested other devices, got details of {each.device_name}")
    counts = Counter(each.device_name for each in details)
    return {str(each.device_name): each for each in details if counts[each.device_name] == 1}
