"""Answers and refusals of both dialects, good, bad and broken, read without a socket."""

import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from auditor.client.decoders import (
    DEVICE_LIST_RESPONSE,
    ERROR_RESPONSE,
    MAX_MESSAGE_LENGTH,
    clean_message,
    decode_documented_page,
    decompress,
)
from auditor.client.error_codes import classify_error
from auditor.client.responses import (
    INVALID_JSON,
    MAX_DELAY,
    MAX_XML_BYTES,
    ApiResponse,
    parse_http_date,
    parse_module_page,
    parse_response,
    parse_xml_error,
)
from auditor.errors import (
    AccountDeniedError,
    ClockSkewError,
    DenialCause,
    DeviceDeniedError,
    InconsistentResponseError,
    InvalidRequestError,
    NeverActivatedError,
    NonceUsedError,
    NotFoundError,
    PlatformError,
    ThrottledError,
    TransientError,
)
from auditor.models import ModuleVersion, Page

NOW = 1_732_009_663.0
ENTRY = {
    "deviceName": "device001",
    "iotId": "OZs5",
    "moduleName": "ble",
    "moduleVersion": "1.0",
    "productKey": "k1h9drZble",
}
DOCUMENT: dict[str, object] = {
    "code": "",
    "currentPage": 1,
    "data": {"simpleOTAModuleInfo": [ENTRY]},
    "pageCount": 1,
    "pageSize": 10,
    "requestId": "47f85a55",
    "success": True,
    "total": 1,
}


def read(document: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> ApiResponse:
    return parse_response(status, CIMultiDict(headers or {}), orjson.dumps(document), now=NOW)


def page(**changes: object) -> Page:
    document = {name: value for name, value in {**DOCUMENT, **changes}.items() if value is not ...}
    return parse_module_page(read(document))


def refused(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> PlatformError:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    with pytest.raises(PlatformError) as caught:
        parse_response(status, CIMultiDict(headers or {}), raw, now=NOW)
    return caught.value


def gateway(code: str, message: str = "No.") -> dict[str, object]:
    return {"RequestId": "ID-1", "HostId": "iot.example", "Code": code, "Message": message}


def business(code: str, message: str = "No.") -> dict[str, object]:
    return {"success": False, "code": code, "errorMessage": message, "requestId": "ID-1"}


@pytest.mark.parametrize(
    "data", [None, {}, [], {"simpleOTAModuleInfo": []}, {"simpleOTAModuleInfo": None}, {"other": [ENTRY]}, "", 0, ...]
)
def test_data_without_entries_is_a_page_without_modules(data: object) -> None:
    assert page(data=data, total=0, pageCount=0).reported == ()


@pytest.mark.parametrize("data", [[ENTRY], {"SIMPLEOTAMODULEINFO": [ENTRY]}, {"SimpleOTAModuleInfo": [ENTRY]}])
def test_data_is_read_as_a_bare_array_and_in_any_case(data: object) -> None:
    assert page(data=data) == page()


@pytest.mark.parametrize("data", ["[]", 7, True, {"simpleOTAModuleInfo": "[]"}, {"simpleOTAModuleInfo": {"x": 1}}])
def test_data_of_another_type_is_no_page(data: object) -> None:
    with pytest.raises(InconsistentResponseError, match="no array of modules"):
        page(data=data, total=0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("Throttling.User", ThrottledError),
        ("iot.system.SystemException", TransientError),
        ("ServiceUnavailable", TransientError),
        ("InvalidAccessKeyId.NotFound", AccountDeniedError),
        ("iot.device.NotExistedDevice", NotFoundError),
    ],
)
@pytest.mark.parametrize("success", [True, "true"])
def test_a_success_with_the_code_of_an_error_is_that_error(
    code: str, kind: type[PlatformError], success: object
) -> None:
    members = {"success": success, "code": code, "total": 0, "requestId": "R", "data": {"simpleOTAModuleInfo": []}}
    for document in (members, {name[0].upper() + name[1:]: value for name, value in members.items()}):
        body = orjson.dumps(document)
        for decode_page in (None, decode_documented_page):
            with pytest.raises(PlatformError) as failure:
                parse_response(200, {}, body, now=0.0, decode_page=decode_page)
            assert type(failure.value) is kind
            assert failure.value.code == code


@pytest.mark.parametrize("code", ["", None, "200", 200, 0, "OK", "ok", "success", "Success", " ", "-"])
def test_a_success_may_have_a_code_that_is_no_error(code: object) -> None:
    assert page(code=code, total=0, data=None).reported == ()


def test_no_entries_never_turn_a_total_into_nothing() -> None:
    assert page(data=None, total=3).total == 3
    assert page(data=None, total=..., pageCount=...).total is None


@pytest.mark.parametrize(
    ("told", "total"),
    [
        (450, 450), ("450", 450), (450.0, 450), (0, 0), ("0", 0), (0.0, 0), (..., None), (None, None), ("", None),
        ("many", None), (-1, None), ("-1", None), (1.5, None), (1e300, int(1e300)), (True, None), ([1], None), ("\u0663", None),
        ("1" * 40, None),
    ],
)  # fmt: skip
def test_a_total_is_read_from_any_spelling_of_a_whole_number_and_from_nothing_else(told: object, total: object) -> None:
    assert page(total=told).total == total


@pytest.mark.parametrize("number", [7, "7", 7.0])
def test_a_page_number_is_read_from_the_same_spellings(number: object) -> None:
    assert page(currentPage=number).number == 7


def test_a_missing_total_beside_no_pages_is_none_at_all() -> None:
    assert page(total=..., pageCount=0, data={}).total == 0


@pytest.mark.parametrize("name", ["moduleName", "moduleVersion"])
@pytest.mark.parametrize("value", [None, [], {}, ...])
def test_an_entry_without_a_name_or_version_is_no_page(name: str, value: object) -> None:
    entry = {key: item for key, item in {**ENTRY, name: value}.items() if item is not ...}
    with pytest.raises(InconsistentResponseError):
        page(data={"simpleOTAModuleInfo": [ENTRY, entry]}, total=2)


@pytest.mark.parametrize("entry", [None, "ble", 1, [], {}, [ENTRY], {**ENTRY, "moduleName": ""}])
def test_an_entry_that_is_no_module_is_no_page(entry: object) -> None:
    with pytest.raises(InconsistentResponseError):
        page(data={"simpleOTAModuleInfo": [entry]})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "module ble has no version"),
        (1.1, "module ble has the number 1.1 as version"),
        (["1"], "module ble has the version ['1'], which is no text"),
        (True, "module ble has the version True"),
    ],
)
def test_an_unusable_version_is_named_with_its_module(value: object, says: str) -> None:
    with pytest.raises(InconsistentResponseError, match=re.escape(says)):
        page(data=[ENTRY, {**ENTRY, "moduleName": "ble", "moduleVersion": value}], total=2)


def test_an_entry_may_leave_out_the_device() -> None:
    (reported,) = page(data=[{"moduleName": "ble", "moduleVersion": ""}]).reported
    assert reported.module == ModuleVersion("ble", "")
    assert (reported.product_key, reported.device_name, reported.iot_id) == (None, None, None)


def test_a_version_that_is_a_number_with_a_point_is_not_guessed() -> None:
    with pytest.raises(InconsistentResponseError):
        page(data=[{"moduleName": "ble", "moduleVersion": 1.1}])  # or was it 1.10?


@pytest.mark.parametrize(("version", "text"), [(2, "2"), ("1.10", "1.10"), (" 1 ", " 1 ")])
def test_a_version_stays_what_it_is_as_text(version: object, text: str) -> None:
    (reported,) = page(data=[{**ENTRY, "moduleVersion": version}]).reported
    assert reported.module.module_version == text


@pytest.mark.parametrize("success", [True, "true", "True", "TRUE"])
def test_success_may_be_spelled(success: object) -> None:
    assert read({**DOCUMENT, "success": success}).request_id == "47f85a55"


@pytest.mark.parametrize("success", [False, "false", None, 1, 0, [], "yes", ...])
def test_what_does_not_say_success_is_none(success: object) -> None:
    document = {name: value for name, value in {**DOCUMENT, "success": success}.items() if value is not ...}
    assert type(refused(document)) is TransientError
    assert refused(document).code == INVALID_JSON


@pytest.mark.parametrize("status", [199, 300, 302, 400, 404, 500, 503])
def test_success_counts_only_under_a_status_of_success(status: int) -> None:
    assert refused(DOCUMENT, status=status).code == f"HTTP {status}"


DENIALS: dict[str, DenialCause] = {
    "NoPermission": "permission", "Unauthorized": "permission", "NotAuthorized.Operation": "permission",
    "AccessDenied": "permission", "UserNotAuthorized": "permission", "Forbidden.RAM": "permission",
    "iot.common.RamActionPermissionDeny": "permission", "MissingSecurityToken": "token",
    "InvalidSecurityToken.Expired": "token", "InvalidSecurityToken.MismatchWithAccessKey": "token",
    "InvalidSecurityToken": "token", "SecurityToken.Expired": "token", "InvalidStsToken": "token",
    "InvalidAccessKeyId": "key", "InvalidAccessKeyId.Inactive": "key", "Forbidden.AccessKeyDisabled": "key",
    "SignatureDoesNotMatch": "secret", "InvalidSignatureMethod": "secret", "iot.Sre.IotInstanceNotFound": "instance",
    "iot.system.InstanceNotFound": "instance", "iot.common.InvalidIotInstanceId": "instance",
    "InvalidInstanceId.NotFound": "instance", "InvalidRegionId": "region", "InvalidRegion.NotFound": "region",
    "InvalidAction.NotFound": "action", "InvalidVersion": "action", "UnsupportedOperation": "action",
    "InvalidApi.NotFound": "action", "InvalidProtocol.NeedSsl": "https", "NeedHttps": "https",
    "MissingParameter": "parameter", "MissingAction": "parameter", "iot.system.BillIsOverDue": "account",
    "ServiceNotOpened": "account", "SecurityTokenExpired": "token", "StsTokenExpired": "token", "ExpiredToken": "token",
    "Token.Malformed": "token", "ImplicitDeny": "permission", "OperationDenied": "permission",
    "OperationDenied.NoPermission": "permission", "AccessForbidden": "permission", "Policy.ExplicitDenied": "permission",
    "Account.Arrearage": "account", "OperationDenied.Arrears": "account", "Arrearage": "account",
    "InsufficientBalance": "account", "UserDisable": "account", "Account.Locked": "account",
    "InvalidStatus.UserDisabled": "account", "ServiceNotOpen": "account", "User.NotActivated": "account",
    "NotExistUser": "account", "Api.NotFound": "action", "NotSupportedOperation": "action",
    "EndpointNotFound": "action", "HttpsOnly": "https", "SSLRequired": "https", "OnlyTls": "https",
    "1010": "token", "1004": "secret", "1005": "key", "28841101": "permission",
}  # fmt: skip

CODES: dict[type[PlatformError], list[str]] = {
    ThrottledError: [
        "Throttling", "Throttling.User", "Throttling.Api", "Throttled.Api", "FlowLimit", "iot.system.FlowControl",
        "TooManyRequests", "ThrottlingException", "RequestThrottled", "QpsLimitExceeded", "RateLimitExceeded",
        "iot.system.RequestTooFrequent", "ExceededCallLimit", "Service.Throttled",
    ],
    TransientError: [
        "ServiceUnavailable", "InternalError", "iot.system.SystemException", "iot.common.QueryDeviceActionError",
        "iot.common.QueryOTAModuleActionError", "Something.Unheard", "iot.device.Other", "InvalidRequest", "RequestTimeout", "iot.thing.InvalidNextToken",
        "iot.device.TokenExpired", "iot.device.Forbidden", "iot.product.NotSupportedOperation", "InvalidPageToken.Expired",
    ],
    NonceUsedError: ["SignatureNonceUsed"],
    ClockSkewError: [
        "InvalidTimeStamp.Expired", "IllegalTimestamp", "InvalidTimeStamp.Format", "InvalidTimestamp",
        "iot.common.TimestampExpired.Timestamp", "RequestTimeTooSkewed", "MissingTimestamp",
        "TimestampExpired", "TimestampOutOfRange", "TimeStampInvalid", "ExpiredTimestamp", "InvalidRequestTime",
        "Request.Expired", "1013",
    ],
    AccountDeniedError: [
        "SignatureDoesNotMatch", "IncompleteSignature", "InvalidAccessKeyId.NotFound", "InvalidAccessKeyId.Inactive",
        "Forbidden", "Forbidden.RAM", "Forbidden.AccessKeyDisabled", "iot.common.RamActionPermissionDeny",
        "iot.system.UidNotFound", "iot.system.BillIsOverDue", "iot.system.InstanceNotFound", *DENIALS,
    ],
    DeviceDeniedError: ["iot.common.AuthActionPermissionDeny", "1106"],
    NotFoundError: [
        "iot.device.NotExistedDevice", "iot.device.InvalidIoTId", "iot.prod.NotExistedProduct", "iot.ota.NotExistedFirmware",
        "iot.ota.NotExistedJob",
    ],
    NeverActivatedError: ["iot.device.InactiveDevice"],
    InvalidRequestError: [
        "iot.common.InvalidPageParams", "iot.device.InvalidFormattedDeviceName", "iot.prod.InvalidFormattedProductkey",
        "iot.device.NullDeviceName", "iot.prod.NullProductKey", "InvalidParameter", "InvalidParamater",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "kind"), [(code, kind) for kind, codes in CODES.items() for code in codes])
@pytest.mark.parametrize("shape", ["gateway", "business"])
def test_every_code_is_the_error_that_its_row_asks_for_in_any_case_and_shape(
    code: str, kind: type[PlatformError], shape: str
) -> None:
    for spelled in (code, code.lower(), code.upper(), code[:1].upper() + code[1:], code.swapcase()):
        error = refused(gateway(spelled), status=400) if shape == "gateway" else refused(business(spelled))
        assert type(error) is kind
        assert (error.code, error.message, error.request_id) == (spelled, "No.", "ID-1")
        assert str(error) == f"{spelled}: No."
        assert classify_error(spelled) is kind


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
@pytest.mark.parametrize("code", ["Throttling.User", "Forbidden.RAM", "ServiceUnavailable"])
def test_the_code_says_more_than_the_status(status: int, code: str) -> None:
    assert type(refused(gateway(code), status=status)) is classify_error(code)


@pytest.mark.parametrize("body", [b"", b"<html>", gateway("ServiceUnavailable"), business("Unknown"), DOCUMENT, b"[]"])
def test_429_is_throttling_whatever_else_is_said(body: object) -> None:
    assert type(refused(body, status=429)) is ThrottledError


@pytest.mark.parametrize("body", [b"", b" ", b"<html><h1>Bad gateway</h1>", b'{"success": tr', b"\xff\xfe", b"null",
                                  b"[]", b"1", b'"x"', b"[" * 100_000, b"\x00" * 10, b"{}"])  # fmt: skip
@pytest.mark.parametrize("status", [200, 204, 302, 404, 500, 502, 503])
def test_what_is_no_answer_is_transient_and_says_so(status: int, body: bytes) -> None:
    error = refused(body, status=status)
    assert type(error) is (DeviceDeniedError if status == 404 else TransientError)
    assert error.code == (INVALID_JSON if status < 300 else f"HTTP {status}")
    assert error.http_status == status
    assert error.message


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"{}", b"no", b"[]"])
def test_a_status_without_a_code_that_no_retry_changes_is_a_refusal(body: bytes) -> None:
    for status, cause in ((401, "key"), (405, "action")):
        error = refused(body, status=status)
        assert isinstance(error, AccountDeniedError)
        assert (error.cause, error.code) == (cause, f"HTTP {status}")
    for status in (403, 404):
        assert type(refused(body, status=status)) is DeviceDeniedError
    for status in (400, 408, 500, 502):
        assert type(refused(body, status=status)) is TransientError


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"code": "NoPermission", "message": "No."}},
        {"Error": {"Code": "NoPermission", "Message": "No."}, "success": False},
        {"errorCode": "NoPermission", "errorMsg": "No.", "success": False},
        {"ErrorCode": "NoPermission", "msg": "No."},
        {"code": "NoPermission", "msg": "No.", "error": "ignored"},
    ],
)
@pytest.mark.parametrize("response_type", [None, DEVICE_LIST_RESPONSE, ERROR_RESPONSE])
def test_an_error_is_read_by_the_names_of_gateways(document: object, response_type: Any) -> None:
    with pytest.raises(AccountDeniedError) as caught:
        parse_response(403, {}, orjson.dumps(document), now=NOW, response_type=response_type)
    assert (caught.value.code, caught.value.message, caught.value.cause) == ("NoPermission", "No.", "permission")


@pytest.mark.parametrize("value", ["", "text", None, 0, [], [{}], {}, {"code": "NoPermission"}])
def test_a_member_error_of_a_success_is_no_error(value: object) -> None:
    body = orjson.dumps({**DOCUMENT, "error": value})
    for response_type in (None, DEVICE_LIST_RESPONSE):
        response = parse_response(200, {}, body, now=NOW, response_type=response_type)
        assert response.request_id == "47f85a55"


WISHES: list[tuple[dict[str, str], float | None]] = [
    ({}, None),
    ({"Retry-After": "3"}, 3.0),
    ({"Retry-After": " 3 "}, 3.0),
    ({"retry-after": "120"}, 120.0),
    ({"Retry-After": formatdate(NOW + 5, usegmt=True)}, 5.0),
    ({"Retry-After": formatdate(NOW - 50, usegmt=True)}, 0.0),
    ({"x-acs-retry-after": "1500"}, 1.5),
    ({"X-Acs-Retry-After": "250"}, 0.25),
    ({"x-acs-retry-after": "100", "Retry-After": "9"}, 0.1),
    ({"x-acs-retry-after": "soon", "Retry-After": "9"}, 9.0),
    ({"Retry-After": "soon"}, None),
    ({"Retry-After": ""}, None),
    ({"Retry-After": "-1"}, None),
    ({"Retry-After": "1.5"}, 1.5),
    ({"Retry-After": "0"}, None),
    ({"Retry-After": "864000"}, MAX_DELAY),
    ({"x-acs-retry-after": "1500.5"}, 1.5005),
    ({"x-acs-retry-after": "99999999999"}, MAX_DELAY),
    ({"x-acs-retry-after": "-5"}, None),
    ({"x-acs-retry-after": "0", "Retry-After": "9"}, 9.0),
    ({"Retry-After": "1e9"}, None),
    ({"Retry-After": "NaN"}, None),
    ({"Retry-After": "9" * 5000}, None),
    ({"Retry-After": "\x1d3"}, 3.0),
    ({"x-acs-retry-after": "\x1c250\x1f"}, 0.25),
    ({"Retry-After": "\u0663"}, None),
    ({"x-acs-retry-after": "9" * 5000}, None),
    ({"Retry-After": "Mon, 99 Foo 2024 99:99:99 GMT"}, None),
]


@pytest.mark.parametrize(("headers", "seconds"), WISHES)
def test_the_wished_delay_is_read_in_all_its_spellings(headers: dict[str, str], seconds: float | None) -> None:
    error = refused(gateway("Throttling.User"), status=400, headers=headers)
    assert isinstance(error, ThrottledError)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("date", "seconds"), [(formatdate(NOW + 1200, usegmt=True), NOW + 1200), ("Sunday", None), (None, None), ("", None)]
)
def test_an_http_date_is_read(date: str | None, seconds: float | None) -> None:
    assert parse_http_date(date) == seconds


@pytest.mark.parametrize(("code", "cause"), DENIALS.items())
def test_a_refusal_that_no_retry_changes_has_advice_for_its_cause(code: str, cause: DenialCause) -> None:
    for spelled in (code, code.lower(), code.upper()):
        error = refused(gateway(spelled), status=400)
        assert isinstance(error, AccountDeniedError)
        assert error.cause == cause
        assert error.advice
        assert "endpoint" not in error.advice


@pytest.mark.parametrize("name", ["regionid-1", "x:InstanceId", "my_accesskeyid", "SecurityToken@lab"])
def test_a_device_name_in_a_message_is_not_a_parameter_of_the_account(name: str) -> None:
    message = f"The specified DeviceName {name} is not valid."
    assert type(refused(gateway("InvalidParameter", message), status=400)) is InvalidRequestError


def test_a_refused_device_is_not_a_refused_account_whatever_its_message_names() -> None:
    message = "The device is not in the instance of this IotInstanceId."
    assert type(refused(gateway("iot.device.NullDeviceName", message), status=400)) is InvalidRequestError
    assert type(refused(business("UnknownPermissionState", message))) is TransientError


@pytest.mark.parametrize("code", ["MissingParameter", "InvalidParameter"])
@pytest.mark.parametrize(
    ("parameter", "cause"),
    [("SecurityToken", "token"), ("IotInstanceId", "instance"), ("RegionId", "region"), ("AccessKeyId", "key")],
)
def test_a_parameter_of_the_account_that_is_missing_is_named_by_the_message(
    code: str, parameter: str, cause: DenialCause
) -> None:
    message = f'The input parameter "{parameter}" that is mandatory for processing this request is not supplied.'
    error = refused(gateway(code, message), status=400)
    assert isinstance(error, AccountDeniedError)
    assert error.cause == cause


REFUSALS = ["Forbidden.RAM", "iot.device.NotExistedDevice", "iot.prod.NullProductKey", "SignatureNonceUsed"]


@pytest.mark.parametrize("code", ["Anything.Unheard", "InternalError", "ServiceUnavailable", *REFUSALS])
@pytest.mark.parametrize("status", [200, 400, 403, 500, 503])
def test_any_error_with_the_vendors_delay_is_throttling(status: int, code: str) -> None:
    for body in (gateway(code), business(code)):
        error = refused(body, status=status, headers={"X-Acs-Retry-After": "1500"})
        assert isinstance(error, ThrottledError)
        assert (error.code, error.message, error.request_id, error.retry_after) == (code, "No.", "ID-1", 1.5)


@pytest.mark.parametrize("delay", ["0", "000", "-5", "", "soon", "1e9"])
@pytest.mark.parametrize("status", [200, 400, 503])
def test_a_vendors_delay_that_is_no_positive_number_is_throttling_without_a_delay(delay: str, status: int) -> None:
    error = refused(gateway("Anything.Unheard"), status=status, headers={"x-acs-retry-after": delay})
    assert isinstance(error, ThrottledError)
    assert error.retry_after is None


@pytest.mark.parametrize("delay", ["0", "soon", "-1", "1.5", formatdate(NOW - 5, usegmt=True)])
def test_any_delay_of_http_beside_an_error_that_is_no_refusal_is_throttling(delay: str) -> None:
    for body in (gateway("Anything.Unheard"), b""):
        assert isinstance(refused(body, status=403, headers={"Retry-After": delay}), ThrottledError)


@pytest.mark.parametrize(
    "body", [gateway("Anything.Unheard"), gateway("ServiceUnavailable"), b"", b"<html>busy</html>"]
)
@pytest.mark.parametrize("status", [400, 403, 500, 503])
def test_a_delay_in_a_header_of_http_is_throttling_unless_it_is_a_refusal(status: int, body: object) -> None:
    error = refused(body, status=status, headers={"Retry-After": "7"})
    assert isinstance(error, ThrottledError)
    assert error.retry_after == 7


@pytest.mark.parametrize("code", [*REFUSALS, "IllegalTimestamp"])
def test_a_refusal_stays_one_whatever_delay_http_has(code: str) -> None:
    assert type(refused(gateway(code), status=403, headers={"Retry-After": "7"})) is classify_error(code)


def test_success_and_redirects_are_never_throttling() -> None:
    assert read(DOCUMENT, headers={"x-acs-retry-after": "1500", "Retry-After": "7"}).request_id == "47f85a55"
    assert type(refused(business("Unheard"), headers={"Retry-After": "7"})) is TransientError
    assert type(refused(b"", status=302, headers={"Retry-After": "7"})) is TransientError


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-user": "Limit:1,Remain:0,TimeLeft:2000,Reset:1234"}, 2.0),
        ({"X-RateLimit-User-API": "TimeLeft:500", "x-ratelimit-user": "TimeLeft:2000"}, 2.0),
        ({"x-ratelimit-user-api": "Limit:1,TimeLeft:", "Retry-After": "9"}, 9.0),
        ({"x-ratelimit-user-api": "TimeLeft:500", "x-acs-retry-after": "100"}, 0.1),
    ],
)
def test_the_time_left_of_a_quota_is_a_delay(headers: dict[str, str], seconds: float) -> None:
    error = refused(gateway("Throttling.Api"), status=400, headers=headers)
    assert isinstance(error, ThrottledError)
    assert error.retry_after == seconds


def xml(code: str, message: str = "No.") -> str:
    return (
        f"<Error><RequestId>ID-1</RequestId><HostId>iot</HostId><Code>{code}</Code><Message>{message}</Message></Error>"
    )


FORBIDDEN = xml("Forbidden.RAM")


@pytest.mark.parametrize(
    "body",
    [
        FORBIDDEN.encode(),
        b"<?xml version='1.0' encoding='UTF-8'?>\n" + FORBIDDEN.encode(),
        b"\xef\xbb\xbf" + FORBIDDEN.encode(),
        b"\r\n " + FORBIDDEN.encode(),
        ('<?xml version="1.0" encoding="UTF-16"?>' + FORBIDDEN).encode("utf-16"),
        b"\xfe\xff" + ('<?xml version="1.0" encoding="UTF-16"?>' + FORBIDDEN).encode("utf-16-be"),
        b"\xff\xfe" + FORBIDDEN.encode("utf-16-le"),
        FORBIDDEN.replace("<Error>", '<Error xmlns="http://iot.example/doc">').encode(),
        FORBIDDEN.replace("<", "<a:").replace("<a:/", "</a:").replace("<a:Error>", '<a:Error xmlns:a="u">').encode(),
        FORBIDDEN.replace("Forbidden.RAM", "<![CDATA[Forbidden.RAM]]>").encode(),
        FORBIDDEN.replace("Forbidden.RAM", "\n  Forbidden.RAM <!-- why -->\n").encode(),
        FORBIDDEN.replace("Forbidden.RAM", "Forbidden&#46;R&#x41;M").encode(),
        f"<ErrorResponse><Errors>{FORBIDDEN}</Errors></ErrorResponse>".encode(),
        FORBIDDEN.lower()
        .replace("forbidden.ram", "Forbidden.RAM")
        .replace("no.", "No.")
        .replace("id-1", "ID-1")
        .encode(),
        b"<!DOCTYPE Error>" + FORBIDDEN.encode(),
        FORBIDDEN[:-4].encode(),
        FORBIDDEN.replace("</Error>", "<HostId>cut").encode(),
        (FORBIDDEN + "<Error>").encode(),
        ("<?xml version='1.0' encoding='GBK'?>" + FORBIDDEN).encode(),
        b'<Error code="Forbidden.RAM" message="No." RequestId="ID-1"/>',
        FORBIDDEN.replace("</Message>", "</Message><Why>a & b</Why>").encode(),
        FORBIDDEN.replace("<RequestId>", "<Why>a & b</Why><RequestId>").encode(),
    ],
)
def test_an_error_in_xml_is_read(body: bytes) -> None:
    error = refused(decompress(body, (), 403), status=403)
    assert type(error) is AccountDeniedError
    assert (error.code, error.message, error.request_id) == ("Forbidden.RAM", "No.", "ID-1")


def test_an_error_in_xml_is_classified_like_any_other() -> None:
    assert type(refused(xml("Throttling.User").encode(), status=400)) is ThrottledError
    assert type(refused(xml("IllegalTimestamp").encode(), status=400)) is ClockSkewError
    assert refused(xml("Odd", "a &lt; b &amp; c").encode(), status=400).message == "a < b & c"
    assert refused(xml("Odd").encode(), status=400, headers={"x-acs-retry-after": "5"}).code == "Odd"


@pytest.mark.parametrize(
    ("declared", "encoding", "message"),
    [
        ("GBK", "gbk", "\u6ca1\u6709\u6743\u9650"),
        ("gb18030", "gb18030", "\u6ca1\u6709\u6743\u9650"),
        ("GB2312", "gb2312", "\u6ca1\u6709\u6743\u9650"),
        ("Shift_JIS", "shift_jis", "\u6a29\u9650"),
        ("Big5", "big5", "\u6b0a\u9650 & \u6b0a"),
        ("UTF-8", "latin-1", "d\u00e9fendu"),
        ("UTF-8", "utf-8", "a & b"),
        ("ISO-8859-1", "latin-1", "d\u00e9fendu"),
    ],
)
def test_an_error_in_xml_is_read_in_any_encoding(declared: str, encoding: str, message: str) -> None:
    body = f'<?xml version="1.0" encoding="{declared}"?>\n{xml("Forbidden.RAM", message)}'.encode(encoding)
    for status in (200, 403):
        error = refused(body, status=status)
        assert (type(error), error.code, error.message) == (AccountDeniedError, "Forbidden.RAM", message)


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))


@pytest.mark.parametrize(
    "body",
    [
        f'<!DOCTYPE Error [<!ENTITY l0 "ha">{LAUGHS}]>{xml("&l12;")}',
        f'<!DOCTYPE Error [<!ENTITY file SYSTEM "file:///etc/passwd">]>{xml("&file;")}',
        f'<!DOCTYPE Error [<!ENTITY % p SYSTEM "http://127.0.0.1:9/">%p;]>{FORBIDDEN}',
        xml("&unheard;"),
        "<html><body><Code>Forbidden.RAM</Code></body></html>",
        "<Code>Forbidden.RAM</Code>",
        xml(" "),
        "<Error>" + " " * MAX_XML_BYTES + FORBIDDEN + "</Error>",
        "<a>" * 15_000,
        '<?xml version="1.0" encoding="unheard"?>' + FORBIDDEN,
        '<?xml version="1.0" encoding="rot13"?>' + FORBIDDEN,
        "<html><Error code='Forbidden.RAM'/></html>",
        "<Error><Success>true</Success></Error>",
    ],
)
def test_xml_that_is_no_error_or_that_declares_entities_has_no_code(body: str) -> None:
    error = refused(body.encode(), status=403)
    assert type(error) is DeviceDeniedError
    assert error.code == "HTTP 403"
    assert refused(body.encode(), status=200).code == INVALID_JSON


@given(st.binary(max_size=300))
def test_any_bytes_are_an_xml_error_or_none(body: bytes) -> None:
    assert set(parse_xml_error(b"<" + body)) <= {"code", "message", "errormessage", "requestid"}


@pytest.mark.parametrize("code", ["", " ", "\x00", "\u200b", "\ue000"])
def test_a_code_of_nothing_that_can_be_seen_is_none(code: str) -> None:
    assert refused(business(code, "why")).code == INVALID_JSON
    assert refused(gateway(code, "why"), status=500).code == "HTTP 500"
    assert refused(gateway(code, "why"), status=500).message == "why"


def test_the_string_to_sign_is_dropped_from_a_message() -> None:
    message = "Specified signature is not matched. Server String To Sign is:GET&%2F&AccessKeyId%3Dx\n%26Signature"
    assert (
        refused(gateway("SignatureDoesNotMatch", message), status=400).message == "Specified signature is not matched."
    )


def test_messages_and_codes_and_request_ids_are_one_clean_bounded_line() -> None:
    nasty = "a\r\nb\x1b[31m\x00c\u2028d\u202ee\t f" + "x" * 10_000
    error = refused({"Code": nasty, "Message": nasty, "RequestId": nasty}, status=400)
    for text in (error.code, error.message, error.request_id):
        assert text is not None
        assert text.startswith("a b [31m c d e fxxx")
        assert len(text) == MAX_MESSAGE_LENGTH
        assert text.isprintable()


@given(text=st.text())
def test_any_message_becomes_one_printable_bounded_line(text: str) -> None:
    line = clean_message(text)
    assert line.isprintable()
    assert len(line) <= MAX_MESSAGE_LENGTH
    assert line == line.strip()
    assert "  " not in line


FIELD_NAMES = st.sampled_from(
    ["code", "Code", "message", "errorMessage", "success", "Success", "requestId", "RequestID", "data", "Data", "total",
     "Total", "pageCount", "currentPage", "pageSize", "simpleOTAModuleInfo", "SimpleOTAModuleInfo", "moduleName",
     "ModuleVersion", "moduleVersion", "iotId", "IoTID", "deviceName", "productKey"]
)  # fmt: skip
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["true", "Throttling", "InvalidTimeStamp.Expired", "iot.device.InvalidIoTId"]),
)
documents: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELD_NAMES, inner, max_size=5), max_leaves=12
)
header_values = st.one_of(
    st.text(max_size=20),
    st.sampled_from([formatdate(NOW, usegmt=True), "3", "-0001", "Fri, 31 Dec 9999 23:59:59 -2359", "1 1 1 1 1 +9999"]),
    st.from_regex(
        r"[A-Z][a-z]{2}, \d{1,5} (Jan|Feb|Foo) \d{1,6} \d{1,3}:\d\d:\d\d ([+-]\d{1,6}|GMT|X)", fullmatch=True
    ),
)
headers_of_any_kind = st.dictionaries(st.sampled_from(["Date", "Retry-After", "x-acs-retry-after"]), header_values)
statuses = st.sampled_from([200, 204, 302, 400, 404, 429, 500, 503]) | st.integers(0, 999)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(status=statuses, headers=headers_of_any_kind, body=st.binary(max_size=60) | documents.map(orjson.dumps))
def test_whatever_comes_is_an_answer_or_a_platform_error(status: int, headers: dict[str, str], body: bytes) -> None:
    came: ApiResponse | PlatformError
    try:
        came = parse_response(status, headers, body, now=NOW)
    except PlatformError as error:
        came = error
    assert came.request_id is None or came.request_id.isprintable()
    if isinstance(came, ApiResponse):
        assert 200 <= status < 300
        return
    assert came.code
    assert str(came).isprintable()
    wish = getattr(came, "retry_after", None)
    assert wish is None or wish >= 0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(document=st.dictionaries(FIELD_NAMES, documents, max_size=6))
def test_whatever_an_answer_holds_is_a_page_or_inconsistent(document: dict[str, Any]) -> None:
    answer = ApiResponse({name.lower(): value for name, value in document.items()}, None)
    try:
        read_page = parse_module_page(answer)
    except InconsistentResponseError:
        return
    for number in (read_page.number, read_page.total):
        assert number is None or number >= 0
    assert all(reported.module.module_name for reported in read_page.reported)
