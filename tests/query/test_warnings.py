"""Files that are not those that were sealed: told whichever they are, whatever is read instead."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

import auditor
from auditor.errors import RunFolderError
from auditor.query.snapshot import freeze
from auditor.query.warnings import tampered
from auditor.runs.folder import ANSWERED, DEVICES, FLEET, MODULES
from tests.runs.run_folders import build, edit_manifest, every_status, named, ok


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    devices = [named(0), named(1)]
    return build(tmp_path / "run", devices, [ok(each, ("ble", "1.0")) for each in devices]).folder


def doubts_of(run: Path, tmp_path: Path) -> tuple[str, ...]:
    frozen = freeze(run, tmp_path / "work")
    with auditor.Run(run) as opened:
        assert opened.doubts == frozen.doubts
    assert frozen.tampered == bool(frozen.doubts)
    return frozen.doubts


def test_a_whole_run_is_not_doubted(whole: Path, tmp_path: Path) -> None:
    assert doubts_of(whole, tmp_path) == ()


@pytest.mark.parametrize("gone", [DEVICES, MODULES])
def test_a_sealed_file_that_is_missing_is_told_and_so_are_lines_that_were_changed(
    whole: Path, tmp_path: Path, gone: str
) -> None:
    (whole / gone).unlink()
    missing = f"{whole / gone} was sealed and is missing"
    assert doubts_of(whole, tmp_path) == (missing,)
    (whole / ANSWERED).write_bytes((whole / ANSWERED).read_bytes().replace(b'"1.0"', b'"9.9"'))
    changed = f"{whole / ANSWERED} is not the file that was sealed (its digest differs)"
    assert doubts_of(whole, tmp_path) == (missing, changed)


def test_a_fleet_that_is_not_the_one_that_was_asked_for_is_told(whole: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.parquet"
    duckdb.sql(f"COPY (FROM read_parquet('{whole / FLEET}') LIMIT 1) TO '{part}' (FORMAT parquet)")
    part.replace(whole / FLEET)
    with auditor.query_run(whole, "SELECT count(*) FROM fleet") as answer:
        assert answer.run.doubts == (f"{whole / FLEET} is not the file that was sealed (its digest differs)",)


def test_a_manifest_that_forgot_its_files_is_told(whole: Path, tmp_path: Path) -> None:
    edit_manifest(whole, lambda manifest: replace(manifest, files=()))
    assert len(doubts_of(whole, tmp_path)) == 2


def test_a_run_that_is_pruned_meanwhile_is_no_run(tmp_path: Path) -> None:
    run = every_status(tmp_path / "run").folder
    manifest = auditor.Run(run).manifest
    (run / FLEET).unlink()
    with pytest.raises(RunFolderError, match="cannot be read: No such file"):
        tampered(run, manifest)
