"""A run that lies in a folder which DuckDB would take for a part of a table, or for a pattern, is read as any other."""

from pathlib import Path

import pytest

import auditor
from auditor.runs.verify import verify_run
from tests.runs.run_folders import every_status


@pytest.mark.slow
@pytest.mark.parametrize("name", ["account=eu", "product_key=5", "status=lost", "line=3", "[a]*", "it's"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    plain, odd = every_status(tmp_path / "run"), every_status(tmp_path / name / "run", afresh=True)
    assert verify_run(odd.folder) == verify_run(plain.folder) == []
    with auditor.Run(plain.folder) as expected, auditor.Run(odd.folder) as found:
        assert list(found.inventory()) == list(expected.inventory())
    with auditor.select_devices(plain.folder) as expected, auditor.select_devices(odd.folder) as found:
        assert list(found.table) == list(expected.table)
    with auditor.diff_runs(plain.folder, odd.folder) as drift:
        assert drift.counts.same > 0
        assert (drift.counts.joined, drift.counts.left, drift.counts.changed) == (0, 0, 0)
    with auditor.query_run(odd.folder, "SELECT count(*) FROM fleet WHERE account = 'demo'") as answer:
        assert list(answer.table) == [(8,)]
