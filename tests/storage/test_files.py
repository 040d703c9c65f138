"""Reading and writing where another user may have placed links, pipes and devices; a second user needs root."""

import ast
import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from auditor.errors import RunNotWritableError
from auditor.storage.append_only import AppendOnlyFile, cut_torn_line
from auditor.storage.files import (
    READABLE_BY_ALL,
    atomic_replace,
    check_contained,
    open_contained,
    private_folder,
    read_contained,
    read_regular_file,
    replace_file,
)
from auditor.storage.foreign_access import MAX_LINKS, describe_foreign_access, find_foreign_access
from tests.other_user import OTHER_USER, as_other_user, let_others_enter, needs_root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir(0o755)
    return path


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_second_name(path: Path) -> None:
    path.parent.chmod(0o757)  # where others may have made it
    other = path.with_name("other")
    other.write_text("x")
    path.hardlink_to(other)


def make_holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def make_foreign(path: Path) -> None:
    path.write_text("x")
    os.chown(path, OTHER_USER, OTHER_USER)


CONTAINED = [
    (make_pipe, "is a pipe"),
    (make_link, "is a link"),
    (make_folder, "Is a directory"),
    (make_second_name, "has a second name"),
    pytest.param(make_foreign, "another user", marks=needs_root),
]


@pytest.mark.parametrize(("make", "reason"), CONTAINED)
def test_an_entry_that_is_no_file_of_the_folder_is_refused_at_once(
    folder: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(folder / "devices.jsonl")
    with pytest.raises(OSError, match=reason):
        check_contained(folder, "devices.jsonl")
    with pytest.raises(OSError, match=reason):
        open_contained(folder, "devices.jsonl")


@needs_root
def test_a_device_in_a_folder_is_refused_at_once(folder: Path) -> None:
    os.mknod(folder / "run.json", 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    with pytest.raises(OSError, match="is a device"):
        read_contained(folder, "run.json", max_bytes=10)


def test_a_file_of_holes_is_refused_and_a_large_limit_is_kept(folder: Path) -> None:
    make_holes(folder / "devices.jsonl")
    with pytest.raises(OSError, match="holes"):
        check_contained(folder, "devices.jsonl")
    (folder / "run.json").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_contained(folder, "run.json", max_bytes=10)


def test_files_of_a_folder_are_read_and_missing_ones_are_accepted(folder: Path) -> None:
    (folder / "run.json").write_bytes(b"{}")
    check_contained(folder, "run.json")
    check_contained(folder, "plan.parquet")
    assert read_contained(folder, "run.json", max_bytes=2) == b"{}"


@needs_root
def test_files_of_the_folders_owner_are_read_in_a_folder_of_another_user(folder: Path) -> None:
    make_foreign(folder / "run.json")
    os.chown(folder, OTHER_USER, OTHER_USER)
    assert read_contained(folder, "run.json", max_bytes=10) == b"x"


def test_a_second_name_that_only_the_caller_can_have_made_is_read_and_not_written(folder: Path) -> None:
    (folder / "run.json").write_bytes(b"{}")
    (folder.parent / "backup").hardlink_to(folder / "run.json")
    check_contained(folder, "run.json")
    assert read_contained(folder, "run.json", max_bytes=2) == b"{}"
    for write in (AppendOnlyFile, cut_torn_line):
        with pytest.raises((OSError, RunNotWritableError), match="has a second name"):
            write(folder / "run.json")


@pytest.mark.parametrize("change", [
    lambda folder: folder.chmod(0o757),
    lambda folder: folder.chmod(0o1777),  # others cannot replace a file there, but add one
    pytest.param(lambda folder: os.chown(folder, OTHER_USER, OTHER_USER), marks=needs_root),
    pytest.param(lambda folder: os.chown(folder / "run.json", OTHER_USER, OTHER_USER), marks=needs_root),
])  # fmt: skip
def test_a_second_name_that_another_user_can_have_made_is_refused(
    folder: Path, change: Callable[[Path], object]
) -> None:
    (folder / "run.json").write_bytes(b"{}")
    (folder.parent / "secret").hardlink_to(folder / "run.json")
    change(folder)
    with pytest.raises(OSError, match="has a second name"):
        check_contained(folder, "run.json")
    with pytest.raises(OSError, match="has a second name"):
        open_contained(folder, "run.json")


@pytest.mark.parametrize("special", ["/dev/zero", "/dev/null", "pipe", "."])
def test_a_named_file_that_is_a_device_or_a_pipe_is_refused_at_once(tmp_path: Path, special: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"(is a device|is a pipe|Is a directory)"):
        read_regular_file(tmp_path / special)


def test_a_named_file_may_be_a_link_and_has_a_size_limit(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"key")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "to-zero").symlink_to("/dev/zero")
    assert read_regular_file(tmp_path / "link") == b"key"
    with pytest.raises(OSError, match="more than 2 bytes"):
        read_regular_file(tmp_path / "link", max_bytes=2)
    with pytest.raises(OSError, match="is a device"):
        read_regular_file(tmp_path / "to-zero")


@pytest.mark.parametrize("make", [make_link, make_pipe, make_second_name])
def test_nothing_is_appended_to_or_cut_from_what_is_no_file_of_the_run(
    folder: Path, make: Callable[[Path], None]
) -> None:
    precious = folder / "precious"
    precious.write_bytes(b"line\ntorn")
    target = folder / "devices.jsonl"
    make(target) if make is not make_link else target.symlink_to(precious)
    with pytest.raises(RunNotWritableError, match=r"devices\.jsonl: cannot be written"):
        AppendOnlyFile(target)
    with pytest.raises(OSError, match=r"\w"):
        cut_torn_line(target)
    assert precious.read_bytes() == b"line\ntorn"


def test_a_link_is_replaced_itself(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "bashrc", tmp_path / "report.html", tmp_path / "new.html"
    target.write_text("mine")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (link, dangling):
        replace_file(path, b"page")
        assert (path.is_symlink(), path.read_bytes()) == (False, b"page")
    assert target.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/null", "/proc/self/fd/1", "/dev/fd/1"])
def test_a_device_is_not_replaced(path: str) -> None:
    with pytest.raises(RunNotWritableError, match="it is not a file"), atomic_replace(Path(path)):
        raise AssertionError
    assert os.path.lexists(path)


def write_over(path: Path, content: str) -> None:
    with atomic_replace(path, or_overwrite=True) as new:
        new.write_text(content)


@needs_root
def test_the_callers_own_file_in_a_folder_that_the_caller_cannot_write_is_overwritten(folder: Path) -> None:
    # As a file mounted alone into a container: its folder is of the image, which is root's.
    let_others_enter(folder)
    own, theirs, link = (folder / name for name in ("own.csv", "root.csv", "link.csv"))
    for path in (own, theirs):
        path.write_text("a much longer file")
    link.symlink_to(own)
    for path in (own, link):
        os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)

    def write() -> list[str]:
        write_over(own, "a,b\n")
        refused = []
        for path, or_overwrite in ((theirs, True), (link, True), (own, False), (folder / "new.csv", True)):
            with pytest.raises(RunNotWritableError) as error, atomic_replace(path, or_overwrite=or_overwrite):
                raise AssertionError
            refused.append(str(error.value).rpartition(": ")[2])
        return refused

    assert as_other_user(write) == ["Permission denied"] * 4
    assert (own.read_text(), own.stat().st_uid, theirs.read_text()) == ("a,b\n", OTHER_USER, "a much longer file")
    assert sorted(path.name for path in folder.iterdir()) == ["link.csv", "own.csv", "root.csv"]


@needs_root
def test_a_mount_point_is_overwritten(folder: Path) -> None:
    mounted, outside = folder / "out.csv", folder.parent / "outside.csv"
    mounted.touch()
    outside.write_text("a much longer file")
    code = f"""
from pathlib import Path
from auditor.cli.output import emit_file
emit_file(Path({str(mounted)!r}), lambda path: path.write_text("a,b\\n"))
"""
    script = 'mount --bind "$1" "$2" || exit 77; exec "$3" -c "$4"'
    words = ["unshare", "-m", "sh", "-c", script, "sh", str(outside), str(mounted), sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this system allows no mounts")
    assert (done.returncode, done.stderr) == (0, "")
    assert (outside.read_text(), mounted.read_text()) == ("a,b\n", "")
    assert [path.name for path in folder.iterdir()] == ["out.csv"]


def test_a_mode_is_never_widened(tmp_path: Path) -> None:
    path = tmp_path / "auditor.prom"
    with atomic_replace(path, mode=READABLE_BY_ALL) as new:
        new.write_text("1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    for mode in (0o600, 0o640, 0o604):
        path.chmod(mode)
        with atomic_replace(path, mode=READABLE_BY_ALL) as new:
            new.write_text("2")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    private = tmp_path / "private"
    private.mkdir(0o700)
    replace_file(private / "run.json", b"{}")
    assert stat.S_IMODE((private / "run.json").stat().st_mode) == 0o600


@needs_root
def test_a_link_of_another_user_on_the_way_is_refused(tmp_path: Path) -> None:
    for name in ("theirs", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "theirs" / "out").symlink_to(tmp_path / "target")
    os.chown(tmp_path / "theirs" / "out", OTHER_USER, OTHER_USER, follow_symlinks=False)
    with pytest.raises(RunNotWritableError, match=r"out: is a link of another user \(uid 54321\)"):
        replace_file(tmp_path / "theirs" / "out" / "report.html", b"page")
    assert list((tmp_path / "target").iterdir()) == []


@needs_root
@pytest.mark.parametrize("target", ["absolute", "relative"])
def test_a_link_of_another_user_that_an_own_link_leads_to_is_refused(tmp_path: Path, target: str) -> None:
    for name in ("admin", "shared", "rootonly"):
        (tmp_path / name).mkdir()
    (tmp_path / "shared").chmod(0o1777)
    theirs, own = tmp_path / "shared" / "current", tmp_path / "admin" / "reports"
    theirs.symlink_to(tmp_path / "rootonly")
    os.chown(theirs, OTHER_USER, OTHER_USER, follow_symlinks=False)
    own.symlink_to(Path("../shared/../shared/current") if target == "relative" else theirs)
    with pytest.raises(RunNotWritableError, match=r"shared/current: is a link of another user \(uid 54321\)"):
        replace_file(own / "report.html", b"page")
    assert list((tmp_path / "rootonly").iterdir()) == []
    assert find_foreign_access(own) == f"{theirs} is a link"
    theirs.unlink()
    theirs.symlink_to(tmp_path / "rootonly")  # root's own
    assert find_foreign_access(own) is None
    replace_file(own / "report.html", b"page")
    assert (tmp_path / "rootonly" / "report.html").read_bytes() == b"page"


@pytest.mark.parametrize("links", [MAX_LINKS, MAX_LINKS + 1])
def test_a_path_leads_through_as_many_links_as_the_system_follows(tmp_path: Path, links: int) -> None:
    (tmp_path / "0").mkdir()
    for number in range(links):
        (tmp_path / str(number + 1)).symlink_to(tmp_path / str(number))
    last = tmp_path / str(links)
    if links <= MAX_LINKS:
        replace_file(last / "file", b"x")
        assert (tmp_path / "0" / "file").read_bytes() == b"x"
    else:
        with pytest.raises(RunNotWritableError, match=r"[Tt]oo many"):
            replace_file(last / "file", b"x")


@needs_root
@pytest.mark.parametrize("swapped", ["the folder", "the folder above"])
def test_a_folder_that_becomes_a_link_during_the_work_gets_the_file_itself(tmp_path: Path, swapped: str) -> None:
    theirs, rootonly = tmp_path / "out" / "sub", tmp_path / "rootonly"
    theirs.mkdir(parents=True)
    (rootonly / "sub").mkdir(parents=True)
    for place in (rootonly, rootonly / "sub"):
        (place / "fleet.csv").write_text("precious")
    for folder in (theirs, theirs.parent):
        os.chown(folder, OTHER_USER, OTHER_USER)
    target = theirs if swapped == "the folder" else theirs.parent
    with atomic_replace(theirs / "fleet.csv") as new:
        target.rename(tmp_path / "gone")
        target.symlink_to(rootonly)
        new.write_text("rows")
    gone = tmp_path / "gone" if swapped == "the folder" else tmp_path / "gone" / "sub"
    assert (gone / "fleet.csv").read_text() == "rows"
    assert {path.read_text() for path in rootonly.rglob("fleet.csv")} == {"precious"}


@needs_root
def test_a_file_in_a_directory_of_another_user_is_written_elsewhere_first(tmp_path: Path) -> None:
    theirs, precious = tmp_path / "theirs", tmp_path / "precious"
    theirs.mkdir()
    precious.write_text("mine")
    (theirs / "report.html").write_text("old")
    (theirs / "report.html").chmod(0o666)
    for path in (theirs / "report.html", theirs):
        os.chown(path, OTHER_USER, OTHER_USER)
    with atomic_replace(theirs / "report.html") as new:
        assert theirs not in new.parents  # nothing in their directory can be swapped for a link meanwhile
        assert [path.name for path in theirs.iterdir()] == ["report.html"]
        new.write_text("page")
    found = (theirs / "report.html").stat()
    assert ((theirs / "report.html").read_text(), found.st_uid) == ("page", 0)
    assert stat.S_IMODE(found.st_mode) & 0o022 == 0  # the mode of their file is not taken over
    assert [path.name for path in theirs.iterdir()] == ["report.html"]


def test_the_caller_is_no_other_user(tmp_path: Path) -> None:
    assert describe_foreign_access(tmp_path) is None
    assert describe_foreign_access(Path("/tmp")) is None
    tmp_path.chmod(0o777)
    assert describe_foreign_access(tmp_path) == "can be written by other users"
    tmp_path.chmod(0o1777)
    assert describe_foreign_access(tmp_path) is None
    (tmp_path / "link").symlink_to(tmp_path)
    assert describe_foreign_access(tmp_path / "link") == "is a link"
    with pytest.raises(OSError, match="No such file") as missing:
        describe_foreign_access(tmp_path / "missing")
    assert missing.value.errno == errno.ENOENT


def test_a_group_is_found_only_where_a_group_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queried: list[int] = []

    def query(gid: int) -> bool:
        queried.append(gid)
        return True

    monkeypatch.setattr("auditor.storage.foreign_access._is_private_group", query)
    for mode, access in ((0o755, None), (0o700, None), (0o777, "can be written by other users")):
        tmp_path.chmod(mode)
        assert describe_foreign_access(tmp_path) == access
    assert queried == []
    tmp_path.chmod(0o775)
    assert describe_foreign_access(tmp_path) is None
    assert queried == [tmp_path.stat().st_gid]


@pytest.fixture
def temporary_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_private_folder_is_removed_and_those_of_killed_processes_are_swept(temporary_root: Path) -> None:
    tmp_path = temporary_root
    old = time.time() - 3_600
    for name in ("auditor-work-read-abcdefgh", "auditor-work-read-in_use_1", "auditor-54321", "auditor-work-notes"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (old, old))
    with private_folder("sql") as used:
        os.utime(used, (old, old))
        with private_folder("read") as work:
            assert stat.S_IMODE(work.stat().st_mode) == 0o700
            assert used.is_dir()
            assert not (tmp_path / "auditor-work-read-abcdefgh").exists()
        assert not work.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["auditor-54321", "auditor-work-notes"]


@pytest.mark.slow
def test_every_temporary_folder_of_the_system_is_a_private_one() -> None:
    # Others are never swept after a kill. With `dir`, they are inside a private folder or a run.
    for module in (Path(__file__).parents[2] / "auditor").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) in {"TemporaryDirectory", "mkdtemp", "NamedTemporaryFile", "mkstemp"}:
                assert "dir" in [keyword.arg for keyword in call.keywords], f"{module}:{call.lineno}"


@needs_root
def test_a_private_folder_of_another_user_is_not_swept(temporary_root: Path) -> None:
    theirs = temporary_root / "auditor-work-read-abcdefgh"
    theirs.mkdir()
    os.utime(theirs, (0, 0))
    os.chown(theirs, OTHER_USER, OTHER_USER)
    with private_folder("read"):
        assert theirs.is_dir()
    shutil.rmtree(theirs)
