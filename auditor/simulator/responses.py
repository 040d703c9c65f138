"""The bytes of the simulated platform's responses: two dialects, two formats, two kinds of errors.

Sources: the example on Tuya's page of ListOTAModuleVersionsByDevice, the same names in PascalCase on Alibaba's, and
Alibaba's pages on common parameters (XML unless JSON is requested) and on error responses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from xml.sax.saxutils import escape

import orjson

from auditor.models import Dialect
from auditor.simulator.forms import MODEL_FORMS, ResponseForms, reshape

JSON, XML, HTML = "application/json", "text/xml", "text/html"

HOST_ID = "iot.simulator"

Document = dict[str, object]
"""A response with Tuya's names, before dialect and format are applied."""


class RequestRejected(Exception):  # noqa: N818  a response, not an error of the simulator
    """The platform rejects a request: the gateway with ``http_status``, an operation with None, in an HTTP 200."""

    def __init__(self, code: str, message: str, http_status: int | None = None) -> None:
        super().__init__(code, message)
        self.code, self.message, self.http_status = code, message, http_status


@dataclass(frozen=True, slots=True)
class SimulatedResponse:
    """One HTTP response, before ``Date`` and length."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def success_response(
    operation: str,
    document: Document,
    request_id: str,
    dialect: Dialect,
    response_format: str,
    *,
    forms: ResponseForms = MODEL_FORMS,
) -> SimulatedResponse:
    """Return the response of a successful operation."""
    complete: Document = {"code": "", **document, "requestId": request_id, "success": True}
    return _encode(200, reshape(complete, forms), f"{operation}Response", dialect, response_format)


def error_response(
    error: RequestRejected,
    request_id: str,
    dialect: Dialect,
    response_format: str,
    *,
    forms: ResponseForms = MODEL_FORMS,
) -> SimulatedResponse:
    """Return the response to a rejected request; the gateway uses PascalCase in both dialects."""
    if error.http_status is None:
        document: Document = {
            "success": False,
            "code": error.code,
            "errorMessage": error.message,
            "requestId": request_id,
        }
        return _encode(200, reshape(document, forms), "Response", dialect, response_format)
    document = {"RequestId": request_id.upper(), "HostId": HOST_ID, "Code": error.code, "Message": error.message}
    return _encode(error.http_status, document, "Error", "tuya", response_format)


def _encode(status: int, document: Document, root: str, dialect: Dialect, response_format: str) -> SimulatedResponse:
    value: object = _pascal_case(document) if dialect == "alibaba" else document
    if response_format == "JSON":
        return SimulatedResponse(status, orjson.dumps(value), JSON)
    body = f"<?xml version='1.0' encoding='UTF-8'?>{_xml(root, value)}"
    return SimulatedResponse(status, body.encode(), XML)


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
    """Return ``value`` as elements called ``name``: one for each item of an array, as the vendor encodes arrays."""
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
