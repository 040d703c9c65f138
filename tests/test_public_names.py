"""What ``import auditor`` offers: every name is there, typed, and loaded only when it is used."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import pytest

import auditor


def test_every_public_name_is_there_and_documented() -> None:
    for name in auditor.__all__:
        thing = getattr(auditor, name)
        assert name in dir(auditor)
        assert name in {"__version__", "Outcome"} or thing.__doc__


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = auditor.no_such_name  # type: ignore[attr-defined]


def test_reading_a_run_loads_no_network_and_help_loads_no_database() -> None:
    for program, unwanted in (
        ("import auditor; auditor.Run", {"aiohttp", "aiolimiter"}),
        ("import auditor.report.builder", {"aiohttp", "structlog"}),
        ("from auditor.cli.runtime import log_to_stderr; log_to_stderr('info')", {"aiohttp", "structlog"}),
        ("import auditor.publish.publisher", {"http.client", "structlog", "auditor.analysis.history"}),
        ("import auditor.cli", {"aiohttp", "duckdb", "anyio", "structlog", "msgspec", "opentelemetry", "requests"}),
    ):
        listing = f"{program}; import sys; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout
        assert not unwanted & set(loaded.split())


def typed(settings: auditor.Settings, run: auditor.Run, path: Path) -> None:
    """Never called: what the type checker must know of the public names."""
    assert_type(auditor.load_settings(path), auditor.Settings)
    assert_type(run.inventory(), Iterator[auditor.VersionCount])
    assert_type(run.devices, auditor.DeviceCounts)
    assert_type(run.manifest, auditor.Manifest)
    with auditor.diff_runs(path, path) as drift:
        assert_type(drift.counts, auditor.DriftCounts)
        assert_type(drift.modules, auditor.ResultTable)
    with auditor.select_devices(path, auditor.DeviceFilter(module="ble", below="1.2")) as selected:
        assert_type(selected, auditor.FilteredDevices)
    with auditor.query_run(path, "FROM inventory") as answer:
        assert_type(answer, auditor.QueryResult)
        assert_type(answer.table.to_dicts(), list[dict[str, Any]])
    with auditor.query_runs(path, "FROM runs") as answers:
        assert_type(answers, auditor.RunsQueryResult)
    with auditor.read_runs(path) as runs:
        assert_type(runs.runs, tuple[auditor.StoredRun, ...])
    with auditor.read_timeline(path, "device") as timeline:
        assert_type(timeline.table, auditor.ResultTable)
    with auditor.read_changes_since(path, "monday") as changes:
        assert_type(changes, auditor.NetChanges)
    assert_type(run.table("devices"), auditor.ResultTable)
    assert_type(auditor.find_run(path), Path)
    assert_type(auditor.compare_versions("1.2", "1.10") == "older", bool)
    assert_type(auditor.verify_run(path), list[str])
    assert_type(auditor.prune_runs(path, keep=7), auditor.PruneResult)
    assert_type(auditor.plan_audit(settings, fleet="fleet.csv", window=3600), auditor.Plan)


async def typed_asynchronously(settings: auditor.Settings) -> None:
    assert_type(await auditor.run_audit(settings, resume=True, until=0.0), auditor.AuditResult)
    assert_type(await auditor.resume_audit("audits", settings=settings), auditor.AuditResult)
    async with auditor.stream_outcomes(settings) as stream:
        assert_type(await stream.receive(), auditor.DeviceResult | auditor.DeviceFailure)
