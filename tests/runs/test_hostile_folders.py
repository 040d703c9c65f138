"""Run folders that another user prepared: nothing in them is followed, waited for, or changed outside of them."""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import auditor
from auditor.errors import AuditorError, RunFolderError, RunNotWritableError
from auditor.runs.folder import RunCatalog, find_run, has_manifest
from auditor.runs.locking import create_run_folder
from auditor.runs.manifest import read_manifest
from auditor.runs.recovery import repair, rotate_failures
from auditor.runs.retention import prune_runs
from auditor.runs.verify import verify_run
from auditor.runs.views import define_sealed_views
from auditor.storage.database import Database
from tests.analysis.recorded_runs import write_days
from tests.database import connect
from tests.other_user import OTHER_USER, as_other_user, let_others_enter, needs_root
from tests.runs.run_folders import edit_manifest, every_status

FILES = ("run.json", "fleet.parquet", "devices.jsonl", "failures.jsonl", "devices.parquet", "inventory.csv")


def link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def second_name(path: Path, precious: Path) -> None:
    path.parent.chmod(0o757)  # where others may have made it
    path.hardlink_to(precious)


def pipe(path: Path, precious: Path) -> None:
    assert precious.exists()
    os.mkfifo(path)


def folder(path: Path, precious: Path) -> None:
    assert precious.exists()
    path.mkdir()


def to_zero(path: Path, precious: Path) -> None:
    assert precious.exists()
    path.symlink_to("/dev/zero")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return every_status(tmp_path_factory.mktemp("template") / "run").folder


@pytest.fixture
def run(tmp_path: Path, template: Path) -> Path:
    return shutil.copytree(template, tmp_path / "audits" / "run")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "bashrc"
    path.write_bytes(b"mine\ntorn")
    return path


@pytest.mark.parametrize("put", [link, second_name, pipe, folder, to_zero])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_leads_out_of_the_folder_is_refused_by_name(
    run: Path, precious: Path, name: str, put: Callable[[Path, Path], None]
) -> None:
    (run / name).unlink()
    put(run / name, precious)
    started = time.monotonic()
    for read in (lambda: read_manifest(run), lambda: auditor.Run(run), lambda: verify_run(run)):
        with pytest.raises(RunFolderError, match=name):
            read()
    assert time.monotonic() - started < 5
    assert precious.read_bytes() == b"mine\ntorn"
    assert RunCatalog(run.parent).runs == []  # other commands pass over it


def test_a_backup_of_hard_links_is_read(run: Path, tmp_path: Path) -> None:
    backup = shutil.copytree(run, tmp_path / "backup" / "run", copy_function=os.link)
    for folder in (run, backup):
        assert (folder / "run.json").stat().st_nlink == 2
        assert not verify_run(folder)
        with auditor.Run(folder) as opened:
            assert opened.devices == read_manifest(run).devices
    assert [each.folder for each in RunCatalog(backup.parent).runs] == [backup]
    with pytest.raises(RunNotWritableError, match=r"devices\.jsonl: cannot be written: has a second name"):
        repair(backup)


@pytest.mark.parametrize("put", [link, second_name, pipe, folder, to_zero])
@pytest.mark.parametrize(
    "name", ["devices.jsonl", "devices.jsonl.gz", "failures.jsonl", ".remaining.parquet", ".sealing", ".reserve"]
)
def test_a_repair_follows_nothing(run: Path, precious: Path, name: str, put: Callable[[Path, Path], None]) -> None:
    (run / name).unlink(missing_ok=True)
    put(run / name, precious)
    refused = pytest.raises((RunFolderError, OSError), match=name) if put in {link, pipe, to_zero} else None
    with refused or contextlib.suppress(AuditorError, OSError):
        repair(run)
    with contextlib.suppress(AuditorError, OSError):
        rotate_failures(run / "failures.jsonl")
    assert precious.read_bytes() == b"mine\ntorn"


def test_a_working_folder_that_leads_elsewhere_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run / ".discovery").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match=r"\.discovery: cannot be used: is a link"):
        repair(run)
    (run / ".discovery").unlink()
    (run / ".discovery").mkdir()
    (run / ".discovery" / "0.jsonl").symlink_to(tmp_path / "elsewhere" / "planted")
    with pytest.raises(RunFolderError, match=r"0\.jsonl: cannot be used: is a link"):
        repair(run)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_rotated_failures_replace_a_link_that_has_their_name(run: Path, precious: Path) -> None:
    (run / "failures.1.jsonl").symlink_to(precious)
    before = (run / "failures.jsonl").read_bytes()
    rotate_failures(run / "failures.jsonl")
    assert precious.read_bytes() == b"mine\ntorn"
    assert (run / "failures.2.jsonl").read_bytes() == before
    assert (run / "failures.jsonl").read_bytes() == b""


def test_failures_are_rotated_once_if_the_process_is_killed_in_between(run: Path) -> None:
    before = (run / "failures.jsonl").read_bytes()
    (run / "failures.1.jsonl").write_bytes(before)
    rotate_failures(run / "failures.jsonl")
    assert sorted(path.name for path in run.glob("failures*")) == ["failures.1.jsonl", "failures.jsonl"]
    assert (run / "failures.1.jsonl").read_bytes() == before


def test_answers_that_were_rotated_away_are_not_queried_again(run: Path) -> None:
    counts = read_manifest(run).devices
    (run / "devices.jsonl").rename(run / "devices.jsonl.1")
    (run / "devices.jsonl").touch()
    with pytest.raises(RunFolderError, match=r"missing or empty.*rename devices\.jsonl\.1 to devices\.jsonl"):
        repair(run, counts)
    (run / "devices.jsonl.1").replace(run / "devices.jsonl")
    repair(run, counts)


def test_a_manifest_of_many_megabytes_is_refused(run: Path) -> None:
    with (run / "run.json").open("r+b") as file:
        file.truncate(64 << 20)
    with pytest.raises(RunFolderError, match="more than 33,554,432 bytes"):
        read_manifest(run)


@pytest.mark.parametrize("values", ["[]", "{}", "0"])
def test_a_manifest_of_very_many_values_is_refused_before_they_take_memory(run: Path, values: str) -> None:
    content = (run / "run.json").read_text().rstrip().removesuffix("}")
    (run / "run.json").write_text(f'{content}, "more": [{values}{f",{values}" * 2_000_000}]}}')
    with pytest.raises(RunFolderError, match="more than 2,000,000 values"):
        read_manifest(run)


@needs_root
def test_manifests_of_other_users_are_read_up_to_a_total_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.runs.folder.MAX_FOREIGN_MANIFEST_BYTES", 3 * 4096)
    for number in range(5):
        theirs = shutil.copytree(run, run.with_name(f"theirs-{number}"))
        for path in (theirs, *theirs.iterdir()):
            os.chown(path, OTHER_USER, OTHER_USER)
        shutil.copytree(run, run.with_name(f"mine-{number}"))
    catalog = RunCatalog(run.parent)
    names = [each.folder.name for each in catalog.runs]
    assert len([name for name in names if name.startswith("theirs")]) == 3
    assert len(names) == 3 + 6
    assert [str(error) for error in catalog.unreadable if "are too large" not in str(error)] == []


def count_rows(folder: Path) -> list[tuple[object, ...]]:
    with auditor.query_run(folder, "SELECT count(*) FROM fleet") as result:
        return list(result.table)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fleet.parquet", "devices.parquet", "modules.parquet"])
def test_a_file_of_very_many_equal_rows_is_refused(run: Path, name: str) -> None:
    write_repeated(run / name, f"FROM '{run / name}' LIMIT 1", 1_500_000)
    reads: list[Callable[[Path], object]] = [verify_run] if name == "fleet.parquet" else [auditor.Run]
    for read in (*reads, count_rows):
        with pytest.raises(RunFolderError, match=rf"{name}: has 1,500,000 rows in [\d,]+ bytes"):
            read(run)


@pytest.mark.parametrize("name", ["plan.parquet", "carried.parquet", "connections.parquet"])
def test_an_optional_file_of_very_many_equal_rows_is_refused(run: Path, name: str) -> None:
    rows = "SELECT 'eu' AS account, 'p' AS product_key, 'd' AS device_name, 'i' AS iot_id, NULL AS last_online_at"
    write_repeated(run / name, rows, 1_500_000)
    with pytest.raises(RunFolderError, match=rf"{name}: has 1,500,000 rows in [\d,]+ bytes"):
        verify_run(run)


@pytest.mark.parametrize("name", ["changes.parquet", "fleet.parquet", "devices.parquet", "modules.parquet"])
@pytest.mark.slow
def test_a_file_of_very_many_equal_rows_is_refused_among_several_runs(tmp_path: Path, name: str) -> None:
    directory = write_days(tmp_path / "audits")
    newest = directory / "20261125T020000Z-nightly"
    write_repeated(newest / name, f"FROM '{newest / name}' LIMIT 1", 1_500_000)
    refused = pytest.raises(RunFolderError, match=rf"{name}: has 1,500,000 rows in [\d,]+ bytes")
    with refused, auditor.query_runs(directory, "FROM changes"):
        pass
    if name in {"changes.parquet", "modules.parquet"}:
        with refused, auditor.read_timeline(directory, "device0001"):
            pass
    if name == "changes.parquet":
        with refused:
            verify_run(newest)


@pytest.mark.parametrize("name", ["fleet.parquet", "devices.parquet", "modules.parquet"])
def test_a_file_whose_rows_share_a_long_text_is_refused(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.storage.database.MIN_TEXT_BYTES", 50_000_000)
    assert count_rows(run) == [(10,)]
    rows = f"SELECT * REPLACE (repeat('a', 5_000) AS product_key) FROM (FROM '{run / name}' LIMIT 1)"
    write_repeated(run / name, rows, 20_000)
    with pytest.raises(RunFolderError, match=rf"{name}: has more than 50,000,000 bytes of text in [\d,]+ bytes"):
        count_rows(run)


def write_repeated(path: Path, row: str, times: int) -> None:
    """Replace a file by one whose rows are all one row, in as few bytes as possible."""
    options = "FORMAT parquet, ROW_GROUP_SIZE 2_000_000, DICTIONARY_SIZE_LIMIT 1_000_000, COMPRESSION zstd"
    new = path.with_name("new.parquet")
    with connect() as database:
        database.execute(f"COPY (SELECT r.* FROM ({row}) r, range({times})) TO '{new}' ({options})")
    new.replace(path)


@pytest.mark.parametrize(("names", "accounts", "is_read"), [(30, 1, True), (80, 1, False), (80, 3, True)])
def test_more_names_of_attributes_than_fleet_files_can_have_are_refused(
    run: Path, names: int, accounts: int, *, is_read: bool
) -> None:
    attributes = "map_from_entries([{'k': 'a' || (ordinal % 10 * 8 + i), 'v': 'x'} for i in range(8)])"
    chosen = f"CASE WHEN ordinal % 10 * 8 < {names} THEN {attributes}::MAP(VARCHAR, VARCHAR) END"
    rows = f"SELECT * REPLACE ('eu' || ordinal % {accounts} AS account, {chosen} AS attributes)"
    with connect() as database:
        database.execute(f"COPY ({rows} FROM '{run / 'devices.parquet'}') TO '{run / 'new'}' (FORMAT parquet)")
    (run / "new").replace(run / "devices.parquet")
    refused = pytest.raises(
        RunFolderError, match=r"devices\.parquet: its devices have more than 35 names of attributes"
    )
    with contextlib.nullcontext() if is_read else refused, auditor.query_run(run, "FROM devices") as result:
        assert sum(column.startswith("a") and column[1:].isdigit() for column in result.table.columns) == {30: 32}.get(
            names, names
        )


@needs_root
@pytest.mark.parametrize("put", [link, pipe, to_zero])
def test_files_that_are_replaced_after_the_check_are_not_opened(
    run: Path, precious: Path, put: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with auditor.Run(run) as opened:
        inventory, counts = list(opened.inventory()), opened.devices
    for path in (run, *run.iterdir()):
        os.chown(path, OTHER_USER, OTHER_USER)

    def replace_and_define(database: Database, folder: Path) -> None:
        for name in ("devices.parquet", "modules.parquet"):
            (run / name).rename(run / f"{name}.kept")
            put(run / name, precious)
        define_sealed_views(database, folder)

    def restore() -> None:
        for name in ("devices.parquet", "modules.parquet"):
            (run / f"{name}.kept").replace(run / name)

    monkeypatch.setattr("auditor.query.run.define_sealed_views", replace_and_define)
    with auditor.Run(run) as opened:
        assert (list(opened.inventory()), opened.devices) == (inventory, counts)
    restore()
    monkeypatch.setattr("auditor.query.sql.define_sealed_views", replace_and_define)
    with auditor.query_run(run, "SELECT count(*)::BIGINT FROM modules") as result:
        assert list(result.table) == [(sum(each.devices for each in inventory),)]


@needs_root
def test_a_folder_that_cannot_be_entered_is_passed_over(tmp_path: Path, run: Path) -> None:
    # As lost+found on a volume of its own, a folder of root, or a run of another user.
    for name in ("lost+found", ".snapshot", "20261101T000000Z-theirs"):
        (run.parent / name).mkdir(0o700)
    let_others_enter(tmp_path)

    def read() -> tuple[list[str], list[str], bool]:
        catalog = RunCatalog(run.parent)
        unreadable = [str(error).rsplit("/", 1)[-1] for error in catalog.unreadable]
        return [each.folder.name for each in catalog.runs], unreadable, has_manifest(run.parent / "lost+found")

    run.chmod(0o755)
    run.parent.chmod(0o755)
    assert as_other_user(read) == (["run"], ["20261101T000000Z-theirs: cannot be read: Permission denied"], False)
    assert as_other_user(lambda: find_run(run.parent).name) == "run"


def test_runs_of_a_wrong_clock_are_neither_the_newest_nor_pruned(run: Path) -> None:
    def at(name: str, started: str) -> Path:
        path = shutil.copytree(run, run.parent / name)
        edit_manifest(path, lambda manifest: replace(manifest, started_at=started))
        return path

    def stamp(seconds: float) -> tuple[str, str]:
        moment = time.gmtime(time.time() + seconds)
        return time.strftime("%Y%m%dT%H%M%SZ-nightly", moment), time.strftime("%Y-%m-%dT%H:%M:%S.000Z", moment)

    day = 86_400
    last, before, ahead = (at(*stamp(days * day)) for days in (-1, -2, 40))
    at("99991231T235959Z-nightly", "9999-12-31T23:59:59.000Z")
    at("99991231T235959Z-other", stamp(-3 * day)[1])  # only the name is impossible
    at("zzz", "zzzz")
    shutil.rmtree(run)
    catalog = RunCatalog(last.parent)
    assert [each.folder.name for each in catalog.runs][:2] == [last.name, before.name]
    assert find_run(last.parent) == last
    latest = catalog.latest()
    assert latest is not None
    previous = catalog.previous(*latest)
    assert previous is not None
    assert previous.folder == before
    pruned = prune_runs(last.parent, keep=1)
    assert not ahead.exists() or str(ahead) in " ".join(pruned.skipped)
    assert ahead.is_dir()
    assert last.is_dir()
    assert len([each for each in pruned.skipped if "started in the future" in each]) == 4


def test_where_every_run_is_in_the_future_the_clock_is_wrong_and_the_order_is_kept(run: Path) -> None:
    for year in (2997, 2998, 2999):
        path, started = shutil.copytree(run, run.parent / f"{year}"), f"{year}-01-01T00:00:00.000Z"
        edit_manifest(path, partial(replace, started_at=started))
    shutil.rmtree(run)
    assert [each.folder.name for each in RunCatalog(run.parent).runs] == ["2999", "2998", "2997"]


def test_a_run_folder_is_private_unless_the_group_may_read(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        (path / "fleet.parquet").write_bytes(b"")
        (path / "run.json").write_text("{}")

    before = os.umask(0o077)
    try:
        for group_readable, modes in ((False, (0o700, 0o600)), (True, (0o750, 0o640))):
            path, lock = create_run_folder(tmp_path, "nightly", fill, now=1e9, group_readable=group_readable)
            lock.release()
            found = {stat.S_IMODE(each.stat().st_mode) for each in path.iterdir()}
            assert (stat.S_IMODE(path.stat().st_mode), found) == (modes[0], {modes[1]})
    finally:
        os.umask(before)
