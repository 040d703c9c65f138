import gzip
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import orjson
import pytest

from auditor.errors import RunFolderError, RunNotWritableError, UsageError
from auditor.models import RunWarning
from auditor.query import run as run_module
from auditor.query.run import Run, VersionCount
from auditor.runs.folder import (
    COMPRESSED_RESULTS,
    DEVICES,
    FAILURES,
    FLEET,
    INVENTORY_CSV,
    INVENTORY_JSON,
    MODULES,
    RESULTS,
)
from auditor.runs.journal import encode_outcome
from auditor.runs.manifest import DeviceCounts, Manifest, read_manifest
from auditor.text.formats import TableFormat
from tests.database import connect
from tests.runs.run_folders import Built, build, by_id, edit_manifest, every_status, finish, named, ok, running

EVERY_STATUS = DeviceCounts(ok=4, empty=1, not_found=1, failed=2, pending=2)
INVENTORY = [
    VersionCount("demo", "p1", "=cmd", "@evil", 1, 1.0),
    VersionCount("demo", "p1", "ble", "1.0", 2, 0.666667),
    VersionCount("demo", "p1", "ble", "1.1", 1, 0.333333),
    VersionCount("demo", "p1", "default", "2.0", 1, 1.0),
    VersionCount("other", "p2", "ble", "9", 1, 1.0),
]


def unsealed(folder: Path) -> Built:
    """The same run, killed before it was sealed."""
    built = every_status(folder.with_name("sealed"))
    return running(folder, built.fleet, built.outcomes)


@pytest.mark.parametrize(("make", "sealed"), [(every_status, True), (unsealed, False)])
def test_a_sealed_and_an_unsealed_run_have_the_same_numbers(
    tmp_path: Path, make: Callable[[Path], Built], *, sealed: bool
) -> None:
    make(tmp_path / "run")
    with Run(tmp_path / "run") as run:
        assert run.sealed == sealed
        assert run.devices == EVERY_STATUS
        assert list(run.inventory()) == INVENTORY


def test_a_directory_of_runs_opens_the_newest(tmp_path: Path) -> None:
    build(tmp_path / "a", [named(0)], [])
    with Run(str(tmp_path)) as run:
        assert run.folder == tmp_path / "a"
        assert run.manifest.state == "partial"


def test_a_run_in_progress_is_read_as_it_is_when_it_is_opened(tmp_path: Path) -> None:
    folder = running(tmp_path / "run", [named(0), named(1)], [ok(named(0), ("ble", "1"))]).folder
    with Run(folder) as run:
        assert run.devices == DeviceCounts(ok=1, pending=1)
        with (folder / RESULTS).open("ab") as file:
            file.write(encode_outcome(ok(named(1), ("ble", "2"))))
            file.write(b'{"account":"de')
        assert run.devices == DeviceCounts(ok=1, pending=1)
        assert [version.module_version for version in run.inventory()] == ["1"]
    with Run(folder) as run:
        assert run.devices == DeviceCounts(ok=2)
        assert [version.module_version for version in run.inventory()] == ["1", "2"]


def test_the_lines_of_a_run_in_progress_are_read_once(tmp_path: Path) -> None:
    folder = unsealed(tmp_path / "run").folder
    with Run(folder) as run:
        for name in (RESULTS, FAILURES):
            (folder / name).unlink()
        assert run.devices == EVERY_STATUS
        assert list(run.inventory()) == INVENTORY
        assert len(list(run.table("modules"))) == len(list(run.table("modules"))) == 6


def compress_now(folder: Path) -> None:
    (folder / COMPRESSED_RESULTS).write_bytes(gzip.compress((folder / RESULTS).read_bytes()))
    (folder / RESULTS).unlink()


@pytest.mark.parametrize("moment", ["auditor.query.run.is_sealed", "auditor.runs.views.text_lines"])
def test_a_run_that_is_sealed_while_it_is_opened_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder, calls = unsealed(tmp_path / "run").folder, 0
    original = pkgutil.resolve_name(moment)

    def seal_behind(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        found = original(*arguments)
        if calls == 1:
            monkeypatch.setattr(moment, original)
            finish(folder)
            if (folder / RESULTS).exists():  # too small to be compressed
                compress_now(folder)
        return found

    monkeypatch.setattr(moment, seal_behind)
    with Run(folder) as run:
        assert run.devices == EVERY_STATUS
        assert list(run.inventory()) == INVENTORY
    assert calls == 1


def test_a_run_that_cannot_be_read_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened = unsealed(tmp_path / "run").folder, list[Path]()
    (folder / FLEET).write_bytes(b"x")

    def read(path: Path) -> Manifest:
        opened.append(path)
        return read_manifest(path)

    monkeypatch.setattr(run_module, "read_manifest", read)
    with pytest.raises(RunFolderError, match="cannot be read"):
        Run(folder)
    assert len(opened) == 1


def test_a_resumed_run_is_read_from_its_lines_and_not_from_its_sealed_files(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", [named(0), named(1)], [ok(named(0), ("ble", "1"))]).folder
    edit_manifest(folder, lambda manifest: replace(manifest, state="running"))
    with (folder / RESULTS).open("ab") as file:
        file.write(encode_outcome(ok(named(1), ("ble", "2"))))
    with Run(folder) as run:
        assert not run.sealed
        assert run.devices == DeviceCounts(ok=2)


def test_a_half_read_inventory_blocks_no_other_query(tmp_path: Path) -> None:
    many = [named(number) for number in range(40)]
    answers = [ok(d, *((f"m{m}", f"{n}") for m in range(100))) for n, d in enumerate(many)]
    for folder in (build(tmp_path / "run", many, answers).folder, running(tmp_path / "live", many, answers).folder):
        with Run(folder) as run:
            first, second = run.inventory(), run.inventory()
            begun = [next(first), next(second), next(first)]
            assert run.devices.ok == 40
            run.write_inventory(tmp_path / "out.json", "json")
            assert begun[0] == begun[1]
            assert 2 + sum(1 for _ in first) == 1 + sum(1 for _ in second) == 4000


FORMATS: list[TableFormat] = ["csv", "json", "jsonl", "parquet"]


@pytest.mark.parametrize("make", [every_status, unsealed])
def test_a_written_inventory_equals_the_sealed_one_in_every_format(
    tmp_path: Path, make: Callable[[Path], Built]
) -> None:
    sealed = every_status(tmp_path / "reference").folder
    make(tmp_path / "run")
    with Run(tmp_path / "run") as run:
        for form in FORMATS:
            run.write_inventory(tmp_path / f"it's.{form}", form)
    assert (tmp_path / "it's.csv").read_bytes() == (sealed / INVENTORY_CSV).read_bytes()
    assert (tmp_path / "it's.json").read_bytes() == (sealed / INVENTORY_JSON).read_bytes()
    rows = orjson.loads((sealed / INVENTORY_JSON).read_bytes())["inventory"]
    assert [orjson.loads(line) for line in (tmp_path / "it's.jsonl").read_bytes().splitlines()] == rows
    with connect() as database:
        table = database.execute("FROM read_parquet(?)", [str(tmp_path / "it's.parquet")]).fetchall()
    assert [VersionCount(*row) for row in table] == [VersionCount(**row) for row in rows] == INVENTORY


@pytest.mark.parametrize("form", FORMATS)
def test_an_unwritable_inventory_fails_with_one_sentence(tmp_path: Path, form: TableFormat) -> None:
    with (
        Run(every_status(tmp_path / "run").folder) as run,
        pytest.raises(RunNotWritableError, match="cannot be written"),
    ):
        run.write_inventory(tmp_path / "gone" / "file", form)


@pytest.mark.parametrize("form", FORMATS)
def test_an_inventory_on_a_full_disk_fails_with_one_sentence(tmp_path: Path, form: TableFormat) -> None:
    with Run(every_status(tmp_path / "run").folder) as run, pytest.raises(RunNotWritableError, match="/dev/full"):
        run.write_inventory(Path("/dev/full"), form)


def test_changed_files_cause_warnings_in_the_run_and_its_json(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", [named(0), named(1)], [ok(named(0), ("ble", "1"))]).folder
    partial = RunWarning("partial", str(folder), "partial: 0 devices failed, 1 pending")
    with Run(folder) as run:
        assert run.warnings == (partial,)
        run.write_inventory(tmp_path / "whole.json", "json")
    with connect() as database:
        query = f"SELECT * REPLACE ('2' AS module_version) FROM '{folder / MODULES}'"
        database.execute(f"COPY ({query}) TO '{folder / 'new'}' (FORMAT parquet)")
    (folder / "new").replace(folder / MODULES)
    changed = f"{MODULES} is not the file that was sealed (its digest differs)"
    tampered = RunWarning("tampered", str(folder), changed)
    with Run(folder) as run:
        assert run.warnings == (partial, tampered)
        run.write_inventory(tmp_path / "tampered.json", "json")
    before, after = (orjson.loads((tmp_path / f"{name}.json").read_bytes()) for name in ("whole", "tampered"))
    assert "warnings" not in before
    assert after["warnings"] == [{"kind": "tampered", "message": f"{folder}: {changed}"}]
    assert after["inventory"][0]["module_version"] == "2"
    schema = orjson.loads(resources.files("auditor").joinpath("schemas", "inventory.schema.json").read_bytes())
    jsonschema.validate(after, schema)
    some = {"modules", "modules_missing", "carried", "oldest_answer_at", "unsampled", "sample"}
    assert list(after) == [name for name in schema["properties"] if name not in some]


def test_an_unsealed_run_has_no_integrity_warnings(tmp_path: Path) -> None:
    folder = running(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    with Run(folder) as run:
        assert run.warnings == (RunWarning("running", str(folder), "killed: 0 devices failed, 0 pending"),)


def test_an_unreported_product_is_none(tmp_path: Path) -> None:
    with Run(build(tmp_path / "run", [by_id(0)], [ok(by_id(0), ("ble", "1"))]).folder) as run:
        assert list(run.inventory()) == [VersionCount("demo", None, "ble", "1", 1, 1.0)]


@pytest.mark.parametrize("name", [DEVICES, MODULES])
def test_a_broken_parquet_file_fails_with_one_sentence(tmp_path: Path, name: str) -> None:
    folder = every_status(tmp_path / "run").folder
    (folder / name).write_bytes(b"PAR1 nothing here")
    with pytest.raises(RunFolderError, match="cannot be read"), Run(folder):
        pytest.fail("opened")


@pytest.mark.parametrize("odd", ["module_version::BLOB", "to_days(1)", "DATE '2026-11-22'", "[module_version]", "7"])
def test_versions_that_are_not_text_fail_with_one_sentence(tmp_path: Path, odd: str) -> None:
    folder = every_status(tmp_path / "run").folder
    query = f"SELECT * REPLACE ({odd} AS module_version) FROM '{folder / MODULES}'"
    with connect() as database:
        database.execute(f"COPY ({query}) TO '{folder / 'new'}' (FORMAT parquet)")
    (folder / "new").replace(folder / MODULES)
    with pytest.raises(RunFolderError, match=r"modules\.parquet does not have the columns of a run"), Run(folder):
        pytest.fail("opened")


def test_a_column_name_that_is_not_text_fails_with_one_sentence(tmp_path: Path) -> None:
    modules = every_status(tmp_path / "run").folder / MODULES
    modules.write_bytes(modules.read_bytes().replace(b"product_key", b"\xedroduct_key"))
    with pytest.raises(RunFolderError, match="cannot be read: a file is not UTF-8 text"), Run(tmp_path):
        pytest.fail("opened")


def test_an_unsealed_run_without_its_fleet_fails_with_one_sentence(tmp_path: Path) -> None:
    folder = running(tmp_path / "run", [named(0)], []).folder
    (folder / FLEET).unlink()
    with pytest.raises(RunFolderError, match="cannot be read"), Run(folder):
        pytest.fail("opened")


def test_a_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="contains no run"):
        Run(tmp_path)


def test_spilled_data_is_stored_outside_the_run(tmp_path: Path) -> None:
    # Counting 3,000,000 devices of a running audit needs more than the 64 MB that DuckDB may hold.
    folder = running(tmp_path / "run", [named(0)], []).folder
    with Run(folder) as run:
        (spill,) = run._database.execute("SELECT current_setting('temp_directory')").fetchone() or ("",)
        spill = Path(spill).resolve(strict=True)  # named by a descriptor
        assert not spill.is_relative_to(folder)
    assert not spill.exists()


def test_reading_does_not_change_the_folder(tmp_path: Path) -> None:
    folder = unsealed(tmp_path / "run").folder
    shutil.copytree(folder, tmp_path / "copy")
    with Run(folder) as run:
        list(run.inventory())
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()
    }
    finish(folder)


def test_a_run_describes_itself_and_has_tables(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    run = Run(folder)
    counts = "DeviceCounts(ok=4, empty=1, not_found=1, failed=2, pending=2)"
    assert repr(run) == f"<Run {str(folder)!r}: partial, started 2026-11-22T02:00:00.000Z, {counts}>"
    assert repr(run.manifest) == f"<Manifest 'nightly': partial, started 2026-11-22T02:00:00.000Z, {counts}>"
    assert {row["status"] for row in run.table("devices").to_dicts()} >= {"ok", "failed", "pending"}
    assert [row.module_name for row in run.table()] == [each.module_name for each in run.inventory()]  # type: ignore[attr-defined]
    for name in ("modules", "products", "missing_modules"):
        assert run.table(name).columns
    with pytest.raises(UsageError, match="'module' is no table of a run; there are inventory, devices, modules,"):
        run.table("module")  # type: ignore[arg-type]
    table = run.table()
    run.close()
    run.close()
    with pytest.raises(UsageError, match=r"'inventory', columns: account, .* is closed"):
        table.to_dicts()


def test_a_run_in_progress_has_the_same_tables(tmp_path: Path) -> None:
    with Run(unsealed(tmp_path / "run").folder) as run:
        assert repr(run).startswith(f"<Run {str(tmp_path / 'run')!r}: running, ")
        assert sum(row["status"] == "ok" for row in run.table("devices").to_dicts()) == run.devices.ok
