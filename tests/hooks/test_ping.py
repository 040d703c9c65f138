"""The dead man's switch: what is reported where, with which body, within seconds, and without its address in any text."""

import socket
import time
from pathlib import Path

import pytest

from auditor.config.settings import SecretSource
from auditor.errors import SettingsError
from auditor.hooks import ping
from auditor.hooks.http_post import PostLimits
from auditor.hooks.ping import MAX_BODY_BYTES, DeadMansSwitch
from auditor.models import Secret
from tests.hooks.healthchecks import CHECK, healthchecks


@pytest.mark.parametrize(
    ("exit_code", "signal", "state"),
    [
        (0, "success", "up"),
        (1, "1", "down"),
        (3, "3", "down"),
        (4, "4", "down"),
        (2, "fail", "down"),
        (130, "fail", "down"),
    ],
)
def test_an_exit_code_is_reported_with_its_reason_and_the_log(exit_code: int, signal: str, state: str) -> None:
    with healthchecks() as check:
        switch = DeadMansSwitch(Secret(check.address))
        switch.start()
        assert switch.finish(exit_code, f"exit {exit_code}: because", ["one", "two"]) is None
    assert (check.signals, check.state) == (["start", signal], state)
    assert check.last_body == f"exit {exit_code}: because\n\none\ntwo"
    assert len({run_id for _, _, run_id in check.pings}) == 1


def test_an_error_is_a_failure_and_a_log_changes_nothing() -> None:
    with healthchecks() as check:
        switch = DeadMansSwitch(Secret(f"{check.address}/?create=1"))
        assert switch.log("test") is None
        assert (check.signals, check.state) == (["log"], "new")
        assert switch.fail("nightly.toml: at_once: this key is now called concurrency", []) is None
    assert (check.signals, check.state) == (["log", "fail"], "down")
    assert check.last_body == "nightly.toml: at_once: this key is now called concurrency"


def test_a_body_has_the_reason_and_the_last_lines_that_fit() -> None:
    with healthchecks() as check:
        lines = [f"{number:05} {'ü' * 50}" for number in range(200)]
        assert DeadMansSwitch(Secret(check.address)).finish(1, "reason \udcff", lines) is None
    first, empty, *kept = check.last_body.split("\n")
    assert (first, empty, kept[-1]) == ("reason \\udcff", "", lines[-1])
    assert kept == lines[-len(kept) :]
    assert MAX_BODY_BYTES - 200 < len(check.last_body.encode()) <= MAX_BODY_BYTES


@pytest.mark.parametrize(("status", "attempts"), [(500, 2), (404, 1), (302, 1)])
def test_a_switch_that_refuses_is_a_sentence_without_its_address(
    status: int, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ping, "LIMITS", PostLimits(2.0, 1.0))
    with healthchecks(status) as check:
        problem = DeadMansSwitch(Secret(check.address)).finish(0, "done", [])
    assert problem is not None
    assert problem.startswith(f"the dead man's switch answered {status}")
    assert CHECK not in problem
    assert len(check.pings) >= attempts


def test_a_switch_that_cannot_be_reached_or_does_not_answer_takes_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping, "LIMITS", PostLimits(0.6, 0.3))
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        switch = DeadMansSwitch(Secret(f"http://127.0.0.1:{silent.getsockname()[1]}/{CHECK}"))
        switch.start()
        problem = switch.finish(0, "done", [])
    assert str(problem).startswith("the dead man's switch did not answer in time")
    problem = DeadMansSwitch(Secret(f"http://127.0.0.1:1/{CHECK}")).finish(0, "done", [])
    assert str(problem).startswith("the dead man's switch cannot be reached: Connection refused")
    assert time.monotonic() - began < 5


def test_an_address_that_is_none_is_refused_without_its_text(tmp_path: Path) -> None:
    (tmp_path / "address").write_text(f"ftp://{CHECK}")
    with pytest.raises(SettingsError, match=r"s\.toml: ping: is not an address such as https://HOST/PATH") as caught:
        DeadMansSwitch.open(SecretSource(file=str(tmp_path / "address")), "s.toml")
    assert CHECK not in str(caught.value)
