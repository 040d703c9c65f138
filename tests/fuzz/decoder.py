"""Fuzz target of the response decoder. Input: a status line, header lines, an empty line, then the body."""

import json
import re
import time
from dataclasses import asdict
from pathlib import Path

import orjson
from multidict import CIMultiDict

from auditor.client.decoders import (
    DEVICE_LIST_RESPONSE,
    MAX_MESSAGE_LENGTH,
    PRODUCT_LIST_RESPONSE,
    PRODUCT_MODULES_RESPONSE,
    decode_documented_page,
)
from auditor.client.operations import MAX_NAME_LENGTH
from auditor.client.parsers import MAX_COUNT, parse_devices, parse_modules, parse_products
from auditor.client.responses import parse_module_page, parse_response
from auditor.errors import PlatformError
from auditor.models import Page

NOW = 1_732_009_663.0


def machine_factor() -> float:
    """Return how many times slower than usual this machine is: it usually counts to five million in 0.12 seconds."""
    started = time.thread_time()
    for _ in range(5_000_000):
        pass
    return max(1.0, (time.thread_time() - started) / 0.12)


MAX_SECONDS = 5.0
"""Processor time for one response of any size, on a machine of usual speed."""


def _is_in_time(began: float) -> bool:
    """Return whether the limit holds; the speed of the machine is measured only if it seems not to."""
    seconds = time.thread_time() - began
    return seconds < MAX_SECONDS or seconds < MAX_SECONDS * machine_factor()


SAMPLES = Path(__file__).parents[1] / "client" / "samples"

FRAGMENTS = [
    b"\n\n", b"\nDate: ", b"\nRetry-After: ", b"\nx-acs-retry-after: ", b"429", b"200", b"Tue, 19 Nov 2024 09:47:43 GMT",
    b"Fri, 31 Dec 9999 23:59:59 -2359", b"+9999", b"9" * 400, b"1e400", b"-0", b"1e308", b"18446744073709551616", b"NaN",
    b'"\\ud800"', b'"\\u0000"', b"\\u202e", b"\xed\xa0\x80", b"\x00", b"\xff", b"\x1b[31m", b"\xe2\x80\xa8", b"[" * 300, b'{"a":' * 200,
    b"null", b"true", b'"true"', b"[]", b"{}", b'"code":', b'"Code":', b'"success":true', b'"data":', b'"total":', b'"requestId":',
    b'"errorMessage":', b'"simpleOTAModuleInfo":', b'"moduleName":', b"Throttling.User", b"InvalidTimeStamp.Expired",
    b"server string to sign is", b'"deviceInfo":', b'"DeviceInfo":', b'"deviceName":', b'"deviceSecret":', b'"nextToken":', b'"list":',
    b'"productInfo":', b'"productKey":', b'"deviceCount":', b'"otaModuleDTO":', b'"deviceStatus":', b'"UNACTIVE"',
]  # fmt: skip


def seeds() -> list[bytes]:
    """Return the recorded responses; the example of the vendor's page is one of them."""
    return [_sample(folder) for folder in sorted(SAMPLES.iterdir()) if folder.is_dir()]


def read(data: bytes) -> str:
    """Return ``Page``, or the name of the documented error."""
    status, headers, body = _split_response(data)
    _check_list_parsers(status, headers, body)
    began = time.thread_time()
    try:
        response = parse_response(status, headers, body, now=NOW)
        page = parse_module_page(response)
    except PlatformError as error:
        _check_error(error, status)
        assert not 200 <= status < 300 or decode_documented_page(body) is None
        return type(error).__name__
    finally:
        assert _is_in_time(began)
    assert 200 <= status < 300
    _check_page(page)
    assert decode_documented_page(body) in {None, page}
    return "Page"


def _check_list_parsers(status: int, headers: CIMultiDict[str], body: bytes) -> None:
    """Parse the same response as one of each list operation."""
    began = time.thread_time()
    for response_type in (PRODUCT_LIST_RESPONSE, DEVICE_LIST_RESPONSE, PRODUCT_MODULES_RESPONSE):
        try:
            response = parse_response(status, headers, body, now=NOW, response_type=response_type)
        except PlatformError as error:
            _check_error(error, status)
            continue
        products, devices = parse_products(response), parse_devices(response, "p1")
        for page in (products, devices):
            assert all(number is None or 0 <= number < MAX_COUNT for number in (page.number, page.total))
        names = [*parse_modules(response, "p1"), *(product.product_key for product in products.items)]
        names += [name for device in devices.items for name in (device.device_name, device.iot_id) if name is not None]
        assert all(name.isprintable() and 0 < len(name) <= MAX_NAME_LENGTH for name in names)
        orjson.dumps([asdict(page) for page in (products, devices)])
    assert _is_in_time(began)


def _sample(folder: Path) -> bytes:
    head = json.loads((folder / "head.json").read_bytes())
    lines = [str(head["status"]), *(f"{name}: {value}" for name, value in head["headers"].items())]
    return "\n".join(lines).encode() + b"\n\n" + (folder / "body").read_bytes()


def _split_response(data: bytes) -> tuple[int, CIMultiDict[str], bytes]:
    """Return status, headers as aiohttp decodes them (invalid UTF-8 as surrogates), and body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("utf-8", "surrogateescape").split("\n")
    status = int(first) if re.fullmatch(r"[0-9]{1,3}", first) else 200
    named = (line.partition(":") for line in lines)
    return status, CIMultiDict([(name, value.strip(" \t")) for name, colon, value in named if colon]), body


def _check_error(error: PlatformError, status: int) -> None:
    assert error.code
    for text in (error.code, error.message, error.request_id or ""):
        assert text.isprintable()
        assert len(text) <= MAX_MESSAGE_LENGTH
    assert str(error).isprintable()
    assert error.http_status in {status, None}
    retry_after = getattr(error, "retry_after", None)
    assert retry_after is None or 0 <= retry_after < 1e12


def _check_page(page: Page) -> None:
    assert all(number is None or number >= 0 for number in (page.number, page.total))
    assert page.request_id is None or (page.request_id.isprintable() and len(page.request_id) <= MAX_MESSAGE_LENGTH)
    for reported in page.reported:
        names = (reported.product_key, reported.device_name, reported.iot_id)
        assert reported.module.module_name
        assert all(name is None or name for name in names)
        json.dumps([reported.module.module_version, *names], ensure_ascii=False).encode()
