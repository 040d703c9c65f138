"""The decoder of answers: a status line, header lines, an empty line, then the body, whatever is in them."""

import json
import re
import time
from dataclasses import asdict
from pathlib import Path

import orjson
from multidict import CIMultiDict

from auditor.client.decoders import DEFINED_MODULES, DEVICES, MESSAGE_LENGTH, PRODUCTS, documented_page
from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE
from auditor.client.parsers import MOST, NAME_LENGTH, devices_of, modules_of, products_of
from auditor.client.responses import decipher, page_of
from auditor.errors import PlatformError
from auditor.models import Page

NOW = 1_732_009_663.0
SECONDS = 5.0
"""Processor time that one answer may take, whatever its size."""

SAMPLES = Path(__file__).parents[1] / "client" / "samples"

PIECES = [
    b"\n\n", b"\nDate: ", b"\nRetry-After: ", b"\nx-acs-retry-after: ", b"429", b"200", b"Tue, 19 Nov 2024 09:47:43 GMT",
    b"Fri, 31 Dec 9999 23:59:59 -2359", b"+9999", b"9" * 400, b"1e400", b"-0", b"1e308", b"18446744073709551616", b"NaN",
    b'"\\ud800"', b'"\\u0000"', b"\\u202e", b"\xed\xa0\x80", b"\x00", b"\xff", b"\x1b[31m", b"\xe2\x80\xa8", b"[" * 300, b'{"a":' * 200,
    b"null", b"true", b'"true"', b"[]", b"{}", b'"code":', b'"Code":', b'"success":true', b'"data":', b'"total":', b'"requestId":',
    b'"errorMessage":', b'"simpleOTAModuleInfo":', b'"moduleName":', b"Throttling.User", b"InvalidTimeStamp.Expired",
    b"server string to sign is", b'"deviceInfo":', b'"DeviceInfo":', b'"deviceName":', b'"deviceSecret":', b'"nextToken":', b'"list":',
    b'"productInfo":', b'"productKey":', b'"deviceCount":', b'"otaModuleDTO":', b'"deviceStatus":', b'"UNACTIVE"',
]  # fmt: skip


def seeds() -> list[bytes]:
    """The samples, as answers; the example of the vendor's page is one of them."""
    return [_sample(folder) for folder in sorted(SAMPLES.iterdir()) if folder.is_dir()]


def read(data: bytes) -> str:
    """What came of an answer: a page, or the documented error's name."""
    status, headers, body = _parts(data)
    _read_lists(status, headers, body)
    began = time.thread_time()
    try:
        answer = decipher(status, headers, body, now=NOW)
        page = page_of(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, answer)
    except PlatformError as error:
        _checked_error(error, status)
        assert not 200 <= status < 300 or documented_page(body) is None
        return type(error).__name__
    finally:
        assert time.thread_time() - began < SECONDS
    assert 200 <= status < 300
    _checked_page(page)
    assert documented_page(body) in {None, page}
    return "Page"


def _read_lists(status: int, headers: CIMultiDict[str], body: bytes) -> None:
    """The same answer as one to each operation that lists a fleet."""
    began = time.thread_time()
    for kept in (PRODUCTS, DEVICES, DEFINED_MODULES):
        try:
            answer = decipher(status, headers, body, now=NOW, kept=kept)
        except PlatformError as error:
            _checked_error(error, status)
            continue
        products, devices = products_of(answer), devices_of(answer, "p1")
        for page in (products, devices):
            assert all(number is None or 0 <= number < MOST for number in (page.number, page.total))
        names = [*modules_of(answer), *(product.product_key for product in products.items)]
        names += [name for device in devices.items for name in (device.device_name, device.iot_id) if name is not None]
        assert all(name.isprintable() and 0 < len(name) <= NAME_LENGTH for name in names)
        orjson.dumps([asdict(page) for page in (products, devices)])
    assert time.thread_time() - began < SECONDS


def _sample(folder: Path) -> bytes:
    head = json.loads((folder / "head.json").read_bytes())
    lines = [str(head["status"]), *(f"{name}: {value}" for name, value in head["headers"].items())]
    return "\n".join(lines).encode() + b"\n\n" + (folder / "body").read_bytes()


def _parts(data: bytes) -> tuple[int, CIMultiDict[str], bytes]:
    """Status, headers as aiohttp gives them (bytes that are no UTF-8 as surrogates), and body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("utf-8", "surrogateescape").split("\n")
    status = int(first) if re.fullmatch(r"[0-9]{1,3}", first) else 200
    named = (line.partition(":") for line in lines)
    return status, CIMultiDict([(name, value.strip(" \t")) for name, colon, value in named if colon]), body


def _checked_error(error: PlatformError, status: int) -> None:
    assert error.code
    for text in (error.code, error.message, error.request_id or ""):
        assert text.isprintable()
        assert len(text) <= MESSAGE_LENGTH
    assert str(error).isprintable()
    assert error.http_status in {status, None}
    wish = getattr(error, "retry_after", None)
    assert wish is None or 0 <= wish < 1e12


def _checked_page(page: Page) -> None:
    assert all(number is None or number >= 0 for number in (page.number, page.size, page.page_count, page.total))
    assert page.request_id is None or (page.request_id.isprintable() and len(page.request_id) <= MESSAGE_LENGTH)
    for reported in page.reported:
        names = (reported.product_key, reported.device_name, reported.iot_id)
        assert reported.module.module_name
        assert all(name is None or name for name in names)
        json.dumps([reported.module.module_version, *names], ensure_ascii=False).encode()
