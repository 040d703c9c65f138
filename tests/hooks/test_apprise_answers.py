"""Answers of services: refusals inside a success, limits, and texts, by the services' public documents."""

import json

import pytest

from auditor.hooks.apprise_answers import Answer, classify_reply, classify_response

NOW = 1_795_312_800.0

REFUSALS = [
    ("oapi.dingtalk.com", {"errcode": 310000, "errmsg": "sign not match"}, "310000", "sign not match", False),
    ("oapi.dingtalk.com", {"errcode": 130101, "errmsg": "send too fast"}, "130101", "send too fast", True),
    ("qyapi.weixin.qq.com", {"errcode": 93000, "errmsg": "invalid webhook url"}, "93000", "invalid webhook url", False),
    (
        "qyapi.weixin.qq.com",
        {"errcode": 45009, "errmsg": "api freq out of limit"},
        "45009",
        "api freq out of limit",
        True,
    ),
    ("open.feishu.cn", {"code": 9499, "msg": "too many request"}, "9499", "too many request", True),
    ("open.larksuite.com", {"code": 19001, "msg": "param invalid"}, "19001", "param invalid", False),
    ("open.feishu.cn", {"StatusCode": 9499, "StatusMessage": "Bad Request"}, "9499", "Bad Request", True),
    ("slack.com", {"ok": False, "error": "channel_not_found"}, "channel_not_found", "channel_not_found", False),
    ("slack.com", {"ok": False, "error": "ratelimited"}, "ratelimited", "ratelimited", True),
    ("api.telegram.org", {"ok": False, "description": "chat not found"}, "", "chat not found", False),
    ("x.logic.azure.com", {"error": {"code": "Denied", "message": "no access"}}, "Denied", "no access", False),
]


@pytest.mark.parametrize(("host", "table", "code", "detail", "limited"), REFUSALS)
def test_a_refusal_inside_a_success_has_its_code_and_text(
    host: str, table: dict[str, object], code: str, detail: str, *, limited: bool
) -> None:
    answer = classify_response(host, 200, {}, json.dumps(table).encode(), NOW)
    shown = f" with code {code}" if code else ""
    problem = f"the service answered 200 but refused the message{shown}"
    assert answer == Answer(problem, detail, limited, None, inside_success=True)


@pytest.mark.parametrize(
    ("host", "status", "content"),
    [
        ("oapi.dingtalk.com", 200, b'{"errcode":0,"errmsg":"ok"}'),
        ("open.feishu.cn", 200, b'{"StatusCode":0,"StatusMessage":"success","code":0,"data":{},"msg":"success"}'),
        ("hooks.slack.com", 200, b"ok"),
        ("hooks.slack.com", 200, b'{"ok":true}'),
        ("slack.com", 200, b'{"ok":true,"error":null}'),
        ("x.logic.azure.com", 202, b""),
        ("api.example.com", 200, b'{"code":200,"message":"accepted"}'),
        ("api.example.com", 200, b'{"error":{},"errors":[]}'),
        ("api.example.com", 200, b"[1"),
        ("events.pagerduty.com", 202, b'{"status":"success","message":"Event processed","dedup_key":"1"}'),
    ],
)
def test_an_answer_of_success_is_no_refusal(host: str, status: int, content: bytes) -> None:
    assert classify_response(host, status, {}, content, NOW) == Answer()


@pytest.mark.parametrize(
    ("content", "detail"),
    [(b"invalid_token", "invalid_token"), (b"<html>no", ""), (b"\x1b[31mred\n", "\\x1b[31mred"), (b"\xff", "\ufffd")],
)
def test_a_text_that_is_not_ok_is_a_refusal_of_slack(content: bytes, detail: str) -> None:
    answer = classify_response("hooks.slack.com", 200, {}, content, NOW)
    assert (answer.problem, answer.detail) == ("the service answered 200 but refused the message", detail)


def test_an_old_connector_of_teams_reports_errors_as_text() -> None:
    text = b"Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429"
    answer = classify_response("x.webhook.office.com", 200, {}, text, NOW)
    assert (answer.problem, answer.inside_success) == (
        "the service answered 200 but refused the message with code 429",
        True,
    )


@pytest.mark.parametrize(
    ("status", "headers", "retryable", "seconds"),
    [
        (429, {"Retry-After": "7"}, True, 7.0),
        (429, {}, True, None),
        (503, {"Retry-After": "2"}, True, 2.0),
        (503, {}, False, None),
        (500, {"Retry-After": "2"}, False, 2.0),
        (404, {}, False, None),
        (302, {"Location": "https://x"}, False, None),
    ],
)
def test_only_answers_of_services_that_accepted_nothing_are_retried(
    status: int, headers: dict[str, str], seconds: float | None, *, retryable: bool
) -> None:
    answer = classify_response("x", status, headers, b"{}", NOW)
    assert (answer.retryable, answer.retry_after, answer.inside_success) == (retryable, seconds, False)


def test_replies_of_mail_servers_are_refusals_that_may_pass_or_not() -> None:
    assert classify_reply(451, b"try again\nlater") == Answer(
        "the mail server answered 451", "try again later", retryable=True
    )
    assert classify_reply(550, b"\xff") == Answer("the mail server answered 550", "\ufffd")
