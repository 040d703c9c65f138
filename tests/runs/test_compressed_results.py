"""Results that sealing compresses: read, verified and expanded again, whatever a kill, a disk or another user did."""

import gzip
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from msgspec import structs

import auditor
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.query.snapshot import open_snapshot
from auditor.runs import journal, views
from auditor.runs.folder import COMPRESSED_RESULTS, RESULTS, SEALED, refuse_run_file, results_name
from auditor.runs.journal import MIN_COMPRESSED_BYTES, compress_results, expand_results, replace_results
from auditor.runs.manifest import file_info, read_manifest
from auditor.runs.recovery import repair
from auditor.runs.seal import seal_run
from auditor.runs.verify import verify_run
from auditor.selection.baseline import find_baseline
from tests.other_user import OTHER_USER, as_other_user, let_others_enter, needs_root
from tests.runs.run_folders import edit_manifest, every_status, finish, named, ok, running

RANDOM = Random(7)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed run with compressed results, and beside it, as ``plain``, what they were."""
    folder = tmp_path_factory.mktemp("compressed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "MIN_COMPRESSED_BYTES", 0)
        built = every_status(folder / "run", afresh=True)
    (folder / "plain").write_bytes(gzip.decompress((built.folder / COMPRESSED_RESULTS).read_bytes()))
    return folder


@pytest.fixture
def run(tmp_path: Path, template: Path) -> Path:
    return shutil.copytree(template / "run", tmp_path / "audits" / "20261122T020000Z-nightly")


@pytest.fixture
def plain(template: Path) -> bytes:
    return (template / "plain").read_bytes()


def unseal(run: Path) -> None:
    """Make a run as if it was killed before its manifest was written."""
    for name in SEALED:
        (run / name).unlink()
    edit_manifest(run, lambda manifest: replace(manifest, state="running", finished_at=None, files=()))


def test_sealing_replaces_results_by_compressed_ones_with_their_digest(run: Path, plain: bytes) -> None:
    assert not (run / RESULTS).exists()
    assert len(plain.splitlines()) == 6
    infos = {info.name: info for info in read_manifest(run).files}
    assert RESULTS not in infos
    assert infos[COMPRESSED_RESULTS] == file_info(run / COMPRESSED_RESULTS)
    assert (run / COMPRESSED_RESULTS).stat().st_mode == (run / "devices.parquet").stat().st_mode
    assert verify_run(run) == []


@pytest.mark.slow
def test_only_large_results_are_compressed(tmp_path: Path) -> None:
    small = every_status(tmp_path / "small", afresh=True)
    assert (small.folder / RESULTS).is_file()
    fleet = [named(number) for number in range(5_000)]
    answers = (ok(each, ("ble", "1.0"), ("wifi", "2.1")) for each in fleet)
    outcomes = [structs.replace(each, request_id=str(UUID(int=RANDOM.getrandbits(128)))) for each in answers]
    large = running(tmp_path / "large", fleet, outcomes)
    size = (large.folder / RESULTS).stat().st_size
    assert size >= MIN_COMPRESSED_BYTES
    finish(large.folder)
    assert not (large.folder / RESULTS).exists()
    assert (large.folder / COMPRESSED_RESULTS).stat().st_size < size / 4
    assert verify_run(large.folder) == []


def counts(run: Path) -> auditor.DeviceCounts:
    with auditor.Run(run) as opened:
        return opened.devices


@pytest.mark.parametrize("left", ["compressed", "both", "half a new one"])
def test_a_run_that_was_killed_while_it_was_sealed_is_read_and_repaired(
    run: Path, plain: bytes, left: str, tmp_path: Path
) -> None:
    before = read_manifest(run)
    unseal(run)
    if left != "compressed":
        (run / RESULTS).write_bytes(plain)
    if left == "half a new one":
        whole = (run / COMPRESSED_RESULTS).rename(run / f".{COMPRESSED_RESULTS}.new")
        os.truncate(whole, 20)
    assert counts(run) == before.devices
    (tmp_path / "work").mkdir()
    assert open_snapshot(run, tmp_path / "work").counts == before.devices
    assert [each for each in verify_run(run) if "was killed" not in each] == []
    repair(run, before.devices)
    assert (run / RESULTS).read_bytes() == plain
    assert not (run / f".{COMPRESSED_RESULTS}.new").exists()
    finish(run)
    assert verify_run(run) == []


def test_a_reader_continues_if_results_are_compressed_while_it_reads(
    run: Path, plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseal(run)
    (run / RESULTS).write_bytes(plain)

    def found_before(folder: Path) -> str:
        name = results_name(folder)
        (run / RESULTS).unlink(missing_ok=True)
        return name

    monkeypatch.setattr(views, "results_name", found_before)
    assert open_snapshot(run, tmp_path / "work").counts == read_manifest(run).devices


def test_of_both_files_the_uncompressed_one_counts(run: Path, plain: bytes) -> None:
    unseal(run)
    lines = plain.splitlines(keepends=True)
    (run / RESULTS).write_bytes(b"".join(lines[:2]))  # a resume has begun to append to it
    edit_manifest(run, lambda manifest: replace(manifest, devices=auditor.DeviceCounts(pending=10)))
    assert counts(run).ok == 2
    repair(run)
    assert (run / RESULTS).read_bytes() == b"".join(lines[:2])


def test_a_sealed_run_whose_resume_was_killed_before_its_manifest_still_verifies(run: Path, plain: bytes) -> None:
    expand_results(run)
    assert (run / RESULTS).read_bytes() == plain
    assert (run / RESULTS).stat().st_mode == (run / COMPRESSED_RESULTS).stat().st_mode
    assert verify_run(run) == []


def test_a_changed_compressed_file_is_found_and_its_answers_are_not_carried(run: Path, plain: bytes) -> None:
    assert find_baseline(run.parent, "nightly", str(run)) == run
    (run / COMPRESSED_RESULTS).write_bytes(gzip.compress(plain.replace(b'"1.0"', b'"9.9"')))
    problems = verify_run(run)
    assert f"{COMPRESSED_RESULTS}: is not the file that was sealed (its digest differs)" in problems
    assert any("does not follow" in each for each in problems)
    with pytest.raises(RunFolderError, match=r"devices\.jsonl\.gz: is not the file that was sealed"):
        find_baseline(run.parent, "nightly", str(run))


def test_damage_is_found_by_verify_and_stops_a_repair(run: Path) -> None:
    content = (run / COMPRESSED_RESULTS).read_bytes()
    (run / COMPRESSED_RESULTS).write_bytes(content[:-10])
    assert f"{COMPRESSED_RESULTS}: is incomplete: its compressed data end too early" in verify_run(run)
    with pytest.raises(RunFolderError, match=r"devices\.jsonl\.gz: cannot be read: is incomplete"):
        repair(run, read_manifest(run).devices)
    assert not (run / RESULTS).exists()
    assert counts(run) == read_manifest(run).devices  # from its Parquet files


@pytest.mark.slow
@pytest.mark.parametrize("read", [verify_run, repair, counts], ids=["verify", "repair", "read"])
def test_a_bomb_is_refused_with_a_sentence_as_other_hostile_folders_are(
    run: Path, read: Callable[[Path], object]
) -> None:
    unseal(run)
    (run / COMPRESSED_RESULTS).write_bytes(gzip.compress(b"\n" * (256 << 20)))
    with pytest.raises(RunFolderError, match=r"devices\.jsonl\.gz: .*expands to more than 64 times its") as refused:
        read(run)
    assert refused.value.exit_code == 2
    assert sorted(path.name for path in run.iterdir() if path.suffix == ".new" or path.name == RESULTS) == []


def test_a_link_in_place_of_compressed_results_is_refused(run: Path, tmp_path: Path) -> None:
    target = (run / COMPRESSED_RESULTS).rename(tmp_path / "elsewhere.gz")
    (run / COMPRESSED_RESULTS).symlink_to(target)
    for read in (read_manifest, verify_run, repair):
        with pytest.raises(RunFolderError, match=r"devices\.jsonl\.gz: .*is a link"):
            read(run)
    assert not (run / RESULTS).exists()


def test_results_that_are_missing_in_both_forms_are_missed(run: Path) -> None:
    devices = read_manifest(run).devices
    (run / COMPRESSED_RESULTS).unlink()
    assert f"{RESULTS}: is missing" in verify_run(run)
    with pytest.raises(RunFolderError, match="is missing or empty"):
        repair(run, devices)


def test_what_cannot_be_compressed_is_sealed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, compressed: Path) -> bool:
        compressed.write_bytes(path.read_bytes()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "MIN_COMPRESSED_BYTES", 0)
    monkeypatch.setattr(journal, "compress_file", full)
    run = every_status(tmp_path / "run", afresh=True).folder
    assert "No space left on device" in "".join(capsys.readouterr())
    assert sorted(path.name for path in run.glob("*devices.jsonl*")) == [RESULTS]
    assert verify_run(run) == []
    monkeypatch.setattr(journal, "compress_file", lambda _path, _compressed: False)  # the copy differs
    assert compress_results(run) is None
    assert sorted(path.name for path in run.glob("*devices.jsonl*")) == [RESULTS]


def test_sealing_leaves_the_replacement_to_its_caller_who_cannot_be_abandoned(
    run: Path, plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MIN_COMPRESSED_BYTES", 0)
    (run / COMPRESSED_RESULTS).unlink()
    (run / RESULTS).write_bytes(plain)
    sealed = seal_run(run)
    assert sealed.compressed is not None
    assert (run / RESULTS).read_bytes() == plain
    assert not (run / COMPRESSED_RESULTS).exists()
    repair(run)  # by a resume
    assert not sealed.compressed.exists()
    with pytest.raises(RunNotWritableError, match=r"devices\.jsonl\.gz: cannot be written: No such file"):
        replace_results(run, sealed.compressed)
    assert (run / RESULTS).read_bytes() == plain


def test_compressed_results_are_a_file_of_the_run(run: Path) -> None:
    with pytest.raises(auditor.AuditorError, match="is a file of a run"):
        refuse_run_file(run / COMPRESSED_RESULTS)


@needs_root
def test_another_user_reads_compressed_results_of_a_folder_that_others_can_write(run: Path) -> None:
    unseal(run)
    for path in (run.parent, run, *run.iterdir()):
        os.chown(path, OTHER_USER, OTHER_USER)
    run.parent.chmod(0o777)
    let_others_enter(run.parent)
    assert as_other_user(lambda: counts(run).ok) == 4
    assert counts(run).ok == 4
