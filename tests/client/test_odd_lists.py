"""Lists whose members have types, lengths and numbers that no document has: read as far as they can be, and no further."""

from typing import Any

import orjson
import pytest

from auditor.client.decoders import DEVICE_LIST_RESPONSE, PRODUCT_LIST_RESPONSE, PRODUCT_MODULES_RESPONSE
from auditor.client.parsers import OTHER_STATUS, parse_devices, parse_modules, parse_products
from auditor.client.responses import INVALID_JSON, parse_response
from auditor.errors import AccountDeniedError, InconsistentResponseError, PlatformError, ThrottledError, TransientError
from auditor.models import ListedDevice

ODD: list[object] = [False, 7, 1.5, [1], [None], {"deviceInfo": 3}, {"deviceInfo": {}}, {"total": {}}, {"total": [[1]]}]


def answer(document: object, kept: Any = DEVICE_LIST_RESPONSE) -> Any:
    return parse_response(200, {}, orjson.dumps(document), now=0.0, response_type=kept)


def refusal(document: object, status: int = 200) -> PlatformError:
    with pytest.raises(PlatformError) as caught:
        parse_response(status, {}, orjson.dumps(document), now=0.0, response_type=DEVICE_LIST_RESPONSE)
    return caught.value


@pytest.mark.parametrize("data", [*ODD, "text", '{"deviceInfo": []}'])
def test_a_refusal_keeps_its_meaning_whatever_is_beside_it(data: object) -> None:
    error = refusal({"success": False, "code": "Throttling.User", "errorMessage": "m", "data": data})
    assert (type(error), error.code, error.message) == (ThrottledError, "Throttling.User", "m")
    error = refusal({"Code": "InvalidAccessKeyId.NotFound", "Message": "m", "Data": data, "Success": False}, 404)
    assert isinstance(error, AccountDeniedError)


@pytest.mark.parametrize("data", ODD[:-1])
def test_a_success_of_another_shape_is_a_page_without_devices(data: object) -> None:
    page = parse_devices(answer({"success": True, "data": data, "total": 3}), "p1")
    assert (page.items, page.total) == ((), 3)


@pytest.mark.parametrize("data", ["text", '{"deviceInfo":[{"deviceName":"a","deviceSecret":"S3CRET"}]}'])
def test_text_in_the_place_of_data_is_not_read_for_it_may_hold_anything(data: str) -> None:
    for document in ({"data": data}, {"data": {"deviceInfo": data}}):
        error = refusal({"success": True, **document})
        assert (type(error), error.code) == (TransientError, INVALID_JSON)
        assert "S3CRET" not in repr(error.__dict__) + repr(error.__context__)


@pytest.mark.parametrize("entry", [None, 7, "x", {"deviceName": {"a": 1}}, {"deviceName": ["b"]}, {"iotId": "i"}])
def test_an_entry_that_is_none_is_left_out_alone(entry: object) -> None:
    page = parse_devices(answer({"success": True, "data": {"deviceInfo": [{"deviceName": "good"}, entry]}}), "p1")
    assert [device.device_name for device in page.items] == ["good"]


def test_a_member_of_another_type_is_nothing_and_the_device_stays() -> None:
    odd = {"deviceName": "a", "iotId": {"x": 1}, "utcCreate": [1], "utcModified": 5, "deviceStatus": {"x": [1]}}
    page = parse_devices(answer({"success": True, "data": {"deviceInfo": [odd]}}), "p1")
    assert page.items == (ListedDevice("a", None, None, None, "5"),)


@pytest.mark.parametrize("number", [1e20, 10**18, 10**12, -1, 1.5, "many", True])
def test_a_number_that_cannot_be_is_none(number: object) -> None:
    page = parse_devices(answer({"success": True, "total": number, "page": number, "data": None}), "p1")
    assert (page.total, page.number) == (None, None)
    product = {"productKey": "p1", "deviceCount": number}
    (found,) = parse_products(
        answer({"success": True, "data": {"list": {"productInfo": [product]}}}, PRODUCT_LIST_RESPONSE)
    ).items
    assert found.device_count is None


def test_texts_without_end_are_none() -> None:
    long = "x" * 200_000
    device = {"deviceName": "a", "deviceStatus": long, "utcCreate": long, "utcModified": long}
    page = parse_devices(answer({"success": True, "nextToken": long, "data": {"deviceInfo": [device]}}), "p1")
    assert page.next_token is None
    assert page.items == (ListedDevice("a", None, OTHER_STATUS, None, None),)
    product = {"productKey": "p1", "productName": long}
    (found,) = parse_products(
        answer({"success": True, "data": {"list": {"productInfo": [product]}}}, PRODUCT_LIST_RESPONSE)
    ).items
    assert found.product_name is None


def test_modules_that_differ_in_case_alone_are_one() -> None:
    told = [{"moduleName": name} for name in ("ble", "BLE", "mcu")]
    document = {"success": True, "data": {"otaModuleDTO": told}}
    assert {name.lower() for name in parse_modules(answer(document, PRODUCT_MODULES_RESPONSE), "p1")} == {"ble", "mcu"}
    assert len(parse_modules(answer(document, PRODUCT_MODULES_RESPONSE), "p1")) == 2
    bare = {"success": True, "data": told}
    assert len(parse_modules(answer(bare, PRODUCT_MODULES_RESPONSE), "p1")) == 2


@pytest.mark.parametrize("entries", [[{"moduleName": "ble", "productKey": "p2"}], [{"productKey": "p2"}] * 2])
def test_modules_of_another_product_are_an_inconsistent_answer(entries: list[object]) -> None:
    for data in (entries, {"otaModuleDTO": entries}):
        response = answer({"success": True, "data": data}, PRODUCT_MODULES_RESPONSE)
        with pytest.raises(InconsistentResponseError, match="another one"):
            parse_modules(response, "p1")
        assert len(parse_modules(response, "p2")) == ("moduleName" in str(entries))


def test_devices_of_another_product_are_an_inconsistent_answer_if_there_are_no_others() -> None:
    other = {"deviceName": "lamp-2", "productKey": "p2"}
    with pytest.raises(InconsistentResponseError, match="requested product p1"):
        parse_devices(answer({"success": True, "data": {"deviceInfo": [other]}, "total": 1}), "p1")
    page = parse_devices(answer({"success": True, "data": {"deviceInfo": [other, {"deviceName": "lamp-1"}]}}), "p1")
    assert [each.device_name for each in page.items] == ["lamp-1"]
