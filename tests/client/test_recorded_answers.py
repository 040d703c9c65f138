"""Answers written down from the vendors' pages: samples/<case>/head.json (status, headers, expected) and body."""

import json
from pathlib import Path

import pytest

from auditor import errors
from auditor.client.responses import parse_module_page, parse_response
from auditor.errors import PlatformError, ThrottledError
from auditor.models import ModuleVersion, Page, ReportedModule

CASES = sorted(folder for folder in Path(__file__).with_name("samples").iterdir() if folder.is_dir())
NOW = 1732009663.0  # Tue, 19 Nov 2024 09:47:43 GMT

SEED = Page(
    number=1,
    total=1,
    reported=(ReportedModule(ModuleVersion("ble", "1.0"), "k1h9drZble", "device001", "OZs5tjTkzRRTZSCekmbRk1****"),),
    request_id="47f85a55-2ffb-40d4-9d0a-efd41fac7380",
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_sample_is_read_as_its_head_expects(case: Path) -> None:
    head = json.loads((case / "head.json").read_text())
    expected, body = head["expected"], (case / "body").read_bytes()
    if expected.get("page"):
        answer = parse_response(head["status"], head["headers"], body, now=NOW)
        assert parse_module_page(answer) == SEED
        return
    with pytest.raises(PlatformError) as caught:
        parse_response(head["status"], head["headers"], body, now=NOW)
    error = caught.value
    assert type(error) is getattr(errors, expected["error"])
    assert (error.code, error.message) == (expected["code"], expected["message"])
    assert error.http_status == head["status"]
    told = json.loads(body) if body.startswith(b"{") and body.rstrip().endswith(b"}") else {}
    assert error.request_id == next((told[name] for name in ("RequestId", "requestId") if name in told), None)
    if isinstance(error, ThrottledError):
        assert error.retry_after == expected["retry_after"]


def test_there_are_samples_of_pages_and_of_both_shapes_of_error() -> None:
    names = {case.name.split("_")[0] for case in CASES}
    assert {"page", "gateway", "business", "proxy"} <= names
