"""Lists of products, devices and modules, in every spelling; and that a device's secret is never read out of them."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.client.decoders import (
    DEVICE_LIST_RESPONSE,
    FIRMWARE_LIST_RESPONSE,
    JOB_LIST_RESPONSE,
    PRODUCT_LIST_RESPONSE,
    PRODUCT_MODULES_RESPONSE,
    TASK_LIST_RESPONSE,
)
from auditor.client.operations import LIST_OTA_MODULE_BY_PRODUCT, MAX_NAME_LENGTH, QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.client.parsers import (
    parse_connection_states,
    parse_devices,
    parse_modules,
    parse_products,
    parse_reported_time,
)
from auditor.client.responses import INVALID_JSON, ApiResponse, parse_response
from auditor.errors import InconsistentResponseError, PlatformError, ThrottledError, TransientError
from auditor.models import ListedDevice, ListPage, Product, ReportedTime

NOW = 1_732_009_663.0
SHAPES = {
    "products": PRODUCT_LIST_RESPONSE, "devices": DEVICE_LIST_RESPONSE, "modules": PRODUCT_MODULES_RESPONSE,
    "firmware": FIRMWARE_LIST_RESPONSE, "jobs": JOB_LIST_RESPONSE, "tasks": TASK_LIST_RESPONSE,
}  # fmt: skip
shapes = pytest.mark.parametrize("kept", SHAPES.values(), ids=SHAPES)

LAMP: dict[str, object] = {
    "productKey": "p1",
    "deviceName": "lamp-1",
    "iotId": "iot1",
    "deviceStatus": "ONLINE",
    "utcCreate": "2026-01-02T03:04:05.000Z",
    "utcModified": "2026-02-03T04:05:06.000Z",
    "deviceSecret": "never",
    "ipAddress": "192.0.2.1",
}
LISTED_LAMP = ListedDevice("lamp-1", "iot1", "ONLINE", "2026-01-02T03:04:05.000Z", "2026-02-03T04:05:06.000Z")
PRODUCT = {"productKey": "p1", "productName": "Lamp", "deviceCount": 7, "authType": "secret"}
LISTED_PRODUCT = Product("p1", "Lamp", 7)


def read(document: object, kept: type[msgspec.Struct]) -> ApiResponse:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return parse_response(200, {}, body, now=NOW, response_type=kept)


def devices(document: Mapping[str, object]) -> ListPage[ListedDevice]:
    return parse_devices(read({"success": True, **document}, DEVICE_LIST_RESPONSE), "p1")


def refusal(document: object) -> PlatformError:
    with pytest.raises(PlatformError) as caught:
        read(document, DEVICE_LIST_RESPONSE)
    return caught.value


def products(document: Mapping[str, object]) -> ListPage[Product]:
    return parse_products(read({"success": True, **document}, PRODUCT_LIST_RESPONSE))


def modules(document: Mapping[str, object]) -> tuple[str, ...]:
    return parse_modules(read({"success": True, **document}, PRODUCT_MODULES_RESPONSE), "p1")


def pascal(value: Any) -> Any:
    """As Alibaba spells it."""
    if isinstance(value, list):
        return [pascal(each) for each in value]
    if isinstance(value, dict):
        return {name[0].upper() + name[1:]: pascal(each) for name, each in value.items()}
    return value


def same(value: Any) -> Any:
    return value


both_dialects = pytest.mark.parametrize("spelled", [same, pascal], ids=["tuya", "alibaba"])


@both_dialects
def test_devices_are_read_with_all_that_is_told_of_them(spelled: Callable[[Any], Any]) -> None:
    document = {"data": {"deviceInfo": [LAMP]}, "page": 1, "pageSize": 50, "total": 61, "nextToken": "t2"}
    assert devices(spelled({**document, "success": True})) == ListPage((LISTED_LAMP,), 1, 61, "t2")


@both_dialects
def test_products_are_read_with_their_numbers(spelled: Callable[[Any], Any]) -> None:
    data = {"currentPage": 2, "pageCount": 3, "pageSize": 200, "total": 450, "list": {"productInfo": [PRODUCT]}}
    assert products(spelled({"data": data, "success": True})) == ListPage((LISTED_PRODUCT,), 2, 450, None)


@both_dialects
@pytest.mark.parametrize("array", ["otaModuleDTO", "otaModuleDto"])
def test_defined_modules_are_read_once_each_in_their_order(spelled: Callable[[Any], Any], array: str) -> None:
    told = [{"moduleName": name, "productKey": "p1", "aliasName": "x"} for name in ("mcu", "ble", "mcu")]
    assert modules(spelled({"data": {array: told}})) == ("mcu", "ble")


@pytest.mark.parametrize("name", ["iotId", "IotId", "iotID", "IotID", "ioTID", "IoTID"])
def test_an_iot_id_is_found_in_each_of_its_spellings(name: str) -> None:
    entry = {key: value for key, value in LAMP.items() if key != "iotId"} | {name: "iot1"}
    assert devices({"data": {"deviceInfo": [entry]}}).items == (LISTED_LAMP,)


@pytest.mark.parametrize("name", ["requestId", "RequestId", "requestID", "RequestID"])
@shapes
def test_a_request_id_is_found_in_each_of_its_spellings(name: str, kept: type[msgspec.Struct]) -> None:
    assert read({"success": True, name: "r-1"}, kept).request_id == "r-1"


@given(st.lists(st.booleans(), min_size=14, max_size=14))
def test_dialects_may_be_mixed_within_one_answer(capitals: list[bool]) -> None:
    turn = iter(capitals)

    def mixed(value: Any) -> Any:
        if isinstance(value, list):
            return [mixed(each) for each in value]
        if isinstance(value, dict):
            return {
                (name[0].upper() + name[1:] if next(turn, False) else name): mixed(each) for name, each in value.items()
            }
        return value

    document = {"success": True, "data": {"deviceInfo": [LAMP]}, "page": 1, "total": 1, "nextToken": "t"}
    assert parse_devices(read(mixed(document), DEVICE_LIST_RESPONSE), "p1") == ListPage((LISTED_LAMP,), 1, 1, "t")


@pytest.mark.parametrize("data", [None, {}, [], "", {"deviceInfo": []}, {"deviceInfo": None}, {"other": [LAMP]}, ...])
def test_data_without_devices_is_a_page_without_any_and_keeps_its_numbers(data: object) -> None:
    document = {name: value for name, value in {"data": data, "total": 3}.items() if value is not ...}
    assert devices(document) == ListPage((), None, 3, None)


@pytest.mark.parametrize("data", [None, {}, [], "", {"list": None}, {"list": {}}, {"list": {"productInfo": []}}, ...])
def test_data_without_products_is_a_page_without_any(data: object) -> None:
    document = {name: value for name, value in {"data": data}.items() if value is not ...}
    assert products(document) == ListPage((), None, None, None)


@pytest.mark.parametrize("data", [None, {}, [], "", {"otaModuleDTO": []}, {"otaModuleDTO": None}, ...])
def test_data_without_modules_is_a_product_without_any(data: object) -> None:
    assert modules({name: value for name, value in {"data": data}.items() if value is not ...}) == ()


@pytest.mark.parametrize(
    "data", [{"list": [PRODUCT]}, {"productInfo": [PRODUCT]}, {"list": {"productInfo": [PRODUCT]}}]
)
def test_products_are_found_where_documents_and_answers_have_them(data: object) -> None:
    assert products({"data": data}).items == (LISTED_PRODUCT,)


def test_the_array_may_stand_bare_in_place_of_the_object_that_holds_it() -> None:
    assert devices({"data": [LAMP], "total": 1}) == ListPage((LISTED_LAMP,), None, 1, None)
    assert products({"data": [PRODUCT], "total": 1}) == ListPage((LISTED_PRODUCT,), None, 1, None)
    assert modules({"data": [{"moduleName": "ble"}]}) == ("ble",)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("number", [4, "4", 4.0])
def test_numbers_and_token_are_read_in_data_or_beside_it(number: object, *, inside: bool) -> None:
    told: dict[str, object] = {"page": number, "total": number, "nextToken": "t"}
    data: dict[str, object] = {"deviceInfo": [LAMP]}
    page = devices({"data": {**data, **told}} if inside else {"data": data, **told})
    assert (page.number, page.total, page.next_token) == (4, 4, "t")


@pytest.mark.parametrize("number", [None, "many", -1, 1.5, True, ""])
def test_a_number_that_is_none_is_not_guessed(number: object) -> None:
    page = devices({"total": number, "page": number, "nextToken": ""})
    assert (page.number, page.total, page.next_token) == (None, None, None)


def test_a_page_goes_by_either_name() -> None:
    assert devices({"page": 3}).number == 3
    assert devices({"currentPage": 3}).number == 3


UNUSABLE = ["", " ", None, "a\x00b", "a\nb", "x" * (MAX_NAME_LENGTH + 1), "\u202e", True, 1.5]


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_device_without_a_name_that_can_be_asked_for_is_left_out_alone(name: object) -> None:
    assert devices({"data": {"deviceInfo": [{**LAMP, "deviceName": name}, LAMP]}}).items == (LISTED_LAMP,)


@pytest.mark.parametrize("name", UNUSABLE)
def test_products_and_modules_without_a_name_are_left_out_alone(name: object) -> None:
    assert products({"data": [{**PRODUCT, "productKey": name}, PRODUCT]}).items == (LISTED_PRODUCT,)
    assert modules({"data": [{"moduleName": name}, {"moduleName": "ble"}]}) == ("ble",)


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_iot_id_that_cannot_be_asked_for_is_none(name: object) -> None:
    (device,) = devices({"data": {"deviceInfo": [{**LAMP, "iotId": name}]}}).items
    assert (device.device_name, device.iot_id) == ("lamp-1", None)


def test_an_entry_without_its_name_at_all_is_left_out() -> None:
    assert devices({"data": {"deviceInfo": [{"iotId": "iot1"}, {}, LAMP]}}).items == (LISTED_LAMP,)


def test_a_device_of_another_product_is_left_out_and_one_that_tells_none_is_not() -> None:
    entries = [
        {**LAMP, "productKey": "p2"},
        {"deviceName": "bare"},
        {**LAMP, "productKey": None},
        {**LAMP, "productKey": "P1"},
    ]
    page = devices({"data": {"deviceInfo": entries}})
    assert page.items == (ListedDevice("bare", None, None, None, None), LISTED_LAMP)


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("ONLINE", "ONLINE"),
        ("offline", "OFFLINE"),
        ("UnActive", "UNACTIVE"),
        ("DISABLE", "DISABLE"),
        (None, None),
        (..., None),
    ],
)
def test_a_status_is_read_in_any_case(told: object, status: str | None) -> None:
    entry = {name: value for name, value in {**LAMP, "deviceStatus": told}.items() if value is not ...}
    (device,) = devices({"data": {"deviceInfo": [entry]}}).items
    assert device.device_status == status


def test_names_are_trimmed_and_otherwise_as_they_are() -> None:
    entries = [{"deviceName": name} for name in (" a ", "-dev", "@x", "=1", 'q"', "灯")]
    names = [each.device_name for each in devices({"data": {"deviceInfo": entries}}).items]
    assert names == ["a", "-dev", "@x", "=1", 'q"', "灯"]


def test_each_operation_that_lists_has_the_shape_of_its_answer() -> None:
    operations = (QUERY_PRODUCT_LIST, QUERY_DEVICE, LIST_OTA_MODULE_BY_PRODUCT)
    assert [each.response_type for each in operations] == [
        PRODUCT_LIST_RESPONSE,
        DEVICE_LIST_RESPONSE,
        PRODUCT_MODULES_RESPONSE,
    ]


# Refusals: what is read of them does not change what they mean.


def fate(status: int, headers: Mapping[str, str], body: bytes, kept: type[msgspec.Struct] | None) -> object:
    """What an answer comes to: its kind, and all that is told of it."""
    try:
        answer = parse_response(status, headers, body, now=NOW, response_type=kept)
    except PlatformError as error:
        wish = error.retry_after if isinstance(error, ThrottledError) else None
        return type(error), error.code, error.message, error.http_status, error.request_id, wish
    return answer.request_id


codes = st.sampled_from(
    ["Throttling.User", "iot.prod.NotExistedProduct", "InvalidTimeStamp.Expired", "SignatureDoesNotMatch", "Forbidden.RAM",
     "iot.common.InvalidPageParams", "iot.system.SystemException", "Something.Unheard", "SignatureNonceUsed", ""]
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
hollow: st.SearchStrategy[Any] = st.sampled_from(
    [None, {}, [], "", {"deviceInfo": []}, {"list": {}}, {"total": 0}, {"otaModuleDTO": None}]
)
others = st.dictionaries(
    st.sampled_from(["HostId", "Recommend", "accessDeniedDetail", "x"]), hollow | texts, max_size=3
)


@st.composite
def refusals(draw: st.DrawFn) -> dict[str, Any]:
    """A body of either shape: the gateway's, or the business's, with hollow data."""
    code, message, request_id = draw(codes | texts | st.none()), draw(texts | st.none()), draw(texts | st.none())
    if draw(st.booleans()):
        return {"RequestId": request_id, "Code": code, "Message": message, **draw(others)}
    success = draw(st.sampled_from([False, "false", None, 0]))
    document = {
        "success": success,
        "code": code,
        "errorMessage": message,
        "requestId": request_id,
        "data": draw(hollow),
    }
    return {**draw(st.sampled_from([same, pascal]))(document), **draw(others)}


@settings(max_examples=200, deadline=None)
@given(
    body=refusals(),
    status=st.sampled_from([200, 400, 403, 404, 429, 500, 503]),
    headers=st.sampled_from([{}, {"Retry-After": "3"}, {"Date": "Tue, 19 Nov 2024 09:47:43 GMT"}]),
)
@example({"success": False, "code": "Throttling.User", "errorMessage": "m", "data": {}}, 200, {"Retry-After": "3"})
@example({"RequestId": "r", "HostId": "h", "Code": "Forbidden.RAM", "Message": "No."}, 403, {})
def test_a_refusal_is_the_same_whatever_is_kept_of_answers(
    body: dict[str, Any], status: int, headers: dict[str, str]
) -> None:
    raw = orjson.dumps(body)
    for kept in SHAPES.values():
        assert fate(status, headers, raw, kept) == fate(status, headers, raw, None)


def test_refusals_of_these_tests_are_of_more_kinds_than_one() -> None:
    """Without this, the test above might compare one unreadable answer with another."""
    kinds = {
        type(caught)
        for code in ("Throttling.User", "iot.prod.NotExistedProduct", "Forbidden.RAM", "Something.Unheard")
        for caught in [refusal({"success": False, "code": code})]
    }
    assert len(kinds) == 4


@shapes
@pytest.mark.parametrize(
    "body", [b"", b" ", b"<html>", b'{"success": tr', b"\xff\xfe", b"null", b"[]", b"1", b'"x"', b"{}", b"[" * 100_000,
             b'{"success":true,"data":' + b"[" * 100_000, b'{"success":true,"x":' + b'{"a":' * 100_000, b"\x00",
             b'{"success":true} {}'],
)  # fmt: skip
def test_what_is_no_answer_is_transient_and_says_so(body: bytes, kept: type[msgspec.Struct]) -> None:
    with pytest.raises(TransientError) as caught:
        read(body, kept)
    assert (type(caught.value), caught.value.code) == (TransientError, INVALID_JSON)


@pytest.mark.parametrize("broken", [b"\xff", b"a\xc3", b"\\ud83d", b"\xed\xa0\x80"])
def test_a_name_with_a_broken_character_costs_one_device_and_not_the_page(broken: bytes) -> None:
    body = b'{"success":true,"data":{"deviceInfo":[{"deviceName":"%b"},{"deviceName":"whole"}]}}' % broken
    assert [device.device_name for device in parse_devices(read(body, DEVICE_LIST_RESPONSE), "p1").items] == ["whole"]


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5_000, b"0x1", b"01", b"-"])
def test_a_number_that_no_reader_can_hold_is_no_answer(number: bytes) -> None:
    assert refusal(b'{"success":true,"total":%b}' % number).code == INVALID_JSON


NAMES = st.sampled_from(
    ["code", "Code", "message", "errorMessage", "success", "Success", "requestId", "data", "Data", "total", "Total", "page",
     "nextToken", "list", "List", "productInfo", "ProductInfo", "deviceInfo", "DeviceInfo", "otaModuleDTO", "moduleName",
     "productKey", "productName", "deviceCount", "deviceName", "DeviceName", "iotId", "IoTID", "deviceStatus", "deviceSecret"]
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), texts
)
documents: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=15
)


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary(max_size=60)
    | documents.map(orjson.dumps)
    | st.fixed_dictionaries({"success": st.just(True), "data": documents}, optional={"total": scalars}).map(
        orjson.dumps
    ),
    status=st.sampled_from([200, 400, 503]),
)
def test_whatever_comes_is_a_page_or_a_platform_error(body: bytes, status: int) -> None:
    for kept in SHAPES.values():
        try:
            answer = parse_response(status, {}, body, now=NOW, response_type=kept)
        except PlatformError as error:
            assert error.code  # noqa: PT017  either outcome is right
            continue
        assert status == 200
        try:
            parse_devices(answer, "p1")
        except InconsistentResponseError as error:
            assert "about another one" in str(error)  # noqa: PT017  either outcome is right
            continue
        for page in (parse_products(answer), parse_devices(answer, "p1")):
            assert all(number is None or number >= 0 for number in (page.number, page.total))
        names = [
            *parse_modules(answer, "p1"),
            *(each.product_key for each in parse_products(answer).items),
            *(each.device_name for each in parse_devices(answer, "p1").items),
        ]
        assert all(0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and name == name.strip() for name in names)


# A device's secret: it comes with every list of devices, and is never read.

CANARY = "".join(("kk7QpZ0", "canary0Xw3"))  # noqa: FLY002  in no line of source that somebody may keep


def entry_with(key: str, secret: str) -> bytes:
    """A page of one device whose secret stands under a key, both as raw JSON."""
    told = orjson.dumps(LAMP | {"deviceSecret": None})[1:-1]
    return b'{"success":true,"data":{"deviceInfo":[{%b,%b:%b}]},"total":1}' % (told, key.encode(), secret.encode())


ESCAPED = "".join(f"\\u{ord(character):04x}" for character in CANARY)
SECRETS = {
    "plain": ('"deviceSecret"', f'"{CANARY}"'),
    "PascalCase": ('"DeviceSecret"', f'"{CANARY}"'),
    "key with an escape": ('"device\\u0053ecret"', f'"{CANARY}"'),
    "value in escapes": ('"deviceSecret"', f'"{ESCAPED}"'),
    "in an object": ('"deviceSecret"', f'{{"deviceName":"{CANARY}","{CANARY}":"{CANARY}"}}'),
    "in an array": ('"deviceSecret"', f'["{CANARY}",["{CANARY}"]]'),
    "twice": ('"deviceSecret":"x","deviceSecret"', f'"{CANARY}"'),
    "under another name": ('"devicesecret"', f'"{CANARY}"'),
    "as a key": (f'"{CANARY}"', "1"),
}
secrets = pytest.mark.parametrize("spelled", SECRETS)


def texts_in(value: object) -> Iterator[str]:
    """Every text that can be reached from an object, an exception's chain and notes among it."""
    seen: set[int] = set()
    left = [value]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type | bytes | int | float):
            continue
        seen.add(id(each))
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, tuple | list | set | frozenset):
            left += each
        elif isinstance(each, BaseException):
            left += [each.args, vars(each), each.__context__, each.__cause__, str(each), repr(each)]
        elif isinstance(each, ListPage | ListedDevice):
            left.append(asdict(each))


ATOMS = {str, bytes, int, float, bool, complex, type(None), type(...)}


def known_to_the_process() -> list[str]:
    """Texts with the canary that objects of this process hold, this module's own among them."""
    gc.unfreeze()  # what was imported before the tests, too
    gc.collect()
    left, held = gc.get_objects(), list[str]()
    seen: set[int] = set()
    while left:  # objects that hold nothing but texts are not tracked: they are found in those that hold them
        found = gc.get_referents(*left)
        held += [each for each in found if type(each) is str and CANARY in each]
        found = [each for each in found if type(each) not in ATOMS and not gc.is_tracked(each)]
        left = list({id(each): each for each in found if id(each) not in seen}.values())
        seen |= {id(each) for each in left}
    return held


def came_since(before: list[str]) -> list[str]:
    return [text for text in known_to_the_process() if all(text is not each for each in before)]


@secrets
def test_no_answer_and_no_page_holds_a_devices_secret(spelled: str) -> None:
    answer = read(entry_with(*SECRETS[spelled]), DEVICE_LIST_RESPONSE)
    page = parse_devices(answer, "p1")
    assert [each.device_name for each in page.items] == ["lamp-1"]
    reached = [*texts_in(answer), *texts_in(page)]
    assert "lamp-1" in reached
    assert not [text for text in reached if CANARY in text]


@pytest.mark.slow
def test_no_object_of_the_process_holds_a_devices_secret() -> None:
    before = known_to_the_process()
    kept = [read(entry_with(*pair), DEVICE_LIST_RESPONSE) for pair in SECRETS.values()]
    pages = [parse_devices(answer, "p1") for answer in kept]
    assert not came_since(before)
    assert all(page.items for page in pages)
    everything = parse_response(200, {}, entry_with(*SECRETS["plain"]), now=NOW)
    assert came_since(before), "the search does not find what is there"
    assert parse_devices(everything, "p1").items == pages[0].items


@pytest.mark.parametrize("value", ['"%b"', '["%b"]', '{"deviceName":"%b"}'])
def test_a_secret_is_not_decoded_even_for_a_moment(value: str) -> None:
    """One of 240 kB: whoever makes a text of it takes as much memory."""
    body = entry_with('"deviceSecret"', value).replace(b"%b", b"s" * 240_000)

    def peak(kept: type[msgspec.Struct] | None) -> int:
        tracemalloc.start()
        try:
            parse_response(200, {}, body, now=NOW, response_type=kept)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(DEVICE_LIST_RESPONSE)
    assert peak(DEVICE_LIST_RESPONSE) < 100_000
    assert peak(None) > 240_000


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """An answer with a secret in it, cut, with a byte changed, or of another shape."""
    body = entry_with(*SECRETS[draw(st.sampled_from(sorted(SECRETS)))])
    match draw(st.sampled_from(["cut", "change", "shape"])):
        case "cut":
            return body[: draw(st.integers(0, len(body) - 1))]
        case "change":
            at = draw(st.integers(0, len(body) - 1))
            return body[:at] + draw(st.binary(max_size=2)) + body[at + 1 :]
    return body.replace(b'"lamp-1"', draw(st.sampled_from([b"{}", b"[1]", b'{"deviceSecret":"x"}', b"nul", b'"\\x"'])))


@settings(max_examples=300, deadline=None)
@given(body=broken(), status=st.sampled_from([200, 400, 500]))
def test_no_error_about_a_broken_answer_holds_a_devices_secret(body: bytes, status: int) -> None:
    try:
        answer = parse_response(status, {}, body, now=NOW, response_type=DEVICE_LIST_RESPONSE)
    except PlatformError as error:
        told = list(texts_in(error))
        assert error.code in told  # noqa: PT017  either outcome is right
        assert not [text for text in told if CANARY[3:] in text or CANARY[:-3] in text]
        return
    assert status == 200
    if CANARY.encode() in body and b"deviceSecret" in body:  # it may have become the value of another member
        assert not [text for text in texts_in(answer) if CANARY in text]


MOMENT = 1_579_249_151_000
"""2020-01-17 08:19:11 UTC, in milliseconds since 1970."""


@pytest.mark.parametrize(
    ("reported", "later"),
    [
        (MOMENT, 0),
        (str(MOMENT), 0),
        (f" {MOMENT} ", 0),
        (float(MOMENT), 0),
        (f"{MOMENT}.0", 0),
        (MOMENT // 1000, 999),
        (str(MOMENT // 1000), 999),
        (MOMENT / 1000 + 0.25, 250),
        (f"{MOMENT // 1000}.25", 250),
        ("2020-01-17T08:19:11Z", 999),
        ("2020-01-17T08:19:11.25Z", 250),
        ("2020-01-17T08:19:11.2500001Z", 251),
        ("2020-01-17 08:19:11 UTC", 999),
        ("2020/1/17 8:19:11 gmt", 999),
        ("2020-01-17T16:19:11+08:00", 999),
        ("2020-01-17 16:19:11,5 +0800", 500),
        ("2020-01-17T04:49:11.000-0330", 0),
        ("2020-01-17T22:19+14", 48_999),
        ("2020-01-16 20:19:11-12:00", 999),
    ],
)
def test_a_time_with_a_zone_is_read_in_every_form_as_the_latest_moment_it_can_mean(
    reported: object, later: int
) -> None:
    assert parse_reported_time(reported) == ReportedTime(MOMENT + later)


@pytest.mark.parametrize(
    ("reported", "later"),
    [
        ("2020-01-17 08:19:11", 999),
        ("2020-01-17T08:19:11.125", 125),
        ("2020/01/17  08:19:11", 999),
        ("2020-01-17 08:19", 48_999),
        ("20200117081911", 999),
        (" 20200117081911 ", 999),
        (20_200_117_081_911, 999),
    ],
)
def test_a_time_without_a_zone_is_counted_as_utc_and_says_so(reported: object, later: int) -> None:
    assert parse_reported_time(reported) == ReportedTime(MOMENT + later, has_zone=False)


@pytest.mark.parametrize(
    "reported",
    [
        *(True, False, 0, -1, "0", 1, 12.5, 20_200_117, "20200117", "1970-01-01 00:00:00", 1e300, float("nan")),
        *(MOMENT * 1000, str(MOMENT * 1000), 10**40, "9" * 60, "1.579e12", "0x16fb2c", "\u0661\u0665\u0667" * 4),
        *("2020-01-17", "17.01.2020 08:19:11", "01/17/2020 08:19:11", "2020-01/17 08:19:11", "2020-13-17 08:19:11"),
        *("2020-02-30 08:19:11", "2020-01-17 24:19:11", "2020-01-17 08:60:11", "2020-01-17 08:19:60", "08:19:11"),
        *("2020-01-17 08:19:11 CST", "2020-01-17T08:19:11+15:00", "2020-01-17T08:19:11+08:10", "2020-W03-5T08:19:11Z"),
        *("2020-01-17T08:19:11+07:75", "2020-01-17T08:19:11-13", "Jan 17, 2020 8:19:11 AM", "NULL", "-", "yesterday"),
        *("Fri Jan 17 08:19:11 UTC 2020", "2020-01-17 08:19:11 PM", "2020-01-17 08:19:11" + " " * 60 + "x"),
        *({"time": MOMENT}, [MOMENT], [], {}, None),
        *("20201317081911", "20200117251911", 20_200_230_081_911, "99999999999999", "20200117081911.5"),
    ],
    ids=repr,
)
def test_what_has_no_single_meaning_as_a_time_is_unreadable(reported: object) -> None:
    assert parse_reported_time(reported).milliseconds is None


@given(
    st.datetimes(datetime(2010, 1, 2), datetime(9999, 12, 30)),  # noqa: DTZ001  the zone is another argument
    st.sampled_from([None, *range(-12 * 60, 14 * 60 + 1, 15)]),
    st.sampled_from([" ", "T"]),
    st.sampled_from(["seconds", "milliseconds", "microseconds", "minutes"]),
)
def test_every_time_of_the_standard_library_is_read_as_the_library_reads_it(
    moment: datetime, minutes: int | None, separator: str, precision: str
) -> None:
    zone = None if minutes is None else timezone(timedelta(minutes=minutes))
    text = moment.replace(tzinfo=zone).isoformat(separator, precision)
    reference = datetime.fromisoformat(text)
    start = (reference if zone else reference.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    found = parse_reported_time(text)
    assert found.has_zone == (zone is not None)
    assert found.milliseconds is not None
    later = found.milliseconds - start / timedelta(milliseconds=1)
    assert 0 <= later <= {"minutes": 59_999, "seconds": 999}.get(precision, 1)


@given(st.text(max_size=80) | st.integers() | st.floats() | st.booleans() | st.none())
def test_any_value_is_a_time_within_bounds_or_unreadable(value: object) -> None:
    found = parse_reported_time(value)
    assert found.milliseconds is None or 1_262_304_000_000 <= found.milliseconds < 253_402_300_800_000


NOW_MS = 1_600_000_000_000
DAY_MS = 24 * 3600 * 1000


@pytest.mark.parametrize(
    ("reported", "is_readable"),
    [
        (NOW_MS, True),
        (NOW_MS + DAY_MS, True),
        (NOW_MS + DAY_MS + 1, False),
        ("2020-09-14 12:26:39", True),
        ("2020-09-14 12:26:41", False),
        ("20260914122641", False),
        ("9999999999", False),
        (9_999_999_999_999, False),
        ("2099-01-01 00:00:00", False),
        ("9999-12-31 23:59:59", False),
    ],
)
def test_a_connection_time_of_more_than_a_day_in_the_future_is_unreadable(
    reported: object,
    is_readable: bool,  # noqa: FBT001  a parameter
) -> None:
    entry = {"deviceName": "d1", "status": "OFFLINE", "timestamp": reported, "lastOnlineTime": reported}
    response = ApiResponse({"devicestatuslist": {"deviceStatus": [entry]}}, None)
    (state,) = parse_connection_states(response, now=NOW_MS / 1000) or ()
    for time in (state.changed, state.last_online):
        assert time is not None
        assert (time.milliseconds is not None) == is_readable
