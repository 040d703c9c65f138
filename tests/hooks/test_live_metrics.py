"""Metrics while a run is under way: what a file keeps, what it says, and that no failure reaches the audit."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from auditor.config.sections import MetricsSettings
from auditor.config.settings import ReportSettings
from auditor.engine.progress import Progress
from auditor.hooks.http_post import PostLimits
from auditor.hooks.live_metrics import live_metrics
from auditor.hooks.prepare import HookConfig
from auditor.hooks.prometheus import render_metrics
from auditor.hooks.pushgateway import Pushgateway
from auditor.models import Secret
from auditor.runs.manifest import DeviceCounts
from auditor.runs.selection_info import RequestCounts
from tests.hooks.receiver import receiving
from tests.runs.run_folders import START, every_status, named, running


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    folder = running(tmp_path / "audits" / "new", [named(n) for n in range(9)], []).folder
    counts, requests = DeviceCounts(ok=5, failed=1, pending=3), RequestCounts(sent=7, retried=2, throttled=1)
    return Progress(folder, 9, counts, requests, in_flight=1, target_rate=10.0, elapsed=1.0, learned_rate=8.0)


def config(path: Path | None, *, address: str | None = None, interval: str = "15s") -> HookConfig:
    return HookConfig(
        report=ReportSettings(metrics=None if path is None else str(path)),
        metrics=MetricsSettings(interval=interval),
        pushgateway=None if address is None else Pushgateway(Secret(address)),
    )


def read(path: Path) -> dict[str, float]:
    """Values by name and the last label, as an independent parser reads them."""
    found = [sample for family in text_string_to_metric_families(path.read_text()) for sample in family.samples]
    values = {" ".join((s.name, *(v for k, v in s.labels.items() if k != "run"))): s.value for s in found}
    assert len(values) == len(found), "a series twice: node_exporter refuses the file"
    return values


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.005)


def test_the_file_has_the_last_run_and_the_progress_of_the_next_one(tmp_path: Path, progress: Progress) -> None:
    path = tmp_path / "auditor.prom"
    path.write_bytes(render_metrics(every_status(tmp_path / "run").folder))
    before = read(path)
    assert before["auditor_running"] == 0
    with live_metrics(config(path)) as report:
        assert report is not None
        assert read(path) == before, "the run may still be refused"
        report(progress)
        wait_for(lambda: read(path)["auditor_running"] == 1)
        found = read(path)
    assert {name: found.pop(name) for name in list(found) if name.startswith("auditor_running")} == {
        "auditor_running": 1,
        "auditor_running_start_timestamp_seconds": START,
        "auditor_running_updated_timestamp_seconds": pytest.approx(time.time(), abs=60),
        **{f"auditor_running_devices {state}": 0 for state in ("empty", "not_found")},
        "auditor_running_devices ok": 5,
        "auditor_running_devices failed": 1,
        "auditor_running_devices pending": 3,
        "auditor_running_requests sent": 7,
        "auditor_running_requests retried": 2,
        "auditor_running_requests throttled": 1,
        "auditor_running_requests_per_second target": 10,
        "auditor_running_requests_per_second allowed": 8,
    }
    assert found == {name: value for name, value in before.items() if name != "auditor_running"}
    assert read(path) == before, "at the end no run is under way"


def test_the_file_is_written_again_at_the_interval(tmp_path: Path, progress: Progress) -> None:
    path = tmp_path / "auditor.prom"
    with live_metrics(config(path, interval="1s")) as report:
        assert report is not None
        report(progress)
        wait_for(lambda: path.exists() and read(path).get("auditor_running_devices ok") == 5)
        report(replace(progress, devices=DeviceCounts(ok=8, failed=1)))
        wait_for(lambda: read(path)["auditor_running_devices ok"] == 8)
        time_of = "auditor_running_updated_timestamp_seconds"
        first = read(path)[time_of]
        report(replace(progress, sealing=True))  # which reports no progress, and may take minutes
        wait_for(lambda: read(path)[time_of] > first)


@pytest.mark.parametrize("content", [b"", b"not a metric", b"other_metric 1\n"])
def test_what_another_program_wrote_into_the_file_stays(tmp_path: Path, progress: Progress, content: bytes) -> None:
    path = tmp_path / "auditor.prom"
    path.write_bytes(content)
    with live_metrics(config(path)) as report:
        assert report is not None
        report(progress)
        wait_for(lambda: b"auditor_running 1" in path.read_bytes() or b"} 1.0" in path.read_bytes())
    assert path.read_bytes().startswith(content)


def test_a_failure_is_logged_once_and_ends_nothing(
    tmp_path: Path, progress: Progress, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.hooks.live_metrics.QUICK", PostLimits(seconds=0.5, attempt_seconds=0.5))
    gone = tmp_path / "gone" / "auditor.prom"
    with receiving(500) as receiver, live_metrics(config(gone, address=receiver.address, interval="1s")) as report:
        assert report is not None
        report(progress)
        wait_for(lambda: len(receiver.bodies) >= 2)
    logged = capsys.readouterr()
    lines = [line for line in (logged.out + logged.err).splitlines() if "metrics of the run under way" in line]
    assert len(lines) == 2, lines
    assert "the Pushgateway answered 500" in lines[1]


def test_an_audit_that_fails_pushes_that_it_ended(progress: Progress) -> None:
    with receiving() as receiver:

        def fail() -> None:
            with live_metrics(config(None, address=receiver.address)) as report:
                assert report is not None
                report(progress)
                wait_for(lambda: bool(receiver.bodies))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert b'auditor_running{run="nightly"} 1.0' in receiver.bodies[0]
        assert b'auditor_running{run="nightly"} 0.0' in receiver.bodies[-1]
        assert b"auditor_running_devices" not in receiver.bodies[-1]


@pytest.mark.parametrize("off", [config(None), config(Path("x.prom"), interval="off")])
def test_without_metrics_or_interval_nothing_is_called(off: HookConfig) -> None:
    with live_metrics(off) as report:
        assert report is None


def test_an_audit_that_is_refused_before_its_first_progress_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "auditor.prom"
    with pytest.raises(ZeroDivisionError), live_metrics(config(path)):
        raise ZeroDivisionError
    assert not path.exists()
