"""Files: atomic replacement, private folders, and opening what another user may have placed.

A file that others read is written beside itself and renamed once it is on disk. What is read is a regular file: a pipe
or a device is refused before it can block.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from auditor.errors import AuditorError, RunNotWritableError
from auditor.storage.foreign_access import (
    find_foreign_access,
    is_of_system,
    is_writable_by_others,
    refuse_foreign_links,
)

READABLE_BY_ALL = 0o644
"""Mode of metrics files: the collector is another user."""

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Modes of files and folders for their owner alone."""

MAX_BYTES = 1 << 20
"""Size up to which a settings file, or a file of rules or of a secret, is read."""

MAX_SPARSE_BYTES, MIN_FILLED_FRACTION = 1 << 28, 1 / 16
"""Larger files must be stored to this fraction at least. Others consist of holes, and reading them would take hours."""

_BLOCK_BYTES = 1 << 20
"""Bytes copied at a time."""

_KINDS = (
    (stat.S_ISDIR, os.strerror(errno.EISDIR)),
    (stat.S_ISFIFO, "is a pipe, not a regular file; write it to a file first"),
    (stat.S_ISLNK, "is a link; replace it by the file itself"),
    (stat.S_ISCHR, "is a device, not a regular file"),
    (stat.S_ISBLK, "is a device, not a regular file"),
    (stat.S_ISSOCK, "is a socket, not a regular file"),
)

_SECOND_NAME = "has a second name elsewhere; replace it by a copy"

_STALE_SECONDS = 60.0
"""Age from which an unlocked private folder was left by a killed process: a new one is locked within milliseconds."""

_PRIVATE_NAME = re.compile(r"auditor-work-[a-z]+-[a-z0-9_]{8}")


def open_regular_file(path: Path) -> BufferedReader:
    """Open a file that a person named for reading; links are followed.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder. ``strerror`` is the reason, and what to do.
    """
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def read_regular_file(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a file that a person named; raise OSError as ``open_regular_file``, or if it is larger."""
    with open_regular_file(path) as file:
        return _read(file, max_bytes)


def check_contained(folder: Path, name: str, *, max_links: int = 1) -> None:
    """Check, without opening it, that an entry of a folder is a file of that folder; a missing one is accepted.

    ``max_links`` is how many names it has in this folder. It may have others, as in a backup of hard links, only if no
    other user can have made them: the file and the folder belong to the caller or root, and no one else can write the
    folder.

    Raises:
        OSError: it is a link, a pipe, a device or a folder; another user may have given it a second name; it has
            another owner; or it consists of holes.
    """
    path = folder / name
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    _check_owned(found, folder.stat(), max_links)
    if found.st_size > MAX_SPARSE_BYTES and found.st_blocks * 512 < found.st_size * MIN_FILLED_FRACTION:
        with open_contained(folder, name) as file:
            if os.lseek(file.fileno(), 0, os.SEEK_HOLE) < found.st_size:
                raise OSError(errno.EFBIG, "consists of holes; no audit writes such a file")


def open_contained(folder: Path, name: str) -> BufferedReader:
    """Open a file of a folder that another user may have filled; raise OSError as ``check_contained``."""
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = _open(name, os.O_RDONLY | os.O_NOFOLLOW, parent)
        try:
            _check_owned(os.fstat(descriptor), os.fstat(parent))
        except OSError:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")
    finally:
        os.close(parent)


def read_contained(folder: Path, name: str, *, max_bytes: int) -> bytes:
    """Return the content of a file of a folder; raise OSError as ``check_contained``."""
    with open_contained(folder, name) as file:
        return _read(file, max_bytes)


def create_file(path: Path, content: bytes = b"", mode: int = PRIVATE_FILE) -> None:
    """Create a file that does not exist; raise FileExistsError if anything has its name, even a link."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _open(path: Path | str, flags: int, parent: int | None = None) -> int:
    """Open a regular file. It is checked before, because opening a device may do something, and after."""
    follow = not flags & os.O_NOFOLLOW
    check_regular(os.stat(path, dir_fd=parent, follow_symlinks=follow))
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    try:
        check_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(found: os.stat_result) -> None:
    """Raise OSError for a folder, a link, a pipe, a device or a socket."""
    for is_kind, reason in _KINDS:
        if is_kind(found.st_mode):
            raise OSError(errno.EINVAL, reason)


def _check_owned(found: os.stat_result, folder: os.stat_result, max_links: int = 1) -> None:
    """Check that a file may be read, by the metadata of it and of its folder; raise OSError as ``check_contained``."""
    check_regular(found)
    own = {os.geteuid(), 0}
    if found.st_nlink > max_links and ({found.st_uid, folder.st_uid} - own or is_writable_by_others(folder)):
        raise OSError(errno.EMLINK, _SECOND_NAME)
    if found.st_uid not in own | {folder.st_uid}:
        raise OSError(errno.EPERM, f"belongs to another user (uid {found.st_uid})")


def _read(file: BufferedReader, max_bytes: int) -> bytes:
    content = file.read(max_bytes + 1)
    if content is None:  # opened without waiting for content, as files of the kernel may
        raise OSError(errno.EAGAIN, "has no content yet; it is no stored file")
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"has more than {max_bytes:,} bytes")
    return content


_temporary: set[Path] = set()
"""Private folders and new files of this process, until it removes or renames them."""


@contextmanager
def private_folder(purpose: str, within: Path | None = None) -> Iterator[Path]:
    """Yield a new folder for temporary files that no other user can enter, and remove it at the end.

    Folders that killed processes left are removed before. ``purpose`` is a word of its name, in lower case. It is in
    the folder ``within``; default: that of temporary files. Raises OSError if it cannot be created.
    """
    root = Path(gettempdir()) if within is None else within
    _sweep_private_folders(root)
    folder = Path(mkdtemp(prefix=f"auditor-work-{purpose}-", dir=root))
    _temporary.add(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # without locks of the file system, no folder is ever swept
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _temporary.discard(folder)
        os.close(descriptor)


def remove_temporary() -> None:
    """Remove the private folders and new files of this process, before it exits without a clean-up."""
    for path in tuple(_temporary):
        if not path.is_dir():
            with contextlib.suppress(OSError):
                path.unlink()
        for _ in range(3):  # threads of DuckDB may still write to it
            shutil.rmtree(path, ignore_errors=True)


def _sweep_private_folders(root: Path) -> None:
    """Remove private folders of this user that no process uses."""
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if not _PRIVATE_NAME.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid != os.geteuid() or abs(time.time() - found.st_mtime) < _STALE_SECONDS:
                    continue
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(descriptor)


def create_own_file(path: Path) -> BufferedWriter:
    """Create a file to write, or empty the one that exists; raise OSError as ``open_own_file``."""
    file = os.fdopen(open_own_file(path, os.O_WRONLY | os.O_CREAT), "wb")
    file.truncate()
    return file


def open_own_file(path: Path, flags: int) -> int:
    """Open a file of a run to write to it; raise OSError for a link, a pipe, or a file with a second name."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE_FILE)
    try:
        found = os.fstat(descriptor)
        check_regular(found)
        if found.st_nlink > 1:
            raise OSError(errno.EMLINK, _SECOND_NAME)  # noqa: TRY301  the descriptor is closed
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def atomic_replace(path: Path, *, mode: int | None = None, or_overwrite: bool = False) -> Iterator[Path]:
    """Yield a new file to write to, and rename it to ``path`` if the block succeeds.

    If ``path`` is a link, the link is replaced, not its target. The new file is in the folder of ``path``, with a name
    that ends in ``.new``, which no metrics collector reads. Where others could replace it meanwhile, or a folder above
    it, it is in a private folder instead. If the process is killed, it remains; a ``resume`` removes it from a run.

    The file gets the ``mode``, or the one that the umask gives; but it is never more accessible than what it replaces.

    With ``or_overwrite``, a file that cannot be replaced is overwritten, such as one mounted alone into a container: a
    mount point, or the caller's own file in a folder that the caller cannot write. A kill can leave a part of it.

    Raises:
        RunNotWritableError: ``path`` is not a file, is reached by a link of another user, or cannot be written.
    """
    path = path.absolute()  # resolve would follow a link
    try:
        refuse_foreign_links(path.parent)
        folder = path.parent.resolve()
        replaced = _describe_replaced(path, folder)
        overwrite = or_overwrite and _is_own_in_unwritable_folder(folder / path.name)
        foreign = find_foreign_access(folder) is not None
        if not foreign and not overwrite:
            new = folder / f".{path.name[:100]}.{secrets.token_hex(4)}.new"
            _temporary.add(new)
            try:
                final_mode = _create(new, mode, replaced)
                yield new
                if stat.S_IMODE(new.stat().st_mode) != final_mode:  # not every file system has modes
                    new.chmod(final_mode)
                try:
                    _rename_durably(new, folder / path.name)
                except OSError as error:
                    if not or_overwrite or error.errno != errno.EBUSY:  # the code for a mount point
                        raise
                    with _open_folder(folder) as parent:
                        _overwrite(new, path.name, parent)
            finally:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)
                _temporary.discard(new)
        else:
            # Opened before the block: meanwhile, others may put a link in the place of the folder.
            with private_folder("output") as staging, _open_folder(folder) as parent:
                new = staging / f"{path.name[:100]}.new"
                final_mode = _create(new, mode, replaced)
                yield new
                if overwrite:
                    _overwrite(new, path.name, parent)
                else:
                    _copy_and_rename(new, parent, path.name, final_mode)
    except OSError as error:
        raise not_writable(path, error) from error


def is_special_output(path: Path) -> bool:
    """Return whether output goes into a pipe or a device, such as /dev/null, instead of replacing a file.

    Raises:
        RunNotWritableError: another user put it there, or a link to it.
    """
    with translate_os_errors(f"{path}: cannot be written"):
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
            return False
        path = path.absolute()
        if not is_of_system(path.parent):
            refuse_foreign_links(path)
            if found.st_uid not in {os.geteuid(), 0}:
                raise RunNotWritableError(f"{path}: is a pipe or a device of another user (uid {found.st_uid})")
        return True


def _describe_replaced(path: Path, folder: Path) -> os.stat_result | None:
    """Return the metadata of the file that is replaced; raise RunNotWritableError if there is something else."""
    if is_of_system(folder):
        raise RunNotWritableError(f"{path}: cannot be replaced: it is not a file")
    try:
        replaced = path.stat()
    except FileNotFoundError:  # also a link to nothing
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    if not stat.S_ISREG(replaced.st_mode):
        raise RunNotWritableError(f"{path}: cannot be replaced: it is not a file")
    return replaced


def _create(new: Path, mode: int | None, replaced: os.stat_result | None) -> int:
    """Create the new file, readable to no one who may not read it later; return its final mode."""
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        by_umask = stat.S_IMODE(os.fstat(descriptor).st_mode)
        before = None if replaced is None else stat.S_IMODE(replaced.st_mode) & 0o777
        if before is None:
            final = by_umask if mode is None else mode
        elif mode is None and replaced is not None and replaced.st_uid == os.geteuid():
            final = before
        else:
            final = before & (by_umask if mode is None else mode)
        if by_umask != (writable := final | stat.S_IRUSR | stat.S_IWUSR):
            os.fchmod(descriptor, writable)
    finally:
        os.close(descriptor)
    return final


def _is_own_in_unwritable_folder(path: Path) -> bool:
    """Return whether a regular file is the caller's own, in a folder that the caller cannot write."""
    if not os.path.lexists(path) or os.access(path.parent, os.W_OK | os.X_OK):
        return False
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    """Yield a descriptor of a folder whose path has no link; raise OSError if a part of it has become one."""
    descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folder.parts[1:]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _overwrite(source: Path, name: str, parent: int) -> None:
    """Copy a finished file over another one of the folder ``parent``, which keeps its mode and owner."""
    descriptor = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    with source.open("rb") as content, os.fdopen(descriptor, "wb") as file:
        check_regular(os.fstat(descriptor))
        file.truncate()
        shutil.copyfileobj(content, file, _BLOCK_BYTES)
        file.flush()
        os.fsync(descriptor)


def _copy_and_rename(source: Path, parent: int, name: str, mode: int) -> None:
    """Copy a finished file to the folder ``parent`` that others can write, by its descriptor."""
    new = f".{name[:100]}.{secrets.token_hex(4)}.new"
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
        with source.open("rb") as content, os.fdopen(os.open(new, flags, PRIVATE_FILE, dir_fd=parent), "wb") as file:
            shutil.copyfileobj(content, file, _BLOCK_BYTES)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(new, name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably; raise RunNotWritableError if that fails. A new one has its folder's mode.

    Only those who may enter the folder may read the file.
    """
    with translate_os_errors(f"{path}: cannot be written"):
        mode = _file_mode(path.parent)
    with atomic_replace(path, mode=mode) as new:
        new.write_bytes(content)


def put_in_place(new: Path, path: Path) -> None:
    """Rename a finished file to ``path``, durably, and let those read it who may enter its folder."""
    if stat.S_IMODE(new.stat().st_mode) != (mode := _file_mode(path.parent)):
        new.chmod(mode)
    _rename_durably(new, path)


def _file_mode(folder: Path) -> int:
    """Return the mode of a file that those may read who may enter its folder, and the owner may write."""
    return PRIVATE_FILE | (stat.S_IMODE(folder.stat().st_mode) & 0o044)


def _rename_durably(new: Path, path: Path) -> None:
    """Rename a finished file: first its bytes are on disk, then its name."""
    sync_to_disk(new)
    new.replace(path)
    sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translate_os_errors(failure: object, error: type[AuditorError] = RunNotWritableError) -> Iterator[None]:
    """Raise an error of class ``error`` for an OSError inside the block: ``failure`` and its reason."""
    try:
        yield
    except OSError as problem:
        raise error(f"{failure}: {problem.strerror or problem}") from problem


def not_writable(path: Path, error: OSError) -> RunNotWritableError:
    """Return the error for a file that cannot be written, with the reason of the system."""
    return RunNotWritableError(f"{path}: cannot be written: {error.strerror or error}")
