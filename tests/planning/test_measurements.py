"""What an earlier run tells of the next one: counted from its files, and never a reason to fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from structlog.testing import capture_logs

from auditor.planning.measurements import Asked, newest_experience
from auditor.runs.folder import DEVICES
from auditor.runs.manifest import MANIFEST, Rate
from tests.runs.run_folders import build, edit_manifest, every_status, named, not_found, ok, running


def dated(folder: Path, day: int, **changes: Any) -> Path:
    edit_manifest(folder, lambda was: replace(was, started_at=f"2026-11-{day:02}T02:00:00.000Z", **changes))
    return folder


def simple(folder: Path, day: int, **changes: Any) -> Path:
    """A run of two devices that took one request each."""
    answers = [ok(named(0), ("ble", "1")), not_found(named(1))]
    return dated(build(folder, [named(0), named(1)], answers).folder, day, **changes)


def told(directory: Path) -> tuple[str | None, list[str]]:
    """The folder of the run that tells, and what was logged about the others."""
    with capture_logs() as logs:
        found = newest_experience(directory, "nightly")
    assert all(entry["log_level"] == "warning" for entry in logs)
    return None if found is None else found.folder.name, [str(entry["reason"]) for entry in logs]


def test_requests_are_counted_by_account_over_devices_that_were_answered_or_failed(tmp_path: Path) -> None:
    every_status(tmp_path / "run")  # of demo: 5 answered by 1 request each, 2 failed after 5, 1 pending
    found = newest_experience(tmp_path, "nightly")
    assert found is not None
    assert found.asked == {"demo": Asked(7, 15), "other": Asked(1, 1)}
    assert found.latency is None


def test_the_newest_run_of_the_name_tells(tmp_path: Path) -> None:
    simple(tmp_path / "z", 20)
    simple(tmp_path / "a", 22)
    simple(tmp_path / "of-another-name", 23, name="weekly")
    assert told(tmp_path) == ("a", [])


def test_a_run_that_is_under_way_or_asked_nothing_or_was_never_sealed_tells_nothing(tmp_path: Path) -> None:
    simple(tmp_path / "old", 20)
    dated(build(tmp_path / "nothing-asked", [named(0)], []).folder, 21)
    (simple(tmp_path / "unsealed", 22, state="aborted") / DEVICES).unlink()
    dated(running(tmp_path / "running", [named(0)], [ok(named(0), ("ble", "1"))]).folder, 23)
    simple(tmp_path / "resumed", 24, state="running")
    assert told(tmp_path) == ("old", [])


def test_there_may_be_no_run_and_no_directory(tmp_path: Path) -> None:
    assert told(tmp_path) == (None, [])
    assert told(tmp_path / "not-yet") == (None, [])


def test_a_directory_that_cannot_be_read_is_logged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found, logged = told(tmp_path / "file")
    assert found is None
    assert logged == [f"{tmp_path}/file: cannot be read: Not a directory"]


def rewritten(select: str) -> Callable[[Path], object]:
    """Writes ``devices.parquet`` anew from what a query makes of it."""

    def rewrite(path: Path) -> None:
        with duckdb.connect() as database:
            database.execute(f"CREATE TABLE was AS FROM read_parquet('{path}')")
            database.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")

    return rewrite


SPOILT: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:8] + bytes(400) + path.read_bytes()[408:]),
    "no attempts": rewritten("SELECT * EXCLUDE (attempts) FROM was"),
    "attempts are words": rewritten("SELECT * REPLACE ('many' AS attempts) FROM was"),
    "too many": rewritten("SELECT * REPLACE (9_000_000_000_000 AS attempts) FROM was"),
    "far too many": rewritten("SELECT * REPLACE (9_223_372_036_854_775_807 AS attempts) FROM was"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_broken_run_is_passed_over_for_the_one_before_it(tmp_path: Path, kind: str) -> None:
    simple(tmp_path / "good", 20)
    SPOILT[kind](simple(tmp_path / "broken", 22) / DEVICES)
    found, logged = told(tmp_path)
    assert found == "good"
    assert len(logged) == 1
    assert logged[0].startswith(f"{tmp_path}/broken: cannot be read: ")


def test_a_broken_manifest_is_passed_over(tmp_path: Path) -> None:
    simple(tmp_path / "good", 20)
    (simple(tmp_path / "broken", 22) / MANIFEST).write_text("{")
    found, logged = told(tmp_path)
    assert found == "good"
    assert len(logged) == 1
    assert "run.json: is not a manifest" in logged[0]


def test_a_device_that_failed_unasked_counts_as_one_request(tmp_path: Path) -> None:
    rewritten("SELECT * REPLACE (0 AS attempts) FROM was")(simple(tmp_path / "run", 20) / DEVICES)
    found = newest_experience(tmp_path, "nightly")
    assert found is not None
    assert found.asked == {"demo": Asked(2, 2)}


@pytest.mark.parametrize(
    ("measured", "believed"), [(0.125, 0.125), (None, None), (0.0, None), (-1.0, None), (1e300, None)]
)
def test_a_latency_is_the_run_s_unless_it_cannot_be(
    tmp_path: Path, measured: float | None, believed: float | None
) -> None:
    simple(tmp_path / "run", 20, rate=Rate(latency=measured))
    found = newest_experience(tmp_path, "nightly")
    assert found is not None
    assert found.latency == believed
