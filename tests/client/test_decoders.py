"""Pages as they are documented: read fast, and to the very same page that the patient reader makes of them.

Bodies as proxies change them, and strings as firmware breaks them.
"""

import contextlib
import gzip
import json
import re
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.client.decoders import (
    DEVICE_LIST_RESPONSE,
    ENCODING,
    MAX_BODY_BYTES,
    MAX_GZIP_MEMBERS,
    MAX_MEMBERS_BYTES,
    MAX_REPAIRED_BYTES,
    decode_documented_page,
    decode_json,
    decode_members,
    decompress,
    repair_strings,
)
from auditor.client.responses import parse_module_page, parse_response
from auditor.errors import InconsistentResponseError, PlatformError, ThrottledError, TransientError
from auditor.models import Page
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import device_params, get, signed_query

SAMPLES = Path(__file__).with_name("samples")
TUYA, ALIBABA = ((SAMPLES / name / "body").read_bytes() for name in ("page_tuya", "page_alibaba"))


def patient(body: bytes) -> Page | None:
    try:
        return parse_module_page(parse_response(200, {}, body, now=0.0))
    except PlatformError:
        return None


@pytest.mark.parametrize("body", [TUYA, ALIBABA])
def test_the_documented_example_is_read_in_both_spellings(body: bytes) -> None:
    page = decode_documented_page(body)
    assert page is not None
    assert page == patient(body)
    assert [each.module.module_name for each in page.reported] == ["ble"]


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
@pytest.mark.anyio
async def test_what_the_simulated_platform_answers_is_as_documented(dialect: Any) -> None:
    world = World(seed=3, devices=50)
    read = 0
    async with Simulator(world, dialect=dialect) as platform:
        for index in range(20):
            body = (await get(platform, signed_query(device_params(world.device(index))))).body
            assert decode_documented_page(body) == patient(body)
            read += decode_documented_page(body) is not None
    assert read > 10


LEAVES: st.SearchStrategy[object] = st.sampled_from(
    [None, True, False, 0, 1, 2, -1, 1.0, 1.5, 2**53, 2**53 + 1, 2**70, "", "1", "x", "true", "a b", "\u6a21", [], {}]
)


def places(value: object, at: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.sampled_from([TUYA, ALIBABA]), st.data())
def test_of_any_answer_it_reads_what_the_patient_reader_reads_or_nothing(body: bytes, data: st.DataObject) -> None:
    document = orjson.loads(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from([each for each in places(document) if each]))
        parent = document
        for key in at[:-1]:
            parent = parent[key]
        change = data.draw(st.sampled_from(["put", "delete", "rename", "add"]))
        if change == "put":
            parent[at[-1]] = data.draw(LEAVES)
        elif isinstance(parent, dict):
            value = parent.pop(at[-1]) if change != "add" else data.draw(LEAVES)
            if change != "delete":
                name = str(at[-1])
                swapped = name.swapcase()[0] + name[1:]
                parent[data.draw(st.sampled_from([swapped, name.upper(), name.lower(), f"{name}2"]))] = value
    changed = orjson.dumps(document) if -(2**63) <= largest(document) < 2**64 else body
    page = decode_documented_page(changed)
    assert page is None or page == patient(changed)


def largest(document: object) -> int:
    if isinstance(document, dict | list):
        inner = document.values() if isinstance(document, dict) else document
        return max((largest(each) for each in inner), default=0)
    return document if isinstance(document, int) else 0


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([TUYA, ALIBABA]),
    st.integers(0, 600),
    st.integers(0, 20),
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"\\ud800", b"\xff", b"\x00", b"01", b"1e3", b"1.0", b"-0", b'"total":3,', b"[" * 99, b"\\u0020"]
        ),
    ),
)
@example(ALIBABA, 0, 0, b"\xef\xbb\xbf")
def test_of_any_bytes_it_reads_what_the_patient_reader_reads_or_nothing(
    body: bytes, at: int, cut: int, put: bytes
) -> None:
    changed = body[:at] + put + body[at + cut :]
    page = decode_documented_page(changed)
    assert page is None or page == patient(changed)


def test_deep_nesting_is_none_of_its_business() -> None:
    assert decode_documented_page(b'{"data":' * 100_000) is None
    assert decode_documented_page(re.sub(rb'"total": ?\d+', b'"total":' + b"9" * 5000, TUYA)) is None


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


READABLE: dict[str, tuple[list[str], bytes]] = {
    "plain": ([], TUYA),
    "identity": (["identity"], TUYA),
    "gzip": (["gzip"], gzip.compress(TUYA)),
    "x-gzip": (["x-gzip"], gzip.compress(TUYA)),
    "GZip, in capitals": (["GZip"], gzip.compress(TUYA)),
    "gzip without a header": ([], gzip.compress(TUYA)),
    "gzip, gzip": (["gzip, gzip"], gzip.compress(gzip.compress(TUYA))),
    "gzip twice, in two headers": (["gzip", "x-gzip"], gzip.compress(gzip.compress(TUYA))),
    "gzip twice, named once": (["gzip"], gzip.compress(gzip.compress(TUYA))),
    "deflate, then gzip": (["deflate, gzip"], gzip.compress(zlib.compress(TUYA))),
    "deflate": (["deflate"], zlib.compress(TUYA)),
    "deflate without zlib's header": (["deflate"], raw_deflate(TUYA)),
    "gzip in members": (["gzip"], gzip.compress(TUYA[:40]) + gzip.compress(TUYA[40:])),
    "a byte order mark": ([], b"\xef\xbb\xbf" + TUYA),
    "two byte order marks": ([], 2 * b"\xef\xbb\xbf" + TUYA),
    "a byte order mark in gzip": (["gzip"], gzip.compress(b"\xef\xbb\xbf" + TUYA)),
}


@pytest.mark.parametrize("name", READABLE)
def test_what_proxies_do_to_a_body_is_undone(name: str) -> None:
    encodings, body = READABLE[name]
    assert decompress(body, encodings, 200) == TUYA


UNREADABLE: dict[str, tuple[list[str], bytes, str]] = {
    "br": (["br"], b"\x0b\x02\x80{}\x03", "compressed with br"),
    "zstd": (["zstd"], b"\x28\xb5\x2f\xfd\x04", "compressed with zstd"),
    "zstd without a header": ([], b"\x28\xb5\x2f\xfd\x04", "compressed with zstd"),
    "gzip, then br": (["gzip, br"], b"\x0b\x02\x80{}\x03", "compressed with br"),
    "gzip that is none": (["gzip"], b"<html>", "compressed with gzip, but it is not"),
    "gzip that is damaged": (["gzip"], gzip.compress(TUYA)[:12] + b"\xff" * 40, "or is damaged"),
    "gzip that is cut": (["gzip"], gzip.compress(TUYA)[:-12], "ends within its gzip"),
    "gzip too often": ([], gzip.compress(gzip.compress(gzip.compress(gzip.compress(TUYA)))), "more than 3 times"),
    "UTF-16": ([], TUYA.decode().encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": ([], TUYA.decode().encode("utf-16-be"), "UTF-16"),
    "UTF-16 of the other order, without a mark": ([], b"\r\0\n\0" + TUYA.decode().encode("utf-16-le"), "UTF-16"),
    "UTF-16 behind the mark of UTF-8": ([], b"\xef\xbb\xbf\xff\xfe" + TUYA.decode().encode("utf-16-le"), "UTF-16"),
    "a list in UTF-32 without a mark": ([], "[1]".encode("utf-32-le"), "UTF-32"),
    "UTF-32": ([], TUYA.decode().encode("utf-32"), "UTF-32"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_body_that_cannot_be_read_is_named_and_an_error_status_needs_none(name: str) -> None:
    encodings, body, says = UNREADABLE[name]
    with pytest.raises(TransientError, match=says) as caught:
        decompress(body, encodings, 200)
    assert caught.value.code in {ENCODING, "auditor.IncompleteBody"}
    assert caught.value.http_status == 200
    assert decompress(body, encodings, 503) == b""


def test_a_body_that_inflates_without_end_is_refused_while_it_is_inflated() -> None:
    once = gzip.compress(b" " * 12 * MAX_BODY_BYTES)
    tracemalloc.start()
    try:
        for bomb in (once, gzip.compress(once), gzip.compress(b" " * MAX_BODY_BYTES) * 2):
            with pytest.raises(TransientError, match="larger than"):
                decompress(bomb, ["gzip"], 200)
        height = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert height < 4 * MAX_BODY_BYTES


def test_a_body_of_many_gzip_members_takes_little_time() -> None:
    before = time.process_time()
    decompress(gzip.compress(b"") * (10 * MAX_GZIP_MEMBERS) + b" " * MAX_BODY_BYTES, ["gzip"], 200)
    assert time.process_time() - before < 5


BROKEN_STRINGS = {
    "a byte that is no UTF-8": (b"1.2\xbf", "1.2\\xbf"),
    "half a character": ("\u6a21".encode()[:2], "\\xe6\\xa8"),
    "half a surrogate pair": (rb"1.2\ud83d", "1.2\\ud83d"),
    "the second half": (rb"\ude00x", "\\ude00x"),
    "two first halves": (rb"\ud83d\ud83d\ude00", "\\ud83d\U0001f600"),
    "a surrogate in UTF-8": (b"\xed\xa0\xbd", "\\xed\\xa0\\xbd"),
    "a raw NUL": (b"1.2\x00", "1.2\x00"),
    "a raw tab and a line break": (b"1\t2\n3", "1\t2\n3"),
    "an escaped backslash before u": (b"a\tb" + rb"\\ud83d", "a\tb\\ud83d"),
    "a quote beside it": (rb"\"\ud83d\"", '"\\ud83d"'),
    "an escape that JSON does not have": (rb"a\x41", "a\\x41"),
    "a path": (rb"C:\Windows\n", "C:\\Windows\n"),
    "a short escape": (rb"a\u12", "a\\u12"),
    "an escape with other letters": (rb"\u00zz\\\"", '\\u00zz\\"'),
}


@pytest.mark.parametrize("name", BROKEN_STRINGS)
def test_a_broken_string_costs_its_broken_part_and_no_page(name: str) -> None:
    raw, read = BROKEN_STRINGS[name]
    assert decode_json(b'{"a": [1, "' + raw + b'"],\n\t"b": "c"}') == {"a": [1, read], "b": "c"}
    template = json.dumps({"success": True, "requestId": "r", "total": 1, "data": {"deviceInfo": [
        {"deviceName": "d1", "productKey": "k1", "nickname": "NICK"}]}}).encode()  # fmt: skip
    device = {"devicename": "d1", "productkey": "k1", "nickname": read}
    members = decode_members(template.replace(b"NICK", raw), DEVICE_LIST_RESPONSE)
    assert members["data"] == {"deviceinfo": [device]}
    body = TUYA.replace(b'"moduleVersion":"', b'"moduleVersion":"' + raw, 1)
    if body == TUYA:
        body = re.sub(rb'("moduleVersion": *")', lambda match: match[1] + raw, TUYA, count=1)
    assert body != TUYA
    page = decode_documented_page(body)
    assert page is not None
    assert page == patient(body)
    assert page.reported[0].module.module_version.startswith(read)


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b"\x95\x5c", r"\x95\x5c"),
        (b"\xc4\xe3\x95\x5c", r"\xc4\xe3\x95\x5c"),
        (b"\xb3\x5c\xa5\x5c", r"\xb3\x5c\xa5\x5c"),
        ("\u8868".encode("shift_jis"), r"\x95\x5c"),
        (b'\xc4\xe3\x5c"A', '\\xc4\\xe3"A'),
    ],
)
def test_a_character_of_two_bytes_may_end_in_a_backslash(raw: bytes, read: str) -> None:
    assert decode_json(b'{"a": [1, "' + raw + b'"], "b": "c"}') == {"a": [1, read], "b": "c"}
    body = TUYA.replace(b'"moduleVersion"', b'"nickname":"%s","moduleVersion"' % raw, 1)
    assert patient(body) == patient(TUYA)


@pytest.mark.parametrize("number", ["NaN", "-NaN", "Infinity", "-Infinity", "nan", "inf"])
def test_what_is_no_number_is_null(number: str) -> None:
    assert decode_json(b'{"a": %s, "b": ["NaN", %s], "NaN": 1}' % ((number.encode(),) * 2)) == {
        "a": None, "b": ["NaN", None], "NaN": 1,
    }  # fmt: skip
    body = TUYA.replace(b'"moduleVersion"', b'"x":%s,"moduleVersion"' % number.encode(), 1)
    assert patient(body) == patient(TUYA)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@pytest.mark.slow
def test_what_is_valid_is_never_changed(value: object) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        try:
            body = text.encode()
            json.loads(body)
        except ValueError:
            continue
        for double_bytes in (True, False):
            try:
                repaired = repair_strings(body, double_bytes=double_bytes)
            except ValueError:
                continue
            assert json.loads(repaired) != value  # half a pair, which is not valid
            assert re.search(r"\\u[dD][89a-fA-F]", text)


@pytest.mark.parametrize("body", [b"\xbf{}", b'{"a": \x00}', b'{"a": "b', b"<html>\xe9</html>", b'{"\xff' * 20_000])
def test_what_is_no_json_is_not_made_json(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_json(body)


@pytest.mark.parametrize(
    "part", [b'"', rb"\"", b"\xff", b"\x00", rb"\ud83d", b'"\xff",', b"\\", b'"\\', rb'"\u"', b"[{"]
)
def test_the_repair_of_a_hostile_body_takes_linear_time(part: bytes) -> None:
    body = b'{"a": "' + part * (MAX_REPAIRED_BYTES // 2 // len(part))
    before = time.process_time()
    with pytest.raises((ValueError, RecursionError)):
        decode_json(body)
    assert time.process_time() - before < 3


EMPTY_OBJECTS = b",".join([b"{}"] * 300_000)


@pytest.mark.parametrize(
    "member", [b'"x": [%s]', b'"total": [%s]', b'"data": [%s]', b'"data": {"deviceInfo": [%s]}', b'"data": {"x": [%s]}']
)
@pytest.mark.parametrize("response_type", [None, DEVICE_LIST_RESPONSE])
def test_a_body_of_a_million_objects_never_becomes_so_many(member: bytes, response_type: Any) -> None:
    head = b'{"success": true, "code": "", "requestId": "r", '
    for objects in (EMPTY_OBJECTS, EMPTY_OBJECTS + b"," + EMPTY_OBJECTS):  # below and above MAX_MEMBERS_BYTES
        body = head + member % objects + b"}"
        tracemalloc.start()
        try:
            with contextlib.suppress(TransientError, InconsistentResponseError):
                response = parse_response(200, {}, body, now=0.0, response_type=response_type)
                if response_type is None:
                    parse_module_page(response)
            height = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert height < 64 * 1024 * 1024


def test_an_error_in_a_large_body_is_read_and_a_success_is_too_large() -> None:
    large = b', "more": "' + b"x" * MAX_MEMBERS_BYTES + b'"}'
    for response_type in (None, DEVICE_LIST_RESPONSE):
        with pytest.raises(ThrottledError):
            parse_response(
                200, {}, b'{"success": false, "code": "Throttling"' + large, now=0.0, response_type=response_type
            )
        with pytest.raises(TransientError, match="larger than 1,048,576 bytes"):
            parse_response(200, {}, b'{"success": true, "total": 0' + large, now=0.0, response_type=response_type)
