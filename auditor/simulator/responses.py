"""The bytes of the simulated platform's answers: two dialects, two formats, two shapes of refusal.

Sources: the answer's example on Tuya's page of ListOTAModuleVersionsByDevice, the same names in PascalCase on
Alibaba's, and Alibaba's pages on common parameters (XML unless JSON is asked for) and on error answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from xml.sax.saxutils import escape

import orjson

from auditor.models import Dialect

JSON = "application/json"


XML = "text/xml"


HTML = "text/html"


HOST_ID = "iot.simulator"


Document = dict[str, object]
"""An answer in Tuya's spelling, before a dialect and a format are put on it."""


class Refused(Exception):  # noqa: N818  the platform refuses; nothing here is wrong
    """The platform says no: ``http_status`` as the gateway does, or None as an operation does, inside an HTTP 200."""

    def __init__(self, code: str, message: str, http_status: int | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.http_status = http_status


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, before ``Date`` and length."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def success(operation: str, document: Document, request_id: str, dialect: Dialect, answer_format: str) -> Reply:
    """The answer of an operation that went well."""
    whole: Document = {"code": "", **document, "requestId": request_id, "success": True}
    return _reply(200, whole, f"{operation}Response", dialect, answer_format)


def refusal(refused: Refused, request_id: str, dialect: Dialect, answer_format: str) -> Reply:
    """The answer to a request that is refused: the gateway speaks PascalCase in both dialects."""
    if refused.http_status is None:
        document: Document = {
            "success": False,
            "code": refused.code,
            "errorMessage": refused.message,
            "requestId": request_id,
        }
        return _reply(200, document, "Response", dialect, answer_format)
    document = {
        "RequestId": request_id.upper(),
        "HostId": HOST_ID,
        "Code": refused.code,
        "Message": refused.message,
    }
    return _reply(refused.http_status, document, "Error", "tuya", answer_format)


def _reply(status: int, document: Document, root: str, dialect: Dialect, answer_format: str) -> Reply:
    spelled: object = _pascal_case(document) if dialect == "alibaba" else document
    if answer_format == "JSON":
        return Reply(status, orjson.dumps(spelled), JSON)
    body = f"<?xml version='1.0' encoding='UTF-8'?>{_xml(root, spelled)}"
    return Reply(status, body.encode(), XML)


def _pascal_case(value: object) -> object:
    if isinstance(value, dict):
        return {_pascal_name(name): _pascal_case(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_pascal_case(inner) for inner in value]
    return value


@lru_cache(maxsize=256)
def _pascal_name(name: str) -> str:
    return name[:1].upper() + name[1:]


def _xml(name: str, value: object) -> str:
    """``value`` as elements called ``name``: one for each item of an array, as the vendor writes arrays."""
    match value:
        case list():
            return "".join(_xml(name, item) for item in value)
        case dict():
            text = "".join(_xml(inner, item) for inner, item in value.items())
        case bool():
            text = str(value).lower()
        case None:
            text = ""
        case _:
            text = escape(str(value))
    return f"<{name}>{text}</{name}>"
