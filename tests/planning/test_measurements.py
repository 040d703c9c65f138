"""Measurements of earlier runs: counted from their files, and never a reason to fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from auditor.planning.measurements import QueriedDevices, latest_measurements
from auditor.runs.folder import DEVICES
from auditor.runs.manifest import MANIFEST
from auditor.runs.selection_info import Rate
from tests.database import connect
from tests.runs.run_folders import build, edit_manifest, every_status, named, not_found, ok, running


def run_of_day(folder: Path, day: int, **changes: Any) -> Path:
    edit_manifest(folder, lambda was: replace(was, started_at=f"2026-11-{day:02}T02:00:00.000Z", **changes))
    return folder


def two_device_run(folder: Path, day: int, **changes: Any) -> Path:
    """Build a run of two devices with one request each."""
    answers = [ok(named(0), ("ble", "1")), not_found(named(1))]
    return run_of_day(build(folder, [named(0), named(1)], answers).folder, day, **changes)


def measured_run(directory: Path) -> tuple[str | None, list[str]]:
    """Return the folder of the measured run, and the logged reasons of the others."""
    with capture_logs() as logs:
        found = latest_measurements(directory, "nightly")
    assert all(entry["log_level"] == "warning" for entry in logs)
    return None if found is None else found.folder.name, [str(entry["reason"]) for entry in logs]


def test_requests_are_counted_by_account_over_devices_with_a_result_or_failure(tmp_path: Path) -> None:
    every_status(tmp_path / "run")  # of demo: 5 answered by 1 request each, 2 failed after 5, 1 pending
    found = latest_measurements(tmp_path, "nightly")
    assert found is not None
    assert found.queried == {"demo": QueriedDevices(7, 15), "other": QueriedDevices(1, 1)}
    assert found.latency is None


def test_newest_run_of_the_name_is_measured(tmp_path: Path) -> None:
    two_device_run(tmp_path / "z", 20)
    two_device_run(tmp_path / "a", 22)
    two_device_run(tmp_path / "of-another-name", 23, name="weekly")
    assert measured_run(tmp_path) == ("a", [])


def test_running_empty_and_unsealed_runs_are_skipped(tmp_path: Path) -> None:
    two_device_run(tmp_path / "old", 20)
    run_of_day(build(tmp_path / "nothing-queried", [named(0)], []).folder, 21)
    (two_device_run(tmp_path / "unsealed", 22, state="aborted") / DEVICES).unlink()
    run_of_day(running(tmp_path / "running", [named(0)], [ok(named(0), ("ble", "1"))]).folder, 23)
    two_device_run(tmp_path / "resumed", 24, state="running")
    assert measured_run(tmp_path) == ("old", [])


def test_no_run_and_no_directory_give_no_measurements(tmp_path: Path) -> None:
    assert measured_run(tmp_path) == (None, [])
    assert measured_run(tmp_path / "not-yet") == (None, [])


def test_unreadable_directory_is_logged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found, logged = measured_run(tmp_path / "file")
    assert found is None
    assert logged == [f"{tmp_path}/file: cannot be read: Not a directory"]


def rewriter(select: str) -> Callable[[Path], object]:
    """Return a function that rewrites ``devices.parquet`` with a query."""

    def rewrite(path: Path) -> None:
        with connect() as database:
            database.execute(f"CREATE TEMP TABLE was AS FROM read_parquet('{path}')")
            database.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")

    return rewrite


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:8] + bytes(400) + path.read_bytes()[408:]),
    "no attempts": rewriter("SELECT * EXCLUDE (attempts) FROM was"),
    "attempts are words": rewriter("SELECT * REPLACE ('many' AS attempts) FROM was"),
    "too many": rewriter("SELECT * REPLACE (9_000_000_000_000 AS attempts) FROM was"),
    "far too many": rewriter("SELECT * REPLACE (9_223_372_036_854_775_807 AS attempts) FROM was"),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupted_run_is_skipped(tmp_path: Path, kind: str) -> None:
    two_device_run(tmp_path / "good", 20)
    CORRUPTIONS[kind](two_device_run(tmp_path / "broken", 22) / DEVICES)
    found, logged = measured_run(tmp_path)
    assert found == "good"
    assert len(logged) == 1
    assert logged[0].startswith(f"{tmp_path}/broken: cannot be read: ")


def test_corrupted_manifest_is_skipped(tmp_path: Path) -> None:
    two_device_run(tmp_path / "good", 20)
    (two_device_run(tmp_path / "broken", 22) / MANIFEST).write_text("{")
    found, logged = measured_run(tmp_path)
    assert found == "good"
    assert len(logged) == 1
    assert "run.json: is not a manifest" in logged[0]


def test_device_that_failed_without_a_request_counts_as_one_request(tmp_path: Path) -> None:
    rewriter("SELECT * REPLACE (0 AS attempts) FROM was")(two_device_run(tmp_path / "run", 20) / DEVICES)
    found = latest_measurements(tmp_path, "nightly")
    assert found is not None
    assert found.queried == {"demo": QueriedDevices(2, 2)}


@pytest.mark.parametrize(
    ("measured", "plausible"), [(0.125, 0.125), (None, None), (0.0, None), (-1.0, None), (1e300, None)]
)
def test_implausible_latency_is_ignored(tmp_path: Path, measured: float | None, plausible: float | None) -> None:
    two_device_run(tmp_path / "run", 20, rate=Rate(latency=measured))
    found = latest_measurements(tmp_path, "nightly")
    assert found is not None
    assert found.latency == plausible
