"""Paths through descriptors, for libraries that open files by their names: no one can redirect them meanwhile.

Where another user can rename a folder above a file, any name may lead elsewhere a moment after it was checked. A path
such as ``/proc/self/fd/7`` is the file that was opened and checked. Systems without such paths use the names.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from auditor.storage.files import PRIVATE_FILE, PRIVATE_FOLDER, open_contained, open_own_file
from auditor.storage.foreign_access import WRITABLE_BY_OTHERS, find_foreign_access

_DESCRIPTORS = Path("/proc/self/fd")
"""Paths of the open files of this process, on Linux. On macOS ``/dev/fd`` has only copies of descriptors."""


@contextmanager
def writable_path(path: Path) -> Iterator[Path]:
    """Yield a path to write a file by; the file is created, or keeps its content until it is truncated.

    Raises:
        OSError: it cannot be opened; or it is a link, a pipe or a device, or has a second name.
    """
    descriptor = open_own_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        yield _descriptor_path(descriptor, path)
    finally:
        os.close(descriptor)


def open_own_folder(path: Path) -> tuple[int, Path]:
    """Create a folder that only the caller can enter, unless it exists; return a descriptor and a path of it.

    The caller closes the descriptor when the path is not needed any more.

    Raises:
        OSError: it cannot be created or opened, or belongs to another user.
    """
    path.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        refuse_foreign_folder(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, _descriptor_path(descriptor, path)


def refuse_foreign_folder(folder: int) -> None:
    """Raise OSError if a folder belongs to another user than what the caller creates in it.

    The caller's own id is not compared, since network drives may give all that root creates to another user.
    """
    name = f".owner-{secrets.token_hex(4)}"
    probe = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE_FILE, dir_fd=folder)
    try:
        owner = os.fstat(folder).st_uid
        if owner != os.fstat(probe).st_uid:
            raise OSError(errno.EPERM, f"a working folder belongs to another user (uid {owner})")
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=folder)


def keeps_modes(folder: Path) -> bool:
    """Return whether files keep the modes that they are created with; some file systems show one mode for all.

    Raises:
        OSError: the folder cannot be written.
    """
    name = folder / f".mode-{secrets.token_hex(4)}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE_FILE)
    try:
        return not os.fstat(descriptor).st_mode & WRITABLE_BY_OTHERS
    finally:
        os.close(descriptor)
        name.unlink(missing_ok=True)


def _descriptor_path(descriptor: int, path: Path) -> Path:
    through = _DESCRIPTORS / str(descriptor)
    return through if through.exists() else path


_pinned: dict[Path, list[BufferedReader]] = {}
"""Open files by the folder of the links to them; they are closed once that folder is gone."""


def pin_files(folder: Path, names: Iterable[str], place: Path) -> Path:
    """Return a folder with those of the files ``names`` of ``folder`` that exist, as they were opened and checked.

    It is ``folder`` itself where no other user could replace a file of it. Otherwise it is a new folder in ``place``,
    which is private, and the files stay open until ``place`` is removed and another one is used.

    Raises:
        OSError: a file is none of this folder, see ``check_contained``; or ``place`` cannot be written.
    """
    for gone in [each for each in _pinned if not each.exists()]:
        for file in _pinned.pop(gone):
            file.close()
    if find_foreign_access(folder) is None or not _DESCRIPTORS.is_dir():
        return folder
    pinned = place / f"run-{secrets.token_hex(4)}"
    pinned.mkdir(PRIVATE_FOLDER, parents=True)
    opened = _pinned.setdefault(pinned, [])
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            opened.append(open_contained(folder, name))
            (pinned / name).symlink_to(_DESCRIPTORS / str(opened[-1].fileno()))
    return pinned
