"""The log, which imports its library late."""

import sys
from io import StringIO

import pytest
import structlog

from auditor.log import log


def test_without_a_configuration_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("the quota is shared", account="eu")
    out, error = capsys.readouterr()
    assert out == ""
    assert "the quota is shared" in error
    assert "eu" in error
    assert not structlog.is_configured(), "a program that uses the library may still configure it"


def test_a_configuration_is_respected_whenever_it_comes() -> None:
    log.warning("before")
    written = StringIO()
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(written),
        processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
    )
    log.error("after", device="d1")
    assert written.getvalue() == "event='after' device='d1'\n"
    assert written is not sys.stderr
