"""Decide what an answer of a chat or mail service says about a message: accepted, refused, or try again.

Some services refuse inside an HTTP 200. The rules are those of their documents:

- DingTalk and WeCom: ``errcode`` other than 0; https://open.dingtalk.com/document/orgapp/custom-robots-send-group-messages
  and https://developer.work.weixin.qq.com/document/path/91770.
- Feishu and Lark: ``code``, or in older answers ``StatusCode``, other than 0;
  https://open.feishu.cn/document/client-docs/bot-v3/add-custom-bot.
- Slack: ``"ok": false`` with ``error``; an incoming webhook answers ``ok``; https://api.slack.com/methods/chat.postMessage.
- Teams: a text with ``failed with error``, or an object ``error``;
  https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from auditor.client.responses import retry_after_seconds
from auditor.text.formatting import safe

MAX_DETAIL_LENGTH = 200
"""Characters of a service's own text."""

_CODED_HOSTS = ("feishu.cn", "larksuite.com")
"""Hosts whose ``code`` is 0 for success; elsewhere it may be anything."""

_SLACK_WEBHOOKS = "hooks.slack.com"
"""Host whose answer is the text ``ok``, or an object."""

_LIMITED_CODES = {"130101", "410100", "45009", "11232", "9499", "ratelimited", "rate_limited"}
"""Codes of DingTalk, WeCom, Feishu and Slack for too many messages."""

TOO_MANY_REQUESTS, UNAVAILABLE, FIRST_ERROR = 429, 503, 300

FIRST_REFUSAL, MAIL_ACCEPTED = 400, 250
"""Replies of a mail server: the first one that refuses, and that of an accepted mail."""

_TRY_LATER = range(FIRST_REFUSAL, 500)
"""Replies of a mail server that has not accepted a message, and may do so later."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered to one request.

    Attributes:
        problem: what it refused, in our words; None: nothing.
        detail: the service's own text, shortened; it may quote a part of the address.
        retryable: whether the service has not accepted the message, and may do so later.
        retry_after: seconds that the service requested.
        inside_success: whether it is a refusal inside an answer of success.
    """

    problem: str | None = None
    detail: str = ""
    retryable: bool = False
    retry_after: float | None = None
    inside_success: bool = False


def classify_response(host: str, status: int, headers: Mapping[str, str], content: bytes, now: float) -> Answer:
    """Classify an HTTP response of a service; ``now`` is in seconds since 1970."""
    answered = f"the service answered {status}"
    if status >= FIRST_ERROR:
        if status < 400:  # noqa: PLR2004  the first status of errors
            return Answer(f"{answered}: redirects are not allowed")
        retry_after = retry_after_seconds(headers, now)
        retryable = status == TOO_MANY_REQUESTS or (status == UNAVAILABLE and retry_after is not None)
        return Answer(answered, _detail_of(_parse(content), content), retryable, retry_after)
    table = _parse(content)
    code = _refusal_code(host, table, content)
    if code is None:
        return Answer()
    shown = f" {code}" if re.fullmatch(r"[\w.-]{1,40}", code, re.ASCII) else ""
    limited = code in _LIMITED_CODES
    problem = f"{answered} but refused the message{shown and f' with code{shown}'}"
    return Answer(problem, _detail_of(table, content), limited, retry_after_seconds(headers, now), inside_success=True)


def classify_reply(code: int, text: bytes) -> Answer:
    """Classify a reply of a mail server that refuses a command."""
    return Answer(f"the mail server answered {code}", _shorten(text.decode(errors="replace")), code in _TRY_LATER)


def _parse(content: bytes) -> Mapping[str, Any]:
    try:
        table = json.loads(content)
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}


def _refusal_code(host: str, table: Mapping[str, Any], content: bytes) -> str | None:
    """Return the code with which a response of success refuses a message; "" if it has none; None: it is accepted."""
    coded = any(host == each or host.endswith(f".{each}") for each in _CODED_HOSTS)
    for key in ("errcode", "StatusCode", *(("code",) if coded else ())):
        if table.get(key) not in {None, 0, "0"}:
            return str(table[key])
    if table.get("ok") is False or table.get("success") is False:
        return str(table.get("error", ""))
    error = table.get("error")
    if isinstance(error, dict) and error and not table.get("ok"):
        return str(error.get("code", ""))
    if host == _SLACK_WEBHOOKS and not table and content.strip() not in {b"", b"ok"}:
        return ""
    if b"failed with error" in content:
        limited = b"HTTP error 429" in content
        return "429" if limited else ""
    return None


def _detail_of(table: Mapping[str, Any], content: bytes) -> str:
    """Return what a service says in its own words: the message of its answer, or the answer if that is a short text."""
    for key in ("errmsg", "msg", "StatusMessage", "message", "error", "detail", "description"):
        value = table.get(key)
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value:
            return _shorten(value)
    text = content[:MAX_DETAIL_LENGTH].decode(errors="replace").strip()
    return "" if table or text.startswith(("<", "{", "[")) else _shorten(text)


def _shorten(text: str) -> str:
    return safe(" ".join(text.split())[:MAX_DETAIL_LENGTH])
