"""Parsing of responses of the list operations into products, devices, modules and states. Pure.

An entry that cannot be used is dropped. The list is then shorter than its own total, which is reported as a gap.
"""

import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import TypeVar, get_args

from auditor.client.decoders import clean_message
from auditor.client.operations import MAX_NAME_LENGTH
from auditor.client.responses import ApiResponse, lowercase_keys, parse_count, parse_text
from auditor.errors import InconsistentResponseError
from auditor.models import (
    ConnectionState,
    DeviceDetails,
    DeviceStatus,
    Firmware,
    IndexedDevice,
    ListedDevice,
    ListPage,
    ModuleVersion,
    Product,
    ReportedTime,
    UpdateJob,
    UpdateTask,
)

T = TypeVar("T")

MAX_TOKEN_LENGTH, MAX_TIME_LENGTH = 4_096, 64
"""Characters of a page token and of a time; a longer value is ignored."""

MAX_COUNT = 10**12
"""Upper limit, exclusive, of a number of items; a larger one is ignored."""

MIN_TIME_MS, MAX_TIME_MS = 1_262_304_000_000, 253_402_300_800_000
"""First time and upper limit of times, in milliseconds since 1970: the years 2010 and 10000.

No device was online before 2010: such a number is a default, a date such as 20200117, or of another unit.
"""

MAX_AHEAD_MS = 24 * 3600 * 1000
"""Milliseconds that a reported time may be in the future: clocks differ, and its zone may be unknown."""

MAX_SECONDS = 100_000_000_000
"""Upper limit, exclusive, of numbers that are times in seconds; larger ones are in milliseconds."""

MIN_UTC_OFFSET, MAX_UTC_OFFSET, UTC_OFFSET_STEP = -12 * 60, 14 * 60, 15
"""Range of the offsets of time zones from UTC, and what each is a multiple of, in minutes."""

NODE_TYPES = {"0": "device", "1": "gateway"}
"""Words for the numbers of node types (Alibaba's page on QueryProductList)."""

VERIFICATIONS = {"-1": "not_needed", "0": "unverified", "1": "verified", "2": "verifying", "3": "failed"}
FIRMWARE_KINDS = {"0": "full", "1": "difference"}
"""Words for the numbers of a firmware's status and type (Alibaba's pages on ListOTAFirmware and QueryOTAFirmware)."""

DEFAULT_MODULE = "default"
"""Module of a firmware that names none (Alibaba's page on CreateOTAFirmware)."""

OTHER_STATUS = "OTHER"
"""Replaces a device status that is not documented."""


def parse_products(response: ApiResponse) -> ListPage[Product]:
    """Return a page of QueryProductList: ``data.list.productInfo``, with its numbers in ``data``."""
    data = lowercase_keys(response.fields.get("data"))
    entries = _entries(data.get("list"), "productinfo") or _entries(response.fields.get("data"), "productinfo")
    products = (_parse_product(lowercase_keys(entry)) for entry in entries)
    return _parse_page(response, data, tuple(each for each in products if each is not None))


def parse_devices(response: ApiResponse, product_key: str) -> ListPage[ListedDevice]:
    """Return a page of QueryDevice: ``data.deviceInfo``, with its numbers beside ``data``.

    Devices of another product are dropped.

    Raises:
        InconsistentResponseError: all of them are of another product.
    """
    data = response.fields.get("data")
    entries = [lowercase_keys(entry) for entry in _entries(data, "deviceinfo")]
    _check_product(entries, product_key)
    devices = (_parse_device(entry, product_key) for entry in entries)
    return _parse_page(response, lowercase_keys(data), tuple(each for each in devices if each is not None))


def parse_device_rows(response: ApiResponse, product_key: str) -> ListPage[IndexedDevice]:
    """Return the rows of QueryDeviceBySQL, ``data``; the page's total is the number of rows, unreadable ones included.

    Raises:
        InconsistentResponseError: one is of another product, or they are no list.
    """
    data = response.fields.get("data")
    if not isinstance(data := [] if data is None else data, list):
        raise InconsistentResponseError("requested devices, got an answer without a list of them")
    entries = [lowercase_keys(entry) for entry in data]
    if not all(_is_of_product(entry, product_key) for entry in entries):
        raise InconsistentResponseError(f"requested product {product_key}, got an answer about another one")
    rows = (_parse_device_row(entry, product_key) for entry in entries)
    return ListPage(tuple(each for each in rows if each is not None), None, len(entries), None)


def parse_device_count(response: ApiResponse) -> int:
    """Return the number in an answer of QueryDeviceBySQL to ``count(*)``; raise InconsistentResponseError if none."""
    count = _bounded_count(response.fields.get("totalcount"))
    if count is None:
        raise InconsistentResponseError("requested a number of devices, got an answer without one")
    return count


def _parse_device_row(entry: dict[str, object], product_key: str) -> IndexedDevice | None:
    names = {"devicestatus": "status", "utccreate": "gmtcreate", "utcmodified": "gmtmodified"}
    device = _parse_device(entry | {name: entry.get(given) for name, given in names.items()}, product_key)
    if device is None:
        return None
    tags, groups = (_entries(entry, name) for name in ("tags", "groups"))
    return IndexedDevice(
        device.device_name,
        device.iot_id,
        device.device_status,
        device.utc_create,
        device.utc_modified,
        device.nickname,
        modules=_parse_versions(entry.get("otamodules")),
        tags=tuple(_parse_pairs(tags, "tagname", "tagvalue")),
        groups=tuple(group for group, _ in _parse_pairs(groups, "groupid", "groupid")),
    )


def _parse_versions(value: object) -> tuple[ModuleVersion, ...] | None:
    """Return the modules of a row; None if one of them has no name, or there is no list of them."""
    if value is not None and not isinstance(value, list):
        return None
    found = list(_parse_pairs(value or [], "modulename", "firmwareversion"))
    unique = {name.casefold(): ModuleVersion(name, version) for name, version in found}
    return tuple(unique.values()) if len(unique) == len(value or []) else None


def _parse_pairs(entries: list[object], name: str, value: str) -> Iterator[tuple[str, str]]:
    """Yield two members of the entries that have the first one, with an empty text in place of the second."""
    for entry in map(lowercase_keys, entries):
        key, text = parse_text(entry.get(name)), parse_text(entry.get(value)) or ""
        if key and max(len(key), len(text)) <= MAX_NAME_LENGTH:
            yield key, text


def parse_modules(response: ApiResponse, product_key: str) -> tuple[str, ...]:
    """Return the module names of a response of ListOTAModuleByProduct: ``data``, an array or ``data.otaModuleDTO``.

    Raises:
        InconsistentResponseError: it is about another product.
    """
    entries = [lowercase_keys(entry) for entry in _entries(response.fields.get("data"), "otamoduledto")]
    _check_product(entries, product_key)
    names = (_parse_name(entry, "modulename") for entry in entries if _is_of_product(entry, product_key))
    # Names are unique in a product regardless of case (Alibaba's page on OTA modules).
    return tuple({name.casefold(): name for name in names if name is not None}.values())


def parse_connection_states(response: ApiResponse, *, now: float) -> tuple[ConnectionState, ...] | None:
    """Return the states of a response of BatchGetDeviceState; None if it has no list of them.

    The list is ``deviceStatusList.deviceStatus``, in ``data`` or not. A time of more than MAX_AHEAD_MS after ``now``,
    in seconds since 1970, is unreadable: it is a default, or has another meaning.
    """
    fields = response.fields
    places = (
        fields.get("devicestatuslist"),
        lowercase_keys(fields.get("data")).get("devicestatuslist"),
        fields.get("data"),
    )
    lists = [place if isinstance(place, list) else lowercase_keys(place).get("devicestatus") for place in places]
    found = [entries for entries in lists if isinstance(entries, list)]
    if not found:
        return None
    latest = 1000 * now + MAX_AHEAD_MS
    return tuple(_parse_state(lowercase_keys(entry), latest) for entry in next(filter(None, found), ()))


def parse_device_details(response: ApiResponse) -> tuple[DeviceDetails, ...]:
    """Return the devices of a response of BatchQueryDeviceDetail, ``data.data``.

    Raises:
        InconsistentResponseError: it has no list of them, or one of them has no readable name.
    """
    data = response.fields.get("data")
    entries = data if isinstance(data, list) else lowercase_keys(data).get("data")
    if not isinstance(entries, list):
        raise InconsistentResponseError("requested details of devices, got an answer without a list of them")
    found = tuple(_parse_details(lowercase_keys(entry)) for entry in entries)
    if any(each.device_name is None for each in found):
        raise InconsistentResponseError("requested details of devices, got some without a name")
    return found


def _parse_details(entry: dict[str, object]) -> DeviceDetails:
    product_key, device_name, iot_id = (_parse_name(entry, key) for key in ("productkey", "devicename", "iotid"))
    version = _bounded_text(entry.get("firmwareversion"), MAX_NAME_LENGTH)
    return DeviceDetails(product_key, device_name, iot_id, _parse_word(entry, "status"), version)


def parse_firmware(response: ApiResponse, product_key: str) -> ListPage[Firmware]:
    """Return a page of ListOTAFirmware: ``firmwareInfo.simpleFirmwareInfo``, with its numbers beside it.

    Firmware of another product is dropped.

    Raises:
        InconsistentResponseError: all of it is of another product.
    """
    data = response.fields.get("data")
    places = (response.fields.get("firmwareinfo"), data)
    entries = next(filter(None, (_entries(place, "simplefirmwareinfo") for place in places)), [])
    own = _entries_about(entries, "productkey", product_key, "product")
    return _parse_page_of(response, own, _parse_firmware)


def parse_jobs(response: ApiResponse, firmware_id: str) -> ListPage[UpdateJob]:
    """Return a page of ListOTAJobByFirmware: ``data.simpleOTAJobInfo``; jobs of other firmware are dropped.

    Raises:
        InconsistentResponseError: all of them are of other firmware.
    """
    entries = _entries(response.fields.get("data"), "simpleotajobinfo")
    return _parse_page_of(response, _entries_about(entries, "firmwareid", firmware_id, "firmware"), _parse_job)


def parse_tasks(response: ApiResponse, job_id: str) -> ListPage[UpdateTask]:
    """Return a page of ListOTATaskByJob: ``data.simpleOTATaskInfo``; tasks of another job are dropped.

    Raises:
        InconsistentResponseError: all of them are of another job.
    """
    entries = _entries(response.fields.get("data"), "simpleotataskinfo")
    return _parse_page_of(response, _entries_about(entries, "jobid", job_id, "job"), _parse_task)


def _parse_page_of(
    response: ApiResponse, entries: list[dict[str, object]], parse: Callable[[dict[str, object]], T | None]
) -> ListPage[T]:
    """Return a page of those entries that can be parsed, with the page's numbers."""
    items = tuple(item for item in map(parse, entries) if item is not None)
    return _parse_page(response, lowercase_keys(response.fields.get("data")), items)


def _parse_firmware(entry: dict[str, object]) -> Firmware | None:
    if (firmware_id := _parse_name(entry, "firmwareid")) is None:
        return None
    verification, kind = (_bounded_text(entry.get(key), MAX_NAME_LENGTH) for key in ("status", "type"))
    return Firmware(
        firmware_id=firmware_id,
        firmware_name=_bounded_text(entry.get("firmwarename"), MAX_NAME_LENGTH),
        module_name=_parse_name(entry, "modulename") or DEFAULT_MODULE,
        version=_bounded_text(entry.get("destversion"), MAX_NAME_LENGTH),
        source_version=_bounded_text(entry.get("srcversion"), MAX_NAME_LENGTH),
        verification=VERIFICATIONS.get(verification or "", verification),
        kind=FIRMWARE_KINDS.get(kind or "", kind),
        size=_bounded_count(entry.get("firmwaresize")),
        created=_parse_milliseconds(entry, "utccreate"),
        modified=_parse_milliseconds(entry, "utcmodified"),
    )


def _parse_job(entry: dict[str, object]) -> UpdateJob | None:
    if (job_id := _parse_name(entry, "jobid")) is None:
        return None
    return UpdateJob(
        job_id=job_id,
        status=_parse_word(entry, "jobstatus"),
        kind=_parse_word(entry, "jobtype"),
        selection=_parse_word(entry, "selectiontype"),
        target=_parse_word(entry, "targetselection"),
        created=_parse_milliseconds(entry, "utccreate"),
        started=_parse_milliseconds(entry, "utcstarttime"),
        ended=_parse_milliseconds(entry, "utcendtime"),
    )


def _parse_task(entry: dict[str, object]) -> UpdateTask | None:
    """Return a task; None if it names no device."""
    product_key, device_name = (_parse_name(entry, key) for key in ("productkey", "devicename"))
    iot_id = _parse_name(entry, "iotid")
    if iot_id is None and (product_key is None or device_name is None):
        return None
    return UpdateTask(
        task_id=_parse_name(entry, "taskid"),
        product_key=product_key,
        device_name=device_name,
        iot_id=iot_id,
        source_version=_bounded_text(entry.get("srcversion"), MAX_NAME_LENGTH),
        version=_bounded_text(entry.get("destversion"), MAX_NAME_LENGTH),
        status=_parse_word(entry, "taskstatus"),
        message=clean_message(parse_text(entry.get("taskdesc")) or "") or None,
        progress=_bounded_count(entry.get("progress")),
        created=_parse_milliseconds(entry, "utccreate"),
        modified=_parse_milliseconds(entry, "utcmodified"),
    )


def _entries_about(entries: list[object], key: str, value: str, noun: str) -> list[dict[str, object]]:
    """Return the entries that name a value or none; raise InconsistentResponseError if all name another one."""
    members = [lowercase_keys(entry) for entry in entries]
    own = [entry for entry in members if (parse_text(entry.get(key)) or value) == value]
    if members and not own:
        raise InconsistentResponseError(f"requested {noun} {value}, got an answer about another one")
    return own


def _parse_word(entry: dict[str, object], key: str) -> str | None:
    """Return a word of the platform, such as a status, in upper case."""
    text = _bounded_text(entry.get(key), MAX_TIME_LENGTH)
    return (clean_message(text).upper() or None) if text is not None else None


def _parse_milliseconds(entry: dict[str, object], key: str) -> int | None:
    """Return a time in milliseconds since 1970, in UTC where it names no zone; None if it is none."""
    found = _parse_optional_time(entry, key, math.inf)
    return None if found is None else found.milliseconds


def _parse_state(entry: dict[str, object], latest: float) -> ConnectionState:
    text = _bounded_text(entry.get("status"), MAX_TIME_LENGTH)
    return ConnectionState(
        product_key=_parse_name(entry, "productkey"),
        device_name=_parse_name(entry, "devicename"),
        iot_id=_parse_name(entry, "iotid"),
        status=None if text is None else text.strip().upper(),
        changed=_parse_optional_time(entry, "timestamp", latest),
        last_online=_parse_optional_time(entry, "lastonlinetime", latest),
    )


def _parse_optional_time(entry: dict[str, object], key: str, latest: float) -> ReportedTime | None:
    """Return a time of an entry; None if it is missing, null or blank. The decoder leaves out null, not an object."""
    value = entry.get(key, "")
    if isinstance(value, str) and not value.strip():
        return None
    time = parse_reported_time(value)
    return ReportedTime(None) if time.milliseconds is not None and time.milliseconds > latest else time


_COMPACT_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)", re.ASCII)

_NUMBER = re.compile(r"(\d{9,13})(\.\d{1,9})?", re.ASCII)

_DATE_AND_TIME = re.compile(
    r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})(?:T|\s+)(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?"
    r"\s*(?:(Z|UTC|GMT)|([+-])(\d{2}):?([0-5]\d)?)?",
    re.ASCII | re.IGNORECASE,
)


def parse_reported_time(value: object) -> ReportedTime:
    """Return a reported time in any form that has one meaning, such as 1579249151000 or ``2020-01-17 16:19:11``.

    Forms are milliseconds or seconds since 1970, as a number or as text, and a date, year first, with a time. A number
    of 14 digits is such a date too: as milliseconds, it would be in 2286 or later. The documentation has numbers for
    one field and text without a zone for another, and public samples mix them.
    """
    if not isinstance(value, bool) and _COMPACT_TIME.fullmatch(text := str(value).strip()[: MAX_TIME_LENGTH + 1]):
        return _parse_date_and_time(_COMPACT_TIME.sub(r"\1-\2-\3 \4:\5:\6", text))
    if isinstance(value, str):
        text = value.strip()
        if (match := _NUMBER.fullmatch(text)) is None:
            return _parse_date_and_time(text)
        value = float(text) if match[2] else int(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ReportedTime(None)
    if value < MAX_SECONDS:
        value = value * 1000 + (999 if isinstance(value, int) else 0)
    return _bounded_time(math.ceil(value)) if math.isfinite(value) else ReportedTime(None)


def _parse_date_and_time(text: str) -> ReportedTime:
    if len(text) > MAX_TIME_LENGTH or (match := _DATE_AND_TIME.fullmatch(text)) is None:
        return ReportedTime(None)
    year, _, month, day, hour, minute, second, fraction, utc, sign, hours, minutes = match.groups()
    offset = int(f"{sign or ''}{60 * int(hours or 0) + int(minutes or 0)}")
    if not MIN_UTC_OFFSET <= offset <= MAX_UTC_OFFSET or offset % UTC_OFFSET_STEP:
        return ReportedTime(None)
    zone = timezone(timedelta(minutes=offset)) if sign else UTC
    try:
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second or 0), tzinfo=zone)
    except ValueError:
        return ReportedTime(None)
    rest = 59_999 if second is None else 999 if fraction is None else math.ceil(float(f"0.{fraction}") * 1000)
    return _bounded_time(1000 * int(moment.timestamp()) + rest, has_zone=bool(utc or sign))


def _bounded_time(milliseconds: int, *, has_zone: bool = True) -> ReportedTime:
    return ReportedTime(milliseconds if MIN_TIME_MS <= milliseconds < MAX_TIME_MS else None, has_zone)


def _parse_page(response: ApiResponse, data: dict[str, object], items: tuple[T, ...]) -> ListPage[T]:
    def first_of(*names: str) -> object:
        members = (fields.get(name) for fields in (response.fields, data) for name in names)
        return next((member for member in members if member is not None), None)

    return ListPage(
        items,
        number=_bounded_count(first_of("currentpage", "page")),
        total=_bounded_count(first_of("total")),
        next_token=_bounded_text(first_of("nexttoken"), MAX_TOKEN_LENGTH),
    )


def _entries(value: object, name: str) -> list[object]:
    """Return the array that an object holds under a name, or the value itself if it is an array."""
    inner = lowercase_keys(value).get(name) if isinstance(value, dict) else value
    return inner if isinstance(inner, list) else []


def _parse_product(entry: dict[str, object]) -> Product | None:
    if (key := _parse_name(entry, "productkey")) is None:
        return None
    name = _bounded_text(entry.get("productname"), MAX_NAME_LENGTH)
    node_type = _bounded_text(entry.get("nodetype"), MAX_NAME_LENGTH)
    return Product(key, name, _bounded_count(entry.get("devicecount")), NODE_TYPES.get(node_type or "", node_type))


def _parse_device(entry: dict[str, object], product_key: str) -> ListedDevice | None:
    name = _parse_name(entry, "devicename")
    if name is None or not _is_of_product(entry, product_key):
        return None
    status = parse_text(entry.get("devicestatus"))
    if status is not None:
        status = status.upper() if status.upper() in get_args(DeviceStatus) else OTHER_STATUS
    created, modified = (_bounded_text(entry.get(key), MAX_TIME_LENGTH) for key in ("utccreate", "utcmodified"))
    nickname = _bounded_text(entry.get("nickname"), MAX_NAME_LENGTH)
    return ListedDevice(name, _parse_name(entry, "iotid"), status, created, modified, nickname)


def _is_of_product(entry: dict[str, object], product_key: str) -> bool:
    return entry.get("productkey", product_key) == product_key


def _check_product(entries: list[dict[str, object]], product_key: str) -> None:
    """Raise InconsistentResponseError if there are entries, and all name another product."""
    if entries and not any(_is_of_product(entry, product_key) for entry in entries):
        raise InconsistentResponseError(f"requested product {product_key}, got an answer about another one")


def _bounded_count(value: object) -> int | None:
    number = parse_count(value)
    return number if number is not None and number < MAX_COUNT else None


def _bounded_text(value: object, max_length: int) -> str | None:
    text = parse_text(value)
    return text if text and len(text) <= max_length else None


def _parse_name(entry: dict[str, object], key: str) -> str | None:
    """Return a name that a request can use: printable and within ``MAX_NAME_LENGTH``; otherwise None.

    No name has a backslash: the decoder puts it in place of a byte that it could not read.
    """
    name = (parse_text(entry.get(key)) or "").strip()
    return name if 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and "\\" not in name else None
