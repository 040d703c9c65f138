"""SQL over all runs of a directory, confined as that over one run, and the order of versions in SQL."""

from dataclasses import replace
from pathlib import Path

import pytest

from auditor.errors import RunFolderError, UsageError
from auditor.query.sql import query_run, query_runs
from auditor.query.versions import compare_versions
from auditor.runs.folder import DEVICES
from auditor.runs.selection_info import ExitReason
from tests.analysis.recorded_runs import write_days
from tests.query.test_sql import BEYOND
from tests.runs.run_folders import build, edit_manifest, named, ok


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory, reason = write_days(tmp_path / "audits"), ExitReason("too_many_failed", "one failed")
    edit_manifest(
        directory / "20261125T020000Z-nightly",
        lambda manifest: replace(manifest, exit_code=1, exit_reason=reason),
    )
    return directory


def query(directory: Path, sql: str) -> list[tuple[object, ...]]:
    with query_runs(directory, sql) as answer:
        return list(answer.table)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT run[1:8], exit_code, exit_reason, exit_message FROM runs LIMIT 1",
         [("20261125", 1, "too_many_failed", "one failed")]),
        ("SELECT count(*), min(started_at), sum(devices), bool_and(readable) FROM runs",
         [(4, "2026-11-22 02:00:00", 14, True)]),
        ("SELECT day(started_at), count(*) FILTER (status = 'failed') FROM devices GROUP BY ALL ORDER BY ALL",
         [(22, 0), (23, 1), (24, 1), (25, 0)]),
        ("SELECT module_version FROM modules WHERE device_name = 'device0000' ORDER BY started_at",
         [("1.0",), ("1.1",), ("1.0",), ("1.1",)]),
        ("SELECT DISTINCT device_name, old_version, new_version FROM changes WHERE change = 'downgraded' AND started_at > now() - INTERVAL 99 YEAR",
         [("device0000", "1.1", "1.0")]),
        ("SELECT day(started_at), sum(devices)::BIGINT FROM inventory GROUP BY ALL ORDER BY ALL",
         [(22, 4), (23, 3), (24, 2), (25, 3)]),
        ("SELECT count(*) FROM fleet", [(14,)]),
        ("SELECT count(*) FROM changes WHERE version_below(old_version, new_version)", [(4,)]),
    ],
)  # fmt: skip
def test_a_select_reads_the_views_of_all_runs(directory: Path, sql: str, rows: object) -> None:
    assert query(directory, sql) == rows


@pytest.mark.parametrize("sql", [*BEYOND, "FROM read_text('{folder}/audits/20261122T020000Z-nightly/run.json')"])
def test_other_files_and_the_network_are_refused(directory: Path, sql: str) -> None:
    secret = directory.parent / "secret.csv"
    secret.write_text("a\nsecret\n")
    with pytest.raises(UsageError) as refused:
        query(directory, sql.format(secret=secret, folder=directory.parent))
    assert "secret\n" not in str(refused.value)


def test_no_function_or_setting_can_be_changed(directory: Path) -> None:
    for sql in ("SET threads = 1", "CREATE TABLE t AS SELECT 1", "ATTACH 'x.db'"):
        with pytest.raises(UsageError):
            query(directory, sql)


def test_a_file_that_is_not_the_sealed_one_is_named(directory: Path) -> None:
    path = directory / "20261123T020000Z-nightly" / DEVICES
    edit_manifest(
        path.parent, lambda manifest: replace(manifest, files=tuple(replace(file, bytes=1) for file in manifest.files))
    )
    with query_runs(directory, "SELECT 1") as answer:
        assert any(f"{DEVICES} is not the file that was sealed" in warning.detail for warning in answer.warnings)


def test_runs_of_another_name_are_left_out(directory: Path) -> None:
    edit_manifest(directory / "20261122T020000Z-nightly", lambda manifest: replace(manifest, name="other"))
    assert query(directory, "SELECT count(*) FROM runs") == [(3,)]
    with pytest.raises(RunFolderError, match="contains no sealed run named 'weekly'"):
        query_runs(directory, "SELECT 1", name="weekly").__enter__()


VERSIONS = ["1.2", "1.10", "v1.2", "1.9", "hot", "27.09.20", "04.10.20", "2.03", "2.1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fleet = [named(number) for number in range(len(VERSIONS))]
    return build(
        tmp_path / "run", fleet, [ok(device, ("ble", text)) for device, text in zip(fleet, VERSIONS, strict=True)]
    ).folder


def test_versions_are_ordered_as_everywhere(folder: Path) -> None:
    pairs = [(one, other) for one in VERSIONS for other in [*VERSIONS, "1.5"]]
    below = {"older": True, "unordered": None, "same": False, "newer": False}
    above = {"older": False, "unordered": None, "same": False, "newer": True}
    values = ", ".join(f"('{one}', '{other}')" for one, other in pairs)
    sql = f"SELECT a, b, version_below(a, b), version_above(a, b) FROM (VALUES {values}) t(a, b)"
    with query_run(folder, sql) as answer:
        found = {(one, other): (is_below, is_above) for one, other, is_below, is_above in answer.table}
    for one, other in pairs:
        order = compare_versions(one, other, among=[*VERSIONS, other])
        assert found[one, other] == (below[order], above[order]), (one, other, order)


def test_a_comparison_filters_rows_and_null_is_no_version(folder: Path) -> None:
    sql = "SELECT module_version FROM modules WHERE version_below(module_version, '1.10') ORDER BY 1"
    with query_run(folder, sql) as answer:
        assert [version for (version,) in answer.table] == ["1.2", "1.9", "v1.2"]
    with query_run(folder, "SELECT version_below(NULL, '1.2')") as answer:
        assert list(answer.table) == [(None,)]


def test_versions_are_ranked_where_all_can_be_compared(tmp_path: Path) -> None:
    texts = {"ble": ["1.2", "1.10", "v1.2", "1.9"], "wifi": ["1.0", "hot"]}
    fleet = [named(number) for number in range(4)]
    answers = [
        ok(device, *((name, versions[number]) for name, versions in texts.items() if number < len(versions)))
        for number, device in enumerate(fleet)
    ]
    folder = build(tmp_path / "run", fleet, answers).folder
    sql = "SELECT module_name, module_version, version_rank(product_key, module_name, module_version) FROM modules ORDER BY ALL"
    with query_run(folder, sql) as answer:
        assert list(answer.table) == [
            ("ble", "1.10", 3), ("ble", "1.2", 1), ("ble", "1.9", 2), ("ble", "v1.2", 1),
            ("wifi", "1.0", None), ("wifi", "hot", None),
        ]  # fmt: skip
